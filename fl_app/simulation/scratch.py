"""The folder in which a simulation works while it runs: Flower's home, the app, and Ray's files."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Ray's sockets lie 68 letters below our folder, and the path of a socket has at most 107.
_LONGEST_FOLDER = 107 - 68
_PREFIX = "persephonee-"


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
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
