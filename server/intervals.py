"""Means over users with their intervals, by the percentile bootstrap."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over users and its interval by the bootstrap over users."""

    mean: float
    low: float
    high: float


def draw_users(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Return the users of each resample, [R, count]."""
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


def estimate(values: NDArray[np.float64], draws: NDArray[np.int64]) -> Estimate:
    """Return the mean of one value per user, with the percentile bootstrap's interval.

    Args:
        values: shape [N].
        draws: the users of each resample, shape [R, N]; equal ones pair the intervals of several values.
    """
    low, high = np.quantile(values[draws].mean(axis=1), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(mean=float(values.mean()), low=float(low), high=float(high))
