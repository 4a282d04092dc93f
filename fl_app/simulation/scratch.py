"""The folder in which a simulation works while it runs: Flower's home, the app, and Ray's files."""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from persephonee.fl_app.simulation.superlink import stop_leftovers
from persephonee.multi_exit.atomic_files import write_json_atomically
from persephonee.multi_exit.checked_json import read_json_object

# Ray's sockets lie 68 letters below our folder, and the path of a socket has at most 107.
_LONGEST_FOLDER = 107 - 68
_PREFIX = "persephonee-"
MARK_NAME = "persephonee-scratch.json"
FORMAT = 1


@contextlib.contextmanager
def scratch_folder(within: Path | None = None) -> Iterator[Path]:
    """Yield a new folder for a SuperLink, and remove it afterwards.

    Args:
        within: where a Ray cluster's machines find it; None takes a temporary folder whose path is short enough for
            the sockets of a Ray of its own.
    """
    if within is not None:
        within.mkdir(parents=True, exist_ok=True)
    place = str(within or tempfile.gettempdir())
    if within is None and len(place) + len(_PREFIX) + 9 > _LONGEST_FOLDER:
        place = "/tmp"
    remove_abandoned(Path(place))
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place, ignore_cleanup_errors=True) as folder:
        own = psutil.Process()
        mark = {"format": FORMAT, "host": socket.gethostname(), "pid": own.pid, "since": own.create_time()}
        write_json_atomically(Path(folder) / MARK_NAME, mark)
        yield Path(folder)


def remove_abandoned(place: Path) -> None:
    """Stop and remove what killed simulations left in a folder: their mark is there, and their process is not."""
    for folder in place.glob(f"{_PREFIX}*"):
        mark = mark_of(folder)
        if mark and mark["host"] == socket.gethostname() and not is_alive(mark):
            remove_scratch(folder)


def remove_scratch(folder: Path) -> None:
    """Stop what works in a scratch folder, and remove it; the caller has seen its mark."""
    stop_leftovers(folder)
    shutil.rmtree(folder, ignore_errors=True)


def mark_of(folder: Path) -> dict[str, Any]:
    """Return the mark of a scratch folder of this user's; nothing where the folder is none, or is a link."""
    try:
        is_ours = folder.name.startswith(_PREFIX) and not folder.is_symlink() and folder.stat().st_uid == os.getuid()
        mark = read_json_object(folder / MARK_NAME) if is_ours else {}
    except (OSError, ValueError):
        return {}
    types = {"format": int, "host": str, "pid": int, "since": float}
    fits = all(type(mark.get(key)) is kind for key, kind in types.items())
    return mark if fits and mark["format"] == FORMAT else {}


def is_alive(owner: dict[str, Any]) -> bool:
    """Return whether the process with the `pid` and the `since` of a mark is there."""
    try:
        return bool(psutil.Process(owner["pid"]).create_time() == owner["since"])
    except (psutil.Error, ValueError, OverflowError):
        return False
