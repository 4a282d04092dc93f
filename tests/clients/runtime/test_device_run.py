import os
import signal
import time
from itertools import takewhile

import pytest

from persephonee.clients.errors import StoreError
from persephonee.clients.runtime.device_run import Stop, run_device, stopped_by_signals
from persephonee.clients.runtime.device_status import read_status
from persephonee.clients.runtime.frames import LateLabel, NoFrame, WatchedFolder
from persephonee.clients.runtime.phases import Phase
from persephonee.clients.runtime.sample_store import TRAIN
from tests.clients.runtime.scripted_device import SETTINGS, frames_of, start


def test_frames_labels_and_what_is_none_are_taken_in_turn(toy_network, user, tmp_path):
    life, shown = start(toy_network, tmp_path), []
    frames = frames_of(user, stop=3, labelled=False)
    items = [frames[0], NoFrame(key="x", reason="x is no image."), LateLabel(key="frame 0", label=2), *frames[1:]]
    run_device(life.device, items, shown.append, Stop())
    assert [answer.key for answer in shown] == ["frame 0", "frame 1", "frame 2"]
    assert life.device.samples.load("me", 10)[0].labels.tolist().count(2) == 1
    assert life.device.counters.skipped == 1
    assert life.kinds() == ["started", "frame skipped", "stopped"]
    life.stop()


def test_a_signal_between_two_frames_ends_the_life_after_the_frame(toy_network, user, tmp_path):
    life, stop, shown = start(toy_network, tmp_path), Stop(), []

    def show(answer):
        shown.append(answer)
        if len(shown) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    earlier = signal.getsignal(signal.SIGTERM)
    with stopped_by_signals(stop, life.device):
        run_device(life.device, frames_of(user), show, stop)
    assert signal.getsignal(signal.SIGTERM) is earlier
    assert len(shown) == 5
    assert life.events[-1].reason == "SIGTERM came between two frames"
    life.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_round_breaks_it_off_and_the_previous_exits_stay(toy_network, user, tmp_path, number):
    life, stop = start(toy_network, tmp_path), Stop()
    before = toy_network.exit_state()
    load = life.device.samples.load

    def interrupted(*args):
        os.kill(os.getpid(), number)
        return load(*args)

    life.device.samples.load = interrupted
    with stopped_by_signals(stop, life.device):
        run_device(life.device, frames_of(user), lambda answer: None, stop)
    assert life.events[-1].reason == f"{number.name} in a round: the exits before it are in force"
    life.stop()
    again = start(toy_network, tmp_path)
    assert again.kinds() == ["round interrupted", "started"]
    assert again.device.orchestrator.state.phase is Phase.INFERENCE
    assert again.device.counters.refused_rounds == 1
    assert all(tensor.equal(before[name]) for name, tensor in toy_network.exit_state().items())
    again.stop()


def test_a_second_signal_while_the_stop_is_noted_changes_nothing(toy_network, user, tmp_path):
    life, stop = start(toy_network, tmp_path), Stop()

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)

    def impatient(event):
        life.events.append(event)
        if event.kind == "stopped":
            os.kill(os.getpid(), signal.SIGINT)

    life.device.samples.load = interrupted
    life.device.events.listener = impatient
    with stopped_by_signals(stop, life.device):
        run_device(life.device, frames_of(user), lambda answer: None, stop)
    assert read_status(tmp_path).events[-1].reason == "SIGINT in a round: the exits before it are in force"
    life.stop()


def test_no_round_begins_once_a_stop_is_asked_for(toy_network, user, tmp_path):
    life, stop = start(toy_network, tmp_path), Stop()

    def show(answer):
        if life.device.samples.count(TRAIN) == SETTINGS.orchestrator.conditions.min_new_samples:
            os.kill(os.getpid(), signal.SIGTERM)

    with stopped_by_signals(stop, life.device):
        run_device(life.device, frames_of(user), show, stop)
    assert life.kinds() == ["started", "stopped"]
    # a device that nobody stops begins it at once
    assert life.device.personalise_if_due() is not None
    life.stop()


def test_a_row_of_a_labels_file_that_names_no_class_is_told_once(toy_network, tmp_path):
    folder, store = tmp_path / "frames", tmp_path / "store"
    folder.mkdir()
    skipped = []
    for rows in ("x.png,z\ny.png,z\n", "x.png,z\ny.png,z\n", "x.png,w\ny.png,z\n"):
        (folder / "labels.csv").write_text(rows)
        life = start(toy_network, store)
        watched = WatchedFolder(folder, toy_network.input_shape, ("a", "b"), life.device.has_answered)
        items = takewhile(lambda item: item is not None, watched)
        run_device(life.device, items, lambda answer: None, Stop())
        skipped.append((life.kinds().count("frame skipped"), life.device.counters.skipped))
        life.stop()
    # two rows, the same again after a restart, and one that was changed to another word
    assert skipped == [(2, 2), (0, 2), (1, 3)]


def test_the_status_tells_what_was_learned_and_saved(toy_network, user, tmp_path):
    life = start(toy_network, tmp_path)
    run_device(life.device, frames_of(user), lambda answer: None, Stop())
    # a reader does not disturb the device that runs
    status = read_status(tmp_path, num_events=3)
    assert status.is_running
    life.stop()
    status = read_status(tmp_path, num_events=3)
    assert not status.is_running
    assert status.counters == life.device.counters
    assert status.exits == life.device.policy.exits_in_use
    assert status.state == life.device.orchestrator.state
    assert status.macs_saved == 1 - life.device.counters.macs / (120 * toy_network.costs.original_macs)
    assert [event.kind for event in status.events][-1] == "stopped"
    assert sum(status.samples.values()) == status.labelled == 120
    values = status.as_json()
    assert values["samples_by_exit"] == life.device.counters.exits
    assert values["validated_threshold"] == status.validation.threshold


def test_the_status_waits_for_no_transaction_and_shows_what_was_committed_before_it(toy_network, user, tmp_path):
    life = start(toy_network, tmp_path)
    run_device(life.device, frames_of(user, stop=5), lambda answer: None, Stop())
    with life.database.transaction():
        life.device.answer(frames_of(user)[5])
        begin = time.monotonic()
        status = read_status(tmp_path)
        # SQLite waits 10 s for a lock
        assert time.monotonic() - begin < 5
    assert (status.counters.frames, status.state.frames, sum(status.samples.values())) == (5, 5, 5)
    assert read_status(tmp_path).counters.frames == 6
    life.stop()


def test_a_folder_without_a_device_has_no_status_and_stays_empty(tmp_path):
    with pytest.raises(StoreError, match="holds no device's store"):
        read_status(tmp_path)
    assert not list(tmp_path.iterdir())
