"""Parquet files as one table of rows: small columns read once, images fetched row by row from their row groups."""

import glob
import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from persephonee.data_partitions.errors import BrokenDataError, MissingDataError

CACHE_BYTES = 512 * 2**20


def find_files(data_path: Path) -> tuple[Path, ...]:
    """Return the parquet files that a file name, a folder (searched through) or a pattern means, sorted.

    Raises:
        MissingDataError: nothing is there.
    """
    if data_path.is_file():
        return (data_path,)
    if data_path.is_dir():
        found = sorted(data_path.rglob("*.parquet"))
    else:
        found = sorted(Path(name) for name in glob.glob(str(data_path), recursive=True))  # noqa: PTH207 (absolute too)
    if not found:
        what = "holds no .parquet file" if data_path.is_dir() else "does not exist"
        raise MissingDataError(f"--data-path {data_path} {what}; give a parquet file, a folder of them or a pattern.")
    return tuple(found)


@dataclass(frozen=True)
class RowGroup:
    """A run of rows of one file."""

    path: Path
    group: int
    first_row: int
    """Number of its first row within its file, from 0."""


class ParquetFiles:
    """Several files, seen as one table; a column that is asked for has to be in all of them.

    Args:
        paths: the files, in the order of their rows.

    Raises:
        BrokenDataError: a file is no parquet, or is cut off.
    """

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self._groups: list[RowGroup] = []
        self._images: OrderedDict[tuple[int, str], Any] = OrderedDict()
        starts = [0]
        self._paths = paths
        for path in paths:
            metadata = _read_metadata(path)
            schema = metadata.schema.to_arrow_schema()
            if path == paths[0]:
                self.schema = schema
            first_row = 0
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                self._groups.append(RowGroup(path, group, first_row))
                starts.append(starts[-1] + rows)
                first_row += rows
        self._starts: NDArray[np.int64] = np.asarray(starts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def require(self, column: str) -> None:
        """Look for a column in every file.

        Raises:
            MissingDataError: a file lacks it.
        """
        for path in self._paths:
            _require(path, column, _read_metadata(path).schema.to_arrow_schema().names)

    def read_columns(self, names: list[str]) -> Any:
        """Return whole columns as one pyarrow Table.

        Raises:
            MissingDataError: a file lacks a column.
            BrokenDataError: a file cannot be read.
        """
        tables = []
        for path in self._paths:
            present = _read_metadata(path).schema.to_arrow_schema().names
            for name in names:
                _require(path, name, present)
            try:
                tables.append(pq.read_table(path, columns=names, partitioning=None))
            except (pa.ArrowException, OSError) as error:
                raise BrokenDataError(f"{path} cannot be read ({_first_line(error)}); fetch it again.") from error
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise BrokenDataError(f"The files' columns differ in type ({_first_line(error)}).") from error

    def cells(self, column: str, rows: NDArray[np.int64]) -> list[Any]:
        """Return the values of one column at the given rows, in their order, as Python objects."""
        group_of = np.searchsorted(self._starts, rows, side="right") - 1
        values: list[Any] = [None] * len(rows)
        for group in np.unique(group_of):
            chosen = np.flatnonzero(group_of == group)
            array = self._column_of_group(int(group), column)
            taken = array.take(pa.array(rows[chosen] - self._starts[group])).to_pylist()
            for position, value in zip(chosen, taken, strict=True):
                values[position] = value
        return values

    def describe_row(self, row: int) -> str:
        """Return 'row R of FILE', R counted from 0 within the file."""
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        group = self._groups[index]
        return f"row {row - int(self._starts[index]) + group.first_row} of {group.path}"

    def folder_of(self, row: int) -> Path:
        """Return the folder of the file that holds the row, where relative image paths start."""
        return self._groups[int(np.searchsorted(self._starts, row, side="right")) - 1].path.parent

    def _column_of_group(self, index: int, column: str) -> Any:
        """Read one column of a row group; keep the last used ones, encoded as they are, up to CACHE_BYTES."""
        key = (index, column)
        if key in self._images:
            self._images.move_to_end(key)
            return self._images[key]
        group = self._groups[index]
        try:
            with pq.ParquetFile(group.path) as file:
                array = file.read_row_group(group.group, columns=[column]).column(column).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise BrokenDataError(f"{group.path} cannot be read ({_first_line(error)}); fetch it again.") from error
        self._images[key] = array
        while len(self._images) > 1 and sum(kept.nbytes for kept in self._images.values()) > CACHE_BYTES:
            self._images.popitem(last=False)
        return array


def class_label_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """Return the names of a Hugging Face ClassLabel column, None where the schema does not carry them."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None:
        return None
    try:
        names = json.loads(stored)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _require(path: Path, column: str, present: list[str]) -> None:
    if column not in present:
        raise MissingDataError(f"{path} has no column '{column}'; its columns are {', '.join(present)}.")


def _read_metadata(path: Path) -> Any:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise BrokenDataError(f"{path} is no complete parquet file ({_first_line(error)}); fetch it again.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
