"""Where a benchmark leaves what it measured, for the page: OUT/NAME/about.json and a parquet file for each table.

about.json is written last: a part of the benchmarks is done once it is there.
"""

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from persephonee.multi_exit.atomic_files import check_writable, names_in, write_bytes_atomically, write_json_atomically
from persephonee.server.errors import ServerError

ABOUT = "about.json"
About = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Result:
    """What one benchmark measured.

    Attributes:
        about: the machine, the threads, the settings, and what the numbers were made on.
        tables: by name.
    """

    about: About
    tables: Mapping[str, pd.DataFrame]


def check_place(out: Path, name: str) -> None:
    """Refuse before the measurement a place where its result cannot be written, or would replace something else.

    Raises:
        ServerError: the folder holds what no benchmark wrote.
        OSError: it cannot be written.
    """
    folder = out / name
    if names_in(folder) and not (folder / ABOUT).exists():
        raise ServerError(f"{folder} holds something other than a benchmark's result: name another --out.")
    check_writable(folder)


def write_result(out: Path, name: str, about: About, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write a benchmark's result, in place of an earlier one."""
    folder = out / name
    check_place(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    for table, rows in tables.items():
        data = io.BytesIO()
        rows.to_parquet(data, index=False)
        write_bytes_atomically(folder / f"{table}.parquet", data.getvalue())
    write_json_atomically(folder / ABOUT, about)


def read_result(out: Path, name: str) -> Result | None:
    """Return a benchmark's result, or None where it is not done."""
    folder = out / name
    if not (folder / ABOUT).exists():
        return None
    tables = {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}
    return Result(json.loads((folder / ABOUT).read_text()), tables)
