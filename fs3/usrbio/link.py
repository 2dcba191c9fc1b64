"""An application's connection to its I/O process: what the process was told over it, and whether it still lives."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from fs3.clock import deadline_after, lease_now_s
from fs3.errors import Fs3Error, Unavailable
from fs3.transport.descriptors import peer_of
from fs3.usrbio import control
from fs3.usrbio.iov import FileSet, Iov
from fs3.usrbio.start import Wanted, connect

_FILES_AT_ONCE = 4_096
_KNOWN_SETS = 512
_KNOWN_FILES = 1 << 20  # in all sets together: what a process takes (`attached`)


@dataclass(slots=True)
class _Known:
    """A set of files, and how many of them the process knows."""

    files: weakref.ref[FileSet]
    count: int = 0

    @property
    def wanted(self) -> bool:
        """Whether a batch may still name it."""
        files = self.files()
        return files is not None and not files.closed


class Link:
    """For one thread at a time, but for `forget`."""

    def __init__(self, wanted: Wanted) -> None:
        """Connect, to a process that is started for it if there is none. Raises: as `start.connect`."""
        self._sock = connect(wanted)
        self._iovs: dict[int, weakref.ref[Iov]] = {}  # which the process has mapped
        self._sets: OrderedDict[int, _Known] = OrderedDict()  # by number; what was used last comes last
        self._calling = threading.Lock()
        self._process = self._watched()
        _living.add(self)

    @property
    def descriptor(self) -> int:
        """The socket, which hangs up when nobody writes into the application's memory any more."""
        return self._sock.fileno()

    @property
    def alive(self) -> bool:
        """Whether the other side still holds the connection."""
        gone = select.poll()
        gone.register(self._sock, select.POLLRDHUP)
        return not gone.poll(0)

    def call(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """See `control.call`. A process that does not answer is ended. Raises: Closed; and what it answers with."""
        try:
            with self._calling:
                return control.call(self._sock, message, descriptors)
        except control.Silent as error:
            self.kill()
            raise control.Closed(str(error)) from None

    def add_ring(self, memory: int, size: int, bells: tuple[int, int], priority: int) -> None:
        """Have the ring in the file `memory` worked on. Raises: Fs3Error."""
        self.call({"kind": "ring", "bytes": size, "priority": priority}, (memory, *bells))

    def know(self, iov: Iov, files: FileSet, under_way: Iterable[FileSet] = ()) -> None:
        """Tell of what a batch names and the process does not know yet; it goes on knowing what those `under_way` name.

        Raises: Fs3Error.
        """
        if iov.number not in self._iovs:
            self._forget_lost()
            self.call({"kind": "iov", "number": iov.number, "bytes": iov.nbytes}, (iov.descriptor,))
            self._iovs[iov.number] = weakref.ref(iov)
            iov.mapped_by(self)
        known = self._sets.get(files.number)
        if known is not None:
            self._sets.move_to_end(files.number)
        if (0 if known is None else known.count) < len(files):
            self._tell_files(files, under_way)

    def forget(self, iov: Iov) -> None:
        """Have memory unmapped that is being closed; by any thread. A connection that has ended had that done."""
        if self._iovs.pop(iov.number, None) is not None:
            with contextlib.suppress(Fs3Error):
                self.call({"kind": "forget iov", "number": iov.number})

    def kill(self) -> None:
        """End a process that does not do its work. What it has acknowledged is somewhere else."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def close(self, timeout_s: float = 0.0) -> bool:
        """End the connection. With `timeout_s` wait for what the process still does; whether it has said so."""
        ended = True
        with self._calling:
            if timeout_s > 0:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_WR)
                ended = self._ended(deadline_after(timeout_s))
                if not ended:
                    self.kill()
                    ended = self._ended(deadline_after(timeout_s))
            self._sock.close()
            if self._process is not None:
                os.close(self._process)
                self._process = None
        return ended

    def close_in_child(self) -> None:
        """`close`, after a fork: whoever was calling then is not here."""
        self._calling = threading.Lock()
        self.close()

    def _ended(self, deadline_s: float) -> bool:
        while (left_s := deadline_s - lease_now_s()) > 0:
            self._sock.settimeout(left_s)
            try:
                if not self._sock.recv(4_096):
                    return True
            except TimeoutError:
                return False
            except OSError:
                return True
        return False

    def _forget_lost(self) -> None:
        """Have memory unmapped that the application no longer has, and did not close."""
        for number, reference in list(self._iovs.items()):
            if reference() is None:
                del self._iovs[number]
                self.call({"kind": "forget iov", "number": number})

    def _tell_files(self, files: FileSet, under_way: Iterable[FileSet]) -> None:
        self._make_room(files, {one.number for one in under_way})
        known = self._sets.setdefault(files.number, _Known(weakref.ref(files)))
        for first in range(known.count, len(files), _FILES_AT_ONCE):
            last = min(first + _FILES_AT_ONCE, len(files))
            self.call(files.message(first, last))
            known.count = last

    def _make_room(self, files: FileSet, named: Set[int]) -> None:
        """Have the process forget sets that no batch will name, and those used longest ago if it would know too many;
        but none that is `named` by a batch."""
        others = [(number, known) for number, known in self._sets.items() if number not in named | {files.number}]
        sets = len(self._sets.keys() | {files.number})
        count = sum(known.count for number, known in self._sets.items() if number != files.number) + len(files)
        for number, known in sorted(others, key=lambda one: one[1].wanted):
            if known.wanted and sets <= _KNOWN_SETS and count <= _KNOWN_FILES:
                return
            del self._sets[number]
            self.call({"kind": "forget files", "number": number})
            sets, count = sets - 1, count - known.count

    def _watched(self) -> int | None:
        """A descriptor of the process, which names it even if its number is given to another."""
        pid, _ = peer_of(self._sock)
        try:
            process = os.pidfd_open(pid)
        except OSError:
            return None  # in a container of its own, or gone
        if self.alive:
            return process
        os.close(process)
        return None


_living: weakref.WeakSet[Link] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """A parent's connection must end with the parent alone."""
    for link in list(_living):
        link.close_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


class Opener:
    """A link on which files are opened, by any thread, one at a time; made again when its process has died."""

    def __init__(self, wanted: Wanted) -> None:
        """Raises: as `Link`."""
        self._wanted = wanted
        self._link: Link | None = Link(wanted)

    def call(self, message: dict[str, Any]) -> dict[str, Any]:
        """See `control.call`; what is asked may be asked again, and is if the process dies of it or before.

        Raises: Fs3Error.
        """
        for last in (False, True):
            link = self._link = self._link or Link(self._wanted)
            try:
                return link.call(message)
            except control.Closed:
                self.close()
                if last:
                    raise
        raise AssertionError

    def call_running(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """As `call`, but of a process that runs already; None: there is none. Raises: Fs3Error."""
        if self._link is None or not self._link.alive:
            self.close()
            try:
                self._link = Link(replace(self._wanted, start=False))
            except Unavailable:
                return None
        try:
            return self._link.call(message)
        except control.Closed:
            self.close()
            return None

    def close(self) -> None:
        """Let go of the process."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
