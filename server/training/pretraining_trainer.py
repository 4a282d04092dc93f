"""One run of pretraining between two epochs: weights, momentum, the best weights so far, and the history."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from persephonee.data_partitions.samples import to_float
from persephonee.multi_exit.losses import joint_weights, scaled_gradient
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.server.errors import TrainingDivergedError
from persephonee.server.training.pretraining_checkpoint import Checkpoint, EpochRecord, momentum_of, restore_momentum
from persephonee.server.training.pretraining_progress import PretrainProgress
from persephonee.server.training.pretraining_settings import PretrainSettings
from persephonee.server.training.training_samples import SampleTable, num_batches, training_batches

EVALUATION_BATCH = 256
LARGEST_SEED = 2**63 - 1


def evaluate_exits(network: MultiExitNetwork, table: SampleTable) -> tuple[float, ...]:
    """Return the accuracy of each exit over all samples, the last exit last, in [0, 1]; leaves eval() mode on."""
    network.eval()
    device = next(network.parameters()).device
    correct = torch.zeros(network.num_exits + 1, dtype=torch.int64, device=device)
    with torch.inference_mode():
        for start in range(0, len(table), EVALUATION_BATCH):
            chosen = slice(start, start + EVALUATION_BATCH)
            labels = table.labels[chosen].to(device)
            for exit, logits in enumerate(network(to_float(table.images[chosen].to(device)))):
                correct[exit] += (logits.argmax(dim=1) == labels).sum()
    return tuple((correct.cpu().double() / max(1, len(table))).tolist())


def computes_in_bfloat16(settings: PretrainSettings, device: torch.device) -> bool:
    """Return whether training uses mixed precision; "auto" leaves the CPU alone, which gains little by it."""
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return settings.precision == "bfloat16" or (settings.precision == "auto" and on_gpu)


class Trainer:
    """The state between two epochs: weights, momentum, the best weights so far and the history.

    Args:
        network: trained in place; its device is where all is computed.
        settings: the schedule of the training.
    """

    def __init__(self, network: MultiExitNetwork, settings: PretrainSettings) -> None:
        self.network = network.freeze_backbone() if settings.mode == "exits" else network
        self.settings = settings
        self._device = next(network.parameters()).device
        self._mixed = computes_in_bfloat16(settings, self._device)
        self.history: list[EpochRecord] = []
        self.best = _copy(network.state_dict())
        # convolutions on the CPU are faster in this layout; names, shapes and values stay what they are
        network.to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.SGD(
            [parameter for parameter in network.parameters() if parameter.requires_grad],
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
        )

    @property
    def best_epoch(self) -> int:
        """From 1; the earliest of equals; 0 before the first epoch."""
        ranks = [self._rank(record) for record in self.history]
        return ranks.index(max(ranks)) + 1 if ranks else 0

    @property
    def is_done(self) -> bool:
        """Whether all epochs are over, or held-out users have gained nothing for `settings.patience` of them."""
        waited = len(self.history) - self.best_epoch
        return len(self.history) >= self.settings.epochs or (waited >= self.settings.patience and waited > 0)

    def run_epoch(self, train: SampleTable, validation: SampleTable, progress: PretrainProgress) -> None:
        """Train for one epoch, validate, and note the result.

        Raises:
            TrainingDivergedError: the loss is not finite.
        """
        epoch, total = len(self.history), num_batches(train, self.settings.batch_size)
        progress.epoch_started(epoch + 1, self.settings.epochs, total)
        losses: list[float] = []
        generator = torch.Generator().manual_seed(_epoch_seed(self.settings.seed, epoch))
        with torch.random.fork_rng([torch.cuda.current_device()] if self._device.type == "cuda" else []):
            # dropout knows only torch's global generator
            torch.manual_seed(_epoch_seed(self.settings.seed, epoch))
            self.network.train()
            for images, labels in training_batches(
                train, self.settings.batch_size, self.settings.augmentation, generator, self._device
            ):
                rate = self.settings.learning_rate_at(epoch + len(losses) / total)
                losses.append(self._step(images, labels, epoch, rate, len(losses)))
                progress.batch_done(losses[-1])
        record = EpochRecord(
            epoch=epoch + 1,
            learning_rate=rate,
            train_loss=math.fsum(losses) / len(losses),
            validation_accuracy=evaluate_exits(self.network, validation),
        )
        self.history.append(record)
        if self.best_epoch == record.epoch:
            self.best = _copy(self.network.state_dict())
        progress.epoch_done(record)

    def _step(self, images: Tensor, labels: Tensor, epoch: int, rate: float, batch: int) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        weights = self._weights(epoch)
        losses = self._losses(images.contiguous(memory_format=torch.channels_last), labels, weights)
        value = math.fsum(weight * loss for weight, loss in zip(weights, losses.tolist(), strict=True))
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"The training loss became {value} in epoch {epoch + 1}, batch {batch + 1}: train with a smaller "
                f"--learning-rate than {self.settings.learning_rate:g}"
            )
        self.optimiser.zero_grad()
        # each head at full strength: the weights are in the gradients that reach the backbone
        losses.sum().backward()
        self.optimiser.step()
        return value

    def _losses(self, images: Tensor, labels: Tensor, weights: Sequence[float]) -> Tensor:
        """Return the cross-entropy of each exit that learns, in nats, the last exit's last."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._mixed):
            maps, last_logits = self.network.features(images)
            if self.settings.mode == "joint":
                maps = [scaled_gradient(own, weight) for own, weight in zip(maps, weights, strict=False)]
            logits = [head(own) for head, own in zip(self.network.heads, maps, strict=True)]
        if self.settings.mode == "joint":
            logits.append(last_logits)
        return torch.stack([functional.cross_entropy(exit.float(), labels) for exit in logits])

    def _weights(self, epoch: int) -> tuple[float, ...]:
        """Return what each of these losses counts for the backbone, and in what is reported."""
        if self.settings.mode == "exits":
            return (1.0,) * self.network.num_exits
        shares = [cost.share for cost in self.network.costs.exit_costs[:-1]]
        return (*joint_weights(shares, epoch + 1, self.settings.epochs), 1.0)

    def _rank(self, record: EpochRecord) -> tuple[float, ...]:
        *early, last = record.validation_accuracy
        # with a frozen backbone the last exit never changes, and the early ones decide alone
        return (last, sum(early))

    def checkpoint(self, identity: Mapping[str, Any]) -> Checkpoint:
        """Return what `restore` needs, under the identity of the run."""
        return Checkpoint(
            identity=identity,
            history=tuple(self.history),
            network=self.network.state_dict(),
            best=self.best,
            momentum=momentum_of(self.network, self.optimiser),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was made."""
        self.network.load_state_dict(checkpoint.network)
        restore_momentum(self.network, self.optimiser, checkpoint.momentum)
        self.best = checkpoint.best
        self.history = list(checkpoint.history)


def _epoch_seed(seed: int, epoch: int) -> int:
    # consecutive seeds must not share epochs, as seed + epoch would
    return int(torch.randint(LARGEST_SEED, (epoch + 1,), generator=torch.Generator().manual_seed(seed))[-1])


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
