"""Flower's programs, as this Python's environment has them."""

import shutil
import sys
from pathlib import Path

from persephonee.fl_app.errors import AppError


def program(name: str) -> str:
    """Return the path of a program that pip put beside this Python, or else of the one on the PATH.

    Raises:
        AppError: it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise AppError(f'{name} is not installed; install it with pip install "persephonee[flower]".')
    return found
