"""Exit training: Eq. (1) summed over the exits, on cached features; the backbone takes no part (Sec. 3.1.3)."""

import math

import torch
from torch import Tensor, nn

from persephonee.clients.errors import NonFiniteLossError
from persephonee.clients.personalisation.feature_cache import FeatureCache, Maps
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.clients.personalisation.training.proximal import add_proximal_gradient
from persephonee.multi_exit.losses import personalisation_loss


def train_exits(
    heads: nn.ModuleList,
    features: FeatureCache,
    labels: Tensor,
    samples: Tensor,
    settings: PersonalisationSettings,
    generator: torch.Generator,
    anchor: nn.ModuleList | None = None,
) -> None:
    """Train the heads in place by SGD on the sum of their losses; they share nothing, so one follows the other.

    Args:
        heads: M exit heads.
        features: cache of the user's N samples.
        labels: class indices, shape [N], int64, -1 for unlabelled.
        samples: indices of the training samples, shape [n], at least 2.
        settings: the schedule and the weights of Eq. (1).
        generator: of the order of the samples, which is the same for all exits.
        anchor: M global heads that settings.proximal_mu pulls towards; None pulls towards the heads as they come.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite; the heads are then useless.
    """
    epochs = [batches(order, settings.batch_size) for order in epoch_orders(samples, settings, generator)]
    for head, maps, origin in zip(heads, features.maps, anchor or heads, strict=True):
        _train_exit(head, maps, features.last_logits, labels, epochs, settings, origin)


def _train_exit(
    head: nn.Module,
    maps: Maps,
    last_logits: Tensor,
    labels: Tensor,
    epochs: list[list[Tensor]],
    settings: PersonalisationSettings,
    anchor: nn.Module,
) -> None:
    optimiser = torch.optim.SGD(head.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    origin = [p.detach().clone() for p in anchor.parameters()] if settings.proximal_mu else []
    head.train(settings.head_statistics == "batch")
    for epoch, chosen in enumerate(epochs):
        for batch in chosen:
            loss = personalisation_loss(head(maps[batch]), last_logits[batch], labels[batch], settings.weights)
            _require_finite(loss, epoch, settings)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), settings.max_gradient_norm)
            if settings.proximal_mu:
                add_proximal_gradient(head, origin, settings.proximal_mu)
            optimiser.step()
    # the last step's damage would show in no loss any more
    sums = torch.stack([p.detach().sum() for p in head.parameters()])
    _require_finite(sums.sum(), settings.epochs - 1, settings)
    head.eval()


def _require_finite(value: Tensor, epoch: int, settings: PersonalisationSettings) -> None:
    if not torch.isfinite(value):
        raise NonFiniteLossError(
            f"the training loss became {value.item()} in epoch {epoch + 1}: the round is refused and the previous "
            f"exits stay; use a learning rate below {settings.learning_rate}."
        )


def epoch_orders(samples: Tensor, settings: PersonalisationSettings, generator: torch.Generator) -> list[Tensor]:
    """Return the training samples, shape [n], in the order of each epoch."""
    return [samples[torch.randperm(len(samples), generator=generator)] for _ in range(settings.epochs)]


def batches(order: Tensor, size: int) -> list[Tensor]:
    """Return the samples of one epoch in batches of `size` at most, equally large but for one sample.

    A last batch of the few that are left over would weigh each of them many times as much as the others.
    """
    # BatchNorm cannot normalise a single sample on a 1x1 map: at least two in each, if need be three
    count = max(1, min(math.ceil(len(order) / size), len(order) // 2))
    return list(order.tensor_split(count))
