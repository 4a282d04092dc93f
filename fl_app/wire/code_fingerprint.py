"""A fingerprint of the code that this process runs, so that server and clients notice when theirs differ."""

import functools
import hashlib
from pathlib import Path

PACKAGES = ("multi_exit", "data_partitions", "clients", "server", "fl_app")
"""The folders that travel in the Flower app; the folder says where the code runs."""


def _front_door() -> Path:
    folders = Path(__file__).resolve().parents[2]
    return folders if (folders / "commands").is_dir() else folders / "persephonee"


@functools.cache
def code_fingerprint(front_door: Path | None = None) -> str:
    """Return the SHA-256 over name and content of every Python file of our packages, wherever they are installed."""
    digest = hashlib.sha256()
    for name, path in source_files(front_door=front_door).items():
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def source_files(suffixes: tuple[str, ...] = (".py",), front_door: Path | None = None) -> dict[str, Path]:
    """Return the files of our packages, sorted by their path below `persephonee`.

    Args:
        suffixes: of the files that count, with the dot.
        front_door: the folder `persephonee`; None takes the one that this process runs. Our other folders lie in it
            where a wheel is installed, and beside it in a checkout.
    """
    front = _front_door() if front_door is None else front_door
    root = front if (front / "clients").is_dir() else front.parent
    inside = [(root, path) for package in PACKAGES for path in (root / package).rglob("*")]
    inside += [(front, path) for path in (*front.glob("*"), *(front / "commands").rglob("*"))]
    found = {path.relative_to(base).as_posix(): path for base, path in inside if path.suffix in suffixes}
    return dict(sorted(found.items()))
