from dataclasses import replace

import numpy as np
import pytest
import torch

from persephonee.clients.errors import ImageError, StoreError, StoreFullError
from persephonee.clients.inference.engine import first_exit_always_answers
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.runtime.device_round import chosen_and_judged
from persephonee.clients.runtime.device_run import Stop, run_device
from persephonee.clients.runtime.device_status import read_status
from persephonee.clients.runtime.frames import LateLabel, NoFrame
from persephonee.clients.runtime.phases import Phase
from persephonee.clients.runtime.sample_store import CALIBRATION, TRAIN
from persephonee.multi_exit.atomic_files import write_json_atomically
from persephonee.multi_exit.exit_calibration import ExitCalibration
from persephonee.multi_exit.settings import LossWeights
from tests.clients.runtime.scripted_device import SETTINGS, frames_of, leave_pages, start


def feed(life, frames):
    predictions = []
    for frame in frames:
        predictions.append(life.device.answer(frame))
        life.device.personalise_if_due()
    return predictions


def test_a_device_answers_stores_and_personalises_on_its_own(toy_network, user, tmp_path):
    life = start(toy_network, tmp_path)
    predictions = feed(life, frames_of(user))
    assert life.kinds()[:3] == ["started", "round begins", "round done"]
    counters = life.device.counters
    assert (counters.frames, sum(counters.exits)) == (120, 120)
    assert counters.rounds == life.device.orchestrator.state.round >= 2
    assert counters.explored == sum(answer.explored for answer in predictions)
    assert counters.macs < counters.original_macs == 120 * toy_network.costs.original_macs
    assert life.device.samples.count(TRAIN) + life.device.samples.count(CALIBRATION) == 120
    stored = ExitStore(tmp_path).load(toy_network.backbone_fingerprint, toy_network.exit_state(), "f0001_01")
    assert stored.round == counters.rounds
    assert life.device.policy == stored.policy
    life.stop()


def test_the_cost_of_exploration_is_the_whole_network(toy_network, user, tmp_path):
    settings = replace(SETTINGS, orchestrator=replace(SETTINGS.orchestrator, p_expl=1.0, max_rounds=0))
    life = start(toy_network, tmp_path, settings)
    feed(life, frames_of(user, stop=5))
    assert life.device.counters.macs == 5 * toy_network.costs.leaving_macs((0, 1))[-1]
    life.stop()


def test_exploring_changes_no_answer(toy_network, user, tmp_path):
    frames = frames_of(user, stop=25)
    labels = []
    for p_expl in (0.0, 1.0):
        settings = replace(SETTINGS, orchestrator=replace(SETTINGS.orchestrator, p_expl=p_expl, max_rounds=0))
        life = start(toy_network, tmp_path / str(p_expl), settings)
        labels.append([(answer.label, answer.exit) for answer in feed(life, frames)])
        life.stop()
    assert labels[0] == labels[1]


def test_nothing_is_learned_by_day_or_on_battery(toy_network, user, tmp_path):
    life = start(toy_network, tmp_path)
    life.set_state(plugged_in=False)
    feed(life, frames_of(user, stop=60))
    assert life.device.counters.rounds == 0
    assert life.kinds().count("personalisation waits") == 1
    life.set_state(plugged_in=True)
    assert life.device.personalise_if_due() is not None
    life.stop()


def test_a_restarted_device_goes_on_where_it_stopped(toy_network, user, tmp_path):
    life = start(toy_network, tmp_path)
    feed(life, frames_of(user, stop=80))
    state, policy, exits = life.device.orchestrator.state, life.device.policy, toy_network.exit_state()
    life.stop()
    again = start(toy_network, tmp_path)
    assert again.device.orchestrator.state == state
    assert again.device.policy == policy
    assert again.device.has_answered("frame 79")
    assert not again.device.has_answered("frame 80")
    assert all(tensor.equal(exits[name]) for name, tensor in toy_network.exit_state().items())
    assert again.events[0].reason.startswith(f"round {state.round} is in force")
    again.stop()


