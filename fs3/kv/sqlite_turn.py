"""Whose turn it is to write, among the processes that share a SQLite store.

SQLite lets one connection write at a time, and lets whoever finds the lock free take it: a process that commits without
a pause would starve the others. So a process first takes the turn, a lock on a file beside the store, waits for the
write lock with it, and passes the turn on when it has the write lock; the one that just wrote has to queue behind. Both
locks end with their process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from fs3.clock import lease_now_s
from fs3.errors import Unavailable

_WAIT_S = 10.0
_LOOK_S = 0.000_3


class Turn:
    """This process's place in the queue of writers; for one thread."""

    __slots__ = ("_fd", "_pause", "_store")

    def __init__(self, store: Path) -> None:
        self._store = store
        self._fd = os.open(store.with_name(store.name + ".turn"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._pause = threading.Event()

    def __enter__(self) -> None:
        """Raises: Unavailable if others hold it for too long."""
        self._until(self._take)

    def __exit__(self, *exc: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin a SQLite transaction that holds the write lock. Raises: Unavailable; sqlite3.Error."""

        def begun() -> bool:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                return False
            return True

        with self:
            self._until(begun)

    def close(self) -> None:
        os.close(self._fd)

    def _take(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _until(self, done: Callable[[], bool]) -> None:
        if done():
            return
        deadline_s = lease_now_s() + _WAIT_S
        while not done():
            if lease_now_s() >= deadline_s:
                raise Unavailable(
                    f"metadata store {self._store}: another process has kept its write lock for {_WAIT_S:g} s; "
                    "see whether one that uses it is stopped"
                )
            self._pause.wait(_LOOK_S)
