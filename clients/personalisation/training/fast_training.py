"""The fast schedule: of each exit only the classifier learns, in 30 steps of known length (Sec. 3.1.3).

The convolutions of a head stay as they are, so what they answer is computed once, as with the backbone. What is left
of Eq. (1) is convex in the classifier W. With a quadratic pull towards the W_0 that it starts from, the best W is
W_0 + A^T Z for the n embedded samples Z (the representer theorem), so that the unknowns are A, [n, K], whatever the
size of the embedding, and the curvature is at most that of Boehning's bound (1992), the same in every step. The steps
are accelerated (Nesterov 1983).
"""

import math
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from persephonee.clients.errors import NonFiniteLossError
from persephonee.clients.personalisation.features import FeatureCache
from persephonee.multi_exit.losses import personalisation_loss
from persephonee.multi_exit.settings import LossWeights


class _Embedding(Protocol):
    """A head, as multi_exit/heads.py has them."""

    classifier: nn.Linear

    def embed(self, features: Tensor) -> Tensor:
        """Return what the classifier takes."""


STEPS = 30
"""On photographs 20 end half a point lower; handwriting has gained what it can by then."""
PULL = 0.05
"""Towards the former classifier, as a fraction of the embeddings' mean squared length: a compromise, since handwriting
gains by a weaker one and photographs, of which the original itself knows only half, by a stronger one."""


@torch.no_grad()
def embed(heads: nn.ModuleList, features: FeatureCache) -> tuple[Tensor, ...]:
    """Return what each head's classifier takes, with a 1 for its bias: shape [N, D_i + 1]."""
    heads.eval()
    pieces = torch.arange(len(features.last_logits)).split(features.chunk)
    embedded = [
        torch.cat([cast(_Embedding, head).embed(maps[piece]) for piece in pieces])
        for head, maps in zip(heads, features.maps, strict=True)
    ]
    return tuple(torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) for rows in embedded)


def classify(heads: nn.ModuleList, embedded: Sequence[Tensor]) -> Tensor:
    """Return the heads' logits of N embedded samples, shape [M, N, K]."""
    return torch.stack([rows @ _matrix(head).T for head, rows in zip(heads, embedded, strict=True)])


def fit_classifiers(
    heads: nn.ModuleList, embedded: Sequence[Tensor], last_logits: Tensor, labels: Tensor, weights: LossWeights
) -> None:
    """Train the heads' classifiers in place.

    Args:
        heads: M exit heads.
        embedded: what their classifiers take of the n training samples, from `embed`.
        last_logits: logits of the last exit, shape [n, K].
        labels: class indices, shape [n], int64, -1 for unlabelled.
        weights: of Eq. (1).

    Raises:
        NonFiniteLossError: an embedding is not finite.
    """
    exits = len(heads)
    grams = torch.stack([rows @ rows.T for rows in embedded])
    found = solve(
        grams, classify(heads, embedded), last_logits.expand(exits, -1, -1), labels.expand(exits, -1), weights
    )
    if not torch.isfinite(found).all():
        raise NonFiniteLossError("an exit's features are not finite: the round is refused and the previous exits stay.")
    add_to_classifiers(heads, embedded, found)


@torch.no_grad()
def solve(grams: Tensor, logits: Tensor, last_logits: Tensor, labels: Tensor, weights: LossWeights) -> Tensor:
    """Return A of P independent problems at once, shape [P, n, K].

    Args:
        grams: Z Z^T, shape [P, n, n]; a row of zeros is no sample.
        logits: of the classifiers as they are, shape [P, n, K].
        last_logits: of the last exit, shape [P, n, K].
        labels: shape [P, n], -1 for unlabelled.
        weights: of Eq. (1).
    """
    lengths = grams.diagonal(dim1=1, dim2=2)
    real = lengths > 0
    pull = PULL * lengths.sum(dim=1) / real.sum(dim=1)
    scale = weights.beta * (1.0 if weights.squared_temperature else weights.temperature**-2)
    bound = (weights.alpha + scale + weights.gamma) / 2
    curvature = bound * grams + torch.diag_embed(pull[:, None].expand_as(lengths))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(curvature))
    found = ahead = torch.zeros_like(logits)
    momentum = 1.0
    for _ in range(STEPS):
        slope = loss_trends(logits + grams @ ahead, last_logits, labels, weights) * real[:, :, None]
        previous, found = found, ahead - inverse @ (slope + pull[:, None, None] * ahead)
        previous_momentum, momentum = momentum, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = found + (previous_momentum - 1) / momentum * (found - previous)
    return found


@torch.no_grad()
def add_to_classifiers(heads: nn.ModuleList, embedded: Sequence[Tensor], found: Tensor) -> None:
    """Add A^T Z to each head's classifier, in place."""
    for head, rows, coefficients in zip(heads, embedded, found, strict=True):
        change = coefficients.T @ rows
        layer = cast(_Embedding, head).classifier
        layer.weight.add_(change[:, :-1])
        layer.bias.add_(change[:, -1])


@torch.enable_grad()
def loss_trends(logits: Tensor, last_logits: Tensor, labels: Tensor, weights: LossWeights) -> Tensor:
    """Return the gradient of each sample's loss, Eq. (1), by its logits.

    Args:
        logits: of an exit, shape [P, n, K].
        last_logits: of the last exit, shape [P, n, K].
        labels: shape [P, n], -1 for unlabelled.
        weights: of Eq. (1).
    """
    points = logits.flatten(0, 1).requires_grad_()
    loss = personalisation_loss(points, last_logits.flatten(0, 1), labels.flatten(), weights)
    return torch.autograd.grad(loss * len(points), points)[0].view_as(logits)


def _matrix(head: nn.Module) -> Tensor:
    """Return a head's classifier with its bias as the last column, shape [K, D + 1]."""
    layer = cast(_Embedding, head).classifier
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
