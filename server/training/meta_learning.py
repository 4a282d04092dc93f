"""Meta-learned exits: global exits from which a new user's own are few steps and few samples away.

Reptile (Nichol et al. 2018, arXiv 1803.02999) moves the global exits towards what users' exits become by a few steps
of training. First-order MAML (Finn et al. 2017, arXiv 1703.03400) moves them against the gradient that remains after
these steps, on other samples of the same user. The backbone is frozen, and exits share nothing: each learns alone.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from persephonee.data_partitions.seeds import torch_generator
from persephonee.multi_exit.losses import personalisation_loss
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.settings import LossWeights
from persephonee.server.errors import PretrainingError, TrainingDivergedError
from persephonee.server.training.meta_settings import MetaSettings
from persephonee.server.training.meta_users import MetaUser, MetaUsers, batches_of
from persephonee.server.training.pretraining_checkpoint import EpochRecord
from persephonee.server.training.pretraining_progress import PretrainProgress

SUPERVISED = LossWeights(alpha=1.0)
SMALLEST_USER = 8
"""In samples; the halves of a smaller one would be too small for BatchNorm."""


@dataclass(frozen=True, kw_only=True)
class MetaResult:
    """How meta-learning went."""

    history: tuple[EpochRecord, ...]
    """A record per epoch, that of the exits as they were first, as epoch 0. Accuracies are those of validating users
    after the inner steps on their own samples."""

    best_epoch: int
    """The epoch whose exits the network has; 0 where meta-learning gained nothing."""

    num_train: int
    """Users who trained."""

    num_validation: int
    """Users who validated."""


def meta_learn(
    network: MultiExitNetwork,
    users: MetaUsers,
    train_ids: Sequence[str],
    validation_ids: Sequence[str],
    settings: MetaSettings,
    progress: PretrainProgress | None = None,
) -> MetaResult:
    """Meta-learn the exits of `network` in place; they end as they were in the best epoch, the first of equals.

    The same arguments, versions and number of threads give the same exits, bit for bit.

    Args:
        network: a trained global model; no parameter and no buffer of its backbone changes.
        users: the features of all users named here.
        train_ids: users to learn from.
        validation_ids: other users, who decide which epoch was best.
        settings: the method and its schedule.
        progress: told how far the training has got.

    Raises:
        PretrainingError: no user is large enough to train, or none to validate.
        TrainingDivergedError: the loss is not finite; the network has the exits that it had.
    """
    progress = progress or PretrainProgress()
    train = [user for user in train_ids if users.count(user) >= SMALLEST_USER]
    validation = users.load_halves(validation_ids)
    if not train or not validation:
        raise PretrainingError(
            f"Meta-learning needs users who train and others who validate, and {len(train)} and {len(validation)} "
            "are large enough; start from a model that was trained on more users."
        )
    heads = copy.deepcopy(network.heads).requires_grad_(True)
    start = EpochRecord(
        epoch=0, learning_rate=0.0, train_loss=0.0, validation_accuracy=validate(heads, validation, settings)
    )
    progress.epoch_done(start)
    history, best = [start], _copy(heads)
    for epoch in range(1, settings.epochs + 1):
        loss, rate = _run_epoch(heads, users, train, epoch, settings, progress)
        accuracies = validate(heads, validation, settings)
        record = EpochRecord(epoch=epoch, learning_rate=rate, train_loss=loss, validation_accuracy=accuracies)
        progress.epoch_done(record)
        if _rank(record) > max(map(_rank, history)):
            best = _copy(heads)
        history.append(record)
    network.heads.load_state_dict(best)
    ranks = [_rank(record) for record in history]
    return MetaResult(
        history=tuple(history),
        best_epoch=ranks.index(max(ranks)),
        num_train=len(train),
        num_validation=len(validation),
    )


def validate(
    heads: nn.ModuleList, validation: Sequence[tuple[MetaUser, MetaUser]], settings: MetaSettings
) -> tuple[float, ...]:
    """Return the accuracy of each exit after each user's inner steps, the last exit last, in [0, 1].

    Args:
        heads: M exits; they are left as they are.
        validation: for each user, the samples for the inner steps, and those that the result is tested on.
        settings: the schedule of the inner steps, and the seed.
    """
    correct = torch.zeros(len(heads) + 1, dtype=torch.int64)
    for number, (train, test) in enumerate(validation):
        own, _ = adapt(heads, train, settings, torch_generator(settings.seed, "validate", number))
        own.eval()
        with torch.no_grad():
            logits = [*(head(maps) for head, maps in zip(own, test.maps, strict=True)), test.last_logits]
        correct += torch.stack([(exit.argmax(dim=1) == test.labels).sum() for exit in logits])
    return tuple((correct.double() / sum(len(test) for _, test in validation)).tolist())


def adapt(
    heads: nn.ModuleList, user: MetaUser, settings: MetaSettings, generator: torch.Generator
) -> tuple[nn.ModuleList, float]:
    """Return a copy of `heads` after `settings.inner_steps` steps of SGD on the user's samples, and the last loss.

    Raises:
        TrainingDivergedError: the loss is not finite.
    """
    own = copy.deepcopy(heads).train()
    optimiser = torch.optim.SGD(own.parameters(), lr=settings.inner_rate, momentum=settings.inner_momentum)
    for batch in batches_of(len(user), settings.batch_size, settings.inner_steps, generator):
        loss = _loss(own, user.take(batch))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in own.parameters()):
        raise TrainingDivergedError(
            f"The inner steps diverged: take a smaller inner rate than {settings.inner_rate:g}, or another than "
            f"{settings.outer_rate:g} for the outer steps; the model stays as it was."
        )
    return own, loss.item()


def _run_epoch(
    heads: nn.ModuleList,
    users: MetaUsers,
    train: Sequence[str],
    epoch: int,
    settings: MetaSettings,
    progress: PretrainProgress,
) -> tuple[float, float]:
    """Take an outer step after each `users_per_step` users, and return the mean loss and the last rate."""
    generator = torch_generator(settings.seed, "epoch", epoch)
    order = torch.randperm(len(train), generator=generator).tolist()
    groups = [order[start : start + settings.users_per_step] for start in range(0, len(order), settings.users_per_step)]
    progress.epoch_started(epoch, settings.epochs, len(groups))
    losses: list[float] = []
    for number, group in enumerate(groups):
        decay = 1 - (epoch - 1 + number / len(groups)) / settings.epochs
        step = OUTER_STEPS[settings.method]
        loss = step(heads, [users.load(train[index]) for index in group], decay, settings, generator)
        losses.append(loss)
        progress.batch_done(loss)
    return math.fsum(losses) / len(losses), settings.outer_rate * decay


def _reptile_step(
    heads: nn.ModuleList, users: Sequence[MetaUser], decay: float, settings: MetaSettings, generator: torch.Generator
) -> float:
    """Move the heads, BatchNorm's statistics included, towards the mean of the users' own; return their mean loss."""
    adapted = [adapt(heads, user, settings, generator) for user in users]
    _move(_floats(heads), [_floats(own) for own, _ in adapted], settings.outer_rate * decay)
    return math.fsum(loss for _, loss in adapted) / len(users)


def _fomaml_step(
    heads: nn.ModuleList, users: Sequence[MetaUser], decay: float, settings: MetaSettings, generator: torch.Generator
) -> float:
    """Descend along the mean gradient at the users' own heads, on samples that their inner steps did not see."""
    gradients = [torch.zeros_like(parameter) for parameter in heads.parameters()]
    statistics: list[list[Tensor]] = []
    losses: list[float] = []
    for user in users:
        order = torch.randperm(len(user), generator=generator)
        support, query = (user.take(half) for half in order.tensor_split(2))
        own, _ = adapt(heads, support, settings, generator)
        statistics.append([buffer.clone() for buffer in _float_buffers(own)])
        loss = _loss(own, query)
        for total, gradient in zip(gradients, torch.autograd.grad(loss, list(own.parameters())), strict=True):
            total += gradient / len(users)
        losses.append(loss.item())
    with torch.no_grad():
        for parameter, gradient in zip(heads.parameters(), gradients, strict=True):
            parameter.sub_(gradient, alpha=settings.outer_rate * decay)
    # no gradient tells where BatchNorm's running statistics should go: they follow the users', as in Reptile
    _move(_float_buffers(heads), statistics, decay)
    return math.fsum(losses) / len(losses)


