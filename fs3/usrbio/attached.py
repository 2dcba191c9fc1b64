"""One application as its I/O process knows it: a connection, one ring at most, and the memory and files it named.

A thread answers the connection's messages. When the connection ends, for whatever reason, the ring is taken from the
workers, what is under way is waited for, and everything is unmapped and closed; the socket last, as the application's
sign that nobody writes into its memory any more. With its last connection its write sessions end, too. An application
that was killed leaves nothing.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from fs3.client.connect import Client
from fs3.client.file import OpenFile
from fs3.clock import deadline_after, lease_now_ns, lease_now_s
from fs3.errors import Busy, Fs3Error, Invalid, MaybeApplied, Unavailable
from fs3.transport.descriptors import close_all
from fs3.usrbio import control
from fs3.usrbio.held import Held
from fs3.usrbio.memory import SharedMemory, fence, ring_bell
from fs3.usrbio.reading import Outcome, Reading
from fs3.usrbio.ring_core import IoRing, Request
from fs3.usrbio.ring_format import RANGE_RESULT, WRITES, Op, read_header
from fs3.usrbio.schedule_core import Priority
from fs3.usrbio.workers import Workers
from fs3.usrbio.writers import MAX_WRITABLE, Application, Writers
from fs3.usrbio.writing import Writing

T = TypeVar("T")
_log = logging.getLogger(__name__)
MAX_IOVS = 256
MAX_SETS = 1_024
MAX_FILES = 1 << 20  # in all sets together


class RingSource:
    """A ring at the workers."""

    def __init__(
        self,
        owner: Attached,
        memory: SharedMemory,
        bells: tuple[int, int],
        priority: Priority,
    ) -> None:
        self.doorbell, self._completion_bell = bells
        os.set_blocking(self._completion_bell, False)  # however often it has rung: ringing it stops every thread
        self.priority = priority
        self._owner = owner
        self._memory = memory
        self._ring = IoRing(read_header(memory.view), memory.view, fence)
        self._early: deque[Request] = deque()  # taken before their turn, from before one whose time was over
        self._posting = threading.Lock()
        self._under_way = 0
        self._writing: set[int] = set()  # batches for files that were taken, and that their files do not have yet
        self._closing = False
        self._quiet = threading.Condition()

    def waiting(self) -> bool:
        """See `Source`."""
        return bool(self._early) or self._ring.waiting()

    def take(self) -> Callable[[], None] | None:
        """See `Source`."""
        with self._posting:
            request = self._early.popleft() if self._early else self._ring.take()
        return None if request is None else self._begun(request)

    def take_overdue(self) -> list[Callable[[], None]]:
        """See `Source`."""
        now_ns = lease_now_ns()
        with self._posting:
            for _ in range(self._ring.overdue(now_ns)):
                request = self._ring.take()
                if request is not None:
                    self._early.append(request)
        late = [request for request in self._early if request.deadline_ns <= now_ns]
        for request in late:
            self._early.remove(request)
        return [self._begun(request) for request in late]

    def broken(self, error: Fs3Error) -> None:
        """See `Source`: the application is told by the end of its connection."""
        _log.warning("an application's ring was given up: %s", error)
        self._owner.hang_up()

    def settle(self, deadline_s: float) -> None:
        """See `Settling`."""
        with self._quiet:
            if not self._closing:
                last = self._ring.last_submitted()
                self._quiet.wait_for(
                    lambda: self._closing or self._files_have(last), max(deadline_s - lease_now_s(), 0.0)
                )

    def close(self) -> None:
        """Once the workers have let go of it: wait for what is under way, and give everything back."""
        with self._quiet:
            self._closing = True
            self._quiet.notify_all()
            self._quiet.wait_for(lambda: not self._under_way)
        del self._ring  # and with it the last views of the memory
        self._memory.close()
        close_all((self.doorbell, self._completion_bell))

    def _begun(self, request: Request) -> Callable[[], None]:
        with self._quiet:
            self._under_way += 1
            if request.op == Op.WRITE:
                self._writing.add(request.seq)
            self._quiet.notify_all()
        return functools.partial(self._work, request)

    def _work(self, request: Request) -> None:
        try:
            self._owner.perform(request, functools.partial(self._end, request))
        finally:
            if request.op == Op.WRITE:
                with self._quiet:
                    self._writing.discard(request.seq)
                    self._quiet.notify_all()

    def _files_have(self, last: int) -> bool:
        """What was submitted up to this batch."""
        taken = [*self._writing, *(request.seq for request in self._early)]
        return self._ring.last_taken >= last and all(seq > last for seq in taken)

    def _end(self, request: Request, outcome: Outcome) -> None:
        try:
            error = outcome.error
            with self._posting:
                awaited = self._ring.complete(
                    request, 0 if error is None else error.code, "" if error is None else str(error), outcome.results
                )
            if awaited:
                ring_bell(self._completion_bell)
        finally:
            with self._quiet:
                self._under_way -= 1
                self._quiet.notify_all()


class Attached:
    """One connection. `run` serves it to its end."""

    def __init__(
        self,
        sock: socket.socket,
        client: Client,
        workers: Workers,
        writers: Writers,
        stats: Callable[[], dict[str, int]],
    ) -> None:
        self._sock = sock
        self._client = client
        self._workers = workers
        self._writers = writers
        self._writer: tuple[str, Application] | None = None
        self._stats = stats
        self._ring: RingSource | None = None
        self._iovs: dict[int, SharedMemory] = {}
        self._sets: dict[int, list[OpenFile]] = {}
        self._writable: dict[int, list[Held]] = {}
        self._kinds: dict[str, Callable[[dict[str, Any], list[int]], dict[str, Any]]] = {
            "hello": self._hello,
            "open": self._open,
            "ring": self._add_ring,
            "iov": self._add_iov,
            "forget iov": self._forget_iov,
            "files": self._add_files,
            "forget files": self._forget_files,
            "open for writing": self._open_for_writing,
            "writable files": self._add_writable,
            "sync": self._sync,
            "stats": lambda message, descriptors: {**self._stats(), "pid": os.getpid()},
        }

    @property
    def iovs(self) -> int:
        """How many it has."""
        return len(self._iovs)

    @property
    def has_ring(self) -> bool:
        return self._ring is not None

    def run(self) -> None:
        """Answer until the connection ends, then give everything back."""
        try:
            while True:
                message, descriptors = control.receive(self._sock)
                control.send(self._sock, self._answer(message, descriptors))
        except Fs3Error as error:
            _log.debug("a connection ended: %s", error)
        finally:
            self._let_go()

    def hang_up(self) -> None:
        """Have `run` end, from another thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def perform(self, request: Request, ended: Callable[[Outcome], None]) -> None:
        """Do what a batch asks for, or have it done; what goes wrong is in the outcome that `ended` is called with."""
        iov, writes = self._iovs.get(request.iov), request.op in WRITES
        outcome = Outcome(np.zeros(request.count, dtype=RANGE_RESULT))
        try:
            if iov is None:
                raise Invalid(f"no memory {request.iov} was registered with this ring")
            if writes:
                writing = Writing(self._client, request, self._writable.get(request.files, []), iov.view, ended)
                writing.begin()
                return
            outcome = Reading(self._client, request, self._sets.get(request.files, []), iov.view).run()
        except Fs3Error as error:
            outcome.failed(np.arange(request.count), error)
        except Exception:  # noqa: BLE001  # whatever it is, the application is told, and the log
            _log.exception("batch %d failed", request.seq)
            why = (
                f"the I/O process failed to {'write' if writes else 'read'}; the log of process {os.getpid()} says why"
            )
            outcome.failed(np.arange(request.count), MaybeApplied(why) if writes else Unavailable(why))
        ended(outcome)

    def _let_go(self) -> None:
        if self._ring is not None:
            self._workers.remove(self._ring)
            if self._writer is not None:
                self._writer[1].rings.discard(self._ring)
            self._ring.close()
            self._ring = None
        for iov in self._iovs.values():
            iov.close()
        self._iovs.clear()
        self._sets.clear()
        self._writable.clear()
        self._sock.close()
        if self._writer is not None:
            key, _ = self._writer
            self._writer = None
            self._writers.detach(key)

    def _answer(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """The answer to one message; descriptors that were not taken over are closed."""
        try:
            answer = self._kinds.get(str(message.get("kind")))
            if answer is None:
                raise Invalid(f"no such message: {str(message.get('kind'))[:60]!r}; upgrade the older side")
            return answer(message, descriptors)
        except Fs3Error as error:
            return control.refusal(error)
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            return control.refusal(Invalid(f"a message that cannot be understood: {type(error).__name__}: {error}"))
        finally:
            close_all(descriptors)

    def _hello(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        if message["protocol"] != control.PROTOCOL:
            raise Invalid(
                f"USRBIO protocol {message['protocol']}; the I/O process speaks {control.PROTOCOL}: end it, to have"
                " one of the application's version"
            )
        return {"protocol": control.PROTOCOL}

    def _open(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        opened = self._client.files.open_many([str(path) for path in message["paths"]], timeout_s=control.WORK_S)
        return {"files": [control.file_to_json(file) for file in opened]}

    def _add_ring(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        if self._ring is not None:
            raise Invalid("this connection has a ring already")
        if len(descriptors) != control.MAX_DESCRIPTORS:
            raise Invalid(f"a ring comes with {control.MAX_DESCRIPTORS} descriptors, not {len(descriptors)}")
        priority = Priority(int(message["priority"]))
        size = int(message["bytes"])
        memory = SharedMemory.given(descriptors.pop(0), size)
        try:
            source = RingSource(self, memory, (descriptors[0], descriptors[1]), priority)
            self._workers.add(source)
        except BaseException:
            memory.close()
            raise
        descriptors.clear()
        self._ring = source
        return {}

    def _add_iov(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        number = int(message["number"])
        if len(descriptors) != 1 or number in self._iovs:
            raise Invalid(f"memory {number}: one descriptor under a number of its own is expected")
        if len(self._iovs) >= MAX_IOVS:
            raise Busy(f"{MAX_IOVS} pieces of memory are registered with this ring; close some, or make fewer, larger")
        self._iovs[number] = SharedMemory.given(descriptors.pop(), int(message["bytes"]))
        return {}

    def _forget_iov(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        found = self._iovs.pop(int(message["number"]), None)
        if found is not None:
            found.close()
        return {}

    def _add_files(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        files = [control.file_from_json(one) for one in message["files"]]
        _add_to(self._sets, message, files, MAX_SETS, MAX_FILES)
        return {}

    def _forget_files(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        number = int(message["number"])
        self._sets.pop(number, None)
        self._writable.pop(number, None)
        return {}

    def _open_for_writing(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        paths = [str(path) for path in message["paths"]]
        deadline_s = deadline_after(control.WORK_S)
        return {"inodes": self._application(message).open(paths, deadline_s, create=bool(message["create"]))}

    def _add_writable(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        application = self._application(message)
        files = [application.named(str(path), int(inode_id)) for path, inode_id in message["files"]]
        _add_to(self._writable, message, files, MAX_SETS, MAX_WRITABLE)
        if self._ring is not None:
            application.rings.add(self._ring)
        return {}

    def _sync(self, message: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        paths = [str(path) for path in message["paths"]]
        self._application(message).sync(paths, deadline_after(control.WORK_S), close=bool(message["close"]))
        return {}

    def _application(self, message: dict[str, Any]) -> Application:
        """That of the connection. Raises: Invalid."""
        key = str(message["application"])
        if self._writer is None:
            self._writer = key, self._writers.attach(key)
        if self._writer[0] != key:
            raise Invalid("this connection is another application's")
        return self._writer[1]


def _add_to(sets: dict[int, list[T]], message: dict[str, Any], files: list[T], most_sets: int, most_files: int) -> None:
    """Put files at the end of a set. Raises: Invalid, Busy."""
    number, first = int(message["number"]), int(message["first"])
    known = sets.get(number, [])
    if first != len(known):
        raise Invalid(f"set {number} has {len(known)} files, not {first}")
    if number not in sets and len(sets) >= most_sets:
        raise Busy(f"{most_sets} sets of files are known to this ring; close some, or open files together")
    if sum(map(len, sets.values())) + len(files) > most_files:
        raise Busy(f"at most {most_files} files can be open with one ring; close some")
    sets[number] = known + files
