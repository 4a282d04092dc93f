from dataclasses import replace

import pytest

from persephonee.clients.runtime.conditions import ConditionSettings, Needs, decide
from tests.clients.runtime.scripted_device import READY

SETTINGS = ConditionSettings(min_new_samples=50, min_new_when_asked=10, min_calibration=5)
NEEDS = Needs(new_train=50, calibration=20, asked="", threshold=0.5, validated=0.5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"plugged_in": False}, "not plugged in"),
        ({"battery": 0.5}, "the battery is at 50%, below 80%"),
        ({"hour": 12.5}, "it is 12:30, outside 22:00 to 06:00"),
        ({"load": 0.9}, "busy"),
        ({"temperature_celsius": 90.0}, "hot (90 °C, above 70)"),
        ({"free_memory_bytes": 1000}, "memory are free"),
    ],
)
def test_each_condition_can_hold_a_round_back_and_says_so(changes, reason):
    decision = decide(NEEDS, replace(READY, **changes), SETTINGS)
    assert not decision.go
    assert decision.wanted
    assert reason in decision.reason


def test_a_board_without_battery_and_sensors_may_personalise():
    unknown = replace(READY, battery=None, load=None, temperature_celsius=None, free_memory_bytes=None)
    assert decide(NEEDS, unknown, SETTINGS).go


@pytest.mark.parametrize(
    ("needs", "go"),
    [
        ({"new_train": 49}, False),
        ({"calibration": 4}, False),
        ({"new_train": 10, "threshold": 0.6}, True),
        ({"new_train": 9, "threshold": 0.6}, False),
        ({"new_train": 10, "threshold": 0.55}, False),
        ({"new_train": 10, "asked": "drift"}, True),
        ({"new_train": 10, "threshold": 0.9, "validated": None}, False),
    ],
)
def test_a_round_needs_enough_new_samples_or_a_threshold_far_from_the_validated_one(needs, go):
    assert decide(replace(NEEDS, **needs), READY, SETTINGS).go is go


@pytest.mark.parametrize(
    ("new_train", "asked", "go"), [(4, "", False), (4, "drift", False), (5, "", True), (5, "drift", True)]
)
def test_fewer_new_samples_than_a_round_that_is_asked_for_needs_can_be_enough(new_train, asked, go):
    conditions = replace(SETTINGS, min_new_samples=5, min_new_when_asked=20)
    assert decide(replace(NEEDS, new_train=new_train, asked=asked), READY, conditions).go is go


@pytest.mark.parametrize(("hour", "allowed"), [(21.9, False), (22.0, True), (0.0, True), (5.9, True), (6.0, False)])
def test_allowed_hours_may_span_midnight(hour, allowed):
    assert decide(NEEDS, replace(READY, hour=hour), SETTINGS).go is allowed


def test_equal_hours_mean_always():
    conditions = replace(SETTINGS, from_hour=0.0, to_hour=0.0)
    assert decide(NEEDS, replace(READY, hour=13.0), conditions).go