OUTER_STEPS: dict[str, Callable[[nn.ModuleList, Sequence[MetaUser], float, MetaSettings, torch.Generator], float]] = {
    "reptile": _reptile_step,
    "fomaml": _fomaml_step,
}


def _loss(heads: nn.ModuleList, user: MetaUser) -> Tensor:
    """Return the sum over the exits of their cross-entropies, in nats."""
    losses = [
        personalisation_loss(head(maps), user.last_logits, user.labels, SUPERVISED)
        for head, maps in zip(heads, user.maps, strict=True)
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def _move(tensors: Sequence[Tensor], targets: Sequence[Sequence[Tensor]], rate: float) -> None:
    """Move each tensor the fraction `rate` of the way to the mean of its targets."""
    for tensor, *ends in zip(tensors, *targets, strict=True):
        tensor.lerp_(torch.stack(ends).mean(dim=0), rate)


def _floats(heads: nn.ModuleList) -> list[Tensor]:
    return [*(parameter.data for parameter in heads.parameters()), *_float_buffers(heads)]


def _float_buffers(heads: nn.ModuleList) -> list[Tensor]:
    # BatchNorm also counts its batches, as an integer
    return [buffer for buffer in heads.buffers() if buffer.is_floating_point()]


def _copy(heads: nn.ModuleList) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in heads.state_dict().items()}


def _rank(record: EpochRecord) -> float:
    return math.fsum(record.validation_accuracy)
