"""Risk control: a policy chosen so that the loss against the last exit keeps a promise (Sec. 3.1.4).

A user's own 16 to 40 calibration samples cannot certify a drop of one point: that takes 230 samples without a single
error. So a rule here shrinks the user's risk curve towards the pooled curve of other users, and takes the cheapest
candidate whose shrunken risk is at most a *level*. What is certified is not a candidate but this whole procedure: each
other user's policy is chosen from one half of the samples and the curves of everybody else, and its loss is counted on
the other half. The level is the largest that a rule allows on these losses, so the choice among candidates is covered.

- `paper` certifies nothing: it uses the user's samples alone, and promises nothing.
- `controlled` certifies with the held-out users whose curves ship with the model, by Learn-then-Test over levels. With
  probability 1 - delta over these users, the mean loss of users like them is at most the tolerance.
- `federated` certifies with the other clients' curves, by conformal risk control. The expected loss of one more user
  like them is at most the tolerance.

A user's loss counts for at most `MOST_LOSS` in both. References: Angelopoulos et al., Conformal Risk Control (2022,
arXiv 2208.02814); Angelopoulos et al., Learn then Test (2021, arXiv 2110.01052); Jazbec et al., Fast yet Safe:
Early-Exiting with Risk Control (2024, arXiv 2405.20915); Waudby-Smith and Ramdas, Estimating means of bounded random
variables by betting (2024, arXiv 2010.09686).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.risk.risk_curves import COST_UNIT, UNIT, RiskCurve
from persephonee.clients.personalisation.risk.risk_pools import RISK_UNIT, Certificate, PoolRule, RiskPool

STRENGTHS = (10, 40, 160)
"""How many samples the others' curve counts for beside a user's own."""
LEVELS = (-0.02, -0.01, -0.005, -0.0025, 0.0, 0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02)
"""Levels of the shrunken risk, from the most cautious; none at all leaves the original network in force."""
MOST_LOSS = 0.1
"""A user's measured loss is clipped to [-MOST_LOSS, MOST_LOSS]; without a bound no finite number of users suffices."""


def choose_candidate(own: RiskCurve, pool: RiskPool, certificate: Certificate) -> int | None:
    """Return the number of the candidate for this user; None where the original network stays in force."""
    beliefs = _shrunken(
        own.excess.sum(axis=0) / UNIT,
        np.array([own.num_samples]),
        own.costs,
        pool.risks / RISK_UNIT,
        pool.costs.astype(np.float64),
        certificate.strength,
    )
    chosen = int(_cheapest(*beliefs, (certificate.level,))[0, 0])
    return None if chosen < 0 else chosen


def pool_curves(
    curves: Sequence[RiskCurve],
    rule: PoolRule,
    promises: Sequence[tuple[float, float]],
    judged: Sequence[RiskCurve] | None = None,
) -> RiskPool:
    """Return the pool of these users, with what can be promised on them.

    The strength is the one with the cheapest policies among those that are certified. `controlled` tests each strength
    at delta / number of strengths, so this choice costs it nothing of its promise.

    Args:
        curves: a curve per user, of what the users' devices believe to lose. Their order matters to `controlled`
            alone, and must not follow from the losses.
        rule: how to certify.
        promises: pairs of a tolerance, in [0, 1], and of delta, in (0, 1), which `federated` has no use for.
        judged: the same users' curves of what they lose in truth, where they know less than we do; None for `curves`.

    Raises:
        ClientSettingsError: there are fewer than two users, or their curves are of different lengths.
    """
    if len(curves) < 2 or len({len(curve.costs) for curve in curves}) > 1:
        raise ClientSettingsError(
            f"{len(curves)} risk curves of lengths {sorted({len(curve.costs) for curve in curves})} make no pool: give "
            "two or more of one length."
        )
    if rule == "federated" and judged is None:
        # sums of floats depend on their order, and the order in which clients answer means nothing
        curves = sorted(curves, key=lambda curve: (curve.excess.tobytes(), curve.costs.tobytes(), curve.samples))
    judged = curves if judged is None else judged
    found = {strength: left_out(curves, judged, strength) for strength in STRENGTHS}
    made = [_certificate(rule, tolerance, delta, found) for tolerance, delta in promises]
    samples = sum(curve.num_samples for curve in curves)
    excess, costs = sum(c.excess.sum(axis=0) for c in curves), sum(c.costs for c in curves)
    return RiskPool(
        rule=rule,
        risks=np.rint(RISK_UNIT * np.asarray(excess) / (UNIT * samples)).astype(np.int64),
        costs=np.rint(np.asarray(costs) / len(curves)).astype(np.int64),
        users=len(curves),
        certificates=tuple(one for one in made if one is not None),
    )


