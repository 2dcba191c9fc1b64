"""Chunks on their way: a few threads for all writers of a process, and a bounded window of chunks for each writer."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from fs3.client.storage import ChunkUpdate, StorageClient
from fs3.errors import Fs3Error, Invalid
from fs3.transport.buffers import BufferPool

WINDOW = 8
THREADS = 16
KEEP_BYTES = 64 << 20


class Sending:
    """The threads and buffers that all writers of a process share."""

    def __init__(self, storage: StorageClient) -> None:
        self.storage = storage
        self.begin_again()
        _living.add(self)

    def begin_again(self) -> None:
        """No threads, no buffers out: a forked child has none."""
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._pools: dict[int, BufferPool] = {}
        self._closed = False

    def submit(self, update: ChunkUpdate) -> Future[None]:
        """Write one chunk in a thread of its own. Raises: Invalid: the client is closed."""
        with self._lock:
            if self._closed:
                raise Invalid("the client is closed")
            if self._threads is None:
                self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="fs3-write")
            return self._threads.submit(self._write, update)

    def _write(self, update: ChunkUpdate) -> None:
        if self._closed:
            raise Invalid("the client is closed")
        self.storage.write([update])

    def pool(self, chunk_bytes: int) -> BufferPool:
        """The buffers for chunks of this size."""
        with self._lock:
            if chunk_bytes not in self._pools:
                self._pools[chunk_bytes] = BufferPool(chunk_bytes, keep=max(1, KEEP_BYTES // chunk_bytes))
            return self._pools[chunk_bytes]

    def close(self) -> None:
        """End the threads once what they are sending has ended."""
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)  # which hands out the rest: nobody could wait for what it cancels


class Window:
    """Up to `WINDOW` chunks of one file under way at once, never two updates of one chunk; for one thread at a time.

    After an error every call raises it. A forked child's copy is of no use: what is under way is its parent's.
    """

    def __init__(self, sending: Sending, pool: BufferPool, path: str) -> None:
        self._sending = sending
        self._pool = pool
        self._path = path
        self._under_way: dict[Future[None], tuple[int, memoryview | None]] = {}
        self._failure: Fs3Error | None = None
        self._pid = os.getpid()

    @property
    def inherited(self) -> bool:
        """Whether this is a forked child, and the file, with its write session, another process's."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raises: the first failure; Invalid: in a forked child."""
        if self.inherited:
            raise Invalid(
                f"{self._path}: process {self._pid} opened it for writing, and this one was forked from it; write and"
                " close it there, or open another file here"
            )
        if self._failure is not None:
            raise self._failure

    @contextlib.contextmanager
    def remember(self) -> Iterator[None]:
        """Note the first error, so that every later call raises it."""
        try:
            yield
        except Fs3Error as error:
            raise self.fail(error) from error

    @contextlib.contextmanager
    def unbroken(self) -> Iterator[None]:
        """Around what takes bytes: if it was interrupted, some of them are nowhere, and every later call raises."""
        try:
            yield
        except Fs3Error:
            raise
        except BaseException as error:
            self.fail(Fs3Error(f"a write was interrupted ({type(error).__name__}), and a part of it may be missing"))
            raise

    def fail(self, error: Fs3Error) -> Fs3Error:
        """Note an error, so that every later call raises the first; the error, with the file's path."""
        named = type(error)(f"{self._path}: {error}")
        self._failure = self._failure or named
        return named

    def send(self, update: ChunkUpdate, buffer: memoryview | None) -> None:
        """Start an update, once there is room for it; `buffer` goes back to the pool when it has ended.

        Raises: the first failure of any.
        """
        while len(self._under_way) >= WINDOW or any(chunk == update.lo for chunk, _ in self._under_way.values()):
            self._settle_some()
        with self.remember():
            future = self._sending.submit(update)
        self._under_way[future] = update.lo, buffer

    def settle(self) -> None:
        """Wait for all. Raises: the first failure, once none of them runs any more."""
        while self._under_way:
            with contextlib.suppress(Fs3Error):
                self._settle_some()
        self.check()

    def first(self) -> int | None:
        """The lowest chunk that is not acknowledged, if there is any."""
        return min((chunk for future, (chunk, _) in self._under_way.items() if not _done(future)), default=None)

    def cancel(self, timeout_s: float) -> None:
        """Begin no more, and wait for what is being sent."""
        for future in self._under_way:
            future.cancel()
        ended, _ = wait(self._under_way, timeout_s)
        for future in ended:
            self._give_back(future)
        self._under_way.clear()

    def _settle_some(self) -> None:
        """Wait for one at least. Raises: the first failure, once none of them runs any more."""
        done, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
        for future in done:
            self._give_back(future)
            if self._failure is None:
                with contextlib.suppress(Fs3Error), self.remember():
                    future.result()
        if self._failure is not None:
            wait(self._under_way)
            for future in list(self._under_way):
                self._give_back(future)
            raise self._failure

    def _give_back(self, future: Future[None]) -> None:
        _, buffer = self._under_way.pop(future)
        if buffer is not None:
            self._pool.give_back(buffer)


def _done(future: Future[None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


_living: weakref.WeakSet[Sending] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for sending in list(_living):
        sending.begin_again()


os.register_at_fork(after_in_child=_after_fork_in_child)
