"""A fingerprint of the code that this process runs, so that server and clients notice when theirs differ."""

import functools
import hashlib
from pathlib import Path

PACKAGES = ("multi_exit", "data_partitions", "clients", "server", "fl_app")
"""The folders that travel in the Flower app; the folder says where the code runs."""


def source_root() -> Path:
    """Return the folder that holds our packages, as this process imports them."""
    return Path(__file__).resolve().parent.parent


@functools.cache
def code_fingerprint() -> str:
    """Return the SHA-256 over path and content of every Python file of our packages."""
    digest = hashlib.sha256()
    for path in source_files():
        content = path.read_bytes()
        digest.update(f"{path.relative_to(source_root()).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def source_files() -> tuple[Path, ...]:
    """Return the Python files of our packages, sorted by their path below `source_root()`."""
    root = source_root()
    found = (path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return tuple(sorted(found, key=lambda path: path.relative_to(root).as_posix()))
