import math

import numpy as np
import pytest

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.runtime.adwin import Adwin
from persephonee.clients.runtime.drift import FIRST_LOSSES, DriftMonitor, DriftSettings, PageHinkleyDetector, PlainRule

RULES = ("adwin", "page-hinkley", "plain")


def losses(mean: float, count: int, seed: int) -> list[float]:
    """Return losses as confident exits have them: exponentially distributed."""
    return np.random.default_rng(seed).exponential(mean, count).tolist()


def first_alarm(rule: str, stream: list[float], validated: list[float]) -> int | None:
    monitor = DriftMonitor(DriftSettings(rule=rule), [validated])
    return next((i for i, loss in enumerate(stream) if monitor.update([loss])), None)


@pytest.mark.parametrize("rule", RULES)
def test_a_loss_that_rises_is_noticed_within_eighty_samples(rule):
    delays = []
    for seed in range(10):
        stream = losses(0.2, 100, seed) + losses(1.5, 100, 100 + seed)
        delays.append(first_alarm(rule, stream, losses(0.2, 100, 200 + seed)))
    noticed = [delay - 100 for delay in delays if delay is not None and delay >= 100]
    assert len(noticed) >= 9
    assert max(noticed) < 80


@pytest.mark.parametrize("rule", RULES)
def test_a_loss_that_stays_raises_few_alarms(rule):
    alarms = [first_alarm(rule, losses(0.2, 300, seed), losses(0.2, 100, 50 + seed)) for seed in range(10)]
    assert sum(alarm is not None for alarm in alarms) <= 2


@pytest.mark.parametrize("rule", RULES)
def test_a_loss_that_falls_is_no_alarm(rule):
    assert first_alarm(rule, losses(0.1, 300, 1), losses(1.0, 100, 2)) is None


def test_the_plain_rule_by_hand():
    # windows of 2: 1.0, 1.0, 2.0, 3.0 against 1.0 + 0.5, twice in a row
    rule = PlainRule(DriftSettings(rule="plain", window=2, margin=0.5, times=2), validated=1.0)
    assert [rule.update(loss) for loss in (1.0, 1.0, 1.0, 3.0, 3.0)] == [False, False, False, False, True]


def test_the_plain_rule_starts_over_when_a_window_is_fine():
    rule = PlainRule(DriftSettings(rule="plain", window=2, margin=0.5, times=2), validated=1.0)
    # windows of 2: 2.0, 1.0, 1.5, 3.0, 3.0
    assert [rule.update(loss) for loss in (2.0, 2.0, 0.0, 3.0, 3.0, 3.0)] == [False] * 5 + [True]


@pytest.mark.parametrize("rule", RULES)
def test_without_a_validation_the_first_losses_are_the_reference(rule):
    assert first_alarm(rule, [0.2] * FIRST_LOSSES + [0.2] * 40, []) is None
    alarm = first_alarm(rule, [0.2] * FIRST_LOSSES + [0.9] * 60, [])
    assert alarm is not None
    assert alarm >= FIRST_LOSSES


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("width", [0.0, 0.5])
def test_losses_above_a_nat_as_many_classes_have_them_are_seen_to_rise(rule, width):
    noise = np.random.default_rng(9).uniform(-width, width, 200)
    assert first_alarm(rule, (4 + noise[100:]).tolist(), (2 + noise[:100]).tolist()) is not None


@pytest.mark.parametrize("rule", RULES)
def test_losses_above_a_nat_that_stay_raise_few_alarms(rule):
    alarms = [first_alarm(rule, losses(2.0, 300, seed), losses(2.0, 100, 50 + seed)) for seed in range(10)]
    assert sum(alarm is not None for alarm in alarms) <= 2


def test_the_monitor_names_the_exit_that_drifts():
    monitor = DriftMonitor(DriftSettings(rule="plain", window=2, times=1), [[0.1, 0.1], [0.1, 0.1]])
    assert monitor.update([0.1, 3.0]) == ()
    assert monitor.update([0.1, 3.0]) == (1,)


def test_one_absurd_loss_is_not_drift():
    for rule in RULES:
        stream = losses(0.2, 40, 3)
        stream[20] = 1e6
        assert first_alarm(rule, stream, losses(0.2, 100, 4)) is None


@pytest.mark.parametrize("wrong", [{"rule": "guess"}, {"adwin_delta": 0.0}, {"window": 1}, {"times": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ClientSettingsError, match=next(iter(wrong))):
        DriftSettings(**wrong)


@pytest.mark.parametrize("delta", [0.6, 0.05, 0.002])
def test_adwin_has_rivers_window_mean_and_alarms_after_each_value(delta):
    river_drift = pytest.importorskip("river.drift")
    alarms = 0
    for seed in range(6):
        generator = np.random.default_rng(seed)
        quiet = 0.3 * generator.random(generator.integers(5, 300))
        stream = [*quiet, *np.clip(generator.normal(0.6, 0.2, 200), 0, 1), *generator.random(150)]
        ours, theirs = Adwin(delta), river_drift.ADWIN(delta=delta, clock=1)
        for value in map(float, stream):
            has_risen = ours.update(value)
            theirs.update(value)
            assert (has_risen, ours.width) == (theirs.drift_detected, theirs.width)
            assert ours.mean == pytest.approx(theirs.estimation, abs=1e-9)
            alarms += has_risen
    assert alarms >= 6


def test_adwin_forgets_the_older_half_of_a_step_by_hand():
    # 20 zeros, then ones: at delta 0.6 the bound with 5 ones is first beaten by a mean that is 1 apart
    adwin = Adwin(0.6)
    cuts = [number for number, value in enumerate([0.0] * 20 + [1.0] * 10) if adwin.update(value)]
    log = math.log(2 * math.log(25) / 0.6)
    variance, per_value = 0.8 * 0.2, 1 / 16 + 1
    assert math.sqrt(2 * per_value * variance * log) + 2 / 3 * per_value * log > 1
    assert 25 < cuts[0] < 29


def test_page_hinkley_raises_its_alarms_where_river_does():
    river_drift = pytest.importorskip("river.drift")
    settings = DriftSettings(page_hinkley_threshold=5.0)
    generator = np.random.default_rng(0)
    losses = np.concatenate([generator.exponential(size=200), 1.5 + generator.exponential(size=300)])
    ours = PageHinkleyDetector(settings)
    theirs = river_drift.PageHinkley(min_instances=10, delta=0.1, threshold=5.0, alpha=1.0, mode="up")
    alarms = []
    for loss in losses.tolist():
        theirs.update(loss)
        alarms.append(ours.update(loss))
        assert alarms[-1] == theirs.drift_detected
    assert 1 <= sum(alarms) < 50
