"""What a hostile client sends in place of its exits, and how it lies about its samples.

An attack takes the exits that honest training gave this client and those that the round began with, and returns arrays
that the wire would let pass: finite and within the limits. NaN, infinities and larger numbers are refused on arrival.
"""

from collections.abc import Callable, Mapping

import numpy as np

from persephonee.fl_app.wire.exit_arrays import ExitArrays
from persephonee.fl_app.wire.limits import MAX_VALUE

FALSE_COUNT = 2**53
"""The largest number of samples that a reply may name."""

Attack = Callable[[ExitArrays, ExitArrays], ExitArrays]


def _each(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Attack:
    def attack(trained: ExitArrays, start: ExitArrays) -> ExitArrays:
        return {
            name: np.clip(change(trained[name], start[name]), -MAX_VALUE, MAX_VALUE).astype(np.float32)
            for name in trained
        }

    return attack


ATTACKS: Mapping[str, Attack] = {
    "sign flip": _each(lambda trained, start: 2 * start - trained),
    "sign flip, ten times": _each(lambda trained, start: start - 10 * (trained - start)),
    "scaled a hundred times": _each(lambda trained, start: start + 100 * (trained - start)),
    "constant": _each(lambda trained, start: np.full_like(start, 1.0)),
    "all zero": _each(lambda trained, start: np.zeros_like(start)),
    "huge": _each(lambda trained, start: np.where(np.arange(start.size) % 2, MAX_VALUE, -MAX_VALUE)),
    "noise": _each(lambda trained, start: start + np.random.default_rng(0).normal(size=start.shape)),
}
"""Of the weights; trained on flipped labels and a false number of samples come on top of these."""
