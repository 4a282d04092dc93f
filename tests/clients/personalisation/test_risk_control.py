"""Risk control: what the rules promise, held against users of a known distribution."""

from functools import cache

import numpy as np
import pytest

from persephonee.clients.personalisation.risk_control import (
    MOST_LOSS,
    RiskPool,
    betting_p_value,
    choose_candidate,
    levels_by_conformal_control,
    levels_by_testing,
    pool_curves,
)
from persephonee.clients.personalisation.risk_curves import UNIT, RiskCurve

TOLERANCE, DELTA = 0.01, 0.1
# ten candidates: the cheaper, the more a user of average difficulty loses
RISKS = np.linspace(0, 0.06, 10)
COSTS = np.linspace(900, 300, 10).astype(np.int64)


def user(rng, samples):
    """Return the true risks of a user, whose difficulty is exponential, and a curve on so many samples."""
    risks = np.minimum(RISKS * rng.exponential(), 1)
    lost = rng.random(samples)[None] < risks[:, None]
    halves = np.array([lost[:, ::2].sum(axis=1), lost[:, 1::2].sum(axis=1)])
    curve = RiskCurve(excess=UNIT * halves, samples=((samples + 1) // 2, samples // 2), costs=COSTS)
    return risks, curve


def mean_loss(pool, users):
    """Return what users lose on average under the policies that they choose with the pool."""
    chosen = [choose_candidate(curve, pool) for _, curve in users]
    return float(np.mean([0.0 if c is None else risks[c] for c, (risks, _) in zip(chosen, users, strict=True)]))


@cache
def calibrations(rule, count=1000):
    """Return the true mean loss and the level of so many calibrations, each on 60 users."""
    rng = np.random.default_rng(5)
    losses, levels = [], []
    for _ in range(count):
        pool = pool_curves([user(rng, 32)[1] for _ in range(60)], rule, TOLERANCE, DELTA)
        losses.append(mean_loss(pool, [user(rng, 20) for _ in range(60)]))
        levels.append(pool.level)
    return np.array(losses), levels


@pytest.mark.slow
def test_of_1000_simulated_calibrations_at_most_delta_miss_the_controlled_promise():
    losses, levels = calibrations("controlled")
    assert (losses > TOLERANCE).mean() <= DELTA
    assert sum(level is not None for level in levels) > 100


@pytest.mark.slow
def test_over_1000_simulated_calibrations_the_federated_loss_is_within_the_tolerance():
    losses, levels = calibrations("federated")
    assert losses.mean() <= TOLERANCE
    assert sum(level is not None for level in levels) > 800


def test_the_betting_bound_errs_at_most_delta_of_the_time_where_the_mean_is_the_tolerance():
    rng = np.random.default_rng(2)
    # 0.1 with chance 0.1 and 0 otherwise: mean 0.01
    draws = np.where(rng.random((1000, 80)) < 0.1, 0.1, 0.0)
    assert np.mean([betting_p_value(row, 0.01, 0.1) <= DELTA for row in draws]) <= DELTA


def test_the_betting_bound_certifies_60_users_without_loss():
    assert betting_p_value(np.zeros(60), 0.01, MOST_LOSS) < 0.02
    assert betting_p_value(np.zeros(5), 0.01, MOST_LOSS) > 0.1


def test_levels_are_tested_in_order_and_the_first_failure_ends_it():
    losses = np.zeros((4, 80))
    losses[2] = 0.05
    assert levels_by_testing(losses, TOLERANCE, DELTA) == 2


def test_levels_by_conformal_control_are_those_of_the_formula():
    # (19 x 0.005 + 0.1) / 20 = 0.00975, and with 0.006 it is 0.0107
    losses = np.repeat([[0.0], [0.005], [0.006], [0.0]], 19, axis=1)
    assert levels_by_conformal_control(losses, TOLERANCE) == 2
    assert levels_by_conformal_control(losses[:, :8], TOLERANCE) == 0


def pool_with(level, strength, risks, costs):
    """Return a pool of 100 users with 100 samples each."""
    return RiskPool(
        excess=np.array(risks) * UNIT * 10_000,
        costs=np.array(costs) * 100,
        samples=10_000,
        users=100,
        strength=strength,
        level=level,
    )


def curve_with(lost, samples, costs):
    return RiskCurve(excess=UNIT * np.array([lost, [0] * len(lost)]), samples=samples, costs=np.array(costs))


def test_the_cheapest_candidate_within_the_level_is_chosen_and_own_errors_raise_its_risk():
    pool = pool_with(0.01, 30, [0.0, 0.01, 0.02], [800, 500, 300])
    assert choose_candidate(curve_with([0, 0, 0], (5, 5), [800, 500, 300]), pool) == 1
    # with 30 own samples without error (0 + 30 x 0.02) / (30 + 30) = 0.01
    assert choose_candidate(curve_with([0, 0, 0], (15, 15), [800, 500, 300]), pool) == 2
    assert choose_candidate(curve_with([0, 1, 1], (5, 5), [800, 500, 300]), pool) == 0


def test_of_equal_candidates_the_largest_threshold_is_chosen():
    pool = pool_with(0.01, 10, [0.0, 0.0, 0.0], [500, 500, 500])
    assert choose_candidate(curve_with([0, 0, 0], (5, 5), [500, 500, 500]), pool) == 2


def test_without_a_certified_level_or_a_saving_the_original_network_stays():
    own = curve_with([0], (5, 5), [500])
    assert choose_candidate(own, pool_with(None, 10, [0.0], [500])) is None
    assert choose_candidate(own, pool_with(-0.02, 10, [0.0], [500])) is None
    assert choose_candidate(curve_with([0], (5, 5), [1000]), pool_with(0.01, 10, [0.0], [1000])) is None


def test_conformal_pools_do_not_depend_on_the_order_of_the_users():
    rng = np.random.default_rng(3)
    curves = [user(rng, 24)[1] for _ in range(30)]
    pool, again = pool_curves(curves, "federated", TOLERANCE), pool_curves(curves[::-1], "federated", TOLERANCE)
    np.testing.assert_array_equal(pool.excess, again.excess)
    np.testing.assert_array_equal(pool.costs, again.costs)
    assert (pool.strength, pool.level, pool.samples) == (again.strength, again.level, again.samples)
