"""How long work on many users still takes, in words."""

import logging
import time

SECONDS_BETWEEN_LINES = 10.0
"""Of a log, at least."""


class RemainingTime:
    """How far the users are, in words, and how long the others take."""

    def __init__(self) -> None:
        self._begun = self._said = time.monotonic()

    def words(self, done: int, of: int) -> str:
        """Return what there is to say once `done` of `of` users have personalised."""
        left = (time.monotonic() - self._begun) / done * (of - done)
        return f"{done} of {of} users, about {_duration(left)} more"

    def log_sometimes(self, logger: logging.Logger, done: int, of: int) -> None:
        """Log these words, at most once in `SECONDS_BETWEEN_LINES`."""
        if time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            logger.info(self.words(done, of))


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
