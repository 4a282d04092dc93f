"""What a person sees of a run: a progress bar on a terminal, log lines elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from persephonee.fl_app.server_side.run_status import FAILED, FINISHED, RunStatus
from persephonee.server.training.remaining_time import LONG_SECONDS, SECONDS_BEFORE_ESTIMATE, SPEED_SECONDS, about

log = logging.getLogger("persephonee.simulation")


@contextmanager
def shown_run() -> Iterator[Callable[[RunStatus], None]]:
    """Yield a function that shows how far a run is."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _LogLines()
        return
    # no markup: at the end it is a path, or what went wrong
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=SPEED_SECONDS)
    with progress as bar:
        task = bar.add_task("starting Flower", total=None)

        def show(status: RunStatus) -> None:
            total = status.asked or None
            bar.update(task, description=_words(status), completed=status.done, total=total)

        yield show


class _LogLines:
    """Logs what changed: each step, and each tenth of a round's clients; and how long the others take, if long."""

    def __init__(self) -> None:
        self._said = self._doing = ""
        self._begun = 0.0

    def __call__(self, status: RunStatus) -> None:
        if status.state == FINISHED:
            # by now it says where the report is, which the verb prints
            status = replace(status, doing="done")
        tenth = status.done * 10 // status.asked if status.asked else 0
        if _words(status) != self._doing:
            self._doing, self._begun = _words(status), time.monotonic()
        line = f"{_words(status)}, {tenth * 10} % of {status.asked} clients" if status.asked else _words(status)
        if line != self._said and status.state != FAILED:
            log.info(line + self._rest(status))
        self._said = line

    def _rest(self, status: RunStatus) -> str:
        """Return how long the clients of this round that have not answered take, and those of the rounds after it."""
        spent = time.monotonic() - self._begun
        if not status.done or status.done == status.asked or spent < SECONDS_BEFORE_ESTIMATE:
            return ""
        left = status.asked - status.done + (status.rounds - status.round) * status.asked
        seconds = spent / status.done * left
        return f", {about(seconds)} more" if spent + seconds > LONG_SECONDS else ""


def _words(status: RunStatus) -> str:
    return f"round {status.round}/{status.rounds}: {status.doing}" if status.round else status.doing
