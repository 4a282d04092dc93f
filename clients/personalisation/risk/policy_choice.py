"""Which policy is in force after a round, by the rule of the settings, and what it promises (Sec. 3.1.4).

The original network stays in force wherever the rule can promise nothing: without a pool of other users' curves, with
too few calibration samples, or where nothing could be certified. The paper's rule is never taken in its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.personalisation.calibration import CalibrationSet, LeavingCosts, calibrate
from persephonee.clients.personalisation.familiar_images import FamiliarImages
from persephonee.clients.personalisation.labels import reference_classes
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.risk.pruning import prune
from persephonee.clients.personalisation.risk.risk_control import choose_candidate
from persephonee.clients.personalisation.risk.risk_curves import (
    FEWEST_SAMPLES,
    RiskCurve,
    candidate_policies,
    own_excess,
    risk_curve,
)
from persephonee.clients.personalisation.risk.risk_pools import RiskPool, shipped_pool
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.multi_exit.exit_calibration import ExitCalibration

if TYPE_CHECKING:
    from persephonee.clients.personalisation.evaluation import ExitOutputs

PAPER, CONTROLLED, FEDERATED = "paper", "controlled", "federated"
NO_POOL = "original: the model has no curves of other users"
TOO_FEW = "original: too few calibration samples"
NOT_CERTIFIED = "original: nothing could be certified"
OUTCOMES = (PAPER, CONTROLLED, FEDERATED, NO_POOL, TOO_FEW, NOT_CERTIFIED)
"""What may have chosen a policy, as a report says it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyChoice:
    """The policy that a rule chose.

    Attributes:
        policy: in force from now on.
        chosen_by: one of `OUTCOMES`.
        curve: of the user on the calibration samples; None where they are too few for one.
    """

    policy: ExitPolicy
    chosen_by: str
    curve: RiskCurve | None


def choose_policy(
    outputs: "ExitOutputs",
    labels: NDArray[np.int64],
    leaving_costs: LeavingCosts,
    settings: PersonalisationSettings,
    *,
    calibration: ExitCalibration | None,
    shipped: Mapping[str, Any],
    stage: str,
    pool: RiskPool | None = None,
    original: NDArray[np.int64] | None = None,
    familiar: FamiliarImages | None = None,
) -> PolicyChoice:
    """Return the policy that the settings' rule chooses on one user's calibration samples.

    Args:
        outputs: what all exits answer on the n calibration samples.
        labels: of these samples, [n], -1 where the device may not use one.
        leaving_costs: in MACs or ms.
        settings: the rule, the tolerance and delta.
        calibration: of the exits, for the probabilities that stand in for missing labels.
        shipped: the pools that the model carries.
        stage: whose pool of these is meant: `risk_pools.BEFORE`, or the schedule that trained the exits.
        pool: of the other clients of a federation, if there is one; where it certifies nothing, the model's does.
        original: what the original network answers on the calibration samples, [n], which counts where the settings
            take it for their reference; None says that it is the last exit.
        familiar: which images are familiar, by which the outputs' confidences of the others are 0 already.

    Raises:
        ClientSettingsError: the model's pool is damaged.
    """
    num_exits = len(outputs.predictions) - 1
    last_exit_alone = ExitPolicy(threshold=1.0, exits_in_use=(), num_exits=num_exits)
    reference = original if settings.drop_reference == "original" else None
    curve = None
    if len(labels) >= FEWEST_SAMPLES:
        last_logits = outputs.logits[-1].astype(np.float64)
        excess = own_excess(outputs.predictions, labels, last_logits, calibration, reference)
        curve = risk_curve(outputs.confidences, excess, leaving_costs, leaving_costs(())[-1])
    if settings.rule == PAPER:
        return PolicyChoice(
            policy=_as_the_paper_says(outputs, labels, leaving_costs, settings), chosen_by=PAPER, curve=curve
        )
    if curve is None:
        return PolicyChoice(policy=last_exit_alone, chosen_by=TOO_FEW, curve=None)
    own_pool = shipped_pool(shipped, stage, bool((labels >= 0).all()), num_exits, settings.drop_reference)
    pools = [one for one in (pool, own_pool) if one is not None]
    for one in pools:
        certificate = one.certificate(settings.drop_tolerance, settings.delta)
        if certificate is not None:
            chosen = choose_candidate(curve, one, certificate)
            policy = last_exit_alone
            if chosen is not None:
                policy = replace(candidate_policies(num_exits)[chosen], familiar=familiar)
            return PolicyChoice(policy=policy, chosen_by=one.rule, curve=curve)
    return PolicyChoice(policy=last_exit_alone, chosen_by=NOT_CERTIFIED if pools else NO_POOL, curve=curve)


def _as_the_paper_says(
    outputs: "ExitOutputs", labels: NDArray[np.int64], leaving_costs: LeavingCosts, settings: PersonalisationSettings
) -> ExitPolicy:
    reference = reference_classes(labels, outputs.logits[-1])
    samples = CalibrationSet(
        confidences=outputs.confidences, correct=outputs.predictions == reference, leaving_costs=leaving_costs
    )
    return prune(samples, calibrate(samples, settings), settings).policy


def promise_in_words(chosen_by: str, tolerance: float, delta: float, reference: str = "last-exit") -> str:
    """Return what a policy that was chosen in this way promises, as half a sentence."""
    against = "original network" if reference == "original" else "last exit"
    size = f"{100 * tolerance:g}"
    points = f"{size} {'point' if size == '1' else 'points'} of accuracy against the {against}"
    if chosen_by == CONTROLLED:
        return f"with probability {1 - delta:g} users like this one lose at most {points} on average"
    if chosen_by == FEDERATED:
        return f"a user like those of the federation is expected to lose at most {points}"
    if chosen_by == PAPER:
        return "no promise: the threshold fits this user's calibration samples"
    return f"no loss, since the original network answers ({chosen_by.partition(': ')[2]})"
