"""A trained backbone's global model: its classifier fine-tuned, its exits learnt, all on cached features.

The backbone never moves, so one pass over the global pool serves every epoch. The cache lies on disk in float16, whose
rounding (one part in 2,000) is far below what a batch of samples leaves uncertain; it may be deleted at any time.
"""

import hashlib
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from persephonee.data_partitions.samples import Partitions, to_float
from persephonee.multi_exit.atomic_files import write_json_atomically
from persephonee.multi_exit.losses import personalisation_loss
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.settings import LossWeights
from persephonee.multi_exit.storage import ModelMetadata, save_network
from persephonee.server.training.exit_calibration_fit import fit_calibration
from persephonee.server.training.global_model import choose_training_users, division_of, untrained_network
from persephonee.server.training.global_model_settings import GlobalModelSettings
from persephonee.server.training.pretraining_settings import PretrainSettings
from persephonee.server.training.training_samples import SampleTable, gather_samples

logger = logging.getLogger("persephonee.figures")

VALIDATION_SAMPLES = 1_000
BATCH = 64
CLASSIFIER_EPOCHS = 20
CLASSIFIER_RATE = 5e-3
CLASSIFIER_DECAY = 5e-3
LABELS_ALONE = LossWeights(alpha=1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolFeatures:
    """What one pass through the backbone gave for N images of the global pool.

    Attributes:
        maps: what each of the M heads takes, float16 [N, C_i, H_i, W_i], on disk.
        pooled: what the original's classifier takes, float32 [N, D].
        labels: int64 [N].
        num_train: the first so many train; the others, of other users, validate.
    """

    maps: tuple[NDArray[np.float16], ...]
    pooled: Tensor
    labels: Tensor
    num_train: int

    def rows(self, exit: int, chosen: Tensor) -> Tensor:
        """Return the maps of some images before the head of `exit`, float32."""
        return torch.from_numpy(self.maps[exit][chosen.numpy()]).float()

    @property
    def validation(self) -> Tensor:
        """Indices of the images that validate."""
        return torch.arange(self.num_train, len(self.labels))


def make_frozen_model(
    settings: GlobalModelSettings,
    partitions: Partitions,
    folder: Path,
    cache: Path,
    *,
    tuned_classifier: bool,
    weights: LossWeights = LABELS_ALONE,
) -> None:
    """Build the network on trained weights, learn its exits with the backbone frozen, and save it in `folder`.

    Args:
        settings: `training.mode` is "exits"; without augmentation, since features are cached.
        partitions: the global pool.
        folder: where the model is saved.
        cache: folder of the features; those of an earlier call with the same backbone and images are reused.
        tuned_classifier: fine-tune the original's classifier first.
        weights: how much labels and the original's predictions count in each exit's loss; the paper uses labels alone.
    """
    training = settings.training
    network = untrained_network(settings, partitions).freeze_backbone()
    train_ids, validation_ids = choose_training_users(partitions.client_ids, settings.users, training.seed)
    train = gather_samples(partitions, train_ids, training.max_samples, training.seed)
    validation = gather_samples(partitions, validation_ids, VALIDATION_SAMPLES, training.seed)
    features = _pool_features(network, train, validation, cache)
    tuning = tune_classifier(network, features, training.seed) if tuned_classifier else {}
    with torch.no_grad():
        teacher = _classifier(network)(features.pooled)
    history = learn_exits(network.heads, features, training, teacher, weights)
    # the images that chose the epochs, and all others of the same users
    network.calibration = fit_calibration(network, gather_samples(partitions, validation_ids))
    known = {**asdict(training), **tuning, "backbone_weights": settings.weights.name if settings.weights else None}
    known["exit_loss"] = asdict(weights)
    metadata = ModelMetadata(
        dataset=partitions.name,
        trained_on=tuple(sorted((*train_ids, *validation_ids))),
        class_names=partitions.class_names or (),
        history=history,
        calibration=network.calibration,
        settings={**known, **division_of(partitions)},
    )
    save_network(network, folder, metadata)


def tune_classifier(network: MultiExitNetwork, features: PoolFeatures, seed: int) -> dict[str, Any]:
    """Fine-tune the original's classifier in place, keep its best epoch, and return its accuracy before and after."""
    classifier = _classifier(network)
    train, validation = torch.arange(features.num_train), features.validation
    generator = torch.Generator().manual_seed(seed)
    classifier.requires_grad_(True)
    optimiser = torch.optim.SGD(
        classifier.parameters(), lr=CLASSIFIER_RATE, momentum=0.9, weight_decay=CLASSIFIER_DECAY
    )
    cut = best = _accuracy(classifier(features.pooled[validation]), features.labels[validation])
    weights = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    for _ in range(CLASSIFIER_EPOCHS):
        for batch in _batches(train, generator):
            loss = functional.cross_entropy(classifier(features.pooled[batch]), features.labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        accuracy = _accuracy(classifier(features.pooled[validation]), features.labels[validation])
        if accuracy > best:
            best, weights = accuracy, {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    classifier.load_state_dict(weights)
    classifier.requires_grad_(False)
    logger.info("the original's classifier: %.3f as it was cut, %.3f fine-tuned", cut, best)
    return {"original_as_cut": cut, "original_fine_tuned": best}


def learn_exits(
    heads: nn.ModuleList,
    features: PoolFeatures,
    settings: PretrainSettings,
    teacher: Tensor,
    weights: LossWeights = LABELS_ALONE,
) -> tuple[dict[str, Any], ...]:
    """Train the heads in place on the sum of their losses; return a record for each epoch.

    Each head ends with the weights of its own best epoch on the images that validate: heads share nothing.

    Args:
        heads: M heads.
        features: what they take.
        settings: the schedule.
        teacher: the original's logits, [N, K].
        weights: weights of Eq. (1), applied here to the global pool.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    optimiser = torch.optim.SGD(
        heads.parameters(), lr=settings.learning_rate, momentum=settings.momentum,
        nesterov=settings.momentum > 0, weight_decay=settings.weight_decay,
    )  # fmt: skip
    heads.requires_grad_(True)
    history: list[dict[str, Any]] = []
    best = [(-1.0, head.state_dict()) for head in heads]
    total = math.ceil(features.num_train / BATCH)
    for epoch in range(settings.epochs):
        heads.train()
        losses = []
        for step, batch in enumerate(_batches(torch.arange(features.num_train), generator)):
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate_at(epoch + step / total)
            labels = features.labels[batch]
            outputs = [head(features.rows(exit, batch)) for exit, head in enumerate(heads)]
            losses_of = [personalisation_loss(output, teacher[batch], labels, weights) for output in outputs]
            loss = torch.stack(losses_of).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        accuracies = evaluate_heads(heads, features)
        for exit, (head, accuracy) in enumerate(zip(heads, accuracies, strict=True)):
            if accuracy > best[exit][0]:
                best[exit] = (accuracy, {name: t.detach().clone() for name, t in head.state_dict().items()})
        record = {"epoch": epoch + 1, "train_loss": math.fsum(losses) / len(losses), "validation_accuracy": accuracies}
        history.append(record)
        shown = " ".join(f"{accuracy:.3f}" for accuracy in accuracies)
        logger.info("exits, epoch %d: loss %.3f, validation %s", epoch + 1, record["train_loss"], shown)
    for head, (_, state) in zip(heads, best, strict=True):
        head.load_state_dict(state)
    heads.requires_grad_(False).eval()
    return tuple(history)


@torch.no_grad()
def evaluate_heads(heads: nn.ModuleList, features: PoolFeatures) -> tuple[float, ...]:
    """Return each head's accuracy on the images that validate, in [0, 1]."""
    heads.eval()
    pieces = features.validation.split(BATCH)
    truth = features.labels[features.validation]
    predictions = [torch.cat([head(features.rows(exit, piece)) for piece in pieces]) for exit, head in enumerate(heads)]
    return tuple(_accuracy(logits, truth) for logits in predictions)


def _pool_features(network: MultiExitNetwork, train: SampleTable, validation: SampleTable, cache: Path) -> PoolFeatures:
    """Return the features of all images, from the cache where an earlier call finished it."""
    images, labels = torch.cat([train.images, validation.images]), torch.cat([train.labels, validation.labels])
    cache = cache / _identity(network, train, validation)
    width = _classifier(network).in_features
    shapes = [("pooled", (width,)), *((f"exit-{i}", shape) for i, shape in enumerate(network.feature_shapes))]
    done = cache / "done.json"
    if not done.exists():
        cache.mkdir(parents=True, exist_ok=True)
        tables = [
            open_memmap(cache / f"{name}.npy", mode="w+", dtype=np.float16, shape=(len(labels), *shape))
            for name, shape in shapes
        ]
        logger.info("features of %d images", len(labels))
        _fill(network, images, tables)
        write_json_atomically(done, {"images": len(labels)})
    pooled, *maps = (np.load(cache / f"{name}.npy", mmap_mode="r") for name, _ in shapes)
    return PoolFeatures(
        maps=tuple(maps),
        pooled=torch.from_numpy(np.asarray(pooled, dtype=np.float32)),
        labels=labels,
        num_train=len(train),
    )


def _identity(network: MultiExitNetwork, train: SampleTable, validation: SampleTable) -> str:
    """Return what the features depend on, in 8 digits; the kind of the heads is no part of it."""
    spec = replace(network.spec, head="")
    digest = hashlib.sha256(f"{spec.to_json()}{train.digest}{validation.digest}".encode())
    for tensor in network.stages.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:8]


@torch.no_grad()
def _fill(network: MultiExitNetwork, images: Tensor, tables: list[Any]) -> None:
    taken: list[Tensor] = []
    hook = _classifier(network).register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    for start in range(0, len(images), BATCH):
        rows = slice(start, start + BATCH)
        maps, _ = network.features(to_float(images[rows]))
        for table, values in zip(tables, [taken.pop(), *maps], strict=True):
            table[rows] = values.half().numpy()
    hook.remove()
    for table in tables:
        table.flush()


def _classifier(network: MultiExitNetwork) -> nn.Linear:
    """Return the original's last linear layer."""
    return [module for module in network.stages[-1].modules() if isinstance(module, nn.Linear)][-1]


def _batches(samples: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    order = samples[torch.randperm(len(samples), generator=generator)]
    batches = list(order.split(BATCH))
    # BatchNorm cannot normalise a single sample on a 1x1 map
    return iter(batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(dim=1) == labels).float().mean().item()
