"""Which data, and how a user's samples are divided. PyTorch is not loaded: the command line reads this for --help."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from persephonee.data_partitions.errors import DataSettingsError
from persephonee.data_partitions.sources.image_users import ImageUserSettings, Partitioner

Dataset = Literal["synthetic-writers", "femnist", "parquet", "leaf", "imagefolder"]
DATASETS = get_args(Dataset)
NEEDS_PATH = ("parquet", "leaf")
MAX_WRITERS = 3550
OWN_SOURCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
DEFAULT_LABEL_COLUMN = "character"
PAPER_PERSONAL_FRACTION = 250 / 3500

Flat = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which data, as the command line and the run configuration say it.

    Raises:
        DataSettingsError: an unknown data set, a path that is missing or not wanted, or a number out of range.
    """

    dataset: str = "synthetic-writers"
    """Which data: synthetic-writers, femnist, parquet, leaf, imagefolder, or package.module:function, a source of one's
    own whose module this machine's owner allows (sources)."""

    data_path: Path | None = None
    """parquet: a file, folder or pattern; leaf: the folder with train/ and test/; imagefolder: a folder of class
    folders, or parquet; a source of one's own: what it takes; the others take none."""

    user_column: str = "writer_id"
    """parquet, imagefolder by natural-id: the column that names the users."""

    label_column: str = DEFAULT_LABEL_COLUMN
    """parquet: the column of the classes; imagefolder: likewise, label where none is named."""

    image_column: str = "image"
    """parquet, imagefolder: the column of the images."""

    num_classes: int | None = None
    """parquet, leaf: K; by default the model's, or else found in the data."""

    num_writers: int = MAX_WRITERS
    """synthetic-writers: how many, in [1, 3550]; a writer is the same however many there are."""

    hub_name: str = ""
    """imagefolder: a data set of the hub in place of a path, such as owner/name."""

    num_users: int = 250
    """imagefolder: how many users are drawn; a user is the same however many there are."""

    samples_per_user: int = 600
    """imagefolder, gaussian: images of each user."""

    label_skew_width: float = 10.0
    """imagefolder, gaussian: standard deviation of a user's Gaussian taste, in classes."""

    image_size: int | None = None
    """imagefolder: scale and crop images to this side, in px; by default they stay as they are."""

    partitioner: Partitioner = "gaussian"
    """imagefolder: who has which images: "gaussian", users with a taste of their own as in the paper, or one of
    Flower's partitioners: "dirichlet", "shards", or "natural-id", by --user-column of parquet or of a hub's data."""

    dirichlet_alpha: float = 0.5
    """imagefolder, dirichlet: the concentration, > 0; the smaller, the fewer classes a user has."""

    shards_per_user: int = 2
    """imagefolder, shards: how many a user gets, of images sorted by class."""

    seed: int = 0
    """synthetic-writers, imagefolder: another seed gives other writers, other users; an imagefolder's model has to be
    pretrained with the same."""

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS and not self.is_own:
            raise DataSettingsError(
                f"--dataset {self.dataset} is not known; choose one of {', '.join(DATASETS)}, or name a source of your "
                "own as package.module:function."
            )
        if self.dataset == "imagefolder" and (self.data_path is None) != bool(self.hub_name):
            raise DataSettingsError("--dataset imagefolder needs either --data-path or --hub-name; give one of them.")
        if self.dataset in NEEDS_PATH and self.data_path is None:
            raise DataSettingsError(f"--dataset {self.dataset} needs --data-path; name where the data lies.")
        if self.dataset in ("synthetic-writers", "femnist") and self.data_path is not None:
            raise DataSettingsError(f"--dataset {self.dataset} takes no --data-path; leave out {self.data_path}.")
        if self.num_classes is not None and self.num_classes < 2:
            raise DataSettingsError(f"num_classes={self.num_classes} is too small; give 2 or more.")
        if not 1 <= self.num_writers <= MAX_WRITERS:
            raise DataSettingsError(f"num_writers={self.num_writers} is not in [1, {MAX_WRITERS}].")
        if not 0 <= self.seed < 2**63:
            raise DataSettingsError(f"seed={self.seed} is out of range; give a whole number in [0, 2**63).")
        self.image_users()

    @property
    def is_own(self) -> bool:
        """Whether a function of one's own opens the data."""
        return OWN_SOURCE.fullmatch(self.dataset) is not None

    def image_users(self) -> ImageUserSettings:
        """Return how `imagefolder` draws its users."""
        return ImageUserSettings(
            num_users=self.num_users,
            samples_per_user=self.samples_per_user,
            label_skew_width=self.label_skew_width,
            image_size=self.image_size,
            seed=self.seed,
            partitioner=self.partitioner,
            dirichlet_alpha=self.dirichlet_alpha,
            shards_per_user=self.shards_per_user,
            user_column=self.user_column,
        )

    def to_flat(self) -> dict[str, str | int | float | bool]:
        """Return a flat dictionary for a run configuration, which knows no None: a setting that is None is left out."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    @classmethod
    def from_flat(cls, flat: Flat) -> "DataSettings":
        """Build from a flat dictionary; an empty data_path and a num_classes or image_size of 0 stand for None.

        Raises:
            DataSettingsError: an unknown key, a value of the wrong type, or what the settings themselves refuse.
        """
        numbers = (
            "num_classes",
            "num_writers",
            "num_users",
            "samples_per_user",
            "shards_per_user",
            "image_size",
            "seed",
        )
        types: dict[str, type] = {**dict.fromkeys(numbers, int), "label_skew_width": float, "dirichlet_alpha": float}
        unknown = sorted(set(flat) - {field.name for field in fields(cls)})
        if unknown:
            raise DataSettingsError(f"'{unknown[0]}' is no setting of the data; there are {_field_names(cls)}.")
        for name, value in flat.items():
            wanted = types.get(name, str)
            if type(value) is not wanted:
                raise DataSettingsError(f"{name}={value!r} is {type(value).__name__}; expected {wanted.__name__}.")
        values: dict[str, object] = dict(flat)
        if "data_path" in values:
            values["data_path"] = Path(str(flat["data_path"])) if flat["data_path"] else None
        for name in ("num_classes", "image_size"):
            if values.get(name) == 0:
                values[name] = None
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How a user's samples are divided.

    Raises:
        DataSettingsError: a fraction that is out of its range, or a negative count.
    """

    test_samples: int = 100
    """Samples held out for testing where the user has at least --test-samples-from."""

    test_samples_from: int = 160
    """The smallest user, in samples, of whom --test-samples are held out; of smaller ones --test-fraction is."""

    test_fraction: float = 0.3
    """Share held out of a smaller user, in [0, 1]."""

    calibration_fraction: float = 0.25
    """Fraction of the samples outside the test part that calibrates the threshold, in (0, 1)."""

    min_samples: int = 20
    """The smallest user, in samples, that takes part."""

    labels: float = 1.0
    """How much of a user's samples outside the test part is labelled: all, none, or a fraction such as 0.25."""

    def __post_init__(self) -> None:
        for name in ("test_fraction", "calibration_fraction", "labels"):
            check_fraction(name, getattr(self, name))
        if not 0 < self.calibration_fraction < 1:
            raise DataSettingsError(
                f"calibration_fraction={self.calibration_fraction} leaves no sample to calibrate or none to train; "
                "give a number in (0, 1)."
            )
        for name in ("test_samples", "min_samples"):
            if getattr(self, name) < 0:
                raise DataSettingsError(f"{name}={getattr(self, name)} is negative; give a number of samples.")
        if self.test_samples_from <= self.test_samples:
            raise DataSettingsError(
                f"test_samples_from={self.test_samples_from} leaves nothing to train on beside "
                f"test_samples={self.test_samples}; give a larger test_samples_from."
            )


def check_fraction(name: str, value: float) -> None:
    """Refuse a fraction outside [0, 1], NaN included."""
    if not 0.0 <= value <= 1.0:
        raise DataSettingsError(f"{name}={value} is not a fraction; give a number in [0, 1].")


def _field_names(cls: type[DataSettings]) -> str:
    return ", ".join(field.name for field in fields(cls))
