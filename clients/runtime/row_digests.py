"""Digests of the rows of a device's database, which triggers keep and whoever opens the file compares.

SQLite notices damage to the structure of its file, and not always: a label, a threshold or a pixel may change unseen.
"""

import functools
import hashlib
import sqlite3

_ROWS = {
    "samples": ("seq", "key", "part", "label", "fingerprint", "image", "elapsed", "wall"),
    "events": ("seq", "wall", "kind", "reason", "details"),
    "explored": ("frame", "record"),
    "answered": ("key",),
    "facts": ("name", "value"),
}
"""The columns of each table, the one that names a row first."""

_NUMBERED = ("samples", "events")
"""Tables whose numbers only grow, also when the newest row is gone."""


def _schema() -> str:
    lines = [
        "CREATE TABLE IF NOT EXISTS digests (kind TEXT, name, digest BLOB, PRIMARY KEY (kind, name)) WITHOUT ROWID;"
    ]
    for table, columns in _ROWS.items():
        add = f"INSERT OR REPLACE INTO digests VALUES ('{table}', NEW.{columns[0]}, {_digest_of('NEW', table)});"
        drop = f"DELETE FROM digests WHERE kind = '{table}' AND name = OLD.{columns[0]};"
        for event, statement in (("INSERT", add), ("UPDATE", add), ("DELETE", drop)):
            lines.append(
                f"CREATE TRIGGER IF NOT EXISTS {table}_{event.lower()} AFTER {event} ON {table} BEGIN {statement} END;"
            )
    return "\n".join(lines)


def _digest_of(row: str, table: str) -> str:
    return f"row_digest('{table}', {', '.join(f'{row}.{column}' for column in _ROWS[table])})"


SCHEMA = _schema()

FILL = " ".join(
    f"INSERT OR REPLACE INTO digests SELECT '{table}', {name}, {_digest_of(table, table)} FROM {table};"
    for table, (name, *_) in _ROWS.items()
)


def _row_digest(*values: int | float | str | bytes | None) -> bytes:
    digest = hashlib.sha256()
    for value in values:
        content = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
        digest.update(f"{type(value).__name__} {len(content)} ".encode())
        digest.update(content)
    return digest.digest()[:16]


def prepare(connection: sqlite3.Connection) -> None:
    """Give a connection the function that the triggers and `complaint` call."""
    connection.create_function("row_digest", -1, _row_digest, deterministic=True)


def complaint(connection: sqlite3.Connection, schema: str) -> str:
    """Return what is wrong with an open database, as half a sentence; nothing where all is as it was written.

    Args:
        connection: prepared, in a transaction.
        schema: the statements that make the other tables.
    """
    structure = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if structure != "ok":
        return " ".join(str(structure).split())
    if _statements(connection) != _expected_statements(schema):
        return "its tables are not those that a device makes"
    rows = 0
    for table, (name, *_) in _ROWS.items():
        wrong = connection.execute(
            f"SELECT count(*) FROM {table} AS r LEFT JOIN digests AS d ON d.kind = '{table}' AND d.name = r.{name} "
            f"WHERE d.digest IS NOT {_digest_of('r', table)}"
        ).fetchone()[0]
        if wrong:
            return f"{wrong} rows of {table} are not what was written"
        rows += connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    if connection.execute("SELECT count(*) FROM digests").fetchone()[0] != rows:
        return "a row is missing"
    for table in _NUMBERED:
        newest = connection.execute(f"SELECT max(seq) FROM {table}").fetchone()[0]
        counted = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        if newest is not None and counted != (newest,):
            return f"{table} are counted wrongly"
    return ""


def _statements(connection: sqlite3.Connection) -> set[tuple[str, ...]]:
    return set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


@functools.cache
def _expected_statements(schema: str) -> set[tuple[str, ...]]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(f"{schema} {SCHEMA}")
        return _statements(connection)
    finally:
        connection.close()
