"""Risk curves: what candidates lose, counted by hand and by the accuracy of the policy."""

from dataclasses import replace

import numpy as np
import pytest

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.risk.risk_curves import (
    COST_UNIT,
    FLOOR,
    UNIT,
    RiskCurve,
    candidate_policies,
    expected_excess,
    labelled_excess,
    own_excess,
    risk_curve,
)
from persephonee.multi_exit.exit_calibration import ExitCalibration


def leaving(exits):
    """Return exit i at i + 1 of 10 and the last exit at 10, whatever else is in use."""
    return [*(exit + 1 for exit in exits), 10]


def test_no_candidate_is_without_a_confidence_check():
    for num_exits in (1, 2, 6, 7, 8, 63):
        policies = candidate_policies(num_exits)
        assert all(policy.threshold >= FLOOR and policy.exits_in_use for policy in policies)
        assert len(set(policies)) == len(policies) <= 640
    assert len(candidate_policies(6)) == 10 * (6 + 15)


def test_excess_with_labels_is_plus_and_minus_one_where_one_of_the_two_is_wrong():
    labels = np.array([0, 1, 2, 3])
    predictions = np.array([[0, 0, 2, 0], [0, 1, 0, 0]])  # the last exit is wrong on the last two
    np.testing.assert_array_equal(labelled_excess(predictions, labels), [[0, 1, -1, 0], [0, 0, 0, 0]])


def test_an_exit_that_disagrees_with_a_last_exit_that_does_not_know_has_made_no_error():
    predictions = np.array([[1, 1], [0, 0]])
    last = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    np.testing.assert_allclose(expected_excess(predictions, last), [[0.0, 0.8], [0, 0]], atol=1e-12)


def test_against_the_original_an_exit_that_follows_the_users_frequencies_gains():
    predictions = np.array([[1, 1], [1, 0]])  # the last exit in force
    original = np.array([0, 0])
    likely = np.log(np.array([[0.2, 0.8], [0.7, 0.3]]))
    # p(original's answer) - p(the exit's answer)
    expected = [[0.2 - 0.8, 0.7 - 0.3], [0.2 - 0.8, 0.0]]
    np.testing.assert_allclose(expected_excess(predictions, likely, original), expected, atol=1e-12)
    labels = np.array([1, 1])
    np.testing.assert_array_equal(labelled_excess(predictions, labels, original), [[-1, -1], [-1, 0]])
    np.testing.assert_allclose(
        own_excess(predictions, np.array([1, -1]), likely, None, original)[0], [-1, 0.4], atol=1e-12
    )


def test_a_missing_label_is_stood_in_for_by_the_last_exits_calibrated_probabilities():
    predictions = np.array([[1, 1, 1], [0, 0, 0]])
    last = np.log(np.array([[0.9, 0.1]] * 3))
    excess = own_excess(predictions, np.array([0, 1, -1]), last, None)
    np.testing.assert_allclose(excess[0], [1, -1, 0.8], atol=1e-12)
    # sqrt(.9) / (sqrt(.9) + sqrt(.1)) = .75 at a temperature of 2; a bias of ln 3 for class 1 makes both as likely
    fitted = ExitCalibration(temperatures=(1.0, 2.0), biases=((0.0, 0.0), (0.0, 0.0)), frequencies=(0.5, 0.5))
    np.testing.assert_allclose(own_excess(predictions, np.array([-1] * 3), last, fitted)[0], 0.5, atol=1e-12)
    biased = replace(fitted, biases=((0.0, 0.0), (0.0, 1.0986122886681098)))
    np.testing.assert_allclose(own_excess(predictions, np.array([-1] * 3), last, biased)[0], 0.0, atol=1e-12)


def test_both_halves_together_are_the_drop_in_accuracy_of_the_policy():
    rng = np.random.default_rng(1)
    confidences, labels = rng.random((4, 31)), rng.integers(3, size=31)
    predictions = rng.integers(3, size=(4, 31))
    curve = risk_curve(confidences, labelled_excess(predictions, labels), leaving, 10.0)
    assert curve.samples == (16, 15)
    for number, policy in enumerate(candidate_policies(3)):
        exits = policy.exit_of(confidences)
        right = predictions[exits, np.arange(31)] == labels
        drop = (predictions[-1] == labels).sum() - right.sum()
        assert curve.excess[:, number].sum() == UNIT * drop
        cost = np.where(exits == 3, 10, exits + 1).mean() / 10
        assert curve.costs[number] == round(COST_UNIT * cost)


@pytest.mark.parametrize(
    ("excess", "samples", "costs", "words"),
    [
        ([[31, 0], [0, 0]], (3, 3), [10, 10], "a loss of 31 tenths is impossible"),
        ([[0, 0], [0, -41]], (3, 4), [10, 10], "a loss of 41 tenths is impossible"),
        ([[0, 0], [0, 0]], (3, 0), [10, 10], "at least one sample in each half"),
        ([[0], [0]], (3, 3), [10, 10], "of shape"),
        ([[0, 0], [0, 0]], (3, 3), [10, -1], "a cost of -1 is impossible"),
    ],
)
def test_impossible_counts_are_refused(excess, samples, costs, words):
    with pytest.raises(ClientSettingsError, match=words):
        RiskCurve(excess=np.array(excess), samples=samples, costs=np.array(costs))
