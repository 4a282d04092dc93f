"""A device's database: one SQLite file for samples, events, exploration and state, so that one commit holds them all.

Written ahead with a flush to the disk at each commit (WAL, synchronous=FULL): what was committed outlives kill -9 and a
loss of power. Tables:

    samples    seq, key, part, label, fingerprint, image, elapsed, wall      see sample_store.py
    events     seq, wall, kind, reason, details (JSON)                       see event_log.py
    explored   frame, record (JSON)                                          see device_memory.py
    answered   key                                                           frames that need no answer any more
    facts      name, value (JSON)                                            whose store it is, state, counters
    digests    kind, name, digest                                            of each row of the others

SQLite notices damage to its structure alone, and not always: so triggers keep a digest of each row, and whoever opens
the file compares all of them, once.
"""

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from persephonee.clients.errors import StoreError, StoreFullError
from persephonee.clients.runtime import row_digests
from persephonee.multi_exit.atomic_files import make_private_folder

VERSION = 2
"""1 had no digests; they are made of what is there when such a file is opened for writing."""
NAME = "device.sqlite"
_LOCK_TRIES = 3

_SCHEMA = """
CREATE TABLE IF NOT EXISTS samples (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, part TEXT NOT NULL, label INTEGER,
    fingerprint BLOB NOT NULL, image BLOB NOT NULL, elapsed REAL NOT NULL, wall REAL NOT NULL);
CREATE INDEX IF NOT EXISTS samples_by_part ON samples (part, seq);
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, wall REAL NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL,
    details TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS explored (frame INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answered (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class DeviceDatabase:
    """An open database.

    Args:
        folder: the store's folder, made where it is missing; None keeps everything in memory, for simulated devices.
        exclusive: whether this process is to be the only one that writes; False for a process that only reads.

    Raises:
        StoreError: the file is damaged, of another version, or another process writes to it.
    """

    def __init__(self, folder: Path | None, *, exclusive: bool = True) -> None:
        self.folder = folder
        self.rollbacks = 0
        """Counts transactions that were undone, so that what was cached of them can be forgotten."""
        self._depth = 0
        self._lock = -1
        if folder is not None:
            make_private_folder(folder)
            if exclusive:
                self._lock = _lock(folder)
        try:
            self._connection = _connect(folder)
        except sqlite3.Error as error:
            self._unlock()
            raise self._explain(error) from None
        except StoreError:
            self._unlock()
            raise

    def close(self) -> None:
        """Close the file and let other processes write."""
        self._connection.close()
        self._unlock()

    @contextmanager
    def transaction(self, *, writes: bool = True) -> Iterator[None]:
        """Commit all that is written inside, or nothing of it; an inner transaction is part of the outer one.

        Args:
            writes: False only reads, all of it as of one moment, and waits for no other process that writes.

        Raises:
            StoreFullError: the disk is full; nothing that was committed is lost.
            StoreError: the file cannot be written.
        """
        if self._depth:
            yield
            return
        self._depth = 1
        try:
            self._connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            yield
            self._connection.execute("COMMIT")
        except BaseException as error:
            self.rollbacks += 1
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._explain(error) from None
            raise
        finally:
            self._depth = 0

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run one statement; writing belongs inside a transaction, whose errors are told apart there."""
        if self._depth:
            return self._connection.execute(statement, values)
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise self._explain(error) from None

    def fact(self, name: str) -> Any:
        """Return a stored fact, None where there is none."""
        row = self.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        try:
            return None if row is None else json.loads(row[0])
        except (ValueError, TypeError, RecursionError) as error:
            raise self.damaged(f"{name}: {error}") from None

    def set_fact(self, name: str, value: Any) -> None:
        """Store a fact as JSON."""
        with self.transaction():
            self.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value, allow_nan=False)))

    def require(self, facts: dict[str, Any]) -> None:
        """Note whose store this is, or refuse another's.

        Raises:
            StoreError: the store was made with another value of a fact.
        """
        with self.transaction():
            for name, value in facts.items():
                known = self.fact(name)
                if known is None:
                    self.set_fact(name, value)
                elif known != value:
                    raise StoreError(
                        f"the store in {self.folder} was made with {name} {_short(known)}, not {_short(value)}: "
                        "use what it was made with, or another folder."
                    )

    def damaged(self, what: object) -> StoreError:
        """Return the error that says that what was read is none of what a device writes."""
        return StoreError(f"the store in {self.folder} is damaged ({what}): move it away to start anew.")

    def _explain(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL or (code or 0) & 0xFF == sqlite3.SQLITE_IOERR:
            return StoreFullError(
                f"the disk under {self.folder} is full or fails ({error}): make room; nothing that was stored is lost."
            )
        if (code or 0) & 0xFF == sqlite3.SQLITE_BUSY:
            return StoreError(f"the store in {self.folder} is in use by another process: wait for it or stop it.")
        return StoreError(f"the store in {self.folder} cannot be used ({error}): move it away to start anew.")

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _lock(folder: Path) -> int:
    """Take the folder's lock, which the system releases when the process ends, however it ends."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            # `device status` holds the lock for an instant to see whether somebody else does
            time.sleep(0.1)
    os.close(descriptor)
    raise StoreError(f"another process runs a device with the store in {folder}: stop it, or use another folder.")


def _connect(folder: Path | None) -> sqlite3.Connection:
    path = ":memory:" if folder is None else str(folder / NAME)
    if folder is not None:
        if (folder / NAME).exists() and not (folder / NAME).is_file():
            raise StoreError(f"{folder / NAME} is no regular file: remove it, or use another folder.")
        # SQLite gives its other files the mode of this one; it holds private images
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        Path(path).chmod(0o600)
    connection = sqlite3.connect(path, timeout=10.0, isolation_level=None)
    try:
        row_digests.prepare(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, 1, VERSION):
            raise StoreError(
                f"the store in {folder} has version {version}, expected {VERSION}: use the release that made it, "
                "or another folder."
            )
        if version != VERSION:
            connection.executescript(
                f"BEGIN; {_SCHEMA} {row_digests.SCHEMA} {row_digests.FILL} PRAGMA user_version = {VERSION}; COMMIT;"
            )
        if folder is not None:
            _check_rows(connection, folder)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_rows(connection: sqlite3.Connection, folder: Path) -> None:
    """Compare what a file holds with its digests, all of it as of one moment."""
    connection.execute("BEGIN")
    try:
        complaint = row_digests.complaint(connection, _SCHEMA)
    finally:
        connection.execute("ROLLBACK")
    if complaint:
        raise StoreError(f"the store in {folder} is damaged ({complaint}): move it away to start anew.")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
