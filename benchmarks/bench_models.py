"""The global models that the benchmarks run on, where none is named: trained in minutes, kept below OUT/models."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings
from persephonee.experiments.studies.imagenet_networks import NETWORKS, SOURCE, tiny_imagenet_classes, write_cut_weights
from persephonee.multi_exit.building import rebuild_network
from persephonee.multi_exit.network import MultiExitNetwork
from persephonee.multi_exit.settings import DEFAULT_SOURCES
from persephonee.multi_exit.storage import load_network, save_network
from persephonee.server.training.global_model import CHECKPOINT_NAME, MODEL_NAME, make_global_model
from persephonee.server.training.global_model_settings import GlobalModelSettings, UserFractions
from persephonee.server.training.pretraining import pretrain
from persephonee.server.training.pretraining_settings import PretrainSettings

SMOKE_SOURCE = "persephonee.experiments.studies.smoke_network"
SOURCES = (*DEFAULT_SOURCES, SOURCE, SMOKE_SOURCE)
PHOTO_USERS = 6
"""Shares of the photographs that the exits at 224 px learn from; one of them validates."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much a benchmark's own models learn.

    Attributes:
        backbone: name of the backbone of the writers' network.
        num_exits: number of early exits of the writers' network.
        writers: number of users whose data trains it.
        epochs: epochs of its training.
        photos: number of images that train the exits at 224 px.
    """

    backbone: str = "mobilenet_v2"
    num_exits: int = 6
    writers: int = 40
    epochs: int = 3
    photos: int = 600


EFFORTS: Mapping[str, Effort] = {
    "smoke": Effort(backbone=f"{SMOKE_SOURCE}:build", num_exits=2, writers=6, epochs=1, photos=64),
    "quick": Effort(),
}


def writers_model(data: DataSettings, folder: Path, effort: Effort) -> Path:
    """Return the folder of a network trained from scratch on some users' characters; made once."""
    settings = GlobalModelSettings(
        backbone=effort.backbone,
        num_exits=effort.num_exits,
        head="msdnet",
        users=UserFractions(max_users=effort.writers),
        training=PretrainSettings(epochs=effort.epochs, batch_size=64, learning_rate=0.05),
        sources=SOURCES,
    )
    return _made(settings, data, folder)


def photo_model(name: str, data: DataSettings, real_data: Path, folder: Path, effort: Effort) -> Path:
    """Return the folder of a published ImageNet network whose exits learned from some photographs; made once.

    Args:
        name: "resnet50" or "mobilenet_v2".
        data: `imagefolder`, 224 px.
        real_data: the folder with `tiny-imagenet-200` and `weights`.
        folder: where the model is saved.
        effort: how many photographs the exits learn from.
    """
    known = NETWORKS[name]
    classes = tiny_imagenet_classes(real_data / "tiny-imagenet-200" / "classes.json")
    weights = write_cut_weights(name, real_data / "weights" / known.file, classes, folder.parent)
    settings = GlobalModelSettings(
        backbone=known.backbone,
        head="msdnet",
        weights=weights,
        mean=known.mean,
        std=known.std,
        users=UserFractions(personal_users=0, max_users=PHOTO_USERS, validation_fraction=1 / PHOTO_USERS),
        training=PretrainSettings(mode="exits", epochs=2, batch_size=32, learning_rate=0.05, augmentation="none"),
        sources=SOURCES,
    )
    # which images train a global model depends on the seed alone; small shares of them load and validate faster
    return _made(settings, replace(data, samples_per_user=effort.photos // (PHOTO_USERS - 1)), folder)


def pooled_model(model: Path, data: DataSettings, folder: Path, effort: Effort) -> Path:
    """Return the folder of the same backbone with `pooled` exits, trained on the users that made the model."""
    if (folder / MODEL_NAME).exists():
        return folder
    given, metadata = load_network(model, SOURCES)
    network = rebuild_network(replace(given.spec, head="pooled"), SOURCES)
    network.stages.load_state_dict(given.stages.state_dict())
    partitions = open_partitions(data)
    users = [user for user in metadata.trained_on if user in partitions.client_ids] or list(partitions.client_ids)
    users = users[: max(2, effort.writers)]
    held_out = max(1, len(users) // 10)
    training = PretrainSettings(mode="exits", epochs=effort.epochs, batch_size=64, learning_rate=0.05)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / CHECKPOINT_NAME
    pretrain(network, partitions, users[held_out:], users[:held_out], training, checkpoint)
    save_network(network, folder, metadata)
    checkpoint.unlink()
    return folder


def with_exits(network: MultiExitNetwork, num_exits: int) -> MultiExitNetwork:
    """Return an untrained network of the same backbone with its first `num_exits` exits."""
    return rebuild_network(replace(network.spec, cuts=network.spec.cuts[:num_exits]), SOURCES)


def _made(settings: GlobalModelSettings, data: DataSettings, folder: Path) -> Path:
    if not (folder / MODEL_NAME).exists():
        make_global_model(settings, open_partitions(data, for_pretraining=True), folder, resume=True)
    return folder
