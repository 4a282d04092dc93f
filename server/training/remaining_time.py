"""How far long work is and how long it still takes: a bar on a terminal, lines in the log elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BEFORE_ESTIMATE = 5.0
"""Of work, after which its duration is told from what is done."""
SECONDS_BETWEEN_LINES = 10.0
"""Of a log, at least."""
SPEED_SECONDS = 600.0
"""How far back a bar looks for how fast the work is: a single user may take minutes."""
LONG_SECONDS = 20.0
"""Work that takes less than this needs no word."""

Told = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


class RemainingTime:
    """How far work is, in words, and how long the rest takes.

    Args:
        what: is counted: users, images.
    """

    def __init__(self, what: str = "users") -> None:
        self._what = what
        self._begun = time.monotonic()
        self._said: float | None = None

    def words(self, done: int, of: int) -> str:
        """Return what there is to say once `done` of `of` are done."""
        return f"{done} of {of} {self._what}, {about(self._seconds_left(done, of))} more"

    def log_sometimes(self, logger: logging.Logger, done: int, of: int, doing: str = "") -> None:
        """Log these words for work that takes long: once that is known, and then every ten seconds at most."""
        now = time.monotonic()
        if self._said is None:
            spent = now - self._begun
            is_time = spent > SECONDS_BEFORE_ESTIMATE and spent + self._seconds_left(done, of) > LONG_SECONDS
        else:
            is_time = now - self._said > SECONDS_BETWEEN_LINES
        if is_time:
            self._said = now
            logger.info("%s%s", f"{doing}: " if doing else "", self.words(done, of))

    def _seconds_left(self, done: int, of: int) -> float:
        return (time.monotonic() - self._begun) / max(done, 1) * (of - done)


@contextmanager
def shown_work(logger: logging.Logger, doing: str, what: str = "users") -> Iterator[Told]:
    """Yield a function that shows how far work is and how long the rest takes.

    Args:
        logger: gets the lines where stderr is no terminal.
        doing: what is done, in words.
        what: is counted.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        remaining = RemainingTime(what)
        yield lambda done, of: remaining.log_sometimes(logger, done, of, doing)
        return
    # no markup: a title may have brackets
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    rest = TimeRemainingColumn()
    with Progress(*columns, rest, console=console, transient=True, speed_estimate_period=SPEED_SECONDS) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def about(seconds: float) -> str:
    """Return a duration in words."""
    return f"about {seconds / 60:.0f} min" if seconds > 90 else f"about {seconds:.0f} s"
