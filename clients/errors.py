"""Errors of the on-device pipeline; each message says what was expected, what was got and what to do.

ClientError
├── ClientSettingsError    a setting is out of its range
├── LabelsRequiredError    supervised training, but the user has no labels
├── NonFiniteLossError     the training diverged; the round is refused
├── StoreError             the device's store is damaged, in use, or belongs to another model
│   └── StoreFullError     the disk is full: nothing that was stored is lost, and nothing new is stored
├── ImageError             an image that the network does not take
├── NonFiniteOutputError   the network answers with something that is no number
└── ExportError            an exported network that cannot be written or read
"""


class ClientError(ValueError):
    """Base of all errors that the user of a device can cause or meet."""


class ClientSettingsError(ClientError):
    """A setting is out of its range."""


class LabelsRequiredError(ClientError):
    """Learning from labels was asked for, and there are none."""


class NonFiniteLossError(ClientError):
    """The training loss became NaN or infinite; the exits in force stay as they are."""


class StoreError(ClientError):
    """A device's store cannot be read, is in use, or belongs to another model."""


class ImageError(ClientError):
    """An image has another shape or type than the network takes."""


class NonFiniteOutputError(ClientError):
    """The network's logits are NaN or infinite: there is no answer."""


class ExportError(ClientError):
    """An exported network cannot be written or read."""


class StoreFullError(StoreError):
    """The disk is full; what was stored before is untouched, the new sample is not stored."""
