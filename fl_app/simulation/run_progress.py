"""What a person sees of a run: a progress bar on a terminal, log lines elsewhere."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from persephonee.fl_app.server_side.run_status import FAILED, FINISHED, RunStatus

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
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting Flower", total=None)

        def show(status: RunStatus) -> None:
            total = status.asked or None
            bar.update(task, description=_words(status), completed=status.done, total=total)

        yield show


class _LogLines:
    """Logs what changed: each step, and each tenth of a round's clients."""

    def __init__(self) -> None:
        self._said = ""

    def __call__(self, status: RunStatus) -> None:
        if status.state == FINISHED:
            # by now it says where the report is, which the verb prints
            status = replace(status, doing="done")
        tenth = status.done * 10 // status.asked if status.asked else 0
        line = f"{_words(status)}, {tenth * 10} % of {status.asked} clients" if status.asked else _words(status)
        if line != self._said and status.state != FAILED:
            log.info(line)
        self._said = line


def _words(status: RunStatus) -> str:
    return f"round {status.round}/{status.rounds}: {status.doing}" if status.round else status.doing