def test_a_device_without_labels_distils_from_the_last_exit(toy_network, user, tmp_path):
    life = start(toy_network, tmp_path)
    feed(life, frames_of(user, stop=60, labelled=False))
    done = next(event for event in life.events if event.kind == "round done")
    assert "(labels: none)" in done.reason
    life.stop()


def test_a_round_that_fails_leaves_the_previous_exits_in_force(toy_network, user, tmp_path):
    settings = replace(SETTINGS, personalisation=replace(SETTINGS.personalisation, learning_rate=1e38))
    life = start(toy_network, tmp_path, settings)
    before = toy_network.exit_state()
    feed(life, frames_of(user, stop=50))
    assert "round given up" in life.kinds()
    given_up = next(event for event in life.events if event.kind == "round given up")
    assert "the previous exits stay in force" in given_up.reason
    assert life.device.orchestrator.state.phase is Phase.INFERENCE
    assert all(tensor.equal(before[name]) for name, tensor in toy_network.exit_state().items())
    assert life.device.counters.refused_rounds == 1
    life.stop()


def test_a_full_disk_stops_storing_and_not_answering(toy_network, user, tmp_path):
    life = start(toy_network, tmp_path)
    leave_pages(life.database, 1)
    predictions = [life.device.answer(frame) for frame in frames_of(user)]
    stored = [answer.key for answer in predictions if answer.stored]
    assert len(predictions) == 120
    assert 0 < len(stored) < 120
    assert life.kinds().count("disk full") == 1
    life.stop()
    again = start(toy_network, tmp_path)
    assert again.device.samples.keys() == stored
    again.stop()


def leave_no_room(life):
    database = life.database
    leave_pages(database, 0)
    # what the last page of each table still holds
    fillers = {
        "INSERT INTO facts VALUES (?, '0')": lambda n: (f"filler {n}",),
        "INSERT INTO events (wall, kind, reason, details) VALUES (0, 'filler', '', ?)": lambda n: ("{}",),
        "INSERT INTO answered VALUES (?)": lambda n: (f"filler {n}",),
    }
    for statement, values in fillers.items():
        with pytest.raises(StoreFullError):
            for number in range(10_000):
                with database.transaction():
                    database.execute(statement, values(number))


def test_a_full_disk_ends_neither_the_device_nor_its_rounds(toy_network, user, tmp_path):
    life = start(toy_network, tmp_path)
    life.set_state(plugged_in=False)
    feed(life, frames_of(user, stop=60))
    leave_no_room(life)
    # a reason to wait that changes, a round that is due, a file that is no image, a label and the end: each writes
    predictions, stop = [], Stop()
    life.set_state(plugged_in=True, load=5.0)
    run_device(life.device, frames_of(user, 60, 70), predictions.append, stop)
    life.set_state(load=0.0)
    rest = [
        *frames_of(user, 70, 80),
        NoFrame(key="odd.txt", reason="no image"),
        LateLabel(key="frame 3", label=2),
        *frames_of(user, 80, 90),
    ]
    run_device(life.device, rest, predictions.append, stop)
    assert len(predictions) == 30 and not any(answer.stored for answer in predictions)
    assert life.kinds().count("disk full") == 1
    # or a watched folder would bring them again at every look
    assert all(life.device.has_answered(key) for key in ("frame 60", "frame 89", "odd.txt"))
    assert "round begins" not in life.kinds() and life.device.orchestrator.state.phase is Phase.INFERENCE
    # with room again it goes on by itself
    leave_pages(life.database, 10**6)
    run_device(life.device, frames_of(user, 90, 100), predictions.append, stop)
    assert all(answer.stored for answer in predictions[30:])
    assert "round done" in life.kinds()
    life.stop()


