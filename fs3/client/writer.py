"""Writing one file from beginning to end: chunks are filled, sent by a few threads, and published by `close`.

Up to `WINDOW` chunks of a writer are under way at once, so that the network, the checksums and the daemons' disks work
side by side. Bytes are copied once, into a chunk buffer, so that the caller may reuse its own at once; a piece of many
chunks is sent from where it lies, and then `write` returns when it has been acknowledged.
"""

from __future__ import annotations

from types import TracebackType

from fs3.checksum import Bytes, flat
from fs3.client.meta import MetaClient, Publish
from fs3.client.plan_core import I64
from fs3.client.renewal import Renewal
from fs3.client.sending import Sending, Window
from fs3.client.storage import ChunkUpdate
from fs3.errors import Invalid
from fs3.ids import InodeId, file_chunk
from fs3.inode import Inode
from fs3.layout import Durability, Layout
from fs3.transport.messages import Op

DIRECT_CHUNKS = 4  # a piece of at least so many chunks is sent without being copied
ABANDON_S = 5.0


class FileWriter:
    """A file being written; for one thread at a time. After an error, or an interrupt, only `abandon` is left to do.

    As a context manager it publishes at the end of the block, or abandons if the block raised. In a forked child it
    cannot be written or closed (Invalid), and what becomes of it there is nothing to the parent's.
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
        share: float,
    ) -> None:
        self.path = path
        self.share = share  # of what can be published at once, at least
        self.inode_id = inode_id
        self.layout = layout
        self._meta = meta
        self._renewal = renewal
        self._chains = chains
        self._replace = replace
        self._pool = sending.pool(layout.chunk_bytes)
        self._filling: memoryview | None = None
        self._filled = 0
        self._next_chunk = 0
        self._window = Window(sending, self._pool, path)
        self._ended = False
        self._published: Inode | None = None
        renewal.add([inode_id])

    @property
    def length(self) -> int:
        """Bytes taken so far."""
        return self._next_chunk * self.layout.chunk_bytes + self._filled

    def write(self, data: Bytes) -> int:
        """Take all of `data`; it may be changed again afterwards. Waits while `WINDOW` chunks are under way.

        Raises: Fs3Error: this or an earlier chunk could not be written; SessionEnded: the write session was lost.
        """
        self._check_open()
        view = flat(data)
        with self._window.unbroken():
            return self._take(view)

    def close(self) -> Inode:
        """Wait until every chunk is acknowledged, and publish the file; any number of times.

        Raises:
            Exists: the name is taken, and the writer was made not to replace.
            NotFound: the directory has gone, or the write session was lost just now.
            SessionEnded: the write session was lost.
            Fs3Error: a chunk could not be written. In all cases nothing was published; `abandon` is due.
        """
        if self._published is None:
            publish = self.finish()
            with self._window.remember():
                (inode,) = self._meta.publish_files([publish])
            self.published(inode)
        assert self._published is not None
        return self._published

    def finish(self) -> Publish:
        """Wait until every chunk is acknowledged; what is left is to publish the file, perhaps with others.

        Raises: Fs3Error: a chunk could not be written; SessionEnded: the write session was lost.
        """
        self._check_open()
        length = self.length
        with self._window.unbroken():
            if self._filled:
                self._flush()
            self._window.settle()
        return Publish(self.inode_id, self.path, length, self._replace)

    def published(self, inode: Inode) -> None:
        """It is; `close` gives `inode` from now on."""
        self._published = inode
        self._end()

    def abandon(self) -> None:
        """Give the file up: nothing appears at its path, an older file there stays. Never raises an `Fs3Error`."""
        if self._ended:
            return
        if self._window.inherited:
            self._ended = True
            return
        self._end()
        self._window.cancel(ABANDON_S)  # a chunk that arrives after meta has collected the file would stay
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
        self._window.check()
        if self._ended:
            raise Invalid(f"{self.path}: the writer is closed")
        self._renewal.check_new(self.inode_id, self.path)

    def _take(self, view: memoryview) -> int:
        """Copy into chunks what is not sent from where it lies; how many bytes."""
        taken, size = 0, self.layout.chunk_bytes
        while taken < len(view):
            if self._filling is None and len(view) - taken >= DIRECT_CHUNKS * size:
                whole = (len(view) - taken) // size * size
                for at in range(taken, taken + whole, size):
                    self._send(view[at : at + size], None)
                self._window.settle()
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
        self._renewal.check_new(self.inode_id, self.path)
        update = chunk_update(self.inode_id, self.layout, self._chains, self._next_chunk, data)
        self._window.send(update, buffer)
        self._next_chunk += 1


def chunk_update(
    inode_id: int, layout: Layout, chains: I64, index: int, data: Bytes, *, op: Op = Op.REPLACE, offset: int = 0
) -> ChunkUpdate:
    """The update of chunk `index` of a file; that makes it exactly `data`, if no other `op` is named."""
    hi, lo = file_chunk(inode_id, index)
    return ChunkUpdate(
        hi=hi,
        lo=lo,
        chain=int(chains[index % len(chains)]),
        op=op,
        offset=offset,
        data=data,
        chunk_bytes=layout.chunk_bytes,
        durable=layout.durability == Durability.SYNC,
    )
