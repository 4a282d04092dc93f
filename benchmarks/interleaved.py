"""Timing two things side by side: their runs alternate, so that a busy moment of the machine meets both."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]


@dataclass(frozen=True, eq=False)
class Pair:
    """Times of two things in ms, repetition by repetition.

    Attributes:
        first: shape [R, P], P pairs of calls, R repetitions of each.
        second: shape [R, P].
    """

    first: NDArray[np.float64]
    second: NDArray[np.float64]

    @property
    def ratio(self) -> float:
        """Total time of the second over that of the first, from the medians over the repetitions."""
        return float(np.median(self.second, axis=0).sum() / np.median(self.first, axis=0).sum())

    @property
    def ratio_quartiles(self) -> tuple[float, float]:
        """25th and 75th percentile of the same ratio of single repetitions."""
        low, high = np.quantile(self.second.sum(axis=1) / self.first.sum(axis=1), [0.25, 0.75])
        return float(low), float(high)


def time_pairs(calls: Sequence[tuple[Call, Call]], repeats: int, warm_up: int = 3) -> Pair:
    """Time pairs of calls, the two of a pair in turn, each going first in every other repetition.

    Args:
        calls: P pairs.
        repeats: R, timed passes over all pairs, at least 1.
        warm_up: passes before them that are not timed.
    """
    times = np.empty((2, repeats, len(calls)))
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        for repeat in range(-warm_up, repeats):
            for i, pair in enumerate(calls):
                for which in (0, 1) if repeat % 2 else (1, 0):
                    begin = time.perf_counter()
                    pair[which]()
                    elapsed = time.perf_counter() - begin
                    if repeat >= 0:
                        times[which, repeat, i] = 1000 * elapsed
    finally:
        if was_collecting:
            gc.enable()
    return Pair(*times)
