"""Atomic writing: a reader sees the old file or folder or the new one, also after a crash or a full disk."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    with _named(path):
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


def check_writable(folder: Path, needed_bytes: int = 0) -> None:
    """Find out before long work whether its result can be written; nothing of the trial stays.

    Args:
        folder: where files are to be written; it may be missing.
        needed_bytes: how much will be written there at most.

    Raises:
        OSError: it is a file, it cannot be made or written, or the disk is too full.
    """
    place = folder.expanduser().absolute()
    made = [one for one in (place, *place.parents) if not one.exists()]
    try:
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a folder was expected, and this is a file", str(folder))
        place.mkdir(parents=True, exist_ok=True)
        with _named(folder):
            descriptor, name = tempfile.mkstemp(dir=place, suffix=LEFTOVER_SUFFIX)
            os.close(descriptor)
            Path(name).unlink()
        free = shutil.disk_usage(place).free
    finally:
        for one in made:
            with suppress(OSError):
                one.rmdir()
    if free < needed_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{needed_bytes / 1e6:,.1f} MB are needed, and {free / 1e6:,.1f} MB are free: make room, or name another "
            "disk",
            str(folder),
        )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let errors name what the user knows, and not the file that was tried beside it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


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
