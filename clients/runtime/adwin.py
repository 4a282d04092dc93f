"""ADWIN, the adaptive window (Bifet and Gavalda, SDM 2007), in its version of buckets whose sizes are powers of two.

The window grows while its values may have one mean, and forgets its oldest buckets once the mean of an older part and
that of the newer one differ by more than chance. As river's `ADWIN(clock=1)`, number for number, and without river,
which brings pandas and SciPy to a device: 100 MB.
"""

import math
from typing import NamedTuple

MOST_ALIKE = 5
"""Buckets of one size; one more, and the two oldest become one of twice the size."""

LEAST_PART = 5
"""The smallest part of a window that is compared, in values."""

LEAST_WIDTH = 10
"""A window is not cut before it is wider."""


class _Bucket(NamedTuple):
    size: int
    total: float
    squares: float
    """Sum of the squared distances to the bucket's mean."""


class Adwin:
    """A window over values in [0, 1].

    Args:
        delta: the confidence, in (0, 1): smaller raises fewer false alarms and notices later.
    """

    def __init__(self, delta: float) -> None:
        self._delta = delta
        self._was_cut = False
        self._begin()

    @property
    def mean(self) -> float:
        """Mean of the values in the window; 0 where there are none."""
        return self._total / self.width if self.width else 0.0

    def update(self, value: float) -> bool:
        """Add a value and return whether the window was cut; after a cut, the next value begins a new window."""
        if self._was_cut:
            self._begin()
        if self.width:
            self._squares += (value - self.mean) ** 2 * self.width / (self.width + 1)
        self._buckets.append(_Bucket(1, value, 0.0))
        self.width += 1
        self._total += value
        self._merge_buckets()
        while self.width > LEAST_WIDTH and self._has_changed():
            self._was_cut = True
            self._forget_oldest()
        return self._was_cut

    def _begin(self) -> None:
        self._buckets: list[_Bucket] = []  # oldest first
        self.width, self._total, self._squares = 0, 0.0, 0.0
        self._was_cut = False

    def _merge_buckets(self) -> None:
        size = 1
        while True:
            alike = [position for position, bucket in enumerate(self._buckets) if bucket.size == size]
            if len(alike) <= MOST_ALIKE:
                return
            first, second = self._buckets[alike[0]], self._buckets[alike[1]]
            squares = first.squares + second.squares + (first.total - second.total) ** 2 / (2 * size)
            merged = _Bucket(2 * size, first.total + second.total, squares)
            self._buckets[alike[0] : alike[1] + 1] = [merged]
            size *= 2

    def _has_changed(self) -> bool:
        """Return whether two parts of the window differ in their means by more than the bound (their Theorem 3.2)."""
        confidence = math.log(2 * math.log(self.width) / self._delta)
        variance = self._squares / self.width
        older, total = 0, 0.0
        for bucket in self._buckets[:-1]:
            older, total = older + bucket.size, total + bucket.total
            newer = self.width - older
            if min(older, newer) < LEAST_PART:
                continue
            per_value = 1 / (older - LEAST_PART + 1) + 1 / (newer - LEAST_PART + 1)
            bound = math.sqrt(2 * per_value * variance * confidence) + 2 / 3 * per_value * confidence
            if abs(total / older - (self._total - total) / newer) > bound:
                return True
        return False

    def _forget_oldest(self) -> None:
        oldest = self._buckets.pop(0)
        rest, total = self.width - oldest.size, self._total - oldest.total
        distance = oldest.total / oldest.size - total / rest
        self._squares -= oldest.squares + distance**2 * oldest.size * rest / self.width
        self.width, self._total = rest, total
