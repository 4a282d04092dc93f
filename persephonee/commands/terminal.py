"""What every program of this project does at its start, and how it ends: the command line, a study, a benchmark."""

import io
import logging
import sys
from collections.abc import Callable
from typing import Any

import typer

from persephonee.commands.errors import OneSentenceCommand


class _StderrHandler(logging.Handler):
    """Writes to what stderr is when the line comes, not to what it was when the program began."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(self.format(record), err=True)


_LOG_LINES = _StderrHandler()
_LOG_LINES.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))


def show_log_lines() -> None:
    """Print this project's own log lines; libraries keep their defaults."""
    logger = logging.getLogger("persephonee")
    logger.setLevel(logging.INFO)
    if _LOG_LINES not in logger.handlers:
        logger.addHandler(_LOG_LINES)


def replace_unknown_letters() -> None:
    """Print a replacement for what the terminal, or a file beside a locale such as LANG=C, has no letter for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def run_program(main: Callable[..., Any]) -> None:
    """Run the function of a module that is a program, its parameters being options: `python -m persephonee.MODULE`.

    As with a verb of the command line, a user's mistake ends in one sentence and status 2.
    """
    replace_unknown_letters()
    show_log_lines()
    program_of(main)()


def program_of(main: Callable[..., Any]) -> typer.Typer:
    """Return the program that a function with options is."""
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command(cls=OneSentenceCommand)(main)
    return program
