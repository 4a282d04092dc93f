"""The event log: every decision of the device with its reason, in the order in which it was taken."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from persephonee.clients.runtime.device_database import DeviceDatabase
from persephonee.clients.runtime.device_state import Clock

MAX_EVENTS = 20_000
"""The oldest go first; events are rare, since a decision is noted when it changes."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One decision or incident.

    Attributes:
        seq: number of the event, from 1.
        wall: seconds since 1970, by the device's clock.
        kind: such as "threshold raised" or "round done".
        reason: a sentence.
        details: figures behind it.
    """

    seq: int
    wall: float
    kind: str
    reason: str
    details: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the event for a JSON line; `time` is in UTC."""
        return {"type": "event", "seq": self.seq, "time": self.time, "kind": self.kind, "reason": self.reason} | (
            {"details": self.details} if self.details else {}
        )

    @property
    def time(self) -> str:
        """The time in UTC, to the second."""
        return datetime.fromtimestamp(self.wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class EventLog:
    """The events of one device, in its database.

    Args:
        database: the device's database, open for writing.
        clock: the wall clock.
        listener: called with each event as it is noted; None calls nobody.
    """

    def __init__(self, database: DeviceDatabase, clock: Clock, listener: Callable[[Event], None] | None = None) -> None:
        self._database = database
        self._clock = clock
        self.listener = listener

    def note(self, kind: str, reason: str, **details: Any) -> Event:
        """Append an event; inside a transaction it is kept with the rest of it or not at all."""
        wall = self._clock.wall()
        with self._database.transaction():
            seq = self._database.execute(
                "INSERT INTO events (wall, kind, reason, details) VALUES (?, ?, ?, ?)",
                (wall, kind, reason, json.dumps(details, allow_nan=False)),
            ).lastrowid
            assert seq is not None
            if seq % 100 == 0:
                self._database.execute("DELETE FROM events WHERE seq <= ?", (seq - MAX_EVENTS,))
        event = Event(seq=seq, wall=wall, kind=kind, reason=reason, details=details)
        if self.listener is not None:
            self.listener(event)
        return event

    def last(self, count: int) -> list[Event]:
        """Return the last events, the oldest first."""
        rows = self._database.execute(
            "SELECT seq, wall, kind, reason, details FROM events ORDER BY seq DESC LIMIT ?", (count,)
        ).fetchall()
        return [
            Event(seq=seq, wall=wall, kind=kind, reason=reason, details=json.loads(details))
            for seq, wall, kind, reason, details in reversed(rows)
        ]
