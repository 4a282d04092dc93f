"""Confidence calibration: the choice of thr_conf on the user's own calibration set (PersEPhonEE, Sec. 3.1.4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.settings import PersonalisationSettings

LeavingCosts = Callable[[Sequence[int]], Sequence[float]]
"""Given the exits in use, what a sample costs that leaves at each of them and, at the end, at the last exit."""

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(21))
"""0 to 1 in steps of 0.05, one threshold for all exits, as in the paper."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationSet:
    """What calibration and pruning know of N calibration samples, N >= 1.

    Attributes:
        confidences: top-1 softmax of all exits, shape [M+1, N], in [0, 1].
        correct: whether each exit's answer equals the reference, shape [M+1, N].
        leaving_costs: in MACs or ms.
    """

    confidences: NDArray[np.float64]
    correct: NDArray[np.bool_]
    leaving_costs: LeavingCosts

    @property
    def num_exits(self) -> int:
        """M, the number of early exits."""
        return len(self.confidences) - 1


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """What the policy with one threshold achieves on the calibration set.

    Attributes:
        threshold: thr_conf.
        accuracy: fraction of answers equal to the reference, in [0, 1].
        cost: average over the samples, in the unit of the exits' costs: MACs or ms.
        exit_rates: fraction of the samples that leave at each of the M+1 exits.
    """

    threshold: float
    accuracy: float
    cost: float
    exit_rates: tuple[float, ...]


def exit_rates(exit_indices: NDArray[np.int64], num_exits: int) -> NDArray[np.float64]:
    """Return the fraction of the samples that leave at each of the M+1 exits, from their exit numbers [N]."""
    return np.bincount(exit_indices, minlength=num_exits + 1) / max(len(exit_indices), 1)


def sweep(
    confidences: NDArray[np.float64],
    correct: NDArray[np.bool_],
    exits: tuple[int, ...],
    leaving_costs: Sequence[float],
) -> tuple[OperatingPoint, ...]:
    """Return the operating point of each threshold from 0 to 1.

    Args:
        confidences: top-1 softmax of all exits, shape [M+1, N].
        correct: whether each exit's answer equals the reference, shape [M+1, N].
        exits: early exits in use.
        leaving_costs: what a sample costs that leaves at each exit in use and, at the end, at the last exit.
    """
    num_exits = confidences.shape[0] - 1
    costs = np.full(num_exits + 1, np.nan)
    costs[[*exits, num_exits]] = leaving_costs
    # all thresholds at once, as in ExitPolicy.exit_of: shape [T, N]
    thresholds = np.array(THRESHOLDS)[:, None]
    exit_indices = np.full((len(THRESHOLDS), confidences.shape[1]), num_exits)
    for exit in reversed(exits):
        exit_indices[confidences[exit] > thresholds] = exit
    rates = (exit_indices[:, :, None] == np.arange(num_exits + 1)).mean(axis=1)
    accuracies = correct[exit_indices, np.arange(confidences.shape[1])].mean(axis=1)
    return tuple(
        OperatingPoint(threshold=threshold, accuracy=accuracy, cost=cost, exit_rates=tuple(shares))
        for threshold, accuracy, cost, shares in zip(
            THRESHOLDS, accuracies.tolist(), costs[exit_indices].mean(axis=1).tolist(), rates.tolist(), strict=True
        )
    )


def pareto_front(points: Sequence[OperatingPoint]) -> tuple[OperatingPoint, ...]:
    """Return the points that no other beats: none is as cheap and more accurate, or cheaper and as accurate.

    Of equal points the one with the largest threshold stays, which is the safest for inputs of another kind. The front
    is ordered by cost.
    """
    front: list[OperatingPoint] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.accuracy, -p.threshold)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return tuple(front)


def choose_threshold(
    points: Sequence[OperatingPoint], original_accuracy: float, drop_tolerance: float
) -> OperatingPoint:
    """Return the point of the Pareto front with the smallest threshold within the drop tolerance.

    Args:
        points: the sweep; its point at threshold 1 is the last exit's accuracy, so one always qualifies.
        original_accuracy: of the last exit on the same samples, in [0, 1].
        drop_tolerance: how much accuracy may be lost, in [0, 1].
    """
    # one part in a billion: a drop of exactly the tolerance is within it, whatever the rounding of the means
    within = [p for p in pareto_front(points) if p.accuracy >= original_accuracy - drop_tolerance - 1e-9]
    return min(within, key=lambda p: p.threshold)


@dataclass(frozen=True, kw_only=True)
class CalibratedPolicy:
    """A policy, and what it achieves on the calibration samples."""

    policy: ExitPolicy
    point: OperatingPoint


def calibrate(
    samples: CalibrationSet, settings: PersonalisationSettings, exits: tuple[int, ...] | None = None
) -> CalibratedPolicy:
    """Return the policy with the threshold that the settings' drop tolerance allows.

    Args:
        samples: what the exits answer on the calibration samples.
        settings: the drop tolerance against the last exit.
        exits: early exits that the policy may use, increasing; None for all.
    """
    exits = tuple(range(samples.num_exits)) if exits is None else exits
    points = sweep(samples.confidences, samples.correct, exits, samples.leaving_costs(exits))
    point = choose_threshold(points, float(samples.correct[-1].mean()), settings.drop_tolerance)
    policy = ExitPolicy(threshold=point.threshold, exits_in_use=exits, num_exits=samples.num_exits)
    return CalibratedPolicy(policy=policy, point=point)
