"""The studies behind the figures: which network, which users, how much of it at each scale.

`qmnist` and `writers` stand for MobileNetV2 on FEMNIST, which is `femnist` where its files are, `resnet50` and
`mobilenet_v2` for personalised ImageNet. Without real data there is `writers` alone; at smoke scale one tiny study
takes every place.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from persephonee.clients.errors import ClientSettingsError
from persephonee.data_partitions.errors import MissingDataError
from persephonee.data_partitions.settings import DataSettings
from persephonee.experiments.studies.imagenet_networks import NETWORKS, SOURCE, tiny_imagenet_classes, write_cut_weights
from persephonee.multi_exit.settings import HeadKind, LossWeights
from persephonee.server.training.global_model_settings import GlobalModelSettings, UserFractions
from persephonee.server.training.pretraining_settings import PretrainSettings

SCALES = ("smoke", "quick", "full")
STUDIES = ("resnet50", "mobilenet_v2", "femnist", "qmnist", "writers")
PAPERS_SCHEMES = ("hard labels", "self-distillation", "self-supervision")
"""The paper's, as the paper has them: its schedule, and no class frequencies."""
OUR_SCHEMES = ("frequencies", "frequencies, no labels", "frequencies, labels")
"""With the user's class frequencies: alone, without any training, and with the fast schedule, distilled or labelled."""
ALL_SCHEMES = PAPERS_SCHEMES + OUR_SCHEMES
SMOKE_SOURCE = "persephonee.experiments.studies.smoke_network"
INPUT_SIZE = {"quick": 96, "full": 224}
"""Side of the photographs, in px; Tiny ImageNet's have 64 and are scaled up."""
CLASS_WIDTH = {"quick": 5.0, "full": 25.0}
"""Of a user's popularity, in classes; the paper prints none, `persephonee.experiments.beyond.figure_width` shows what
it changes. The full scale's 3,600 images a user are more than the 20 classes hold that a width of 5 asks for."""
TEMPERATURE = 4.0
"""Of self-distillation on photographs; the paper prints none. At 1 an exit copies the original's mistakes with its
confidence and stays below it; at 2 and 4 what the original thinks of the other classes teaches more."""
CALIBRATION_USERS = 60
POOL_SHARE = 400
"""Images that each user of the global pool has; only which users validate depends on it."""
TAUGHT_BY_ORIGINAL = LossWeights(alpha=0.3, beta=0.7, temperature=2.0)
"""100 photographs a class teach an exit less than ImageNet's 1,300, which the original has seen: it teaches too."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A network, its users, and what is measured of them.

    Attributes:
        name: the name of its folder.
        title: what it is made on, for titles and tables.
        data: the users and where their samples come from.
        model: how the global model is made.
        num_users: how many users personalise; measurements stay valid when the number is raised.
        model_folder: folder of an existing model; None trains one.
        tuned_classifier: whether the global pool fine-tunes the original's classifier before the exits learn.
        exit_loss: how the global pool teaches the exits, where the backbone is trained already.
        epochs: epochs of personalisation.
        schemes: what the exits learn from, by its name in the figures.
        temperature: temperature T of self-distillation, > 0.
        sample_counts: training samples per user in Fig. 4, increasing; a user with fewer is left out there.
        domain: only users of this domain personalise; None takes all.
        training_domain: only users of this domain train the global model; None takes all.
        calibration_users: so many who trained nothing calibrate the model, as `pretrain` ends; 0 for exits on a trained
            backbone, which validation images calibrate.
        seed: determines the choice of users, the split of their samples and the order of training.
    """

    name: str
    title: str = field(repr=False)
    data: DataSettings
    model: GlobalModelSettings
    num_users: int = field(repr=False)
    model_folder: Path | None = None
    tuned_classifier: bool = False
    exit_loss: LossWeights = field(default_factory=lambda: LossWeights(alpha=1.0))
    epochs: int = 10
    schemes: tuple[str, ...] = ALL_SCHEMES
    temperature: float = 1.0
    sample_counts: tuple[int, ...] = ()
    domain: str | None = None
    training_domain: str | None = None
    calibration_users: int = 0
    seed: int = 0

    @property
    def pool(self) -> DataSettings:
        """The data as it matters to the global model: the tastes of those who personalise do not."""
        share = POOL_SHARE if self.data.dataset == "imagefolder" else self.data.samples_per_user
        return replace(self.data, num_users=1, label_skew_width=1.0, samples_per_user=share)

    def seeded(self, seed: int) -> "Study":
        """Return the study with another seed; handwriting keeps its pool of writers and its global model."""
        study = replace(self, seed=seed)
        if self.data.dataset != "imagefolder":
            return study
        training = replace(self.model.training, seed=seed)
        return replace(study, data=replace(self.data, seed=seed), model=replace(self.model, training=training))