def test_a_disk_that_is_full_at_the_end_of_a_round_keeps_the_round(toy_network, user, tmp_path, monkeypatch):
    life = start(toy_network, tmp_path)
    save = ExitStore.save

    def save_and_fill(*args, **kwargs):
        save(*args, **kwargs)
        # the end of the round forgets these, which would make room for what it writes
        with life.database.transaction():
            life.database.execute("DELETE FROM explored")
        leave_no_room(life)

    monkeypatch.setattr(ExitStore, "save", save_and_fill)
    frames = frames_of(user)
    count = next(n for n, frame in enumerate(frames) if life.device.answer(frame) and life.device.personalise_if_due())
    state, policy = life.device.orchestrator.state, life.device.policy
    assert (state.round, state.phase) == (1, Phase.INFERENCE)
    assert "disk full" in life.kinds() and "round done" not in life.kinds()
    assert life.device.counters.rounds == 1
    assert not life.device.answer(frames[count + 1]).stored
    leave_pages(life.database, 10**6)
    life.stop()
    again = start(toy_network, tmp_path)
    assert "round adopted" in again.kinds()
    assert (again.device.orchestrator.state.round, again.device.policy) == (1, policy)
    assert again.device.counters.rounds == 1
    again.stop()


def test_a_full_disk_while_a_round_is_written_leaves_the_previous_exits(toy_network, user, tmp_path, monkeypatch):
    life = start(toy_network, tmp_path)

    def full(*args, **_options):
        raise OSError(28, "No space left on device", "exits")

    monkeypatch.setattr("persephonee.clients.personalisation.exit_files.write_bytes_atomically", full)
    before = toy_network.exit_state()
    feed(life, frames_of(user, stop=50))
    given_up = next(event for event in life.events if event.kind == "round given up")
    assert "No space left on device" in given_up.reason
    assert all(tensor.equal(before[name]) for name, tensor in toy_network.exit_state().items())
    life.stop()


def test_a_round_that_was_finished_before_a_kill_is_adopted(toy_network, user, tmp_path):
    life = start(toy_network, tmp_path)
    life.set_state(plugged_in=False)
    feed(life, frames_of(user, stop=60))
    last = life.device.samples.last_seq()
    # the exit store has the new round, and the kill comes before the database knows
    life.device.orchestrator.begin_round(last, "enough")
    life.device._put_in_force = lambda **_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        life.device._round()
    life.stop()
    again = start(toy_network, tmp_path)
    assert again.kinds() == ["round adopted", "started"]
    state = again.device.orchestrator.state
    assert (state.round, state.phase, state.seq_at_round) == (1, Phase.INFERENCE, last)
    stored = ExitStore(tmp_path).load(toy_network.backbone_fingerprint, toy_network.exit_state(), "f0001_01")
    assert again.device.policy == stored.policy
    assert again.device.orchestrator.validation.round == 1
    counters = read_status(tmp_path).counters
    assert (counters.rounds, counters.refused_rounds) == (1, 0)
    again.stop()
    # a further start adopts nothing
    again = start(toy_network, tmp_path)
    assert again.device.counters.rounds == 1
    again.stop()


def test_a_raised_threshold_is_used_from_the_next_frame_on(toy_network, user, tmp_path):
    life = start(toy_network, tmp_path)
    life.device.orchestrator._set(threshold=0.99)
    life.device.answer(frames_of(user)[0])
    assert life.device.policy.threshold == 0.99
    assert not first_exit_always_answers(life.device.policy, 4)
    life.stop()


def test_images_of_another_shape_are_refused_and_change_nothing(toy_network, user, tmp_path):
    life = start(toy_network, tmp_path)
    frame = replace(frames_of(user)[0], image=torch.zeros(1, 20, 20, dtype=torch.uint8))
    with pytest.raises(ImageError, match="expected a NumPy array of uint8"):
        life.device.answer(frame)
    assert life.device.counters.frames == 0
    life.stop()


def test_a_store_of_another_model_or_user_is_refused(toy_network, user, tmp_path):
    life = start(toy_network, tmp_path)
    life.stop()
    with pytest.raises(StoreError, match="was made with user f0001_01, not f9999_99"):
        start(toy_network, tmp_path, replace(SETTINGS, client_id="f9999_99"))
    toy_network.stages.requires_grad_(False)
    next(toy_network.stages.parameters()).add_(1.0)
    with pytest.raises(StoreError, match="was made with model"):
        start(toy_network, tmp_path)


