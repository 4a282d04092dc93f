from dataclasses import replace

import numpy as np
import pytest

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.runtime.conditions import ConditionSettings
from persephonee.clients.runtime.device_database import DeviceDatabase
from persephonee.clients.runtime.device_state import ScriptedClock
from persephonee.clients.runtime.drift import DriftSettings
from persephonee.clients.runtime.event_log import EventLog
from persephonee.clients.runtime.exploration import Explored, Validation, agreement_at, explore_logits, raised_threshold
from persephonee.clients.runtime.orchestrator import Orchestrator
from persephonee.clients.runtime.persistent_state import MAX_EXPLORED, PersistentState
from persephonee.clients.runtime.phases import Phase, Signal, next_phase
from persephonee.clients.runtime.settings import OrchestratorSettings
from tests.clients.runtime.scripted_device import READY

SETTINGS = OrchestratorSettings(
    p_expl=0.3,
    window=10,
    collapse_window=20,
    drift=DriftSettings(rule="plain", window=5, margin=0.2, times=2),
    conditions=ConditionSettings(min_new_samples=50, min_new_when_asked=10, min_calibration=5),
)
VALIDATION = Validation(
    round=1, threshold=0.5, exits=(0,), agreement=1.0, early_fraction=0.8, losses=((0.1, 0.1, 0.1, 0.1) * 25,)
)
GOOD = Explored(losses=(0.1,), confidences=(0.9,), agrees=(True,))
BAD = Explored(losses=(2.0,), confidences=(0.72,), agrees=(False,))


@pytest.fixture
def database():
    database = DeviceDatabase(None)
    yield database
    database.close()


@pytest.fixture
def start(database):
    """Return a function that starts an orchestrator on the same database, as after a kill, and its event log."""

    def start(settings: OrchestratorSettings = SETTINGS, validated: bool = False):
        events = EventLog(database, ScriptedClock(0.0))
        orchestrator = Orchestrator(settings, PersistentState(database), events, num_exits=1, seed=3)
        orchestrator.start_again()
        if validated:
            orchestrator.end_round(1, VALIDATION.threshold, VALIDATION)
        return orchestrator, events

    return start


def kinds(events: EventLog) -> list[str]:
    return [event.kind for event in events.last(100)]


@pytest.mark.parametrize(
    ("phase", "signal", "following"),
    [
        (Phase.INFERENCE, Signal.EXPLORE, Phase.EXPLORATION),
        (Phase.EXPLORATION, Signal.EXPLORED, Phase.INFERENCE),
        (Phase.INFERENCE, Signal.PERSONALISE, Phase.PERSONALISATION),
        (Phase.PERSONALISATION, Signal.DONE, Phase.INFERENCE),
        (Phase.PERSONALISATION, Signal.GIVEN_UP, Phase.INFERENCE),
        (Phase.PERSONALISATION, Signal.STARTED_AGAIN, Phase.INFERENCE),
    ],
)
def test_the_phases_follow_each_other(phase, signal, following):
    assert next_phase(phase, signal) is following


def test_a_signal_that_means_nothing_in_a_phase_is_refused():
    with pytest.raises(ClientSettingsError, match="'explore' means nothing in the phase personalisation"):
        next_phase(Phase.PERSONALISATION, Signal.EXPLORE)


def test_the_device_explores_the_fraction_that_it_is_told_and_the_same_frames_again(start):
    orchestrator, _ = start()
    wanted = []
    for _ in range(1000):
        wanted.append(orchestrator.wants_to_explore(READY))
        orchestrator.note_answer(True, None)
    # 1000 draws with p = 0.3: four standard deviations are 58
    assert abs(sum(wanted) - 300) < 58
    again, _ = start()
    again.state = replace(again.state, frames=0)
    for explores in wanted:
        assert again.wants_to_explore(READY) == explores
        again.note_answer(True, None)


def test_a_window_s_agreement_and_threshold_by_hand():
    window = [GOOD] * 8 + [BAD] * 2
    assert agreement_at(window, 0.5) == (0.8, 1.0)
    # above 0.72 the two wrong ones go on to the last exit, which agrees with itself
    assert agreement_at(window, 0.75) == (1.0, 0.8)
    assert raised_threshold(window, 0.5, needed=1.0) == 0.75
    assert raised_threshold(window, 0.5, needed=0.8) == 0.5
    assert raised_threshold([replace(BAD, confidences=(1.0,))], 0.5, needed=1.0) == 1.0


def test_losses_are_cross_entropies_against_the_last_exit():
    logits = np.log(np.array([[[0.6, 0.3, 0.1]], [[0.2, 0.7, 0.1]]]))
    (sample,) = explore_logits(logits)
    assert sample.losses == pytest.approx((-np.log(0.3),), abs=1e-4)
    assert sample.confidences == pytest.approx((0.6,))
    assert sample.agrees == (False,)


