import itertools

import numpy as np

from persephonee.clients.personalisation.calibration import CalibrationSet, calibrate, choose_threshold, sweep
from persephonee.clients.personalisation.risk.pruning import prune
from persephonee.clients.personalisation.settings import PersonalisationSettings

HEAD, STAGE = 4, 10


def leaving_costs(exits):
    """Three stages of 10 and heads of 4: leaving at exit i costs the stages and all heads in use up to there."""
    costs = [STAGE * (exit + 1) + HEAD * (position + 1) for position, exit in enumerate(exits)]
    return [*costs, STAGE * 3 + HEAD * len(exits)]


def calibrate_and_prune(confidences, correct, tolerance):
    samples = CalibrationSet(confidences=confidences, correct=correct, leaving_costs=leaving_costs)
    settings = PersonalisationSettings(drop_tolerance=tolerance)
    chosen = prune(samples, calibrate(samples, settings), settings)
    return chosen.policy, chosen.point


def test_an_exit_where_nobody_leaves_is_pruned():
    confidences = np.array([[0.99, 0.99, 0.99, 0.1], [0.1, 0.1, 0.1, 0.1], [0.9] * 4])
    correct = np.array([[True, True, True, False], [False] * 4, [True] * 4])
    policy, point = calibrate_and_prune(confidences, correct, 0.0)
    assert policy.exits_in_use == (0,)
    assert point.cost == (3 * 14 + 34) / 4
    assert point.accuracy == 1.0


def test_an_exit_whose_head_costs_more_than_it_saves_is_pruned():
    # one of ten samples leaves at exit 1, which saves it 10 and costs the other nine 4 each
    confidences = np.array([[0.1] * 10, [0.99, *[0.1] * 9], [0.9] * 10])
    correct = np.array([[False] * 10, [True, *[False] * 9], [True] * 10])
    policy, point = calibrate_and_prune(confidences, correct, 0.0)
    assert policy.exits_in_use == ()
    assert point.cost == 30


def test_exits_that_are_always_wrong_leave_the_original_network():
    confidences = np.array([[0.99] * 5, [0.99] * 5, [0.5] * 5])
    correct = np.array([[False] * 5, [False] * 5, [True] * 5])
    policy, point = calibrate_and_prune(confidences, correct, 0.0)
    assert policy.exits_in_use == ()
    assert (point.accuracy, point.cost) == (1.0, 30)


def test_no_choice_of_exits_found_by_brute_force_is_much_cheaper():
    generator = np.random.default_rng(0)
    for _ in range(50):
        confidences = generator.random((3, 40))
        correct = generator.random((3, 40)) < confidences
        tolerance = 0.05
        subsets = [c for size in range(3) for c in itertools.combinations(range(2), size)]
        points = [
            choose_threshold(sweep(confidences, correct, s, leaving_costs(s)), correct[-1].mean(), tolerance)
            for s in subsets
        ]
        policy, point = calibrate_and_prune(confidences, correct, tolerance)
        assert point.accuracy >= correct[-1].mean() - tolerance - 1e-9
        assert point.cost == points[subsets.index(policy.exits_in_use)].cost
        # with two exits, one step at a time reaches every subset but may stop early; it never beats the best
        assert min(p.cost for p in points) <= point.cost <= points[subsets.index((0, 1))].cost
