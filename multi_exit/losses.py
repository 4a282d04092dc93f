"""The losses: Eq. (1) of PersEPhonEE for one exit (Sec. 3.1.3), and Kaya's joint loss for pretraining."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from persephonee.multi_exit.errors import SettingsError
from persephonee.multi_exit.settings import UNLABELLED as UNLABELLED
from persephonee.multi_exit.settings import LossWeights


def personalisation_loss(
    exit_logits: Tensor, last_logits: Tensor, labels: Tensor | None, weights: LossWeights
) -> Tensor:
    """Return the loss of one exit, Eq. (1).

    Args:
        exit_logits: logits of exit i, shape [B, K].
        last_logits: logits of the last exit, shape [B, K]; a constant, no gradient flows to it.
        labels: class indices, shape [B], int64, -1 where a sample has no label; None when no sample has one.
        weights: alpha, beta, gamma and the temperature T.

    Returns:
        Mean over the batch, scalar, in nats. The labels' term is the mean over the labelled samples times their
        fraction of the batch, so that every sample weighs the same.

    Raises:
        SettingsError: weights.alpha is the only weight and labels is None.
    """
    teacher = last_logits.detach()
    loss = exit_logits.new_zeros(())
    if weights.alpha > 0:
        if labels is None and weights.beta == 0:
            raise SettingsError("alpha > 0 learns from labels, but there are none: give labels, or use beta or gamma.")
        if labels is not None:
            summed = functional.cross_entropy(exit_logits, labels, ignore_index=UNLABELLED, reduction="sum")
            loss = loss + weights.alpha * summed / len(exit_logits)
    if weights.beta > 0:
        loss = loss + weights.beta * _distillation(exit_logits, teacher, weights)
    if weights.gamma > 0:
        loss = loss + weights.gamma * functional.cross_entropy(exit_logits, teacher.argmax(dim=1))
    return loss


def _distillation(exit_logits: Tensor, teacher: Tensor, weights: LossWeights) -> Tensor:
    """Return KL(teacher || exit) at temperature T, the mean over the batch."""
    student = functional.log_softmax(exit_logits / weights.temperature, dim=1)
    target = functional.log_softmax(teacher / weights.temperature, dim=1)
    # "batchmean" divides by the batch; torch's default would divide by the classes too
    divergence = functional.kl_div(student, target, reduction="batchmean", log_target=True)
    return divergence * weights.temperature**2 if weights.squared_temperature else divergence


def joint_weights(shares: Sequence[float], epoch: int, epochs: int) -> tuple[float, ...]:
    """Return tau_i(e) = min(C_i, 0.01 + C_i e/E), the weight of each early exit in epoch e of E (Kaya et al. 2019).

    Args:
        shares: C_i, each early exit's fraction of the backbone's MACs, in (0, 1); M numbers.
        epoch: e, from 1 to E, so that the last one reaches C_i.
        epochs: E, at least 1.
    """
    return tuple(min(share, 0.01 + share * epoch / epochs) for share in shares)


def joint_loss(
    all_logits: Sequence[Tensor], labels: Tensor, shares: Sequence[float], epoch: int, epochs: int
) -> Tensor:
    """Return the sum over the early exits of tau_i(e) CE_i, plus CE of the last exit (Kaya et al. 2019, Sec. 4.2).

    Args:
        all_logits: M+1 tensors [B, K], the last exit's at the end.
        labels: class indices, shape [B], int64.
        shares: C_i of the M early exits.
        epoch: e, from 1 to E, so that the last one reaches C_i.
        epochs: E, at least 1.

    Returns:
        Mean over the batch, scalar, in nats.
    """
    weights = torch.tensor((*joint_weights(shares, epoch, epochs), 1.0), dtype=all_logits[-1].dtype)
    terms = torch.stack([functional.cross_entropy(logits, labels) for logits in all_logits])
    return (weights.to(terms.device) * terms).sum()


def scaled_gradient(features: Tensor, scale: float) -> Tensor:
    """Return `features` as they are; the gradient that flows back through them is multiplied by `scale`.

    With scale = tau_i before the head of exit i and the unweighted sum of the losses, the backbone has the gradient of
    `joint_loss`, and each head its own loss's: heads share nothing, so that tau_i would only divide their step.
    """
    scaled: Tensor = _ScaledGradient.apply(features, scale)
    return scaled


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None