def test_a_loss_that_is_consistently_higher_raises_the_threshold_at_once_and_asks_for_a_round(start):
    orchestrator, events = start(validated=True)
    for _ in range(10):
        orchestrator.note_answer(True, GOOD)
    assert orchestrator.state.threshold == 0.5
    for _ in range(6):
        orchestrator.note_answer(True, BAD)
    assert orchestrator.state.threshold == 0.75
    assert kinds(events) == ["drift", "threshold raised"]
    drift, raised = events.last(2)
    assert drift.reason == ("plain finds that the loss of exit 0 has risen to 0.480 nats, against 0.100 at calibration")
    assert raised.details == {"before": 0.5, "after": 0.75}
    assert orchestrator.decide(10, 5, READY).go


def test_after_an_alarm_the_threshold_goes_on_to_follow_exploration(start):
    orchestrator, _ = start(validated=True)
    for _ in range(10):
        orchestrator.note_answer(True, BAD)
    orchestrator.note_answer(True, replace(BAD, confidences=(0.93,)))
    assert orchestrator.state.threshold == 0.95


def test_an_orchestrator_that_only_watches_raises_nothing(start):
    orchestrator, events = start(replace(SETTINGS, adapts=False), validated=True)
    for _ in range(20):
        orchestrator.note_answer(True, BAD)
    assert orchestrator.state.threshold == 0.5
    assert not orchestrator.state.asked
    assert set(kinds(events)) == {"drift"}


def test_drift_is_noticed_by_a_restarted_device_as_by_one_that_ran_on(start):
    orchestrator, _ = start(validated=True)
    for _ in range(3):
        orchestrator.note_answer(True, GOOD)
    for _ in range(2):
        orchestrator.note_answer(True, BAD)
        orchestrator, events = start()
    assert "drift" not in kinds(events)
    # windows of 5 with one, two bad samples: 0.48 and 0.86 against 0.1 + 0.2, twice in a row
    orchestrator.note_answer(True, BAD)
    assert "drift" in kinds(events)


def test_a_device_that_is_never_personalised_remembers_the_latest_explored_samples_only(start, database):
    orchestrator, _ = start(validated=True)
    samples = [replace(GOOD, confidences=(i / 10_000,)) for i in range(MAX_EXPLORED + 20)]
    with database.transaction():
        for sample in samples:
            orchestrator.note_answer(True, sample)
    assert orchestrator._explored == samples[20:]
    # as a restarted device does
    assert start()[0]._explored == samples[20:]


def test_a_collapse_of_the_exit_rates_is_flagged(start):
    orchestrator, events = start(validated=True)
    for _ in range(20):
        orchestrator.note_answer(False, None)
    assert kinds(events) == ["exit rates collapsed"]
    assert "0% of the last 20 samples, against 80% at calibration" in events.last(1)[0].reason
    assert orchestrator.state.asked


def test_exit_rates_that_vary_by_chance_are_no_collapse(start):
    orchestrator, events = start(validated=True)
    exit_indices = np.random.default_rng(0).random(500) < 0.75
    for left_early in exit_indices.tolist():
        orchestrator.note_answer(left_early, None)
    assert kinds(events) == []


def test_a_threshold_that_was_raised_explains_lower_exit_rates(start):
    orchestrator, events = start(validated=True)
    for _ in range(10):
        orchestrator.note_answer(True, BAD)
    for _ in range(40):
        orchestrator.note_answer(False, None)
    assert "exit rates collapsed" not in kinds(events)


def test_the_state_outlives_the_process(start):
    orchestrator, _ = start(validated=True)
    for _ in range(10):
        orchestrator.note_answer(True, BAD)
    again, _ = start()
    assert again.state == orchestrator.state
    assert again.validation == VALIDATION


def test_a_kill_in_a_round_leads_back_to_inference(start):
    orchestrator, _ = start()
    orchestrator.begin_round(7, "enough")
    again, _ = start()
    assert again.state.phase is Phase.INFERENCE
    assert again.state.round == 0


def test_a_round_puts_its_threshold_in_force_and_counts_samples_from_its_beginning(start):
    orchestrator, _ = start(validated=True)
    orchestrator.begin_round(123, "enough")
    orchestrator.end_round(2, 0.65, replace(VALIDATION, round=2, threshold=0.65))
    state = orchestrator.state
    assert (state.phase, state.round, state.threshold, state.seq_at_round) == (Phase.INFERENCE, 2, 0.65, 123)


