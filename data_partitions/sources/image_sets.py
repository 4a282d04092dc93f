"""Any labelled image set as numbered rows: a folder of class folders, parquet, or a data set of the hub.

A row has a label in [0, K) and a cell that `persephonee.data_partitions.sources.image_cells.decode` takes.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from persephonee.data_partitions.errors import BrokenDataError, LabelRangeError, MissingDataError
from persephonee.data_partitions.image_decoder import IMAGE_SUFFIXES
from persephonee.data_partitions.limits import MAX_IMAGE_BYTES
from persephonee.data_partitions.safe_files import is_hidden, read_file, refuse_odd_file, visible_files
from persephonee.data_partitions.sources.label_column import to_labels
from persephonee.data_partitions.sources.parquet_files import ParquetFiles, find_files

logger = logging.getLogger(__name__)

SPLIT_WORDS = frozenset(
    {
        *("train", "training", "trainset", "trn", "val", "valid", "validation", "valset", "dev", "devset", "eval"),
        *("test", "testing", "testset", "tst", "holdout", "heldout", "fold", "split", "unlabeled", "unlabelled"),
    }
)
"""Words in the names of the parts of a data set (`seg_train`, `test2017`); such a folder of folders is no class."""

Labels = NDArray[np.int64]


class ImageSet(Protocol):
    """N images with labels; nothing is decoded before it is asked for."""

    @property
    def labels(self) -> Labels:
        """Classes, shape [N], in [0, K)."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""

    def column(self, name: str) -> list[Any]:
        """Return another column, one value a row, such as the users' ids."""

    def cells(self, rows: Labels) -> Iterator[Any]:
        """Yield the images of some rows, in their order, still encoded."""

    def folder_of(self, row: int) -> Path:
        """Return the folder in which relative paths of a row start."""

    def describe_row(self, row: int) -> str:
        """Return where a row lies, for an error's sentence."""


class ClassFolders:
    """A folder with a folder of images for each class, whose name is the class's.

    Hidden files and those of other kinds are left out and counted.

    Raises:
        MissingDataError: there are fewer than two such folders, they are splits, or one of them has no image.
    """

    def __init__(self, folder: Path) -> None:
        folders = _class_folders(folder)
        self.class_names = tuple(path.name for path in folders)
        self._files: list[Path] = []
        labels: list[int] = []
        others: list[Path] = []
        for label, path in enumerate(folders):
            files = visible_files(folder, path.rglob("*"), lambda file: True)
            found = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
            others += [file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES]
            if not found:
                raise MissingDataError(f"The class folder {path} holds no image; remove it or fill it.")
            self._files += found
            labels += [label] * len(found)
        if others:
            logger.warning("%s: %d files are no images by their names, such as %s", folder, len(others), others[0].name)
        self.labels: Labels = np.asarray(labels, dtype=np.int64)

    def column(self, name: str) -> list[Any]:
        """Refuse: a folder has no columns."""
        raise MissingDataError(f"Class folders have no column '{name}'; give parquet, or another --partitioner.")

    def cells(self, rows: Labels) -> Iterator[Any]:
        """Yield the files' bytes.

        Raises:
            BrokenDataError: a file cannot be read, is none any more, or is too large.
        """
        for row in rows:
            path = self._files[int(row)]
            try:
                yield read_file(path, MAX_IMAGE_BYTES)
            except (OSError, ValueError) as error:
                raise BrokenDataError(f"The image {path} cannot be read: {error}.") from error

    def folder_of(self, row: int) -> Path:
        """Return the class's folder."""
        return self._files[row].parent

    def describe_row(self, row: int) -> str:
        """Return the file's path."""
        return str(self._files[row])


def _class_folders(folder: Path) -> list[Path]:
    """Return the folders that stand for classes, sorted.

    Raises:
        MissingDataError: there are fewer than two, or they stand for the splits of a data set.
    """
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path, folder))
    named = [path for path in found if SPLIT_WORDS & set(re.findall("[a-z]+", path.name.casefold()))]
    splits = [path for path in named if _holds_folders(path)]
    if splits and len(named) >= min(2, len(found)):
        train = next((path for path in splits if "tr" in path.name.casefold()), splits[0])
        raise MissingDataError(
            f"--data-path {folder} holds the splits {', '.join(path.name for path in named)} in place of classes; give "
            f"one of them, --data-path {train}: every user's images are divided into parts anyway."
        )
    if len(found) < 2:
        inner = f", such as those in {found[0]}" if found and _holds_folders(found[0]) else ""
        raise MissingDataError(
            f"--data-path {folder} has {len(found)} folders; expected one for each class{inner}, or parquet files."
        )
    return found


def _holds_folders(folder: Path) -> bool:
    return any(path.is_dir() and not is_hidden(path, folder) for path in folder.iterdir())


