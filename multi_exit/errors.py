"""Errors of the multi-exit network; each message says what was expected, what was got and what to do.

MultiExitError
├── BackboneError         unknown, or without places for exits
│   └── BackboneNotAllowedError    its source may not be used on this machine
├── PlacementError        more exits than places
├── SettingsError         a setting out of its range
└── ModelFileError        a model folder that is missing, cut off, or of another network
"""


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


class ModelFileError(MultiExitError):
    """A model folder cannot be read, or holds another network than expected."""
