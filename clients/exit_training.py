"""Exit training: Eq. (1) summed over the exits, on cached features; the backbone takes no part (Sec. 3.1.3)."""

import torch
from torch import Tensor, nn

from clients.errors import NonFiniteLossError
from clients.features import FeatureCache
from clients.proximal import add_proximal_gradient
from clients.settings import PersonalisationSettings
from multi_exit.losses import personalisation_loss


def train_exits(
    heads: nn.ModuleList,
    features: FeatureCache,
    labels: Tensor,
    samples: Tensor,
    settings: PersonalisationSettings,
    generator: torch.Generator,
    anchor: nn.ModuleList | None = None,
) -> None:
    """Train the heads in place by SGD on the sum of their losses; they share nothing, so each learns alone.

    Args:
        heads: M exit heads.
        features: cache of the user's N samples.
        labels: class indices, shape [N], int64, -1 for unlabelled.
        samples: indices of the training samples, shape [n], at least 2.
        settings: the schedule and the weights of Eq. (1).
        generator: of the order of the samples.
        anchor: M global heads that settings.proximal_mu pulls towards; None pulls towards the heads as they come.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite; the heads are then useless.
    """
    optimiser = torch.optim.SGD(heads.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    origin = [p.detach().clone() for p in (anchor or heads).parameters()] if settings.proximal_mu else []
    heads.train()
    for epoch in range(settings.epochs):
        order = samples[torch.randperm(len(samples), generator=generator)]
        for batch in _batches(order, settings.batch_size):
            teacher, truth = features.last_logits[batch], labels[batch]
            losses = [
                personalisation_loss(head(maps[batch]), teacher, truth, settings.weights)
                for head, maps in zip(heads, features.maps, strict=True)
            ]
            loss = torch.stack(losses).sum()
            _require_finite(loss, epoch, settings)
            optimiser.zero_grad()
            loss.backward()
            if settings.proximal_mu:
                add_proximal_gradient(heads, origin, settings.proximal_mu)
            optimiser.step()
    # the last step's damage would show in no loss any more
    _require_finite(torch.stack([p.detach().sum() for p in heads.parameters()]).sum(), settings.epochs - 1, settings)
    heads.eval()


def _require_finite(value: Tensor, epoch: int, settings: PersonalisationSettings) -> None:
    if not torch.isfinite(value):
        raise NonFiniteLossError(
            f"the training loss became {value.item()} in epoch {epoch + 1}: the round is refused and the previous "
            f"exits stay; use a learning rate below {settings.learning_rate}."
        )


def _batches(order: Tensor, size: int) -> list[Tensor]:
    batches = list(order.split(size))
    # BatchNorm cannot normalise a single sample on a 1x1 map
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
