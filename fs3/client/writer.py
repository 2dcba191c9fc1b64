"""Writing one file from beginning to end: chunks are filled, sent by a few threads, and published by `close`.

Up to `WINDOW` chunks of a writer are under way at once, so that the network, the checksums and the daemons' disks work
side by side. Bytes are copied once, into a chunk buffer, so that the caller may reuse its own at once; a piece of many
chunks is sent from where it lies, and then `write` returns when it has been acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType

from fs3.checksum import Bytes
from fs3.client.meta import MetaClient, Publish
from fs3.client.plan_core import I64
from fs3.client.renewal import Renewal
from fs3.client.storage import ChunkUpdate, StorageClient
from fs3.errors import Fs3Error, Invalid
from fs3.ids import InodeId, file_chunk
from fs3.inode import Inode
from fs3.layout import Durability, Layout
from fs3.transport.buffers import BufferPool
from fs3.transport.messages import Op

WINDOW = 8
THREADS = 16
DIRECT_CHUNKS = 4  # a piece of at least so many chunks is sent without being copied
KEEP_BYTES = 64 << 20
ABANDON_S = 5.0


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
            threads.shutdown(wait=False, cancel_futures=True)


class FileWriter:
    """A file being written; for one thread at a time. After an error only `abandon` is left to do.

    As a context manager it publishes at the end of the block, or abandons if the block raised.
    """

    def __init__(
        self,
        sending: Sending,
        meta: MetaClient,
        renewal: Renewal,
        *,
        inode_id: InodeId,
        layout: Layout,
        chains: I64,
        path: str,
        replace: bool,
    ) -> None:
        self.path = path
        self.inode_id = inode_id
        self.layout = layout
        self._sending = sending
        self._meta = meta
        self._renewal = renewal
        self._chains = chains
        self._replace = replace
        self._pool = sending.pool(layout.chunk_bytes)
        self._filling: memoryview | None = None
        self._filled = 0
        self._next_chunk = 0
        self._under_way: dict[Future[None], memoryview | None] = {}
        self._failure: Fs3Error | None = None
        self._ended = False
        self._published: Inode | None = None
        renewal.add([inode_id])

    @property
    def length(self) -> int:
        """Bytes taken so far."""
        return self._next_chunk * self.layout.chunk_bytes + self._filled

    def write(self, data: Bytes) -> int:
        """Take all of `data`; it may be changed again afterwards. Waits while `WINDOW` chunks are under way.

        Raises: Fs3Error: this or an earlier chunk could not be written.
        """
        self._check_open()
        view = memoryview(data).cast("B")
        taken, size = 0, self.layout.chunk_bytes
        while taken < len(view):
            if self._filling is None and len(view) - taken >= DIRECT_CHUNKS * size:
                whole = (len(view) - taken) // size * size
                for at in range(taken, taken + whole, size):
                    self._send(view[at : at + size], None)
                self._settle(all_of_them=True)
                taken += whole
                continue
            if self._filling is None:
                self._filling = self._pool.take()
            part = min(size - self._filled, len(view) - taken)
            self._filling[self._filled : self._filled + part] = view[taken : taken + part]
            self._filled += part
            taken += part
            if self._filled == size:
                self._flush()
        return taken

    def close(self) -> Inode:
        """Wait until every chunk is acknowledged, and publish the file; any number of times.

        Raises:
            Exists: the name is taken, and the writer was made not to replace.
            NotFound: the directory has gone, or the write session was lost.
            Fs3Error: a chunk could not be written. In all cases nothing was published; `abandon` is due.
        """
        if self._published is None:
            publish = self.finish()
            with self._remember():
                (inode,) = self._meta.publish_files([publish])
            self.published(inode)
        assert self._published is not None
        return self._published

    def finish(self) -> Publish:
        """Wait until every chunk is acknowledged; what is left is to publish the file, perhaps with others.

        Raises: Fs3Error: a chunk could not be written.
        """
        self._check_open()
        length = self.length
        if self._filled:
            self._flush()
        self._settle(all_of_them=True)
        return Publish(self.inode_id, self.path, length, self._replace)

    def published(self, inode: Inode) -> None:
        """It is; `close` gives `inode` from now on."""
        self._published = inode
        self._end()

    def abandon(self) -> None:
        """Give the file up: nothing appears at its path, an older file there stays. Never raises an `Fs3Error`."""
        if self._ended:
            return
        self._end()
        for future in self._under_way:
            future.cancel()
        ended, _ = wait(self._under_way, ABANDON_S)  # a chunk that arrives after meta has collected the file would stay
        for future in ended:
            buffer = self._under_way[future]
            if buffer is not None:
                self._pool.give_back(buffer)
        self._under_way.clear()
        self._renewal.abandon([self.inode_id])

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abandon()
            return
        try:
            self.close()
        except BaseException:
            self.abandon()
            raise

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._ended:
            raise Invalid(f"{self.path}: the writer is closed")

    def _end(self) -> None:
        self._ended = True
        self._renewal.discard([self.inode_id])
        if self._filling is not None:
            self._pool.give_back(self._filling)
            self._filling = None

    def _flush(self) -> None:
        assert self._filling is not None
        buffer, filled = self._filling, self._filled
        self._filling, self._filled = None, 0
        self._send(buffer[:filled], buffer)

    def _send(self, data: memoryview, buffer: memoryview | None) -> None:
        """Start writing the next chunk; `buffer` goes back to the pool when that is done."""
        while len(self._under_way) >= WINDOW:
            self._settle(all_of_them=False)
        update = chunk_update(self.inode_id, self.layout, self._chains, self._next_chunk, data)
        self._under_way[self._sending.submit(update)] = buffer
        self._next_chunk += 1

    def _settle(self, *, all_of_them: bool) -> None:
        """Wait for one chunk under way, or for all. Raises: the first failure, once none of them runs any more."""
        while self._under_way:
            done, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
            for future in done:
                buffer = self._under_way.pop(future)
                if buffer is not None:
                    self._pool.give_back(buffer)
                if self._failure is None:
                    with contextlib.suppress(Fs3Error), self._remember():
                        future.result()
            if not all_of_them and self._failure is None:
                return
        if self._failure is not None:
            raise self._failure

    @contextlib.contextmanager
    def _remember(self) -> Iterator[None]:
        """Note the first error, so that every later call raises it."""
        try:
            yield
        except Fs3Error as error:
            self._failure = type(error)(f"{self.path}: {error}")
            raise self._failure from error


def chunk_update(inode_id: int, layout: Layout, chains: I64, index: int, data: memoryview) -> ChunkUpdate:
    """The update that makes chunk `index` of a file exactly `data`."""
    hi, lo = file_chunk(inode_id, index)
    return ChunkUpdate(
        hi=hi,
        lo=lo,
        chain=int(chains[index % len(chains)]),
        op=Op.REPLACE,
        data=data,
        chunk_bytes=layout.chunk_bytes,
        durable=layout.durability == Durability.SYNC,
    )


_living: weakref.WeakSet[Sending] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for sending in list(_living):
        sending.begin_again()


os.register_at_fork(after_in_child=_after_fork_in_child)
