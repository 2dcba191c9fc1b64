"""In the I/O process: the applications that have files open for writing, and these files.

An application is a key that it made up, and that all its connections name; with the last of them its write sessions
end. So several of its rings write the same files.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from typing import Protocol

from fs3.client.file import FileClient
from fs3.client.meta import Publish
from fs3.clock import deadline_after, lease_now_s
from fs3.errors import Busy, Exists, Fs3Error, InUse, Unavailable
from fs3.usrbio.held import Held, Later

_log = logging.getLogger(__name__)
MAX_WRITABLE = 1_024  # files of one application
END_S = 10.0


class Settling(Protocol):
    """A ring."""

    def settle(self, deadline_s: float) -> None:
        """Wait until files have all that was submitted by now to be written into them, be it in a queue of theirs."""


class Application:
    """One that writes, and its files by path. Thread-safe."""

    def __init__(self, files: FileClient, later: Later) -> None:
        self.connections = 0
        self.rings: set[Settling] = set()  # that may write
        self._files = files
        self._later = later
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}

    def open(self, paths: Sequence[str], deadline_s: float, *, create: bool) -> list[int]:
        """Their inodes; all or none is opened, though those that were missing are there. Raises: Fs3Error."""
        opened: list[Held] = []
        try:
            for path in paths:
                with self._lock:
                    if path in self._held:
                        raise InUse(f"{path}: is open for writing in this application already; close it first")
                    held = self._add(path)
                opened.append(held)
                if create:
                    self._create(path, deadline_s)
                held.open(deadline_s)
        except BaseException:
            self._close(opened, deadline_after(END_S))
            raise
        return [held.inode_id for held in opened]

    def named(self, path: str, inode_id: int) -> Held:
        """The file, be it that another I/O process had it open. Raises: Busy; InUse: it is another file."""
        with self._lock:
            held = self._held.get(path) or self._add(path, inode_id)
            if held.inode_id != inode_id:
                raise InUse(f"{path}: another file is open for writing there; close it first")
            return held

    def sync(self, paths: Sequence[str], deadline_s: float, *, close: bool) -> None:
        """Of paths that are not open nothing is to be told. Raises: Fs3Error: of the first that was not synced."""
        with self._lock:
            found = [self._held[path] for path in paths if path in self._held]
        if close:
            for ring in list(self.rings):
                ring.settle(deadline_s)
            self._close(found, deadline_s)
            return
        for held in found:
            held.sync(deadline_s)

    def end_overdue(self) -> None:
        """See `Held.end_overdue`, of every file."""
        with self._lock:
            found = list(self._held.values())
        for held in found:
            held.end_overdue()

    def end(self) -> None:
        """Close everything."""
        with contextlib.suppress(Fs3Error):
            self._close(list(self._held.values()), deadline_after(END_S))

    def _add(self, path: str, inode_id: int = 0) -> Held:
        if len(self._held) >= MAX_WRITABLE:
            raise Busy(f"{MAX_WRITABLE} files are open for writing; close some")
        held = self._held[path] = Held(self._files, self._later, path, inode_id)
        return held

    def _create(self, path: str, deadline_s: float) -> None:
        left_s = deadline_s - lease_now_s()
        if left_s <= 0:
            raise Unavailable(f"{path}: meta does not answer in time; open fewer files at once")
        with contextlib.suppress(Exists):
            self._files.meta.publish_files([Publish(0, path, 0, False)], together=False, timeout_s=left_s)

    def _close(self, some: Sequence[Held], deadline_s: float) -> None:
        """Raises: the first error, once all are closed."""
        failure: Fs3Error | None = None
        for held in some:
            try:
                held.close(deadline_s)
            except Fs3Error as error:
                _log.warning("%s was not closed properly: %s", held.path, error)
                failure = failure or error
            with self._lock:
                if self._held.get(held.path) is held:
                    del self._held[held.path]
        if failure is not None:
            raise failure


class Writers:
    """The applications that write, each for as long as one of its connections lives."""

    def __init__(self, files: FileClient, later: Later) -> None:
        self._files = files
        self._later = later
        self._lock = threading.Lock()
        self._applications: dict[str, Application] = {}

    def attach(self, key: str) -> Application:
        """The application with this key, for one more connection."""
        with self._lock:
            application = self._applications.get(key)
            if application is None:
                application = self._applications[key] = Application(self._files, self._later)
            application.connections += 1
            return application

    def detach(self, key: str) -> None:
        """A connection has ended."""
        with self._lock:
            application = self._applications[key]
            application.connections -= 1
            if application.connections:
                return
            del self._applications[key]
        application.end()

    def end_overdue(self) -> None:
        """See `Held.end_overdue`, of every file of every application."""
        with self._lock:
            found = list(self._applications.values())
        for application in found:
            application.end_overdue()