def test_a_round_that_was_given_up_is_not_begun_again_at_once(start):
    orchestrator, events = start()
    assert orchestrator.decide(50, 20, READY).go
    orchestrator.begin_round(7, "enough")
    orchestrator.give_up_round("the training loss became nan")
    assert not orchestrator.decide(50, 20, READY).go
    for _ in range(SETTINGS.retry_frames):
        orchestrator.note_answer(True, None)
    assert orchestrator.decide(50, 20, READY).go
    assert "round given up" in kinds(events)


def test_why_a_round_waits_is_logged_when_it_changes(start):
    orchestrator, events = start()
    by_day = replace(READY, plugged_in=False)
    for new in range(50, 60):
        orchestrator.decide(new, 20, by_day)
    orchestrator.decide(60, 20, replace(READY, hour=12.0))
    assert [event.reason for event in events.last(10)] == [
        "50 new training samples are enough, but the device is not plugged in",
        "60 new training samples are enough, but it is 12:00, outside 22:00 to 06:00",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"p_expl": 1.1},
        {"scarce_exploration": -1},
        {"scarce_tolerance": 0.5},
        {"window": 4},
        {"collapse_window": 9},
        {"retry_frames": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ClientSettingsError, match=next(iter(wrong))):
        OrchestratorSettings(**wrong)


def test_a_round_that_ends_its_process_again_and_again_is_put_off_for_longer_each_time(start):
    waits = []
    for _ in range(5):
        orchestrator, _ = start()
        if orchestrator.decide(50, 20, READY).go:
            orchestrator.begin_round(7, "enough")
        orchestrator, events = start()
        orchestrator.note_broken_off()
        before = orchestrator.state.frames
        while not orchestrator.decide(50, 20, READY).go:
            orchestrator.note_answer(True, None)
        waits.append(orchestrator.state.frames - before)
    # once may be a loss of power
    assert waits == [0, *(SETTINGS.retry_frames * factor for factor in (1, 2, 4, 8))]
    assert kinds(events).count("round interrupted") == 5
    orchestrator.begin_round(7, "enough")
    orchestrator.end_round(1, 0.65, replace(VALIDATION, round=1))
    assert orchestrator.state.attempts == 0


def test_the_scarcer_energy_and_time_are_the_more_seldom_the_device_explores(start):
    settings = replace(SETTINGS, p_expl=0.4, scarce_exploration=0.25)
    # the load is twice what counts as idle
    states = {
        1.0: READY,
        0.625: replace(READY, plugged_in=False, battery=0.5),
        0.25: replace(READY, load=2 * SETTINGS.conditions.max_load),
    }
    for left, device in states.items():
        orchestrator, _ = start(settings)
        orchestrator.state = replace(orchestrator.state, frames=0)
        explored = 0
        for _ in range(1000):
            explored += orchestrator.wants_to_explore(device)
            orchestrator.note_answer(True, None)
        # five standard deviations of 1000 draws
        assert abs(explored - 400 * left) < 80


def test_a_window_that_agrees_too_seldom_raises_the_threshold_and_a_far_one_is_the_reason_of_a_round(start):
    # the loss does not rise: the rule for drift sees nothing
    wrong = replace(BAD, losses=(0.1,))
    orchestrator, events = start(validated=True)
    assert not orchestrator.decide(10, 5, READY).wanted
    for sample in [GOOD] * 8 + [wrong] * 2:
        orchestrator.note_answer(True, sample)
    assert kinds(events) == ["threshold raised"]
    assert (orchestrator.state.threshold, orchestrator.state.asked) == (0.75, "")
    decision = orchestrator.decide(10, 5, READY)
    assert (decision.go, decision.cause) == (True, "far")
    assert "the active threshold 0.75 is far from the validated 0.5" in decision.reason


def test_one_sample_that_disagrees_is_chance_and_raises_nothing(start):
    orchestrator, events = start(validated=True)
    for sample in [GOOD] * 9 + [replace(BAD, losses=(0.1,))]:
        orchestrator.note_answer(True, sample)
    assert orchestrator.state.threshold == 0.5
    assert kinds(events) == []


def test_on_an_empty_battery_the_threshold_rises_later(start):
    settings = replace(SETTINGS, drop_tolerance=0.1, scarce_tolerance=2.0, window=10)
    raised = {}
    for name, device in {"fed": READY, "empty": replace(READY, plugged_in=False, battery=0.0)}.items():
        orchestrator, _ = start(settings, validated=True)
        for sample in [GOOD] * 8 + [BAD] * 2:
            orchestrator.wants_to_explore(device)
            orchestrator.note_answer(True, sample)
        # two of ten disagree: more than a tenth, and no more than two
        orchestrator._raise_threshold()
        raised[name] = orchestrator.state.threshold
    assert raised == {"fed": 0.75, "empty": 0.5}
