"""Exit pruning: exits that do not pay for their heads go, and the sweep is repeated for the rest (Sec. 3.1.4)."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.personalisation.calibration import OperatingPoint, choose_threshold, sweep
from persephonee.clients.personalisation.policy import ExitPolicy


def calibrate_and_prune(
    confidences: NDArray[np.float64],
    correct: NDArray[np.bool_],
    leaving_costs: Callable[[Sequence[int]], Sequence[float]],
    drop_tolerance: float,
) -> tuple[ExitPolicy, OperatingPoint]:
    """Return the policy for the user, and what it achieves on the calibration set.

    Starts from all exits and takes away, one at a time, the exit without which the calibrated policy is cheapest,
    as long as that is no dearer than with it. An exit pays when the samples that leave there save more than
    its head costs all samples that pass. With no exit left the original network is in force.

    Args:
        confidences: top-1 softmax of all exits on the calibration set, shape [M+1, N], N >= 1.
        correct: whether each exit's answer equals the reference, shape [M+1, N].
        leaving_costs: given the exits in use, what a sample costs that leaves at each of them and at the last one.
        drop_tolerance: how much accuracy may be lost against the last exit, in [0, 1].
    """
    original_accuracy = float(correct[-1].mean())

    def calibrated(exits: tuple[int, ...]) -> OperatingPoint:
        points = sweep(confidences, correct, exits, leaving_costs(exits))
        return choose_threshold(points, original_accuracy, drop_tolerance)

    num_exits = len(confidences) - 1
    exits = tuple(range(num_exits))
    point = calibrated(exits)
    while exits:
        fewer = [tuple(e for e in exits if e != gone) for gone in exits]
        candidates = [(calibrated(remaining), remaining) for remaining in fewer]
        best, remaining = min(candidates, key=lambda c: (c[0].cost, -c[0].accuracy))
        if best.cost > point.cost:
            break
        point, exits = best, remaining
    return ExitPolicy(threshold=point.threshold, exits_in_use=exits, num_exits=num_exits), point
