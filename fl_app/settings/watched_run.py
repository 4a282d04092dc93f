"""How `persephonee simulate` watches a run that it started: its processes know the file that it keeps of their log.

Flower collects what they print and hands it out once the run has ended, which takes seconds. Our own lines go straight
to the file, as they come. The name of the file is no setting of a run: it stands in the environment of its processes,
and where it is missing, as in `flwr run` or on the machines of a Ray cluster, lines are printed.
"""

import logging
import os
from pathlib import Path

LOG_VARIABLE = "PERSEPHONEE_RUN_LOG"
LINE = "%(asctime)s %(name)s: %(message)s"


def is_watched() -> bool:
    """Return whether a watcher started this run, and will draw its report."""
    return bool(os.environ.get(LOG_VARIABLE))


def log_handler() -> logging.Handler | None:
    """Return what writes to the end of the watched file; None where nobody watches, or the file cannot be written."""
    path = os.environ.get(LOG_VARIABLE)
    if not path:
        return None
    try:
        handler = logging.FileHandler(Path(path), encoding="utf-8")
    except OSError:
        return None
    handler.setFormatter(logging.Formatter(LINE))
    return handler