def test_a_damaged_exit_store_is_refused_in_a_sentence(toy_network, tmp_path):
    write_json_atomically(tmp_path / "state.json", {"format": 1})
    with pytest.raises(StoreError, match="is damaged"):
        start(toy_network, tmp_path)


def test_own_weights_of_the_loss_are_used(toy_network, user, tmp_path):
    seen = []

    def weights(labelled: float) -> LossWeights:
        seen.append(labelled)
        return LossWeights(gamma=1.0)

    life = start(toy_network, tmp_path, replace(SETTINGS, weights=weights))
    feed(life, frames_of(user, stop=50))
    assert seen == [1.0]
    life.stop()


def test_a_round_that_drift_asked_for_leaves_samples_from_before_the_shift_alone(toy_network, user, tmp_path):
    settings = replace(SETTINGS, round_samples=80, samples_after_drift=24)
    life = start(toy_network, tmp_path, settings)
    life.set_state(plugged_in=False)
    feed(life, frames_of(user))
    life.device.orchestrator._set(asked="the loss of exit 0 has risen")
    life.set_state(plugged_in=True)
    report = life.device.personalise_if_due()
    assert (report.num_train, report.num_calibration) == (18, 6)
    feed(life, frames_of(user)[:1])
    life.device.orchestrator._set(seq_at_round=0)
    report = life.device.personalise_if_due()
    # of the 20 that are left out of training half chooses the policy, and the other half judges it
    assert (report.num_train, report.num_calibration, report.num_test) == (60, 10, 10)
    life.stop()


def test_what_judges_a_policy_and_is_the_baseline_of_drift_has_not_chosen_it(split):
    halves = chosen_and_judged(split, "auto")
    assert not set(halves.calibration.tolist()) & set(halves.test.tolist())
    assert sorted([*halves.calibration.tolist(), *halves.test.tolist()]) == split.calibration.tolist()
    assert halves.train is split.train
    # the paper's rule keeps all of them, and so does a device with too few for halves
    assert chosen_and_judged(split, "paper") is split
    few = replace(split, calibration=split.calibration[:9])
    assert chosen_and_judged(few, "auto") is few


def test_the_class_frequencies_are_dropped_as_soon_as_drift_fires(toy_network, user, tmp_path):
    toy_network.calibration = ExitCalibration(
        temperatures=(1.0,) * 3, biases=((0.0,) * 4,) * 3, frequencies=(0.25,) * 4
    )
    settings = replace(SETTINGS, weights=lambda _: LossWeights())
    own = replace(user, images=user.images[user.labels < 2], labels=user.labels[user.labels < 2])
    before = toy_network.exit_state()
    life = start(toy_network, tmp_path, settings)
    feed(life, frames_of(own))
    stored = ExitStore(tmp_path).load(toy_network.backbone_fingerprint, toy_network.exit_state(), "f0001_01")
    assert stored.shifts[-1].any()
    bias = "heads.0.classifier.bias"
    assert np.array_equal(toy_network.exit_state()[bias], stored.exit_weights[bias])
    image = own.images[:1]
    shifted = life.device._in_force.engine.explore(image).logits[-1]
    life.device.orchestrator._ask("the loss of exit 0 has risen", "drift")
    life.device.answer(replace(frames_of(own)[0], key="after the shift"))
    torch.testing.assert_close(toy_network.exit_state()[bias], before[bias])
    assert abs(life.device._in_force.engine.explore(image).logits[-1] - shifted + stored.shifts[-1]).max() < 1e-5
    life.stop()
    # nor do they come back with a restart before the next round
    again = start(toy_network, tmp_path, settings)
    torch.testing.assert_close(toy_network.exit_state()[bias], before[bias])
    again.stop()
