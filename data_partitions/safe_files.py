"""Reading files that somebody else wrote: no pipes, no devices, no more bytes than allowed, no hidden leftovers."""

import logging
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from persephonee.data_partitions.errors import BrokenDataError

logger = logging.getLogger(__name__)

_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
)
"""What macOS, network disks, Windows and Linux leave beside people's files; thumbnails and deleted copies among it."""


def read_file(path: Path, most_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: it cannot be opened or read.
        ValueError: it is a pipe, a device or a folder, or larger than `most_bytes`; the text is half a sentence.
    """
    # a pipe without a writer would block an ordinary open for ever
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it has more than {most_bytes} bytes")
    return content


def refuse_odd_file(path: Path) -> None:
    """Refuse what a library is about to open if that is a pipe or a device, on which it would wait for ever.

    Raises:
        BrokenDataError: the path is there and is neither a regular file nor a folder.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise BrokenDataError(f"{path} is no regular file but a pipe, a socket or a device; give a file or a folder.")


def is_hidden(path: Path, folder: Path) -> bool:
    """Return whether a path is, or lies below, something in `folder` that a system put there and no person sees."""
    return any(part.startswith(".") or part.casefold() in _SYSTEM_FOLDERS for part in path.relative_to(folder).parts)


def visible_files(folder: Path, found: Iterable[Path], is_wanted: Callable[[Path], bool]) -> list[Path]:
    """Return the wanted files among what was found below a folder, sorted; say how many hidden ones are left out.

    Hidden are names that begin with a dot (`._a.png` of macOS, `.ipynb_checkpoints`) and the folders that systems keep.

    Raises:
        BrokenDataError: a wanted file is a pipe or a device.
    """
    wanted = sorted(path for path in found if is_wanted(path) and not path.is_dir())
    visible = [path for path in wanted if not is_hidden(path, folder)]
    for path in visible:
        refuse_odd_file(path)
    if len(visible) < len(wanted):
        first = next(path for path in wanted if is_hidden(path, folder))
        logger.warning("%s: %d hidden files are left out, such as %s", folder, len(wanted) - len(visible), first.name)
    return visible


def path_below(folder: Path, named: str) -> Path:
    """Return the file that a table's cell names: a path from the table's folder, or a file URL, but nowhere else.

    Raises:
        ValueError: it is another kind of URL, or leads out of the folder; the text is half a sentence.
    """
    scheme = urlsplit(named).scheme if "://" in named else ""
    if scheme and scheme != "file":
        raise ValueError(f"its path is a {scheme} address; download the images and give paths below {folder}")
    if "\0" in named:
        raise ValueError("its path holds a null character")
    path = Path(unquote(urlsplit(named).path)) if scheme else Path(named)
    if not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"its path leads out of {folder}; move the images below the folder of the table")
    return folder / path
