"""The tables of a run folder: their columns, their order and their bytes.

exits.parquet     one row per round, client, exit and stage ("before" | "after"); the last exit is included
clients.parquet   one row per round and client that was asked; numbers are null where the status is not "ok"
rounds.parquet    one row per round; written last, so a round counts once it stands here
sharing.parquet, held_out.parquet
                  only in some runs, see run_folder_optional.py

Equal rows give equal bytes, whatever order they came in: rows are sorted, types are fixed, and NaN becomes null.
"""

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from persephonee.multi_exit.atomic_files import write_bytes_atomically
from persephonee.server.errors import ServerError
from persephonee.server.results.optional_tables import OPTIONAL_SCHEMAS

Row = Mapping[str, Any]

STAGES = ("before", "after")

EXITS_SCHEMA = pa.schema(
    [
        pa.field("round", pa.int32(), nullable=False),
        pa.field("client_id", pa.string(), nullable=False),
        pa.field("exit", pa.int32(), nullable=False),  # 0 .. M, M being the last exit
        pa.field("stage", pa.string(), nullable=False),  # before: the global exits, after: the personal ones
        pa.field("accuracy", pa.float64()),  # [0, 1], of this exit alone on the user's test part
        pa.field("loss", pa.float64()),  # nats
        pa.field("exit_rate", pa.float64()),  # [0, 1], fraction of the test samples that leave here
        pa.field("kept", pa.bool_()),  # False once pruned
        pa.field("macs", pa.int64()),  # per sample, of a network with this exit alone: backbone and own head
        pa.field("num_test", pa.int64()),
    ]
)

