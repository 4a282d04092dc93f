"""Risk control: what the rules promise, held against users of a known distribution."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.risk.risk_control import (
    MOST_LOSS,
    betting_p_value,
    choose_candidate,
    levels_by_conformal_control,
    levels_by_testing,
    pool_curves,
)
from persephonee.clients.personalisation.risk.risk_curves import UNIT, RiskCurve
from persephonee.clients.personalisation.risk.risk_pools import RISK_UNIT, Certificate, RiskPool

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


def chosen_with(curve, pool):
    certificate = pool.certificate(TOLERANCE, DELTA)
    return None if certificate is None else choose_candidate(curve, pool, certificate)


def mean_loss(pool, users):
    """Return what users lose on average under the policies that they choose with the pool."""
    chosen = [chosen_with(curve, pool) for _, curve in users]
    return float(np.mean([0.0 if c is None else risks[c] for c, (risks, _) in zip(chosen, users, strict=True)]))


@cache
def calibrations(rule, count=1000):
    """Return the true mean loss and the level of so many calibrations, each on 60 users."""
    rng = np.random.default_rng(5)
    losses, levels = [], []
    for _ in range(count):
        pool = pool_curves([user(rng, 32)[1] for _ in range(60)], rule, [(TOLERANCE, DELTA)])
        losses.append(mean_loss(pool, [user(rng, 20) for _ in range(60)]))
        levels.append(pool.certificate(TOLERANCE, DELTA))
    return np.array(losses), levels


def test_of_100_simulated_calibrations_hardly_any_misses_its_promise_and_nearly_all_can_make_one():
    # the slow tests below tell delta from a little more than delta; this one is for every change
    for rule in ("controlled", "federated"):
        losses, certificates = calibrations(rule, 100)
        assert losses.mean() <= TOLERANCE
        assert rule == "federated" or (losses > TOLERANCE).mean() <= DELTA
        assert sum(certificate is not None for certificate in certificates) > 50


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
    """Return a pool of 100 users."""
    return RiskPool(
        rule="controlled",
        risks=np.rint(np.array(risks) * RISK_UNIT).astype(np.int64),
        costs=np.array(costs),
        users=100,
        certificates=(Certificate(tolerance=TOLERANCE, delta=DELTA, strength=strength, level=level),),
    )


def curve_with(lost, samples, costs):
    return RiskCurve(excess=UNIT * np.array([lost, [0] * len(lost)]), samples=samples, costs=np.array(costs))


def test_the_cheapest_candidate_within_the_level_is_chosen_and_own_errors_raise_its_risk():
    pool = pool_with(0.01, 30, [0.0, 0.01, 0.02], [800, 500, 300])
    assert chosen_with(curve_with([0, 0, 0], (5, 5), [800, 500, 300]), pool) == 1
    # with 30 own samples without error (0 + 30 x 0.02) / (30 + 30) = 0.01
    assert chosen_with(curve_with([0, 0, 0], (15, 15), [800, 500, 300]), pool) == 2
    assert chosen_with(curve_with([0, 1, 1], (5, 5), [800, 500, 300]), pool) == 0


def test_of_equal_candidates_the_largest_threshold_is_chosen():
    pool = pool_with(0.01, 10, [0.0, 0.0, 0.0], [500, 500, 500])
    assert chosen_with(curve_with([0, 0, 0], (5, 5), [500, 500, 500]), pool) == 2


def test_without_a_saving_the_original_network_stays():
    assert chosen_with(curve_with([0], (5, 5), [500]), pool_with(-0.02, 10, [0.0], [500])) is None
    assert chosen_with(curve_with([0], (5, 5), [1000]), pool_with(0.01, 10, [0.0], [1000])) is None


def test_the_federated_pool_is_the_same_bytes_in_whatever_order_the_clients_answer():
    rng = np.random.default_rng(3)
    curves = [user(rng, 24)[1] for _ in range(30)]
    pools = [
        pool_curves(of, "federated", [(TOLERANCE, DELTA)]) for of in (curves, curves[::-1], curves[9:] + curves[:9])
    ]
    texts = {json.dumps(pool.to_json()) for pool in pools}
    assert len(texts) == 1
    assert pools[0].certificates


def test_a_loss_that_users_do_not_see_is_counted_where_it_is_known():
    rng = np.random.default_rng(4)
    lost = [user(rng, 32)[1] for _ in range(60)]
    blind = [replace(curve, excess=np.zeros_like(curve.excess)) for curve in lost]
    promises = [(TOLERANCE, DELTA)]
    assert pool_curves(blind, "federated", promises).certificates
    assert not pool_curves(blind, "federated", promises, judged=lost).certificates


def test_a_certificate_serves_those_who_ask_for_no_more_than_it_promises():
    rng = np.random.default_rng(3)
    curves = [user(rng, 24)[1] for _ in range(200)]
    pool = pool_curves(curves, "controlled", [(0.01, 0.1), (0.02, 0.1), (0.02, 0.05)])
    assert pool.certificate(0.02, 0.1).tolerance == 0.02
    assert pool.certificate(0.03, 0.07).delta == 0.05
    assert pool.certificate(0.015, 0.1).tolerance == 0.01
    assert pool.certificate(0.009, 0.1) is None
    assert pool.certificate(0.02, 0.04) is None


def test_a_pool_needs_two_users_of_one_network():
    curve = curve_with([0], (5, 5), [500])
    with pytest.raises(ClientSettingsError, match="1 risk curves"):
        pool_curves([curve], "federated", [(TOLERANCE, DELTA)])
    with pytest.raises(ClientSettingsError, match=r"lengths \[1, 2\]"):
        pool_curves([curve, curve_with([0, 0], (5, 5), [500, 400])], "federated", [(TOLERANCE, DELTA)])
