"""The log of a SQLite store: what recent commits touched, so that processes find conflicts with each other's commits.

A row is written in the SQLite transaction of the commits that it describes, which are all that a process commits at
once. Versions count the bytes of the log, as a log sequence number does: a window of versions is a window of bytes, and
a version is never given out twice. `since` is the version before, so that a gap is noticed. Rows that fall out of the
window are dropped; a transaction that began before them conflicts.
"""

from __future__ import annotations

import sqlite3

from fs3.errors import Corrupt
from fs3.kv.occ_core import Changes, History

CREATE = "CREATE TABLE log (version INTEGER PRIMARY KEY, since INTEGER NOT NULL, changes BLOB NOT NULL)"
WINDOW_BYTES = 8 << 20

_NEWEST = "SELECT max(version) FROM log"
_SINCE = "SELECT version, since, changes FROM log WHERE version > ? ORDER BY version"
_APPEND = "INSERT INTO log VALUES (?, ?, ?)"
_DROP = "DELETE FROM log WHERE version <= ?"
_DROPS_PER_WINDOW = 64


def newest(connection: sqlite3.Connection) -> int:
    """The version of what `connection` sees; in a transaction this also fixes its snapshot."""
    return connection.execute(_NEWEST).fetchall()[0][0] or 0


def after(connection: sqlite3.Connection, version: int) -> tuple[int, list[tuple[int, Changes]]]:
    """From which version on the log tells what was committed after `version`, and that: (version, changes) each.

    The first is `version` itself unless rows were dropped that came after it. Raises: Corrupt.
    """
    begin = version
    found: list[tuple[int, Changes]] = []
    for row_version, since, changes in connection.execute(_SINCE, (version,)).fetchall():
        if found and since != found[-1][0]:
            raise Corrupt(f"the store's log has a gap before version {row_version}; restore it from a backup")
        if not found:
            begin = max(since, version)
        found.append((row_version, Changes.unpack(changes)))
    return begin, found


def catch_up(connection: sqlite3.Connection, history: History, oldest: int) -> None:
    """Teach `history` what it has not seen, as far as transactions that began at `oldest` or later need it."""
    if newest(connection) == history.version:
        return
    if history.version < oldest:
        history.restart(oldest)
    begin, rows = after(connection, history.version)
    if begin > history.version:
        history.restart(begin)
    for version, changes in rows:
        history.learn(version, changes)


def append(connection: sqlite3.Connection, base: int, changes: Changes, transactions: int) -> int:
    """Write a row for `transactions` commits on top of `base`, the newest version; their version."""
    record = changes.pack()
    version = base + max(len(record), transactions)
    connection.execute(_APPEND, (version, base, record))
    step = WINDOW_BYTES // _DROPS_PER_WINDOW
    if version // step != base // step:
        connection.execute(_DROP, (version - WINDOW_BYTES,))
    return version
