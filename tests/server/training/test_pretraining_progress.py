from types import SimpleNamespace

import pytest

from persephonee.server.training import pretraining_progress
from persephonee.server.training.pretraining_progress import LogProgress


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pretraining_progress.time, "perf_counter", lambda: clock.now)
    return clock


def test_the_time_of_all_epochs_is_estimated_once_from_the_first_batches(clock, caplog):
    caplog.set_level("INFO")
    progress = LogProgress()
    clock.now = 100.0
    progress.epoch_started(1, 3, batches=100)
    for _ in range(20):
        clock.now += 2.0
        progress.batch_done(loss=1.0)
    # after 3 batches of 2 s: 297 of the 300 are left
    assert caplog.messages == ["the training takes about 10 min more at most, and validation beside it"]


def test_a_slow_first_batch_as_on_a_gpu_says_nothing_about_the_others(clock, caplog):
    caplog.set_level("INFO")
    progress = LogProgress()
    progress.epoch_started(1, 2, batches=500)
    clock.now += 60.0
    for _ in range(10):
        progress.batch_done(loss=1.0)
        clock.now += 1.0
    # 994 batches of a second
    assert caplog.messages == ["the training takes about 17 min more at most, and validation beside it"]
