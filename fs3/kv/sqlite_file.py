"""The SQLite file of a store: opening it safely, its format, and what SQLite's errors mean to fs3.

A table of ordered bytes and a log of what commits touched (sqlite_log.py), in WAL mode with `synchronous=FULL`: a
COMMIT returns once SQLite's log is on stable storage. The file says that it is ours (`application_id`) and in which
format (`user_version`). Processes of one machine share it; a lock file beside it knows whether somebody wants it alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from pathlib import Path

from fs3.errors import Corrupt, Fs3Error, Invalid, NoSpace, Unavailable
from fs3.kv import sqlite_log
from fs3.kv.network_core import network_file_system

APPLICATION_ID = 0x66733301
SCHEMA_VERSION = 2  # 1 had no log, and one process at a time

_BUSY_TIMEOUT_MS = 10_000
_WRITER_CACHE_KIB = 32 << 10
_READER_CACHE_KIB = 8 << 10
_CHECKPOINT_PAGES = 4_000


class FileLock:
    """Use of a store, shared or alone, held until `release` or the end of the process."""

    __slots__ = ("_fd",)

    def __init__(self, store: Path, *, exclusive: bool) -> None:
        """Raises: Invalid if it is held otherwise, or the folder cannot be used."""
        lock = store.with_name(store.name + ".lock")
        try:
            self._fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Invalid(f"metadata store {store}: {error.strerror}; choose a folder that can be written") from None
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise Invalid(
                f"metadata store {store} is in use by process {holder or 'unknown'}"
                f"{'' if exclusive else ', which wants it alone'}; stop it or choose another path"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._fd)


def check_shareable(path: Path) -> None:
    """Raises: Invalid on a file system that several machines see: they have no memory in common, as SQLite's log needs.

    A store that one process has alone may lie there.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    kind = network_file_system(str(path.resolve()), mounts)
    if kind is not None:
        raise Invalid(
            f"metadata store {path} is on a network file system ({kind}), where processes cannot share it; "
            "choose a folder on a local disk"
        )


def open_writer(path: Path) -> sqlite3.Connection:
    """The connection that commits; creates the file if it is not there, upgrades an older format.

    To be called by one process at a time. Raises:
        Invalid: the file is not an fs3 metadata store, or has a format that this version does not know.
        Corrupt, NoSpace, Unavailable: SQLite cannot open it.
    """
    new = not path.exists() or path.stat().st_size == 0
    connection = None
    try:
        connection = _connect(path, _WRITER_CACHE_KIB)
        if new:
            _create(connection, path)
        else:
            _check_format(connection, path)
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise Invalid(
                f"metadata store {path}: its file system offers no shared memory (SQLite stays in mode {mode}); "
                "choose a folder on a local disk"
            )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        connection.execute("PRAGMA busy_timeout=0")  # from here on `Turn` waits for other processes
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
        connection = _connect(path, _READER_CACHE_KIB)
        connection.execute("PRAGMA query_only=1")
    except sqlite3.Error as error:
        raise error_of(error, path) from None
    return connection


def _connect(path: Path, cache_kib: int) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=32)
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    connection.execute(f"PRAGMA cache_size=-{cache_kib}")
    return connection


def _create(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE kv (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID")
    connection.execute(sqlite_log.CREATE)
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
    if version == 1:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(sqlite_log.CREATE)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
    elif version != SCHEMA_VERSION:
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
