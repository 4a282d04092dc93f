"""Errors of the server's side; each message says what was expected, what was got and what to do."""


class ServerError(ValueError):
    """Base of all errors that a user of the server's side can cause: pretraining, run folders, reports."""


class PretrainingError(ServerError):
    """The data, the settings or the checkpoint of a pretraining do not fit each other."""


class TrainingDivergedError(ServerError):
    """The training loss is infinite or not a number; the last checkpoint still stands."""
