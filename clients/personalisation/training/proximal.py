"""FedProx's term: what holds a user's exits near those that a federated round started from (arXiv 1812.06127)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def add_proximal_gradient(heads: nn.Module, anchor: Sequence[Tensor], mu: float) -> None:
    """Add the gradient of mu/2 ||w - w_global||^2 to the heads' gradients, in place.

    Args:
        heads: after backward(); parameters without a gradient are left as they are.
        anchor: w_global, a tensor for each of `heads.parameters()`, in their order.
        mu: 0 or more.
    """
    with torch.no_grad():
        for parameter, origin in zip(heads.parameters(), anchor, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - origin, alpha=mu)
