"""What one client can do to the merged exits at most: bounds on the size of its change and on its weight.

A client may send any finite numbers and any number of samples. Without bounds one client of six replaces the model: an
average follows whoever is furthest away or claims the most samples. So, whatever the strategy, a client's change of an
exit is scaled down to a norm, and its weight is cut to what the round's other reports make plausible.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from persephonee.fl_app.wire.exit_arrays import ExitArrays

FEWEST_FOR_MEDIAN = 3
"""With two senders a median norm is one of theirs, and either of them could hold the other back."""


def array_norms(arrays: ExitArrays) -> dict[str, float]:
    """Return the L2 norm of each array."""
    return {name: float(np.linalg.norm(array.astype(np.float64))) for name, array in arrays.items()}


def bounded_changes(
    sent: Sequence[ExitArrays], current: ExitArrays, norms: Mapping[str, float], fraction: float
) -> list[ExitArrays]:
    """Return what clients sent of one exit, each array's change scaled down to a norm.

    Args:
        sent: the same arrays of each client.
        current: the exits that the round began with.
        norms: for each array the L2 norm that limits its change, of the exits that the run began with.
        fraction: of this norm that a change may have; the median norm of the round's changes is a second limit where
            there are three clients or more. 0 bounds nothing.
    """
    if not fraction:
        return list(sent)
    bounded: list[ExitArrays] = [{} for _ in sent]
    for name in sent[0] if sent else ():
        changes = [arrays[name].astype(np.float64) - current[name] for arrays in sent]
        sizes = [float(np.linalg.norm(change)) for change in changes]
        limit = fraction * norms[name]
        if len(sizes) >= FEWEST_FOR_MEDIAN:
            limit = min(limit, statistics.median_low(sizes))
        for result, arrays, change, size in zip(bounded, sent, changes, sizes, strict=True):
            # untouched below the limit: the same bits as without a bound
            is_within = size <= limit
            result[name] = arrays[name] if is_within else (current[name] + change * (limit / size)).astype(np.float32)
    return bounded


def bounded_weights(examples: Sequence[int], cap: float) -> list[int]:
    """Return the weights of clients in an average: their samples, cut to `cap` times the median of the round.

    Where nobody reports a sample they weigh the same.

    Args:
        examples: that the clients report.
        cap: 0 bounds nothing.
    """
    if not any(examples):
        return [1] * len(examples)
    if not cap:
        return list(examples)
    most = max(1, math.floor(cap * statistics.median_low(examples)))
    return [min(count, most) for count in examples]