CLIENTS_SCHEMA = pa.schema(
    [
        pa.field("round", pa.int32(), nullable=False),
        pa.field("client_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # "ok", or "too small: ...", "failed: ...", "refused: ..."
        pa.field("num_train", pa.int64()),
        pa.field("num_calibration", pa.int64()),
        pa.field("num_test", pa.int64()),
        pa.field("labels", pa.string()),  # "all", "none" or a fraction such as "0.25"
        pa.field("rule", pa.string()),  # which chose the policy, or "original: ..." where nothing could be promised
        pa.field("threshold", pa.float64()),  # thr_conf, [0, 1]
        pa.field("accuracy_original", pa.float64()),  # the last exit alone
        pa.field("accuracy_before", pa.float64()),  # the policy with the global exits
        pa.field("accuracy_after", pa.float64()),  # the policy with the personal exits
        pa.field("mean_macs", pa.float64()),  # per sample, under the policy after
        pa.field("original_macs", pa.int64()),
        pa.field("bytes_up", pa.int64()),
        pa.field("bytes_down", pa.int64()),
        pa.field("seconds_personalise", pa.float64()),
        pa.field("rolled_back_exits", pa.list_(pa.int32())),
        pa.field("mean_macs_before", pa.float64()),  # as mean_macs, under the policy with the global exits
    ]
)

ROUNDS_SCHEMA = pa.schema(
    [
        pa.field("round", pa.int32(), nullable=False),
        pa.field("replies", pa.int64(), nullable=False),  # clients whose report was accepted
        pa.field("failures", pa.int64(), nullable=False),  # no reply, an error, or a reply that was refused
        pa.field("users", pa.int64()),  # replies with status "ok"; the means below weigh them equally
        pa.field("accuracy_original", pa.float64()),
        pa.field("accuracy_before", pa.float64()),
        pa.field("accuracy_after", pa.float64()),
        pa.field("mean_macs", pa.float64()),
        pa.field("original_macs", pa.float64()),
        pa.field("bytes_up", pa.int64()),  # sums over all clients
        pa.field("bytes_down", pa.int64()),
        pa.field("seconds", pa.float64()),  # the round as a whole, on the wall
    ]
)

ADDED_LATER = {"clients": ("rule",)}
"""Columns that tables of earlier versions lack: they are read as null."""

SCHEMAS = {"exits": EXITS_SCHEMA, "clients": CLIENTS_SCHEMA, "rounds": ROUNDS_SCHEMA}
ALL_SCHEMAS = {**SCHEMAS, **OPTIONAL_SCHEMAS}


@dataclass(frozen=True, kw_only=True)
class RunTables:
    """The tables of a run, each with exactly the columns of its schema."""

    exits: pa.Table
    clients: pa.Table
    rounds: pa.Table
    sharing: pa.Table = field(default_factory=OPTIONAL_SCHEMAS["sharing"].empty_table)
    held_out: pa.Table = field(default_factory=OPTIONAL_SCHEMAS["held_out"].empty_table)

    @property
    def round_numbers(self) -> tuple[int, ...]:
        """The rounds that were completed, in order."""
        return tuple(self.rounds.column("round").to_pylist())

    def exits_of(self, round_number: int) -> list[dict[str, Any]]:
        """Return the rows of exits.parquet of one round."""
        return _rows_of(self.exits, round_number)

    def clients_of(self, round_number: int) -> list[dict[str, Any]]:
        """Return the rows of clients.parquet of one round."""
        return _rows_of(self.clients, round_number)


def table_path(run: Path, name: str) -> Path:
    """Return where the table `name` of a run lies, one of ALL_SCHEMAS."""
    return run / f"{name}.parquet"


def make_table(name: str, rows: Iterable[Row]) -> pa.Table:
    """Return `rows` as the table `name`, sorted, with the columns and types of its schema.

    Args:
        name: one of ALL_SCHEMAS.
        rows: one mapping per row; a column that may be null can be left out. NaN and infinities become null.

    Raises:
        ServerError: a row has an unknown column, lacks a required one, stands there twice, or holds a value of another
            type.
    """
    schema = ALL_SCHEMAS[name]
    checked = [_checked(name, row) for row in rows]
    try:
        checked.sort(key=_sort_key)
        _refuse_twins(name, checked)
        return pa.Table.from_pylist(checked, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise ServerError(f"A row for {name}.parquet holds a value of another type than its column: {error}.") from None


def write_table(run: Path, name: str, table: pa.Table) -> None:
    """Write the table `name` of a run atomically; equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=max(1, table.num_rows), write_page_checksum=True)
    write_bytes_atomically(table_path(run, name), buffer.getvalue())


def read_table(run: Path, name: str) -> pa.Table:
    """Read the table `name` of a run.

    Raises:
        ServerError: the file is missing, cut off, or lacks columns.
    """
    path = table_path(run, name)
    schema = ALL_SCHEMAS[name]
    if not path.is_file():
        raise ServerError(f"{run} has no {path.name}, which a run folder holds: has the run finished a round?")
    try:
        # tables of earlier versions have no checksums, and are read all the same
        # not read_table, which imports pandas for a file without pandas in it
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        for column in set(ADDED_LATER.get(name, ())) - set(table.column_names):
            table = table.append_column(schema.field(column), pa.nulls(len(table), schema.field(column).type))
        missing = [column for column in schema.names if column not in table.column_names]
    except (OSError, pa.ArrowException, ValueError, MemoryError) as error:
        reason = str(error).splitlines()[0].rstrip(". ")
        raise ServerError(f"{path} is not a whole parquet file (cut off or overwritten): {reason}.") from None
    if missing:
        raise ServerError(f"{path} lacks the column {missing[0]!r}: it was not written by this version of persephonee.")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise ServerError(f"{path} holds another type than its column has: {error}.") from None


def read_tables(run: Path) -> RunTables:
    """Read all tables of a run, leaving out the rows of rounds that were not completed.

    Raises:
        ServerError: a table is missing, cut off, or lacks columns.
    """
    names = [*SCHEMAS, *(name for name in OPTIONAL_SCHEMAS if table_path(run, name).exists())]
    tables = {name: read_table(run, name) for name in names}
    done = tables["rounds"].column("round")
    return RunTables(**{name: rows_of_rounds(table, done) for name, table in tables.items()})


def rows_of_rounds(table: pa.Table, done: pa.Array) -> pa.Table:
    """Return a table's rows of completed rounds; what was measured before round 1 counts with round 1."""
    numbers = table.column("round")
    return table.filter(pc.is_in(pc.max_element_wise(numbers, pa.scalar(1, pa.int32())), value_set=done))


def _checked(name: str, row: Row) -> dict[str, Any]:
    """Return the row with every column of the schema, plain Python values, and null in place of NaN."""
    schema = ALL_SCHEMAS[name]
    unknown = sorted(set(row) - set(schema.names))
    if unknown:
        raise ServerError(f"{name}.parquet has no column {unknown[0]!r}; it has {', '.join(schema.names)}.")
    plain = {column: _plain(row.get(column)) for column in schema.names}
    for column in schema:
        if plain[column.name] is None and not column.nullable:
            raise ServerError(f"A row for {name}.parquet lacks its {column.name!r}.")
    if "stage" in plain and plain["stage"] not in (*STAGES, *([None] if schema.field("stage").nullable else [])):
        raise ServerError(f"stage={plain['stage']!r} is neither 'before' nor 'after'.")
    return plain


def _refuse_twins(name: str, rows: list[dict[str, Any]]) -> None:
    for row, following in pairwise(rows):
        if _sort_key(row) == _sort_key(following):
            raise ServerError(f"{name}.parquet would get two rows for {_sort_key(row)}: each may have one.")


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _sort_key(row: Row) -> tuple[int, str, int, int]:
    stage = row.get("stage")
    return (row["round"], row.get("client_id", ""), row.get("exit") or 0, STAGES.index(stage) if stage else 0)


def _rows_of(table: pa.Table, round_number: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.filter(pc.equal(table.column("round"), round_number)).to_pylist()
    return rows
