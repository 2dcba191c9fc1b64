"""In the I/O process: the applications that have files open for writing, and these files.

An application is a key that it made up, and that all its connections name; with the last of them its write sessions
end. So several of its rings write the same files, one batch of a file at a time.

A batch that makes a file longer tells meta before it ends. Then whatever was acknowledged is in the file whoever dies,
and a file that is opened again, after an error or by the next I/O process, goes on where it ended.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence

from fs3.client.file import FileClient, FileUpdater
from fs3.client.plan_core import I64
from fs3.clock import deadline_after, lease_now_s
from fs3.errors import Busy, Exists, Fs3Error, InUse, Invalid, MaybeApplied, NotFound, QuotaExceeded, Unavailable

_log = logging.getLogger(__name__)
MAX_WRITABLE = 1_024  # files of one application
END_S = 10.0


class Held:
    """A file that an application has open for writing. Thread-safe."""

    def __init__(self, files: FileClient, path: str, inode_id: int = 0) -> None:
        """It is opened when it is first needed. With `inode_id` it must still be that file."""
        self.path = path
        self.inode_id = inode_id
        self._files = files
        self._turn = threading.Lock()
        self._updater: FileUpdater | None = None
        self._spoiled = False
        self._closed = False

    def open(self, deadline_s: float) -> None:
        """Begin the write session. Raises: as `FileClient.open_update`."""
        with self._alone(deadline_s):
            self._opened(deadline_s)

    def write(
        self, offsets: I64, lengths: I64, data: memoryview, places: I64, deadline_s: float
    ) -> list[Fs3Error | None]:
        """As `FileUpdater.write_batch`, and the file's length is told. Raises: Fs3Error: nothing was written."""
        with self._alone(deadline_s):
            updater = self._opened(deadline_s)
            with updater.until(deadline_s):
                errors = updater.write_batch(offsets, lengths, data, places)
                failure = next((error for error in errors if error is not None), None) or _told(updater)
            self._spoiled = failure is not None
            ends, has = (offsets + lengths).tolist(), updater.inode.length
            return [error or (failure if end > has else None) for error, end in zip(errors, ends, strict=True)]

    def sync(self, deadline_s: float) -> None:
        """Tell meta the exact length and times. Raises: Fs3Error."""
        with self._alone(deadline_s):
            updater = self._updater
            if updater is not None and not self._spoiled:
                self._spoiled = True
                with updater.until(deadline_s):
                    updater.sync()
                self._spoiled = False

    def close(self, deadline_s: float) -> None:
        """`sync`, and end the session, be it without. Raises: Fs3Error: it was not synced."""
        with self._alone(deadline_s):
            self._closed = True
            updater, self._updater = self._updater, None
            if updater is None:
                return
            try:
                if not self._spoiled:
                    with updater.until(deadline_s):
                        updater.close()
            finally:
                updater.abandon()  # which does nothing to one that is closed

    @contextlib.contextmanager
    def _alone(self, deadline_s: float) -> Iterator[None]:
        if not self._turn.acquire(timeout=max(deadline_s - lease_now_s(), 0.0)):
            raise Unavailable(f"{self.path}: another batch was written into it until this one's time was over")
        try:
            yield
        finally:
            self._turn.release()

    def _begun(self, deadline_s: float) -> FileUpdater:
        try:
            return self._files.open_update(self.path, deadline_s=deadline_s)
        except InUse as error:
            if not self.inode_id:
                raise
            raise InUse(
                f"{self.path}: nothing was written, since the I/O process that had the file open has died less than a"
                " minute ago, or somebody else writes it by now; try again"
            ) from error

    def _opened(self, deadline_s: float) -> FileUpdater:
        if self._closed:
            raise Invalid(f"{self.path}: was closed; open it for writing again")
        if self._updater is not None and self._spoiled:
            self._updater.abandon()
            self._updater = None
        if self._updater is None:
            updater = self._begun(deadline_s)
            if self.inode_id not in (0, updater.inode.inode_id):
                updater.abandon()
                raise NotFound(f"{self.path}: was removed or replaced since it was opened for writing; open it again")
            self._updater, self.inode_id, self._spoiled = updater, updater.inode.inode_id, False
        return self._updater


class Application:
    """One that writes, and its files by path. Thread-safe."""

    def __init__(self, files: FileClient) -> None:
        self.connections = 0
        self._files = files
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
                    self._create(path)
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
            self._close(found, deadline_s)
            return
        for held in found:
            held.sync(deadline_s)

    def end(self) -> None:
        """Close everything."""
        with contextlib.suppress(Fs3Error):
            self._close(list(self._held.values()), deadline_after(END_S))

    def _add(self, path: str, inode_id: int = 0) -> Held:
        if len(self._held) >= MAX_WRITABLE:
            raise Busy(f"{MAX_WRITABLE} files are open for writing; close some")
        held = self._held[path] = Held(self._files, path, inode_id)
        return held

    def _create(self, path: str) -> None:
        with contextlib.suppress(Exists):
            self._files.create_batch([path], [b""], replace=False)

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

    def __init__(self, files: Callable[[], FileClient]) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._applications: dict[str, Application] = {}

    def attach(self, key: str) -> Application:
        """The application with this key, for one more connection."""
        with self._lock:
            application = self._applications.get(key)
            if application is None:
                application = self._applications[key] = Application(self._files())
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


def _told(updater: FileUpdater) -> Fs3Error | None:
    """Have meta know of a length that it does not; why it does not, or may not."""
    if updater.length <= updater.inode.length:
        return None
    try:
        updater.sync()
    except QuotaExceeded as error:
        return error
    except Fs3Error as error:
        return MaybeApplied(f"the bytes are written, and whether the file has become so long is unknown: {error}")
    return None
