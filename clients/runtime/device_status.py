"""`persephonee device status`: what a device does, and what it has learned and saved so far, from its store alone."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persephonee.clients.errors import StoreError
from persephonee.clients.runtime.device_database import NAME, DeviceDatabase
from persephonee.clients.runtime.device_state import SystemClock
from persephonee.clients.runtime.event_log import Event, EventLog
from persephonee.clients.runtime.exploration import Validation
from persephonee.clients.runtime.persistent_state import Counters, PersistentState
from persephonee.clients.runtime.phases import OrchestratorState


@dataclass(frozen=True, kw_only=True)
class DeviceStatus:
    """What a device's store says about the device.

    Attributes:
        user: whose device it is.
        is_running: whether a process is running the device now.
        state: the orchestrator's state.
        exits: indices of the early exits in use.
        validation: how the policy in force did on its calibration samples; None before the first round.
        counters: totals since the store was made.
        samples: number of stored samples, by part: training or calibration.
        labelled: how many of the stored samples have a label.
        events: the most recent events, the oldest first.
    """

    user: str
    is_running: bool
    state: OrchestratorState
    exits: tuple[int, ...]
    validation: Validation | None
    counters: Counters
    samples: dict[str, int]
    labelled: int
    events: tuple[Event, ...]

    @property
    def macs_saved(self) -> float:
        """Fraction of the original network's cost that was saved, exploration included; 0 before the first frame."""
        return 1 - self.counters.macs / self.counters.original_macs if self.counters.original_macs else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the status for `--json`."""
        counters, validation = self.counters, self.validation
        frames = max(counters.frames, 1)
        return {
            "user": self.user,
            "running": self.is_running,
            "phase": self.state.phase.value,
            "round": self.state.round,
            "threshold": self.state.threshold,
            "validated_threshold": validation.threshold if validation else None,
            "exits": list(self.exits),
            "asked": self.state.asked or None,
            "frames": counters.frames,
            "skipped": counters.skipped,
            "explored": counters.explored,
            "samples_by_exit": counters.exits,
            "mean_macs": counters.macs / frames,
            "original_macs": counters.original_macs / frames,
            "macs_saved": self.macs_saved,
            "mean_latency_ms": counters.latency_ms / frames,
            "rounds": counters.rounds,
            "refused_rounds": counters.refused_rounds,
            "round_seconds": counters.round_seconds,
            "stored": self.samples,
            "labelled": self.labelled,
            "events": [event.as_json() for event in self.events],
        }


def read_status(folder: Path, num_events: int = 10) -> DeviceStatus:
    """Return the status of the device whose store lies in `folder`; a running device is not disturbed.

    Raises:
        StoreError: there is no device's store, or it is damaged.
    """
    if not (folder / NAME).is_file():
        raise StoreError(f"{folder} holds no device's store: give the --store of a `device run`.")
    database = DeviceDatabase(folder, exclusive=False)
    try:
        with database.transaction(writes=False):
            found = _read(database, folder, num_events)
        # what cannot be shown is none of what a device writes
        found.as_json()
        return found
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, StoreError):
            raise
        raise database.damaged(error) from None
    finally:
        database.close()


def _read(database: DeviceDatabase, folder: Path, num_events: int) -> DeviceStatus:
    memory = PersistentState(database)
    state = memory.state()
    if state is None:
        raise StoreError(f"the device in {folder} was never started to the end: start it with `device run`.")
    by_part = database.execute(
        "SELECT part, count(*), count(label) FROM samples GROUP BY part ORDER BY part"
    ).fetchall()
    return DeviceStatus(
        user=database.fact("user"),
        is_running=_is_locked(folder),
        state=state,
        exits=tuple(database.fact("exits in use")),
        validation=memory.validation(),
        counters=memory.counters(0),
        samples={part: count for part, count, _ in by_part},
        labelled=sum(labelled for _, _, labelled in by_part),
        events=tuple(EventLog(database, SystemClock()).last(num_events)),
    )


def _is_locked(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
