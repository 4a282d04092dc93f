"""Risk curves: what each candidate policy loses against the last exit, as small counts that may travel (Sec. 3.1.4).

NumPy alone, so that a device without torch computes them too. A curve says nothing of a single sample: per candidate it
holds a sum over half of the calibration samples. One half chooses a policy where the other one certifies it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.calibration import THRESHOLDS
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.multi_exit.exit_calibration import ExitCalibration

FLOOR = 0.5
"""No candidate's threshold is below it: an exit that gives its own answer less than an even chance may not be final."""
UNIT = 10
"""Losses are counted in tenths of a sample."""
COST_UNIT = 1000
"""Costs are counted in thousandths of the original network's."""
MOST_EXITS_FOR_PAIRS = 7
FEWEST_SAMPLES = 5
"""A sum over fewer samples would say something about each of them: no curve of which a half has fewer leaves a device,
and none over fewer in all chooses a policy."""


@cache
def candidate_policies(num_exits: int) -> tuple[ExitPolicy, ...]:
    """Return the C policies that are compared, none of which depends on data: one or two exits and a threshold.

    With more than `MOST_EXITS_FOR_PAIRS` exits it is one exit, so that a curve stays small. The original network is
    not among them: it is what remains where no candidate qualifies.
    """
    sizes = (1, 2) if num_exits <= MOST_EXITS_FOR_PAIRS else (1,)
    subsets = [subset for size in sizes for subset in combinations(range(num_exits), size)]
    return tuple(
        ExitPolicy(threshold=threshold, exits_in_use=subset, num_exits=num_exits)
        for subset in subsets
        for threshold in THRESHOLDS
        if FLOOR <= threshold < 1
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class RiskCurve:
    """What the C candidates lose and cost on one user's samples, in two halves.

    Attributes:
        excess: summed loss against the last exit in `UNIT`ths of a sample, int64 [2, C], in [-UNIT n, UNIT n].
        samples: n, how many samples each half has.
        costs: mean cost over all samples in `COST_UNIT`ths of the original network's, int64 [C].

    Raises:
        ClientSettingsError: the counts are impossible; the sentence says which.
    """

    excess: NDArray[np.int64]
    samples: tuple[int, int]
    costs: NDArray[np.int64]

    def __post_init__(self) -> None:
        if min(self.samples) < 1 or self.excess.shape != (2, len(self.costs)):
            raise ClientSettingsError(
                f"a risk curve of shape {self.excess.shape} over {self.samples} samples is impossible: expected "
                f"{(2, len(self.costs))} and at least one sample in each half."
            )
        most = UNIT * np.array(self.samples)
        if (np.abs(self.excess) > most[:, None]).any():
            raise ClientSettingsError(
                f"a risk curve with a loss of {np.abs(self.excess).max()} tenths is impossible: its halves have "
                f"{self.samples[0]} and {self.samples[1]} samples."
            )
        if (self.costs < 0).any():
            raise ClientSettingsError(
                f"a risk curve with a cost of {self.costs.min()} is impossible: expected 0 or more."
            )

    @property
    def num_samples(self) -> int:
        """How many samples it was measured on."""
        return sum(self.samples)


def labelled_excess(
    predictions: NDArray[np.int64], labels: NDArray[np.int64], original: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return each exit's excess error on each sample, [M+1, N]: 1 where it is wrong and the reference right.

    Where it is right and the reference wrong it is -1, so the mean is the drop in accuracy against the reference.

    Args:
        predictions: top-1 class of all exits, [M+1, N].
        labels: classes, [N].
        original: answers of the original network, [N], which are the reference; None takes the last exit in force.
    """
    reference = predictions[-1] if original is None else original
    excess: NDArray[np.float64] = (predictions != labels).astype(np.float64) - (reference != labels)
    return excess


def expected_excess(
    predictions: NDArray[np.int64], last_logits: NDArray[np.float64], original: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return each exit's expected excess error on samples without labels, [M+1, N].

    It is p(the reference's answer) - p(this exit's answer) under the last exit's probabilities: an exit that disagrees
    with a last exit that is wrong half the time has made no error. Against the last exit it is in [0, 1]; against the
    original, whose answers the user's class frequencies correct, in [-1, 1].

    Args:
        predictions: top-1 class of all exits, [M+1, N].
        last_logits: of the last exit in force, calibrated, [N, K].
        original: as of `labelled_excess`.
    """
    likely = np.exp(last_logits - last_logits.max(axis=1, keepdims=True))
    likely /= likely.sum(axis=1, keepdims=True)
    own = np.take_along_axis(likely, predictions.T, axis=1).T
    excess: NDArray[np.float64]
    if original is None:
        excess = np.maximum(own[-1] - own, 0.0)
    else:
        excess = np.take_along_axis(likely, original[:, None], axis=1)[:, 0] - own
    return excess


def own_excess(
    predictions: NDArray[np.int64],
    labels: NDArray[np.int64],
    last_logits: NDArray[np.float64],
    calibration: ExitCalibration | None,
    original: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return what a device believes each exit to lose on each sample, [M+1, N]: by its label, or else as expected.

    Args:
        predictions: top-1 class of all exits, [M+1, N].
        labels: [N], -1 where there is none.
        last_logits: of the last exit in force, before calibration, [N, K].
        calibration: of the exits; None takes the last exit's softmax as it is.
        original: as of `labelled_excess`.
    """
    if calibration is not None:
        last_logits = last_logits / calibration.temperatures[-1] + np.array(calibration.biases[-1])
    expected, counted = (
        expected_excess(predictions, last_logits, original),
        labelled_excess(predictions, labels, original),
    )
    excess: NDArray[np.float64] = np.where(labels < 0, expected, counted)
    return excess


def risk_curve(
    confidences: NDArray[np.float64],
    excess: NDArray[np.float64],
    leaving_costs: Callable[[Sequence[int]], Sequence[float]],
    original_cost: float,
) -> RiskCurve:
    """Return the curve of one user.

    Args:
        confidences: top-1 softmax of all exits, [M+1, N], N >= 2.
        excess: of all exits, [M+1, N], in [-1, 1].
        leaving_costs: given the exits in use, what a sample costs that leaves at each of them and at the last one.
        original_cost: of the original network, in the same unit.
    """
    return summed(*candidate_losses(confidences, excess, leaving_costs, original_cost))


def candidate_losses(
    confidences: NDArray[np.float64],
    excess: NDArray[np.float64],
    leaving_costs: Callable[[Sequence[int]], Sequence[float]],
    original_cost: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what each sample loses and costs under each candidate, both [C, N]; arguments as of `risk_curve`.

    These are outputs of single samples, which stay on the device.
    """
    policies, everyone = candidate_policies(len(confidences) - 1), np.arange(confidences.shape[1])
    losses, costs = np.empty((2, len(policies), len(everyone)))
    for row, policy in enumerate(policies):
        exits = policy.exit_of(confidences)
        leaving = np.full(policy.num_exits + 1, np.nan)
        leaving[[*policy.exits_in_use, policy.num_exits]] = leaving_costs(policy.exits_in_use)
        losses[row], costs[row] = excess[exits, everyone], leaving[exits] / original_cost
    return losses, costs


def summed(losses: NDArray[np.float64], costs: NDArray[np.float64]) -> RiskCurve:
    """Return the curve of what `candidate_losses` returned, or of some of its samples."""
    # every other sample, which after a split by class gives both halves the same classes
    halves = losses[:, ::2], losses[:, 1::2]
    return RiskCurve(
        excess=np.rint(UNIT * np.array([half.sum(axis=1) for half in halves])).astype(np.int64),
        samples=(halves[0].shape[1], halves[1].shape[1]),
        costs=np.rint(COST_UNIT * costs.mean(axis=1)).astype(np.int64),
    )
