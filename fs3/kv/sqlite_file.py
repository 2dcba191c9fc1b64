"""The SQLite file of a store: opening it safely, its format, and what SQLite's errors mean to fs3.

One table of ordered bytes, in WAL mode with `synchronous=FULL`: a COMMIT returns once the log is on stable storage.
The file says that it is ours (`application_id`) and in which format (`user_version`). A lock file beside it keeps a
second process out, since conflicts are decided in the memory of the one that has it open.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from pathlib import Path

from fs3.errors import Corrupt, Fs3Error, Invalid, NoSpace, Unavailable

APPLICATION_ID = 0x66733301
SCHEMA_VERSION = 1

_BUSY_TIMEOUT_MS = 10_000
_CACHE_KIB = 32 << 10
_CHECKPOINT_PAGES = 4_000


class FileLock:
    """Exclusive use of a store, held until `release` or the end of the process."""

    __slots__ = ("_fd",)

    def __init__(self, store: Path) -> None:
        """Raises: Invalid if another holder exists or the folder cannot be used."""
        lock = store.with_name(store.name + ".lock")
        try:
            self._fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Invalid(f"metadata store {store}: {error.strerror}; choose a folder that can be written") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise Invalid(
                f"metadata store {store} is in use by process {holder or 'unknown'}; stop it or choose another path"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._fd)


def open_writer(path: Path) -> sqlite3.Connection:
    """The connection that commits; creates the file if it is not there.

    Raises:
        Invalid: the file is not an fs3 metadata store, or has a format that this version does not know.
        Corrupt, NoSpace, Unavailable: SQLite cannot open it.
    """
    new = not path.exists() or path.stat().st_size == 0
    connection = None
    try:
        connection = _connect(path)
        if new:
            _create(connection, path)
        else:
            _check_format(connection, path)
        connection.execute("PRAGMA journal_mode=WAL").fetchone()
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise error_of(error, path) from None
    except Fs3Error:
        assert connection is not None
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that only reads. Raises: as `open_writer`."""
    try:
        connection = _connect(path)
        connection.execute("PRAGMA query_only=1")
    except sqlite3.Error as error:
        raise error_of(error, path) from None
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=32)
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    return connection


def _create(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE kv (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID")
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    connection.execute("COMMIT")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    (found,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if found != APPLICATION_ID:
        raise Invalid(f"{path} is not an fs3 metadata store; choose another path")
    if version != SCHEMA_VERSION:
        raise Invalid(
            f"metadata store {path} has format {version}, this fs3 reads format {SCHEMA_VERSION}; "
            "use the fs3 version that wrote it"
        )


def error_of(error: sqlite3.Error, path: Path) -> Fs3Error:
    """The fs3 error for a failure of SQLite on `path`, before anything was committed."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return Invalid(f"{path} is not an fs3 metadata store; choose another path")
    if code == sqlite3.SQLITE_FULL:
        return NoSpace(f"metadata store {path}: {os.strerror(errno.ENOSPC)}; free space on its disk")
    if code == sqlite3.SQLITE_CORRUPT:
        return Corrupt(f"metadata store {path} is damaged ({error}); restore it from a backup")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return Invalid(f"metadata store {path} cannot be written ({error}); check the path and its permissions")
    return Unavailable(f"metadata store {path}: {error}")
