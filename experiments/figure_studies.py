"""The studies behind the paper's figures: which network, which users, how much of it at each scale.

`writing` stands for MobileNetV2 on FEMNIST, `imagenet` for ResNet-50 on personalised ImageNet. Without real data
there is `writing` alone, on the built-in writers, and it takes the other's place too.
"""

from dataclasses import dataclass
from pathlib import Path

from clients.errors import ClientSettingsError
from data_partitions.opening import DataSettings
from experiments.imagenet_networks import NETWORKS, SOURCE, tiny_imagenet_classes, write_cut_weights
from server.global_model import GlobalModelSettings, UserShares
from server.pretraining_settings import PretrainSettings

SCALES = ("smoke", "quick", "full")
SMOKE_SOURCE = "experiments.smoke_network"
INPUT_SIZE = {"quick": 96, "full": 224}
"""Side of the photographs, in px; Tiny ImageNet's have 64 and are scaled up."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A network, its users, and what is measured of them.

    Attributes:
        name: of its folder.
        title: what it is made on, for titles and tables.
        data: the users.
        model: how the global model is made.
        num_users: who personalise.
        epochs: of personalisation.
        sample_counts: training samples per user in Fig. 4, increasing; a user with fewer is left out there.
    """

    name: str
    title: str
    data: DataSettings
    model: GlobalModelSettings
    num_users: int
    epochs: int
    sample_counts: tuple[int, ...]


def studies_of(scale: str, real_data: Path | None, work: Path) -> dict[str, Study]:
    """Return the studies by the names of the paper's settings, "writing" and "imagenet".

    Args:
        scale: smoke, quick or full.
        real_data: folder with `qmnist-by-writer`, `tiny-imagenet-200` and `weights`; None takes the built-in writers.
        work: folder for cut weights.

    Raises:
        ClientSettingsError: the scale is unknown.
        DataError: the real data is not there.
    """
    if scale not in SCALES:
        raise ClientSettingsError(f"scale={scale} is unknown: use one of {', '.join(SCALES)}.")
    if scale == "smoke":
        study = _smoke()
        return {"writing": study, "imagenet": study}
    if real_data is None:
        study = _writing(scale, None)
        return {"writing": study, "imagenet": study}
    return {"writing": _writing(scale, real_data), "imagenet": _imagenet(scale, real_data, work)}


def _smoke() -> Study:
    training = PretrainSettings(epochs=5, batch_size=32)
    return Study(
        name="smoke",
        title="built-in writers, a tiny CNN",
        data=DataSettings(num_writers=24),
        model=GlobalModelSettings(
            backbone=f"{SMOKE_SOURCE}:build",
            num_exits=2,
            head="pooled",
            users=UserShares(personal_users=6, max_users=12),
            training=training,
            sources=(SMOKE_SOURCE,),
        ),
        num_users=6,
        epochs=3,
        sample_counts=(10, 25, 50),
    )


def _writing(scale: str, real_data: Path | None) -> Study:
    full = scale == "full"
    personal = 250 if full else 100
    if real_data is None:
        name, data = "built-in writers", DataSettings(num_writers=3500 if full else 700)
    else:
        name = "QMNIST by writer"
        data = DataSettings(dataset="parquet", data_path=real_data / "qmnist-by-writer" / "train.parquet")
    training = PretrainSettings(epochs=10 if full else 4, max_samples=None if full else 30_000)
    return Study(
        name="writing" if real_data is None else "qmnist",
        title=f"{name}, MobileNetV2 from scratch",
        data=data,
        model=GlobalModelSettings(users=UserShares(personal_users=personal), training=training),
        num_users=personal,
        epochs=10,
        sample_counts=(10, 25, 50, 100) if real_data is None else (10, 20, 30, 40),
    )


def _imagenet(scale: str, real_data: Path, work: Path) -> Study:
    full, size, known = scale == "full", INPUT_SIZE[scale], NETWORKS["resnet50"]
    tiny = real_data / "tiny-imagenet-200"
    weights = write_cut_weights(
        "resnet50", real_data / "weights" / known.file, tiny_imagenet_classes(tiny / "classes.json"), work
    )
    training = PretrainSettings(
        mode="exits",
        epochs=6 if full else 3,
        batch_size=64,
        learning_rate=0.05,
        augmentation="shift",
        max_samples=None if full else 6_000,
    )
    return Study(
        name="imagenet",
        title=f"Tiny ImageNet scaled to {size} px, ResNet-50 with ImageNet weights",
        data=DataSettings(
            dataset="imagefolder",
            data_path=tiny,
            num_users=250 if full else 40,
            samples_per_user=3_600 if full else 400,
            class_width=25.0 if full else 10.0,
            image_size=size,
        ),
        model=GlobalModelSettings(
            backbone=known.backbone,
            weights=weights,
            mean=known.mean,
            std=known.std,
            users=UserShares(personal_users=0),
            training=training,
            sources=(SOURCE, "torchvision"),
        ),
        num_users=250 if full else 40,
        epochs=10,
        sample_counts=(25, 50, 150, 500, 1_000, 2_000) if full else (25, 50, 100, 225),
    )
