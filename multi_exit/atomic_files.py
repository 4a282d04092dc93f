"""Atomic writing: a reader sees the old file or folder or the new one, also after a crash or a full disk."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LEFTOVER_SUFFIX = ".persephonee.tmp"
"""The mark of a file that this module was writing; one that a kill left behind is ours to remove."""


def write_bytes_atomically(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace `path` by `data`: temporary file in the same folder, fsync, rename, fsync of the folder.

    Args:
        path: of the file; its folder is made where it is missing.
        data: all of it.
        private: whether only this user may read the file (0600); otherwise it is as readable as the user's others.

    Raises:
        OSError: the folder cannot be written; `path` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=LEFTOVER_SUFFIX)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not private:
            # mkstemp makes files private
            temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, atomically."""
    write_bytes_atomically(path, text.encode())


def write_json_atomically(path: Path, value: Any, *, private: bool = False) -> None:
    """Replace `path` by `value` as indented JSON; NaN is refused, since JSON has none."""
    write_bytes_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode(), private=private)


@contextmanager
def new_folder_atomically(folder: Path, *, private: bool = False) -> Iterator[Path]:
    """Make a folder that appears under its name with all that is written into it, or not at all.

    Args:
        folder: is missing or empty; the folder around it is made where it is missing.
        private: whether only this user may enter it (0700); otherwise it is as open as the user's others.

    Yields:
        The folder to write into, which lies beside the other and which only this user can enter.

    Raises:
        OSError: it cannot be written, or `folder` holds something; nothing is left behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield made
        made.chmod(0o700 if private else 0o777 & ~_umask())
        made.replace(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def make_private_folder(folder: Path) -> None:
    """Make a folder that only this user can enter (0700); one that is there keeps its mode."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def names_in(folder: Path) -> list[str]:
    """Return the sorted names of what is in a folder, without what a kill left of our own writing."""
    return sorted(path.name for path in folder.iterdir() if not _is_leftover(path)) if folder.is_dir() else []


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill left of our own writing directly in a folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _is_leftover(path):
            path.unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(LEFTOVER_SUFFIX) and not path.is_dir()
