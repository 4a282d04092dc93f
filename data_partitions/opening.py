"""`--dataset NAME` and its options become a source of partitions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from data_partitions.errors import DataSettingsError
from data_partitions.samples import Partitions

DATASETS = ("synthetic-writers", "femnist", "parquet", "leaf")
NEEDS_PATH = ("parquet", "leaf")
MAX_WRITERS = 3550

Flat = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which data, as the command line and the run configuration say it.

    Raises:
        DataSettingsError: an unknown data set, a path that is missing or not wanted, or a number out of range.
    """

    dataset: str = "synthetic-writers"
    """One of `DATASETS`."""

    data_path: Path | None = None
    """parquet: a file, folder or pattern; leaf: the folder with train/ and test/; None for the others."""

    user_column: str = "writer_id"
    """parquet: the column that names the users."""

    label_column: str = "character"
    """parquet: the column of the classes."""

    image_column: str = "image"
    """parquet: the column of the images."""

    num_classes: int | None = None
    """parquet, leaf: K; None finds it in the data."""

    num_writers: int = MAX_WRITERS
    """synthetic-writers: how many, in [1, 3550]; a writer is the same however many there are."""

    seed: int = 0
    """synthetic-writers: another seed gives other writers."""

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise DataSettingsError(f"--dataset {self.dataset} is not known; choose one of {', '.join(DATASETS)}.")
        if self.dataset in NEEDS_PATH and self.data_path is None:
            raise DataSettingsError(f"--dataset {self.dataset} needs --data-path; name where the data lies.")
        if self.dataset not in NEEDS_PATH and self.data_path is not None:
            raise DataSettingsError(f"--dataset {self.dataset} takes no --data-path; leave out {self.data_path}.")
        if self.num_classes is not None and self.num_classes < 2:
            raise DataSettingsError(f"num_classes={self.num_classes} is too small; give 2 or more.")
        if not 1 <= self.num_writers <= MAX_WRITERS:
            raise DataSettingsError(f"num_writers={self.num_writers} is not in [1, {MAX_WRITERS}].")
        if self.seed < 0:
            raise DataSettingsError(f"seed={self.seed} is negative; give 0 or more.")

    def to_flat(self) -> dict[str, str | int | float | bool]:
        """Return a flat dictionary for a run configuration, which knows no None: a setting that is None is left out."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    @classmethod
    def from_flat(cls, flat: Flat) -> "DataSettings":
        """Build from a flat dictionary; an empty data_path and a num_classes of 0 stand for None.

        Raises:
            DataSettingsError: an unknown key, a value of the wrong type, or what the settings themselves refuse.
        """
        types: dict[str, type] = {"data_path": str, "num_classes": int, "num_writers": int, "seed": int}
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
        if values.get("num_classes") == 0:
            values["num_classes"] = None
        return cls(**values)  # type: ignore[arg-type]


def open_partitions(settings: DataSettings) -> Partitions:
    """Open the data; no image is decoded yet beyond the first user's.

    Raises:
        DataError: what is missing or broken, in one sentence.
    """
    if settings.dataset == "parquet" and settings.data_path is not None:
        from data_partitions.parquet_users import ParquetUsers

        return ParquetUsers(
            settings.data_path,
            user_column=settings.user_column,
            label_column=settings.label_column,
            image_column=settings.image_column,
            num_classes=settings.num_classes,
        )
    if settings.dataset == "leaf" and settings.data_path is not None:
        from data_partitions.leaf import LeafUsers

        return LeafUsers(settings.data_path, num_classes=settings.num_classes)
    if settings.dataset == "femnist":
        from data_partitions.femnist import open_femnist

        return open_femnist()
    from data_partitions.synthetic_writers import SyntheticWriters

    return SyntheticWriters(num_writers=settings.num_writers, seed=settings.seed)


def _field_names(cls: type[DataSettings]) -> str:
    return ", ".join(field.name for field in fields(cls))
