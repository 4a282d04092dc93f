"""Errors of the multi-exit network; each message says what was expected, what was got and what to do.

MultiExitError
├── BackboneError         unknown, or without places for exits
│   └── BackboneNotAllowedError    its source may not be used on this machine
├── PlacementError        more exits than places
├── SettingsError         a setting out of its range
│   └── NoGPUError        a GPU is asked for where there is none
└── ModelFileError        a model folder that is missing, cut off, or of another network
"""

import linecache
import sysconfig
import traceback
from pathlib import Path

_HERE = Path(__file__).resolve().parent


class MultiExitError(ValueError):
    """Base of all errors that a user of the multi-exit network can cause."""


class BackboneError(MultiExitError):
    """The backbone is unknown, may not be built here, or has no places to attach exits."""


class BackboneNotAllowedError(BackboneError):
    """The backbone's source is not among those that this machine's owner allows."""


class PlacementError(MultiExitError):
    """The exits asked for do not fit the backbone."""


class SettingsError(MultiExitError):
    """A setting is out of its range."""


class NoGPUError(SettingsError):
    """A GPU is asked for, and PyTorch finds none."""


class ModelFileError(MultiExitError):
    """A model folder cannot be read, or holds another network than expected."""


def reason_of(error: BaseException) -> str:
    """Return an error of the user's own code in a line: what it says, and at which line of that code.

    Args:
        error: as it was caught; its traceback says where.
    """
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    text = f"{type(error).__name__}: {text}" if isinstance(error, KeyError | AttributeError | AssertionError) else text
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(Path(frame.filename))]
    if isinstance(error, SyntaxError) or not own:
        return text[:200]
    line = linecache.getline(own[-1].filename, own[-1].lineno or 0).strip()
    return f"{text[:200]}, at {Path(own[-1].filename).name} line {own[-1].lineno}, `{line[:80]}`"


def _is_users(path: Path) -> bool:
    is_installed = "site-packages" in path.parts or path.is_relative_to(sysconfig.get_path("stdlib"))
    return path.is_file() and not is_installed and path.resolve().parent != _HERE