def _certificate(
    rule: PoolRule, tolerance: float, delta: float, found: Mapping[int, tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> Certificate | None:
    best, cheapest = None, float(COST_UNIT)
    for strength, (losses, spent) in found.items():
        if rule == "controlled":
            count = levels_by_testing(losses, tolerance, delta / len(found))
        else:
            count = levels_by_conformal_control(losses, tolerance)
        # strictly cheaper: of equal ones the strength that trusts the user's own samples more
        if count and spent[count - 1] < cheapest:
            best = Certificate(tolerance=tolerance, delta=delta, strength=strength, level=LEVELS[count - 1])
            cheapest = float(spent[count - 1])
    return best


def left_out(
    curves: Sequence[RiskCurve], judged: Sequence[RiskCurve], strength: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what each user loses by the policy that the others and one half of the samples choose.

    Args:
        curves: of U users, which choose.
        judged: of the same users, by which the loss is counted.
        strength: how many samples the others count for.

    Returns:
        Losses [L, U] for each of the levels, in [-MOST_LOSS, MOST_LOSS], over the halves that did not choose; and the
        mean costs [L], in `COST_UNIT`ths.
    """
    excess, lost = (np.array([curve.excess for curve in of]) / UNIT for of in (curves, judged))
    costs = np.array([curve.costs for curve in curves], dtype=np.float64)
    samples = np.array([curve.samples for curve in curves])
    both, own = excess.sum(axis=1), samples.sum(axis=1, keepdims=True)
    pool_risks = (both.sum(axis=0) - both) / (own.sum() - own)
    pool_costs = (costs.sum(axis=0) - costs) / (len(curves) - 1)
    users = np.arange(len(curves))[:, None]
    losses, spent = np.zeros((len(LEVELS), len(curves))), np.zeros(len(LEVELS))
    for half in (0, 1):
        beliefs = _shrunken(excess[:, half], samples[:, half, None], costs, pool_risks, pool_costs, strength)
        chosen = _cheapest(*beliefs, LEVELS)
        early = chosen >= 0
        losses += np.where(early, lost[users, 1 - half, chosen] / own, 0.0).T
        spent += np.where(early, costs[users, chosen], COST_UNIT).mean(axis=0) / 2
    return np.clip(losses, -MOST_LOSS, MOST_LOSS), spent


def levels_by_conformal_control(losses: NDArray[np.float64], tolerance: float) -> int:
    """Return how many of the levels, from the first, keep (sum of the losses + MOST_LOSS) / (U + 1) <= tolerance.

    That is conformal risk control: the term MOST_LOSS stands for the one user whose loss is not known yet.

    Args:
        losses: [L, U], from the most cautious level.
        tolerance: in [0, 1].
    """
    bounds = (losses.sum(axis=1) + MOST_LOSS) / (losses.shape[1] + 1)
    return _first(bounds <= tolerance + 1e-12)


def levels_by_testing(losses: NDArray[np.float64], tolerance: float, delta: float) -> int:
    """Return how many of the levels, from the first, reject "the mean loss is above the tolerance" at delta.

    Fixed-sequence testing: it stops at the first level that does not, so all together err with probability delta.
    """
    return _first(np.array([betting_p_value(row, tolerance, MOST_LOSS) <= delta for row in losses]))


def betting_p_value(losses: NDArray[np.float64], tolerance: float, most: float) -> float:
    """Return a p-value of "the mean is at least the tolerance" for independent losses in [-most, most].

    The capital of a gambler who bets against it, as much as the losses so far suggest, exceeds 1/p with probability p
    at most (Ville's inequality; Waudby-Smith and Ramdas 2024, Sec. 4).

    Args:
        losses: [U].
        tolerance: below `most`.
        most: the largest possible absolute loss, > 0.
    """
    scaled, null = (losses + most) / (2 * most), (tolerance + most) / (2 * most)
    counts = np.arange(1, len(scaled) + 1)
    means = (0.5 + np.cumsum(scaled)) / (counts + 1)
    variances = (0.05 + np.cumsum((scaled - means) ** 2)) / (counts + 1)
    # each bet knows the losses before it and no other
    before_mean, before_variance = np.r_[0.5, means[:-1]], np.r_[0.05, variances[:-1]]
    gap = null - before_mean
    bets = np.clip(gap / (before_variance + gap**2), 0.0, 0.9 / (1 - null))
    capital = np.cumprod(1 + bets * (null - scaled))
    return float(min(1.0, 1.0 / capital.max()))


def _shrunken(
    excess: NDArray[np.float64],
    samples: NDArray[np.int64],
    costs: NDArray[np.float64] | NDArray[np.int64],
    pool_risks: NDArray[np.float64],
    pool_costs: NDArray[np.float64],
    strength: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return users' risks and costs, each [U, C], shrunken towards others' as if these had `strength` samples.

    Args:
        excess: summed losses, in samples, [U, C] or [C].
        samples: over which they were summed, [U, 1] or [1].
        costs: mean costs, [U, C] or [C].
        pool_risks: others' mean loss of a sample, [U, C] or [C].
        pool_costs: others' mean costs, [U, C] or [C].
        strength: in samples.
    """
    risks = (excess + strength * pool_risks) / (samples + strength)
    means = (samples * costs + strength * pool_costs) / (samples + strength)
    return np.atleast_2d(risks), np.atleast_2d(means)


def _cheapest(risks: NDArray[np.float64], costs: NDArray[np.float64], levels: Sequence[float]) -> NDArray[np.int64]:
    """Return for each user and level the cheapest candidate whose risk is at most it, [U, L], -1 where there is none.

    Of equally cheap ones it is the last, which of the same exits has the largest threshold. What costs as much as the
    original network saves nothing.
    """
    last = costs.shape[1] - 1
    order = last - np.argsort(costs[:, ::-1], axis=1, kind="stable")
    ordered = np.take_along_axis(risks, order, axis=1)
    ordered[np.take_along_axis(costs, order, axis=1) >= COST_UNIT] = np.inf
    allowed = ordered[:, None] <= np.array(levels)[:, None] + 1e-12
    best = np.take_along_axis(order, allowed.argmax(axis=2), axis=1)
    return np.where(allowed.any(axis=2), best, -1)


def _first(holds: NDArray[np.bool_]) -> int:
    """Return how many hold before the first that does not."""
    return int(np.argmin(np.r_[holds, False]))
