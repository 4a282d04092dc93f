"""The run folder: everything that one run leaves behind, written atomically and never over another run.

config.json        everything that determines the run
exits.parquet, clients.parquet, rounds.parquet, in some runs sharing.parquet and held_out.parquet
                   the measurements, see run_folder_tables.py
pretraining.json   how the model was trained before, epoch by epoch
summary.json, report.html, figures/
                   drawn from the tables, see report_page.py
model/, clients/   weights: the global model, the simulated clients' own stores
checkpoint/        what a run that is resumed goes on from, besides its tables
"""

import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from persephonee.multi_exit.atomic_files import names_in, remove_leftovers
from persephonee.multi_exit.checked_json import read_with_digest, write_with_digest
from persephonee.server.errors import ServerError
from persephonee.server.results.pretraining_curves import CURVES_NAME
from persephonee.server.results.results import aggregate_round
from persephonee.server.results.table_schemas import (
    ALL_SCHEMAS,
    Row,
    RunTables,
    make_table,
    read_table,
    read_tables,
    rows_of_rounds,
    table_path,
    write_table,
)

CONFIG_NAME = "config.json"
REPORT_NAME = "report.html"
# What a run owns in its folder; overwriting removes these and nothing else.
OWN_FILES = (
    CONFIG_NAME,
    "summary.json",
    REPORT_NAME,
    "status.json",
    "log.txt",
    "privacy.json",
    CURVES_NAME,
    *(f"{name}.parquet" for name in ALL_SCHEMAS),
)
OWN_FOLDERS = ("figures", "model", "clients", "checkpoint")
# A run may be continued on another machine; all else has to stay as it was, or the caller says what need not.
MAY_DIFFER = frozenset({"versions", "machine"})
CHANGED = "changed"
"""The key of config.json that lists the settings which differ from their defaults."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run folder that exists; made by `create` or `open`."""

    path: Path
    """The folder, absolute."""
    config: Mapping[str, Any]
    """What determines the run, as in config.json."""

    @classmethod
    def create(
        cls,
        path: Path,
        config: Mapping[str, Any],
        overwrite: bool = False,
        resume: bool = False,
        may_differ: Collection[str] = MAY_DIFFER,
    ) -> "RunFolder":
        """Make the folder of a new run, or take up one that was interrupted.

        Args:
            path: the folder; it may exist when it is empty, or with `overwrite` or `resume`.
            config: everything that determines the run; JSON types only.
            overwrite: remove the results of the run that lies there. Files that no run writes are kept.
            resume: go on with the run that lies there; rows of a round that was not completed are dropped.
            may_differ: the keys of `config` that a resumed run may change.

        Raises:
            ServerError: the folder exists and neither flag is set, both are set, the folder holds no run, or the
                resumed run has other settings.
        """
        path = path.absolute()
        if overwrite and resume:
            raise ServerError("--overwrite and --resume exclude each other: the one removes what the other continues.")
        if resume:
            _refuse_other_settings(cls.open(path), config, may_differ)
            _drop_unfinished_round(path)
        else:
            _make_room(path, overwrite)
        path.mkdir(parents=True, exist_ok=True)
        write_with_digest(path / CONFIG_NAME, config)
        return cls(path=path, config=dict(config))

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of a run that exists.

        Raises:
            ServerError: the folder is missing, holds no run, or its config.json is not whole.
        """
        path = path.absolute()
        if not path.is_dir():
            raise ServerError(f"{path} is no folder: expected the folder of a run, such as runs/NAME.")
        file = path / CONFIG_NAME
        if not file.is_file():
            raise ServerError(f"{path} is no run folder: it has no {CONFIG_NAME}.")
        try:
            config = read_with_digest(file)
        except (OSError, ValueError) as error:
            raise ServerError(f"{file} is not whole JSON (cut off or overwritten): {error}.") from None
        _refuse_links(path)
        return cls(path=path, config=config)

    @property
    def completed_rounds(self) -> tuple[int, ...]:
        """The numbers of the rounds that were completed, in order."""
        if not table_path(self.path, "rounds").exists():
            return ()
        return tuple(read_table(self.path, "rounds").column("round").to_pylist())

    def tables(self) -> RunTables:
        """Return the tables.

        Raises:
            ServerError: a table is missing, cut off, or lacks columns.
        """
        return read_tables(self.path)

    def append_round(
        self,
        exits: Iterable[Row],
        clients: Iterable[Row],
        round_row: Row,
        sharing: Iterable[Row] = (),
        held_out: Iterable[Row] = (),
    ) -> None:
        """Add one completed round to the tables.

        Args:
            exits: rows of exits.parquet, in any order.
            clients: rows of clients.parquet, one per client that was asked; those that failed need only
                `round, client_id, status`.
            round_row: `round, replies, failures` and, where it is known, `seconds`. The other columns of
                rounds.parquet follow from `clients` unless they are given.
            sharing: rows of sharing.parquet; without any, there is no such table.
            held_out: rows of held_out.parquet, likewise; with the first round also those of round 0.

        Raises:
            ServerError: the round is there already, or a row does not fit its table.
        """
        number = round_row.get("round")
        done = self.completed_rounds
        if done and (number is None or number <= done[-1]):
            raise ServerError(f"Round {number} cannot follow round {done[-1]}, which stands in {self.path} already.")
        clients = [dict(row) for row in clients]
        optional = {"sharing": list(sharing), "held_out": list(held_out)}
        added = {
            **{name: make_table(name, rows) for name, rows in optional.items() if rows},
            "exits": make_table("exits", exits),
            "clients": make_table("clients", clients),
            "rounds": make_table("rounds", [{**aggregate_round(clients), **round_row}]),
        }
        for name in added:
            strangers = set(added[name].column("round").to_pylist()) - {number}
            strangers -= {0} if name == "held_out" and not done else set()
            if strangers:
                raise ServerError(f"A row for {name}.parquet is of round {min(strangers)}, expected round {number}.")
        _drop_unfinished_round(self.path)
        # rounds.parquet last: until it names the round, readers leave the other tables' new rows out
        for name, table in added.items():
            write_table(self.path, name, _with_earlier_rounds(self.path, name, table))


def check_room(path: Path, overwrite: bool = False) -> None:
    """Refuse a folder for a new run unless it is missing, empty, or holds a run that may be overwritten.

    Raises:
        ServerError: what lies there instead, and what to do.
    """
    if path.exists() and not path.is_dir():
        raise ServerError(f"{path} is a file: a run needs a folder of its own.")
    if not names_in(path):
        return
    if not (path / CONFIG_NAME).is_file():
        raise ServerError(f"{path} exists and holds something other than a run: name another folder.")
    if not overwrite:
        raise ServerError(
            f"{path} holds a run already: name another folder, or say --resume to continue it or --overwrite to "
            "replace it."
        )
    if not isinstance(RunFolder.open(path).config.get("versions"), dict):
        raise ServerError(f"{path / CONFIG_NAME} is not that of a run, so nothing is removed: name another folder.")


def _refuse_links(path: Path) -> None:
    """Refuse a run folder whose own files or folders are links: what is written there would land elsewhere."""
    for name in (*OWN_FILES, *OWN_FOLDERS):
        inside = (path / name).rglob("*") if name in OWN_FOLDERS and not (path / name).is_symlink() else ()
        for place in (path / name, *inside):
            if place.is_symlink():
                raise ServerError(f"{place} is a link, and a run's own files lie in its folder: put a copy there.")


def _with_earlier_rounds(path: Path, name: str, added: pa.Table) -> pa.Table:
    if not table_path(path, name).exists():
        return added
    return pa.concat_tables([read_table(path, name), added]).combine_chunks()


def _drop_unfinished_round(path: Path) -> None:
    """Remove rows of rounds that rounds.parquet does not name: the run was interrupted while writing them."""
    rounds_file = table_path(path, "rounds")
    done = read_table(path, "rounds").column("round") if rounds_file.exists() else pa.array([], pa.int32())
    for name in ALL_SCHEMAS:
        if table_path(path, name).exists():
            table = read_table(path, name)
            finished = rows_of_rounds(table, done)
            if finished.num_rows != table.num_rows:
                write_table(path, name, finished)


def _make_room(path: Path, overwrite: bool) -> None:
    check_room(path, overwrite)
    remove_leftovers(path)
    for name in OWN_FOLDERS:
        if (path / name).is_dir():
            shutil.rmtree(path / name)
    for name in OWN_FILES:
        (path / name).unlink(missing_ok=True)


def _refuse_other_settings(found: RunFolder, config: Mapping[str, Any], may_differ: Collection[str]) -> None:
    # through JSON, so that a tuple and the list that it was written as are equal
    wanted = json.loads(json.dumps(dict(config)))
    for key in sorted(set(found.config) | set(wanted)):
        if key not in may_differ and found.config.get(key) != wanted.get(key):
            raise ServerError(
                f"{found.path} was run with {key}={found.config.get(key)!r}, now {key}={wanted.get(key)!r}: a resumed "
                "run needs the settings that it began with."
            )
