"""Errors of the server's side; each message says what was expected, what was got and what to do."""


class ServerError(ValueError):
    """Base of all errors that a user of the server's side can cause: pretraining, run folders, reports."""
