"""The fit of the fast schedule: the convex part of Eq. (1) for linear classifiers on frozen embeddings (Sec. 3.1.3).

With a quadratic pull towards the classifier W_0 that it starts from, the best W is W_0 + A^T Z for the n embedded
samples Z (the representer theorem), so that the unknowns are A, [n, K], whatever the size of the embedding, and the
curvature is at most that of Boehning's bound (1992), the same in every step. The steps are accelerated (Nesterov 1983).

`xp` is NumPy or PyTorch: what is called here goes by the same names in both, so that a device without PyTorch and a
population of users on a GPU are fitted by the same lines.
"""

import math
from typing import Any

from persephonee.multi_exit.settings import LossWeights

STEPS = 30
"""On photographs 20 end half a point lower; handwriting has gained what it can by then."""
PULL = 0.05
"""Towards the former classifier, as a fraction of the embeddings' mean squared length: a compromise, since handwriting
gains by a weaker one and photographs, of which the original itself knows only half, by a stronger one."""

Array = Any
"""NumPy's or PyTorch's, float32 or float64."""


def solve(xp: Any, grams: Array, logits: Array, last_logits: Array, labels: Array, weights: LossWeights) -> Array:
    """Return A of P independent problems at once, shape [P, n, K].

    Args:
        xp: numpy, or torch.
        grams: Z Z^T, shape [P, n, n]; a row of zeros is no sample.
        logits: of the classifiers as they are, shape [P, n, K].
        last_logits: of the last exit, shape [P, n, K].
        labels: shape [P, n], -1 for unlabelled.
        weights: of Eq. (1).
    """
    lengths = xp.einsum("pnn->pn", grams)
    real = (lengths > 0)[:, :, None]
    pull = (PULL * lengths.sum(1) / _as(xp, real.sum(1)[:, 0], grams.dtype))[:, None, None]
    scale = weights.beta * (1.0 if weights.squared_temperature else weights.temperature**-2)
    bound = (weights.alpha + scale + weights.gamma) / 2
    curvature = bound * grams + pull * xp.eye(grams.shape[1], dtype=grams.dtype, **_on(grams))
    inverse = xp.linalg.inv(curvature)
    targets = _targets(xp, last_logits, labels, weights)
    found = ahead = xp.zeros_like(logits)
    momentum = 1.0
    for _ in range(STEPS):
        slope = _slopes(xp, logits + grams @ ahead, targets, weights) * real
        previous, found = found, ahead - inverse @ (slope + pull * ahead)
        previous_momentum, momentum = momentum, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = found + (previous_momentum - 1) / momentum * (found - previous)
    return found


def loss_trends(xp: Any, logits: Array, last_logits: Array, labels: Array, weights: LossWeights) -> Array:
    """Return the gradient of each sample's loss, Eq. (1), by its logits, shape [P, n, K]; arguments as of `solve`."""
    return _slopes(xp, logits, _targets(xp, last_logits, labels, weights), weights)


def _targets(xp: Any, last_logits: Array, labels: Array, weights: LossWeights) -> tuple[Array, Array, Array]:
    """Return how much a sample's probabilities weigh, and what the slopes take from them, at T = 1 and at T."""
    classes = xp.arange(last_logits.shape[-1], **_on(last_logits))
    dtype = last_logits.dtype
    given = (labels >= 0)[..., None]
    hard = weights.alpha * _as(xp, given, dtype) + weights.gamma
    wanted = weights.alpha * _as(xp, (classes == labels[..., None]) & given, dtype)
    if weights.gamma:
        wanted = wanted + weights.gamma * _as(xp, classes == last_logits.argmax(-1)[..., None], dtype)
    soft = _softmax(xp, last_logits / weights.temperature) if weights.beta else None
    return hard, wanted, soft


def _slopes(xp: Any, logits: Array, targets: tuple[Array, Array, Array], weights: LossWeights) -> Array:
    hard, wanted, soft = targets
    slopes = hard * _softmax(xp, logits) - wanted if weights.alpha or weights.gamma else 0.0
    if weights.beta:
        scale = weights.beta * weights.temperature ** (1 if weights.squared_temperature else -1)
        slopes = slopes + scale * (_softmax(xp, logits / weights.temperature) - soft)
    return slopes


def _softmax(xp: Any, logits: Array) -> Array:
    powers = xp.exp(logits - xp.amax(logits, -1)[..., None])
    return powers / powers.sum(-1)[..., None]


def _as(xp: Any, mask: Array, dtype: Any) -> Array:
    return xp.asarray(mask, dtype=dtype)


def _on(array: Array) -> dict[str, Any]:
    """Return where a new tensor goes; an array of NumPy has no choice."""
    device = getattr(array, "device", "cpu")
    return {} if device == "cpu" else {"device": device}