class ParquetImages:
    """Parquet with an image and a label column, as the hub stores image classification.

    Raises:
        MissingDataError: no such path or column.
        BrokenDataError: a file that cannot be read, or an empty label.
        LabelRangeError: a negative label, or one without a name.
    """

    def __init__(self, data_path: Path, *, label_column: str, image_column: str) -> None:
        self._files = ParquetFiles(find_files(data_path))
        self._image_column = image_column
        self._files.require(image_column)
        column = self._files.read_columns([label_column])[label_column]
        if column.null_count or not len(column):
            raise BrokenDataError(f"Column '{label_column}' of {data_path} has {column.null_count} empty labels.")
        self.labels, names = to_labels(column, self._files.class_names(label_column), label_column)
        self.class_names = _checked_names(self.labels, names, f"Column '{label_column}' of {data_path}")

    def column(self, name: str) -> list[Any]:
        """Return a column's values; none may be empty."""
        found = self._files.read_columns([name])[name]
        if found.null_count:
            raise BrokenDataError(f"Column '{name}' is empty in {found.null_count} rows.")
        return list(found.to_pylist())

    def cells(self, rows: Labels) -> Iterator[Any]:
        """Yield the cells of the image column."""
        return self._files.cells(self._image_column, rows)

    def folder_of(self, row: int) -> Path:
        """Return the file's folder."""
        return self._files.folder_of(row)

    def describe_row(self, row: int) -> str:
        """Return the row's number within its file."""
        return self._files.describe_row(row)


class HubImages:
    """A `datasets.Dataset` with an image and a label column.

    Raises:
        MissingDataError: a column is missing.
        BrokenDataError: a label that is empty, or neither a number nor a word.
        LabelRangeError: a negative label, or one without a name.
    """

    def __init__(self, dataset: Any, *, label_column: str, image_column: str) -> None:
        for column in (label_column, image_column):
            if column not in dataset.column_names:
                raise MissingDataError(
                    f"The hub's data set has no column '{column}'; its columns are {', '.join(dataset.column_names)}."
                )
        self._dataset = dataset
        self._image_column = image_column
        names = getattr(dataset.features[label_column], "names", None)
        try:
            column = pa.array(list(dataset[label_column]))
        except pa.ArrowException as error:
            raise BrokenDataError(
                f"Column '{label_column}' of the hub's data set holds no labels ({error})."
            ) from error
        if column.null_count or not len(column):
            raise BrokenDataError(f"Column '{label_column}' of the hub's data set has empty labels.")
        self.labels, names = to_labels(column, [(len(column), tuple(names) if names else None)], label_column)
        self.class_names = _checked_names(self.labels, names, f"Column '{label_column}'")

    def column(self, name: str) -> list[Any]:
        """Return a column's values; none may be empty."""
        if name not in self._dataset.column_names:
            raise MissingDataError(
                f"The hub's data set has no column '{name}'; its columns are {', '.join(self._dataset.column_names)}."
            )
        found = list(self._dataset[name])
        if None in found:
            raise BrokenDataError(f"Column '{name}' of the hub's data set has empty cells.")
        return found

    def cells(self, rows: Labels) -> Iterator[Any]:
        """Yield PIL images."""
        return (self._dataset[int(row)][self._image_column] for row in rows)

    def folder_of(self, row: int) -> Path:
        """Return the working folder; the hub's images carry their bytes."""
        return Path()

    def describe_row(self, row: int) -> str:
        """Return the row's number."""
        return f"row {row} of the hub's data set"


def open_image_set(data_path: Path, *, label_column: str, image_column: str) -> ImageSet:
    """Open class folders, or parquet where the path is a parquet file, a pattern, or a folder with such files in it.

    Raises:
        DataError: what is missing or broken, in one sentence.
    """
    refuse_odd_file(data_path)
    if data_path.is_dir() and not any(not is_hidden(path, data_path) for path in data_path.glob("*.parquet")):
        return ClassFolders(data_path)
    return ParquetImages(data_path, label_column=label_column, image_column=image_column)


def open_hub(name: str, *, label_column: str, image_column: str) -> HubImages:
    """Fetch the `train` split of a data set from its hub, or open the copy that an earlier fetch left in the cache.

    Raises:
        MissingDataError: `datasets` is not installed, or there is neither a network nor a cached copy.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDataError(
            "--hub-name needs the package datasets, which is not installed; run `pip install 'persephonee[datasets]'`."
        ) from error
    try:
        dataset = load_dataset(name, split="train")
    # the hub's client raises OSError, httpx's and its own errors, which fraction no other base
    except Exception as error:
        raise MissingDataError(
            f"{name} could not be fetched ({type(error).__name__}) and no copy is cached; check the name, connect to "
            "the network once, or give a local --data-path."
        ) from error
    return HubImages(dataset, label_column=label_column, image_column=image_column)


def _checked_names(labels: Labels, names: tuple[str, ...] | None, where: str) -> tuple[str, ...]:
    names = names or tuple(map(str, range(int(labels.max()) + 1)))
    if labels.min() < 0 or labels.max() >= len(names):
        raise LabelRangeError(f"{where} reaches from {labels.min()} to {labels.max()}; expected [0, {len(names)}).")
    return names
