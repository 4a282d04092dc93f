"""The fast schedule on tensors, for many users at once: of each exit only the classifier learns (Sec. 3.1.3).

The fit itself is that of `linear_fit.py`, which one user's round runs on NumPy.
"""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from persephonee.clients.personalisation.training.linear_fit import solve
from persephonee.multi_exit.settings import LossWeights


class _Classifying(Protocol):
    """A head, as multi_exit/heads.py has them."""

    classifier: nn.Linear


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
    """
    exits = len(heads)
    grams = torch.stack([rows @ rows.T for rows in embedded])
    last_logits, labels = last_logits.expand(exits, -1, -1), labels.expand(exits, -1)
    add_to_classifiers(heads, embedded, solve(torch, grams, classify(heads, embedded), last_logits, labels, weights))


@torch.no_grad()
def add_to_classifiers(heads: nn.ModuleList, embedded: Sequence[Tensor], found: Tensor) -> None:
    """Add A^T Z to each head's classifier, in place."""
    for head, rows, coefficients in zip(heads, embedded, found, strict=True):
        change = coefficients.T @ rows
        layer = cast(_Classifying, head).classifier
        layer.weight.add_(change[:, :-1])
        layer.bias.add_(change[:, -1])


def _matrix(head: nn.Module) -> Tensor:
    """Return a head's classifier with its bias as the last column, shape [K, D + 1]."""
    layer = cast(_Classifying, head).classifier
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
