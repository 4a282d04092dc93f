"""The remaining time follows from what is done, and is said of long work alone."""

import logging

import pytest

from persephonee.server.training import remaining_time
from persephonee.server.training.remaining_time import RemainingTime, shown_work

LOGGER = logging.getLogger("persephonee.long-work")


@pytest.fixture
def now(monkeypatch, caplog):
    caplog.set_level("INFO")
    now = [0.0]
    monkeypatch.setattr(remaining_time.time, "monotonic", lambda: now[0])
    return now


def test_what_is_left_follows_from_what_is_done(now):
    estimate = RemainingTime()
    now[0] = 20.0
    assert estimate.words(1, 4) == "1 of 4 users, about 60 s more"
    assert estimate.words(2, 20) == "2 of 20 users, about 3 min more"


def test_long_work_says_how_long_it_takes_after_five_seconds_and_then_every_ten(now, caplog):
    with shown_work(LOGGER, "measuring", "images") as told:
        for done in range(1, 41):
            now[0] += 1.0
            told(done, 100)
    assert caplog.messages == [
        "measuring: 6 of 100 images, about 2 min more",
        "measuring: 17 of 100 images, about 83 s more",
        "measuring: 28 of 100 images, about 72 s more",
        "measuring: 39 of 100 images, about 61 s more",
    ]


def test_short_work_says_nothing(now, caplog):
    with shown_work(LOGGER, "measuring") as told:
        for done in range(1, 20):
            now[0] += 1.0
            told(done, 19)
    assert caplog.messages == []
