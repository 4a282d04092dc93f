"""Parquet files as one table of rows: small columns read once, images fetched row by row from their row groups."""

import glob
import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from persephonee.data_partitions.errors import BrokenDataError, MissingDataError
from persephonee.data_partitions.limits import MAX_COLUMN_BYTES, MAX_ROWS
from persephonee.data_partitions.safe_files import refuse_odd_file, visible_files

CACHE_BYTES = 512 * 2**20
BATCH_ROWS = 1024


def find_files(data_path: Path) -> tuple[Path, ...]:
    """Return the parquet files that a file name, a folder (searched through) or a pattern means, sorted.

    Raises:
        MissingDataError: nothing is there.
    """
    refuse_odd_file(data_path)
    if data_path.is_file():
        return (data_path,)
    if data_path.is_dir():
        found = visible_files(data_path, data_path.rglob("*.parquet"), lambda path: True)
    else:
        found = sorted(Path(name) for name in glob.glob(str(data_path), recursive=True))  # noqa: PTH207 (absolute too)
    if not found:
        what = "holds no .parquet file" if data_path.is_dir() else "does not exist"
        raise MissingDataError(f"--data-path {data_path} {what}; give a parquet file, a folder of them or a pattern.")
    for path in found:
        refuse_odd_file(path)
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
        self._schemas = []
        for path in paths:
            metadata = _read_metadata(path)
            self._schemas.append(metadata.schema.to_arrow_schema())
            first_row = 0
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                self._groups.append(RowGroup(path, group, first_row))
                starts.append(starts[-1] + rows)
                first_row += rows
        if starts[-1] > MAX_ROWS:
            raise BrokenDataError(f"{paths[0].parent} has {starts[-1]} rows; expected at most {MAX_ROWS}.")
        self._starts: NDArray[np.int64] = np.asarray(starts, dtype=np.int64)

    @property
    def columns(self) -> list[str]:
        """The names of the first file's columns."""
        return list(self._schemas[0].names)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def require(self, column: str) -> None:
        """Look for a column in every file.

        Raises:
            MissingDataError: a file lacks it.
            BrokenDataError: a file has it twice.
        """
        for path, schema in zip(self._paths, self._schemas, strict=True):
            if column not in schema.names:
                present = ", ".join(schema.names)
                raise MissingDataError(f"{path} has no column '{column}'; its columns are {present}.")
            if schema.names.count(column) > 1:
                raise BrokenDataError(f"{path} has the column '{column}' twice; write it with one of them.")

    def read_columns(self, names: list[str]) -> Any:
        """Return whole columns as one pyarrow Table, without dictionaries and view types.

        Raises:
            MissingDataError: a file lacks a column.
            BrokenDataError: a file cannot be read, or the columns take more than MAX_COLUMN_BYTES.
        """
        for name in names:
            self.require(name)
        tables, left = [], MAX_COLUMN_BYTES
        for path in self._paths:
            tables.append(_read_bounded(path, names, left))
            left -= tables[-1].nbytes
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise BrokenDataError(f"The files' columns differ in type ({_first_line(error)}).") from error

    def class_names(self, column: str) -> list[tuple[int, tuple[str, ...] | None]]:
        """Return each file's number of rows and the names of its ClassLabel column, None where it has none."""
        names = [class_label_names(schema, column) for schema in self._schemas]
        rows = dict.fromkeys(self._paths, 0)
        for group, count in zip(self._groups, np.diff(self._starts), strict=True):
            rows[group.path] += int(count)
        return list(zip(rows.values(), names, strict=True))

    def cells(self, column: str, rows: NDArray[np.int64]) -> Iterator[Any]:
        """Yield the values of one column at the given rows, in their order, as Python objects.

        Raises:
            BrokenDataError: a file cannot be read, or a row group takes more than MAX_COLUMN_BYTES.
        """
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for row, group in zip(rows, groups, strict=True):
            yield self._column_of_group(int(group), column)[int(row - self._starts[group])].as_py()

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
        array = _read_bounded(group.path, [column], MAX_COLUMN_BYTES, group.group).column(column).combine_chunks()
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
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _read_bounded(path: Path, names: list[str], most_bytes: int, group: int | None = None) -> Any:
    """Read columns of a file or of one row group, and stop where they grow beyond `most_bytes`.

    A column that repeats one value takes next to nothing in the file, whose footer does not say what it decodes to.
    """
    batches, held = [], 0
    try:
        with pq.ParquetFile(path) as file:
            for index in range(file.metadata.num_row_groups) if group is None else (group,):
                _refuse_large_group(path, file.metadata.row_group(index), names, most_bytes)
            groups = None if group is None else [group]
            plain = pa.schema([pa.field(name, _plain(file.schema_arrow.field(name).type)) for name in names])
            for batch in file.iter_batches(BATCH_ROWS, columns=names, row_groups=groups):
                batches.append(batch.select(names).cast(plain))
                held += batches[-1].nbytes
                if held > most_bytes:
                    raise _too_large(path, names, most_bytes)
        return pa.Table.from_batches(batches, plain)
    except (pa.ArrowException, OSError) as error:
        raise BrokenDataError(f"{path} cannot be read ({_first_line(error)}); fetch it again.") from error


def _refuse_large_group(path: Path, group: Any, names: list[str], most_bytes: int) -> None:
    chunks = [group.column(index) for index in range(group.num_columns)]
    wanted = [chunk for chunk in chunks if any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in names)]
    # a number takes a byte at least, and what is not repeated takes what the footer says
    if max(sum(chunk.total_uncompressed_size for chunk in wanted), sum(c.num_values for c in wanted)) > most_bytes:
        raise _too_large(path, names, most_bytes)


def _too_large(path: Path, names: list[str], most_bytes: int) -> BrokenDataError:
    return BrokenDataError(
        f"{path}: {' and '.join(names)} take more than {most_bytes} bytes in memory; write the file with smaller row "
        "groups, or with fewer rows."
    )


def _plain(kind: Any) -> Any:
    """Return a type without dictionaries and views, which few functions take."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    return kind


def _read_metadata(path: Path) -> Any:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise BrokenDataError(f"{path} is no complete parquet file ({_first_line(error)}); fetch it again.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