def studies_of(
    scale: str,
    real_data: Path | None,
    work: Path,
    *,
    qmnist_model: Path | None = None,
    writers_model: Path | None = None,
) -> dict[str, Study]:
    """Return the studies that there are data for, by name.

    Args:
        scale: smoke, quick or full.
        real_data: folder with `femnist`, `qmnist-by-writer`, and `tiny-imagenet-200` with `weights`, or some of them;
            None takes the built-in writers.
        work: folder for cut weights.
        qmnist_model: model for `qmnist` that is there already.
        writers_model: model for `writers` that is there already.

    Raises:
        ClientSettingsError: the scale is unknown.
        DataError: the real data is not there, or damaged.
    """
    if scale not in SCALES:
        raise ClientSettingsError(f"scale={scale} is unknown: use one of {', '.join(SCALES)}.")
    if scale == "smoke":
        return dict.fromkeys(STUDIES, _smoke())
    writers = _writers(scale, writers_model)
    studies = {"writers": writers if real_data is not None else _stand_in(writers)}
    if real_data is not None:
        real_data = real_data.resolve()
        if (real_data / "tiny-imagenet-200").is_dir():
            studies |= {name: _photographs(name, scale, real_data, work) for name in NETWORKS}
        if (real_data / "qmnist-by-writer").is_dir():
            studies["qmnist"] = _qmnist(scale, real_data, qmnist_model)
        if (real_data / "femnist").is_dir():
            studies["femnist"] = _femnist(scale, real_data)
        if len(studies) == 1:
            raise MissingDataError(f"{real_data} holds no data of a study: fill it as docs/data.md says.")
    return {name: studies[name] for name in STUDIES if name in studies}


PAPERS_HEAD: HeadKind = "msdnet"


def _smoke() -> Study:
    return Study(
        name="smoke",
        title="built-in writers, a tiny CNN",
        data=DataSettings(num_writers=24),
        model=GlobalModelSettings(
            backbone=f"{SMOKE_SOURCE}:build",
            num_exits=2,
            head="pooled",
            users=UserFractions(personal_users=6, max_users=12),
            training=PretrainSettings(epochs=2, batch_size=32, max_samples=500),
            sources=(SMOKE_SOURCE,),
        ),
        num_users=4,
        calibration_users=6,
        epochs=3,
        sample_counts=(10, 25, 50),
    )


def _writers(scale: str, model_folder: Path | None) -> Study:
    full = scale == "full"
    training = PretrainSettings(epochs=10 if full else 4, max_samples=None if full else 15_000)
    return Study(
        name="writers",
        title="built-in writers, MobileNetV2 from scratch",
        data=DataSettings(),
        model=GlobalModelSettings(
            head=PAPERS_HEAD,
            users=UserFractions(personal_users=250, max_users=None if full else 500),
            training=training,
        ),
        model_folder=model_folder.resolve() if model_folder else None,
        num_users=250,
        calibration_users=CALIBRATION_USERS,
        schemes=ALL_SCHEMES if full else ("hard labels", *OUR_SCHEMES),
    )


def _stand_in(writers: Study) -> Study:
    """Return the writers with all that any figure shows."""
    return replace(writers, num_users=40, schemes=ALL_SCHEMES, sample_counts=(25, 50, 100))


def _qmnist(scale: str, real_data: Path, model_folder: Path | None) -> Study:
    full = scale == "full"
    training = PretrainSettings(epochs=10 if full else 4, max_samples=None if full else 30_000)
    return Study(
        name="qmnist",
        title="QMNIST by writer, MobileNetV2 from scratch",
        data=DataSettings(dataset="parquet", data_path=real_data / "qmnist-by-writer" / "train.parquet"),
        model=GlobalModelSettings(head=PAPERS_HEAD, users=UserFractions(personal_users=100), training=training),
        model_folder=model_folder.resolve() if model_folder else None,
        num_users=100,
        calibration_users=CALIBRATION_USERS,
    )


def _femnist(scale: str, real_data: Path) -> Study:
    full = scale == "full"
    training = PretrainSettings(epochs=10 if full else 4, max_samples=None if full else 30_000)
    return Study(
        name="femnist",
        title="FEMNIST, MobileNetV2 from scratch",
        data=DataSettings(dataset="parquet", data_path=real_data / "femnist"),
        model=GlobalModelSettings(head=PAPERS_HEAD, users=UserFractions(personal_users=250), training=training),
        num_users=250,
        calibration_users=CALIBRATION_USERS,
    )


def _photographs(name: str, scale: str, real_data: Path, work: Path) -> Study:
    full, size, known = scale == "full", INPUT_SIZE[scale], NETWORKS[name]
    tiny = real_data / "tiny-imagenet-200"
    # an epoch of ResNet-50's heads costs five of MobileNetV2's
    is_small = name == "mobilenet_v2"
    weights = write_cut_weights(
        name, real_data / "weights" / known.file, tiny_imagenet_classes(tiny / "classes.json"), work
    )
    return Study(
        name=name,
        title=f"Tiny ImageNet scaled to {size} px, {known.title} with ImageNet weights",
        data=DataSettings(
            dataset="imagefolder",
            data_path=tiny,
            num_users=250 if full else 40,
            samples_per_user=3_600 if full else 400,
            label_skew_width=CLASS_WIDTH[scale],
            image_size=size,
        ),
        model=GlobalModelSettings(
            backbone=known.backbone,
            head=PAPERS_HEAD,
            weights=weights.resolve(),
            mean=known.mean,
            std=known.std,
            users=UserFractions(personal_users=0),
            training=PretrainSettings(
                mode="exits",
                epochs=10 if full else 5,
                batch_size=64,
                learning_rate=0.05,
                augmentation="none",
            ),
            sources=(SOURCE, "torchvision"),
        ),
        tuned_classifier=True,
        exit_loss=TAUGHT_BY_ORIGINAL,
        num_users=250 if full else 40,
        schemes=ALL_SCHEMES if full or is_small else ("hard labels", "self-distillation", *OUR_SCHEMES),
        temperature=TEMPERATURE,
        sample_counts=(25, 50, 150, 500, 1_000, 2_000) if full else (25, 50, 100, 225) if is_small else (),
    )
