"""Hugging Face style parquet with an image, a user and a label column (`--dataset parquet`).

Schema:
    image column: struct {bytes, path}, encoded bytes, paths below the file's folder, or nested lists [H, W(, C)].
    user column: text, whole numbers or dates; the value's text is the client id (`user_ids.py` says which will do).
    label column: an integer, a ClassLabel (names from the schema), or a string (numbered as the model numbers its class
        names; without a model the classes are the sorted strings).
    hsf_id column, optional: the user's domain.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from persephonee.data_partitions.errors import BrokenDataError, LabelRangeError
from persephonee.data_partitions.image_decoder import Pixels
from persephonee.data_partitions.samples import ModelClasses, UserSamples, check_index
from persephonee.data_partitions.sources.image_cells import decode, number_of_channels, refuse_too_many, stack
from persephonee.data_partitions.sources.label_column import to_labels
from persephonee.data_partitions.sources.parquet_files import ParquetFiles, find_files
from persephonee.data_partitions.sources.published_sets import FEMNIST_OF_THE_HUB, is_femnist
from persephonee.data_partitions.user_ids import check_ids

DOMAIN_COLUMN = "hsf_id"
SAMPLED_FOR_CHANNELS = 32


class ParquetUsers:
    """Partitions by user of one or more parquet files; images are decoded when a partition is loaded.

    Args:
        data_path: a file, a folder that is searched through, or a glob pattern.
        user_column: the column whose values name the users.
        label_column: the column of the classes.
        image_column: the column of the images.
        num_classes: K; None takes the number of class names, else the model's, else the largest label + 1.
        model: the classes of the model that is to take the data; None where one is to be made from it.
        name: what the source is called.

    Raises:
        MissingDataError: no such path or column.
        BrokenDataError: a file that cannot be read, an empty cell, or an image that does not decode.
        LabelRangeError: a label outside [0, K), or a word that the model does not number.
    """

    def __init__(
        self,
        data_path: Path,
        *,
        user_column: str,
        label_column: str,
        image_column: str = "image",
        num_classes: int | None = None,
        model: ModelClasses | None = None,
        name: str = "parquet",
    ) -> None:
        self.name = name
        self._files = ParquetFiles(find_files(data_path))
        self._image_column = image_column
        with_domain = DOMAIN_COLUMN in self._files.columns and DOMAIN_COLUMN not in (user_column, label_column)
        wanted = list(dict.fromkeys([user_column, label_column] + [DOMAIN_COLUMN] * with_domain))
        self._files.require(image_column)
        table = self._files.read_columns(wanted)
        if not len(table):
            raise BrokenDataError(f"{data_path} has no rows.")
        for column in (user_column, label_column):
            self._refuse_empty_cells(table[column], column)
        per_file = self._files.class_names(label_column)
        self._labels, names = to_labels(table[label_column], per_file, label_column, model)
        found = model.count if model else int(self._labels.max()) + 1
        self.num_classes = num_classes or (len(names) if names else found)
        self.class_names = names if names and len(names) == self.num_classes else None
        self._check_label_range(label_column)
        self.client_ids, self._rows = _rows_by_user(table[user_column], user_column)
        self.num_partitions = len(self.client_ids)
        self.counts = tuple(map(len, self._rows))
        if is_femnist(self.client_ids, self.num_classes):
            FEMNIST_OF_THE_HUB.compare(self.counts, is_whole=False)
        self._domains = table[DOMAIN_COLUMN].to_numpy() if with_domain else None
        self._channels = self._find_channels()
        self.image_shape = self._decode_rows(np.zeros(1, dtype=np.int64))[0].shape

    def load_partition(self, index: int) -> UserSamples:
        """Return the samples of user `client_ids[index]`, in the order of their rows."""
        check_index(index, self.num_partitions)
        client_id, rows = self.client_ids[index], self._rows[index]
        refuse_too_many(len(rows), self.image_shape, client_id)
        images = stack(self._decode_rows(rows), self.image_shape, client_id)
        return UserSamples(
            client_id=client_id,
            images=images,
            labels=self._labels[rows],
            domain=self._domain(rows),
        )

    def _domain(self, rows: NDArray[np.int64]) -> str | None:
        if self._domains is None:
            return None
        values = set(self._domains[rows].tolist())
        return f"{DOMAIN_COLUMN}={values.pop()}" if len(values) == 1 else None

    def _refuse_empty_cells(self, column: Any, name: str) -> None:
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            where = self._files.describe_row(row)
            raise BrokenDataError(f"Column '{name}' is empty in {column.null_count} rows, the first being {where}.")

    def _check_label_range(self, label_column: str) -> None:
        wrong = np.flatnonzero((self._labels < 0) | (self._labels >= self.num_classes))
        if len(wrong):
            raise LabelRangeError(
                f"Column '{label_column}' holds the label {self._labels[wrong[0]]} in "
                f"{self._files.describe_row(int(wrong[0]))}; expected [0, {self.num_classes})."
            )

    def _find_channels(self) -> int:
        """Return 3 if any of a few images is coloured: a photograph set may begin with a grey one."""
        count = min(SAMPLED_FOR_CHANNELS, len(self._rows[0]))
        rows = self._rows[0][:count]
        channels = 1
        for row, cell in zip(rows, self._files.cells(self._image_column, rows), strict=True):
            try:
                channels = max(channels, number_of_channels(cell, self._files.folder_of(int(row))))
            except ValueError as error:
                raise self._broken_image(int(row), error) from error
        return channels

    def _decode_rows(self, rows: NDArray[np.int64]) -> list[Pixels]:
        pixels = []
        for row, cell in zip(rows, self._files.cells(self._image_column, rows), strict=True):
            try:
                pixels.append(decode(cell, self._channels, self._files.folder_of(int(row))))
            except ValueError as error:
                raise self._broken_image(int(row), error) from error
        return pixels

    def _broken_image(self, row: int, error: Exception) -> BrokenDataError:
        return BrokenDataError(f"The image in {self._files.describe_row(row)} cannot be used: {error}.")


def _rows_by_user(column: Any, name: str) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """Return the users' ids, sorted as text, and each one's row numbers in ascending order."""
    encoded = _as_text(column, name).combine_chunks().dictionary_encode()
    users = encoded.dictionary.to_pylist()
    check_ids(users, f"Column '{name}'")
    codes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(codes, minlength=len(users)))[:-1])
    ranked = sorted(range(len(users)), key=users.__getitem__)
    return tuple(users[user] for user in ranked), [groups[user] for user in ranked]


def _as_text(column: Any, name: str) -> Any:
    """Return a column of ids as text; what has no text of its own, such as an image or a list, is refused."""
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        raise BrokenDataError(
            f"Column '{name}' holds {kind}, which names no users; name a column of text or whole numbers with "
            "--user-column."
        )
    try:
        return column.cast(pa.large_string())
    except pa.ArrowException as error:
        raise BrokenDataError(
            f"Column '{name}' holds {kind}, which is no text; name the column of the users with --user-column."
        ) from error
