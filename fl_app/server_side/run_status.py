"""How far a run is, in the run folder's `status.json`: written by the ServerApp, read by whoever waits for it."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from persephonee.multi_exit.atomic_files import write_json_atomically

STATUS_NAME = "status.json"
RUNNING, FINISHED, FAILED = "running", "finished", "failed"
SECONDS_BETWEEN_WRITES = 0.5


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A snapshot of a run."""

    state: str = RUNNING
    """running, finished or failed."""
    doing: str = "starting"
    """What the server does just now, for a person to read; the reason when the run failed."""
    round: int = 0
    """The round that runs, from 1; 0 before the first."""
    rounds: int = 0
    done: int = 0
    """Clients that have answered in this round."""
    asked: int = 0
    """Clients that were asked in this round."""
    failures: int = 0
    """Of all rounds, once the run has finished: clients without a valid reply."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state != RUNNING


class StatusFile:
    """Writes status.json, at most twice a second.

    Args:
        run: the run folder, which exists.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / STATUS_NAME
        self._written = -SECONDS_BETWEEN_WRITES
        self.last = RunStatus()
        """What was said last, also where it was left out of the file."""

    def write(self, status: RunStatus, often: bool = False) -> None:
        """Replace the file; with `often` the call is one of many, and some are left out."""
        self.last = status
        now = time.monotonic()
        if often and now - self._written < SECONDS_BETWEEN_WRITES:
            return
        write_json_atomically(self._path, asdict(status))
        self._written = now


def read_status(run: Path) -> RunStatus | None:
    """Return how far the run is, None before it began."""
    try:
        return RunStatus(**json.loads((run / STATUS_NAME).read_text()))
    except FileNotFoundError:
        return None
