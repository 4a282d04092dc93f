"""What a client tells the server of an error: its kind, in words that hold nothing of the user's data or disk.

An error's own text may name a path, a label or a column, and goes to the client's own log. Only the classes in _OPEN
speak for themselves: their texts are made of what the server sent, of the client's id, and of counts that are reported
anyway.
"""

import logging
import os
from collections.abc import Mapping

from persephonee.clients.errors import (
    ClientError,
    ClientSettingsError,
    LabelsRequiredError,
    NonFiniteLossError,
    StoreError,
    StoreFullError,
)
from persephonee.data_partitions.errors import (
    BrokenDataError,
    DataError,
    DataSettingsError,
    LabelRangeError,
    MissingDataError,
    UserTooSmallError,
)
from persephonee.fl_app.errors import AppError, ModelFitError, RunConfigError, WireError
from persephonee.fl_app.wire import records as wire
from persephonee.multi_exit.errors import (
    BackboneError,
    BackboneNotAllowedError,
    ModelFileError,
    MultiExitError,
    NoGPUError,
)

log = logging.getLogger("persephonee.client")

_OPEN = (UserTooSmallError, LabelsRequiredError, NonFiniteLossError, BackboneNotAllowedError, WireError)

_KINDS: Mapping[type[Exception], str] = {
    DataSettingsError: "a setting of the client's data is out of its range",
    MissingDataError: "a path, a column or a download of the client's data is missing",
    BrokenDataError: "a file or an image of the client's data cannot be read",
    LabelRangeError: "a label of the client's data is out of range",
    DataError: "the client's data cannot be used",
    ClientSettingsError: "a setting of the run, such as the memory budget, or a schedule that needs PyTorch, does not "
    "do on this client",
    StoreFullError: "the disk under the client's store is full",
    StoreError: "the client's store is damaged, in use, or of another model or user",
    ClientError: "the client cannot personalise",
    BackboneError: "the model's backbone cannot be built on this client",
    ModelFileError: "the client's copy of the model is damaged, or of another network",
    NoGPUError: "the client is told to compute on a GPU and has none",
    MultiExitError: "the model cannot be used on this client",
    ModelFitError: "the model was made for other data than the client's, by its classes or the size of its images",
    RunConfigError: "a setting of the run, or of the client's node configuration, is unknown or wrong",
    AppError: "the client cannot take part",
}


def refusal_of(error: Exception) -> str:
    """Return the status with which a client answers where an error kept it from doing what was asked."""
    if isinstance(error, UserTooSmallError):
        kind = wire.TOO_SMALL
    else:
        kind = wire.REFUSED if isinstance(error, ClientError | MultiExitError | AppError) else wire.FAILED
    return f"{kind}: {words_for(error)}"


def words_for(error: Exception) -> str:
    """Return what the server may know of an error, and write the rest to the client's own log."""
    # the class itself: what a subclass adds to the text may be anything
    if type(error) in _OPEN:
        return str(error)
    kind = next((_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS), None)
    if kind is not None:
        log.error("The client says to the server: %s. In full: %s", kind, error)
        return f"{kind}; the client's own log says more"
    log.error("The client cannot do what the server asks.", exc_info=error)
    if isinstance(error, OSError):
        # the system's words, not the error's own: libraries put paths there
        cause = os.strerror(error.errno) if isinstance(error.errno, int) else type(error).__name__
        return f"the device cannot read or write its files ({cause})"
    return f"{type(error).__name__}, see the client's own log"
