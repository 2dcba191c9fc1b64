"""USRBIO as an application sees it: where memory, rings and open files come from."""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from fs3.client.file import OpenFile
from fs3.errors import Fs3Error, Invalid
from fs3.url import parse_url
from fs3.usrbio import control
from fs3.usrbio.ior import Ior
from fs3.usrbio.iov import Files, Iov
from fs3.usrbio.link import Opener
from fs3.usrbio.schedule_core import Priority
from fs3.usrbio.start import Wanted, default_workers
from fs3.usrbio.writable import WritableFiles

IDLE_S = 60.0
_PATHS_AT_ONCE = 4_096
_WRITABLE_AT_ONCE = 64


class UsrBio:
    """The I/O process of one cluster, as this process uses it. Thread-safe; each ring is for one thread at a time.

    As a context manager it closes at the end of the block, with every ring that it has made.
    """

    def __init__(self, wanted: Wanted) -> None:
        """See `open`."""
        self._wanted = wanted
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._rings: list[Ior] = []
        self._closed = False
        self._opener = Opener(wanted)
        self._key = secrets.token_hex(16)  # by which the I/O process knows connections of this one
        self._writable: weakref.WeakSet[WritableFiles] = weakref.WeakSet()

    def iov(self, nbytes: int) -> Iov:
        """Memory to read into and to write from. Raises: NoSpace: the machine has not so much to spare; Invalid."""
        self._check()
        return Iov(nbytes)

    def ior(
        self,
        *,
        depth: int = 64,
        ranges: int = 1_024,
        priority: int = Priority.NORMAL,
        timeout_s: float = 30.0,
    ) -> Ior:
        """A ring of up to `depth` batches under way, of up to `ranges` ranges each.

        Its batches are worked on before those of rings of a lower `priority` (0 high, 1 normal, 2 low), of whatever
        application, and have `timeout_s` to end unless they say otherwise.

        Raises: Invalid: a number is out of bounds; Busy: too many rings are in use on this host; Unavailable.
        """
        self._check()
        ring = Ior(self._wanted, depth=depth, ranges=ranges, priority=priority, timeout_s=timeout_s)
        with self._lock:
            self._rings = [one for one in self._rings if not one.closed]
            self._rings.append(ring)
        return ring

    def open_files(self, paths: Sequence[str]) -> Files:
        """The files at `paths`, absolute within the cluster, all or none; for any ring.

        Raises: NotFound, IsADirectory, NotADirectory, PermissionDenied, for the first that cannot be opened;
            Unavailable.
        """
        return Files(self.open_many(paths))

    def open_many(self, paths: Sequence[str]) -> list[OpenFile]:
        """As `FileClient.open_many`, by the I/O process."""
        self._check()
        found: list[OpenFile] = []
        for at in range(0, len(paths), _PATHS_AT_ONCE):
            with self._lock:
                answer = self._opener.call({"kind": "open", "paths": list(paths[at : at + _PATHS_AT_ONCE])})
            found += map(control.file_from_json, answer["files"])
        return found

    def open_for_writing(self, paths: Sequence[str], *, create: bool = False) -> WritableFiles:
        """The files at `paths`, each once, to be written in place by rings of this one; by nobody else until closed.

        They must exist; with `create` those that are missing are made, empty.

        Raises: InUse: somebody is writing one, or has died less than a minute ago; NotFound, IsADirectory,
            NotADirectory, PermissionDenied: of the first that cannot be opened, and then none is; Busy: too many are
            open; Unavailable.
        """
        self._check()
        inode_ids: list[int] = []
        try:
            for at in range(0, len(paths), _WRITABLE_AT_ONCE):
                some = list(paths[at : at + _WRITABLE_AT_ONCE])
                message = {"kind": "open for writing", "application": self._key, "paths": some, "create": create}
                with self._lock:
                    inode_ids += self._opener.call(message)["inodes"]
        except BaseException:
            WritableFiles(self._key, self._ask, paths[: len(inode_ids)], inode_ids).close()
            raise
        files = WritableFiles(self._key, self._ask, paths, inode_ids)
        self._writable.add(files)
        return files

    def stats(self) -> dict[str, int]:
        """What the I/O process holds for all applications: `connections`, `rings`, `iovs`; and its own `pid`."""
        self._check()
        with self._lock:
            return {name: int(value) for name, value in self._opener.call({"kind": "stats"}).items()}

    def close(self) -> None:
        """Close every ring made here and what is open for writing, and let go of the I/O process. Memory stays.

        Raises: Fs3Error: files that were open for writing were not synced; all is closed nevertheless.
        """
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        failure: Fs3Error | None = None
        for ring in self._rings:
            ring.close()
        for files in list(self._writable):
            try:
                files.close()
            except Fs3Error as error:
                failure = failure or error
        self._opener.close()
        if failure is not None:
            raise failure

    def __enter__(self) -> UsrBio:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any] | None:
        with self._lock:
            return self._opener.call_running(message)

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise Invalid(f"USRBIO was opened in process {self._pid}, of which this one is a child: open it again here")
        if self._closed:
            raise Invalid("this USRBIO is closed; open it again")


def open(
    url: str,
    *,
    secret: str = "",
    workers: int | None = None,
    idle_s: float = IDLE_S,
    start: bool = True,
) -> UsrBio:
    """The I/O process for the cluster that `url` ("fs3://HOST:PORT/...") names, started if there is none yet.

    There is one for each user, cluster and host. Where it is started here it reads with up to `workers` threads (2 to 4
    by the number of cores), and ends when nobody has been connected for `idle_s`; `start=False` uses only one that runs
    already (`fs3 usrbio URL`).

    Raises:
        Invalid: not an fs3:// URL.
        Unavailable: the cluster does not answer, or the I/O process cannot be started.
        PermissionDenied: the secret is wrong; or its directory belongs to somebody else.
    """
    addresses, _ = parse_url(url)
    return UsrBio(
        Wanted(addresses=addresses, secret=secret, workers=workers or default_workers(), idle_s=idle_s, start=start)
    )
