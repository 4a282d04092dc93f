import itertools
import random

import numpy as np
import pytest

from persephonee.clients.personalisation.calibration import (
    THRESHOLDS,
    OperatingPoint,
    choose_threshold,
    pareto_front,
    sweep,
)


def point(threshold: float, accuracy: float, cost: float) -> OperatingPoint:
    return OperatingPoint(threshold=threshold, accuracy=accuracy, cost=cost, exit_rates=())


# Four samples, one early exit and the last one, worked out on paper. The exit costs 10, the last exit 30.
CONFIDENCES = np.array([[0.92, 0.52, 0.72, 0.32], [0.9, 0.9, 0.9, 0.9]])
CORRECT = np.array([[True, False, True, False], [True, True, True, False]])


def test_thresholds_are_zero_to_one_in_steps_of_a_twentieth():
    assert len(THRESHOLDS) == 21
    assert THRESHOLDS[0] == 0 and THRESHOLDS[-1] == 1
    assert THRESHOLDS[7] == 0.35


@pytest.mark.parametrize(
    ("threshold", "accuracy", "cost"),
    [
        (0.0, 2 / 4, 10),  # all leave at once
        (0.35, 2 / 4, (10 + 10 + 10 + 30) / 4),  # the fourth goes on, and is wrong there too
        (0.55, 3 / 4, (10 + 30 + 10 + 30) / 4),  # the second goes on, and is right there
        (0.75, 3 / 4, (10 + 30 + 30 + 30) / 4),
        (1.0, 3 / 4, 30),
    ],
)
def test_sweep_gives_the_numbers_worked_out_on_paper(threshold: float, accuracy: float, cost: float):
    points = {p.threshold: p for p in sweep(CONFIDENCES, CORRECT, (0,), (10, 30))}
    assert points[threshold].accuracy == pytest.approx(accuracy)
    assert points[threshold].cost == pytest.approx(cost)
    assert sum(points[threshold].exit_rates) == pytest.approx(1)


def test_threshold_is_the_smallest_within_tolerance_and_of_those_that_act_alike_the_largest():
    points = sweep(CONFIDENCES, CORRECT, (0,), (10, 30))
    # 0.55 to 0.7 let the first and the third leave, 0 to 0.3 all four
    assert choose_threshold(points, 0.75, 0.0).threshold == 0.7
    assert choose_threshold(points, 0.75, 0.25).threshold == 0.3
    assert choose_threshold(points, 0.75, 0.2).threshold == 0.7


def test_a_drop_of_exactly_the_tolerance_is_within_it():
    points = [point(0.0, 0.1 + 0.2, 1), point(1.0, 0.4, 2)]  # 0.1 + 0.2 is a little more than 0.3, 0.4 - 0.1 less
    assert choose_threshold(points, 0.4, 0.1).threshold == 0.0


def test_threshold_one_is_the_last_exit_whatever_the_confidence():
    sure = np.ones((2, 4))
    only = sweep(sure, CORRECT, (0,), (10, 30))[-1]
    assert only.exit_rates == (0.0, 1.0)
    assert only.accuracy == 0.75


def test_pareto_front_is_that_of_brute_force():
    generator = random.Random(3)
    for _ in range(200):
        points = [point(t, generator.randint(0, 5) / 5, generator.randint(1, 6)) for t in THRESHOLDS[:8]]
        unbeaten = {
            (p.accuracy, p.cost)
            for p in points
            if not any(
                q.accuracy >= p.accuracy and q.cost <= p.cost and (q.accuracy, q.cost) != (p.accuracy, p.cost)
                for q in points
            )
        }
        front = pareto_front(points)
        assert {(p.accuracy, p.cost) for p in front} == unbeaten
        for p in front:
            equals = [q.threshold for q in points if (q.accuracy, q.cost) == (p.accuracy, p.cost)]
            assert p.threshold == max(equals)
        assert all(a.cost < b.cost and a.accuracy < b.accuracy for a, b in itertools.pairwise(front))
