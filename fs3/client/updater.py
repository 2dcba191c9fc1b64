"""Writing a file that has a name, in place: at any offset, longer and shorter, by one client at a time.

Files stay dense. What lies past a file's length in its chunks, be it left by a writer that died or by a file that was
longer, must never be seen again when the file grows; so no chunk that begins below the length ever holds more than the
file says: opening cuts the last chunk, growing writes zeros, and a chunk beyond the length is written whole or removed
first. Bytes are durable before meta is told of a length that includes them, and a shorter one is told before bytes go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from operator import add
from types import TracebackType

import numpy as np

from fs3.checksum import Bytes, flat
from fs3.client import update_core
from fs3.client.meta import MetaClient, Sync, Written
from fs3.client.plan_core import I64
from fs3.client.presence import Presence
from fs3.client.renewal import Renewal
from fs3.client.sending import Sending, Window
from fs3.client.storage import UPDATES_AT_ONCE, ChunkUpdate
from fs3.client.update_core import Piece
from fs3.client.writer import ABANDON_S, DIRECT_CHUNKS, chunk_update
from fs3.clock import lease_now_s
from fs3.errors import Fs3Error, Invalid, QuotaExceeded
from fs3.ids import file_chunk
from fs3.inode import Inode
from fs3.layout import MAX_FILE_BYTES, Layout
from fs3.transport.messages import Op

_LEAST_S = 0.001  # for meta to answer, when there is no time left


class FileUpdater:
    """A file being written in place; for one thread at a time. After an error, or an interrupt, only `abandon` is left.

    As a context manager it closes at the end of the block, or abandons if the block raised. In a forked child it
    cannot be written or closed (Invalid), and what becomes of it there is nothing to the parent's.
    """

    def __init__(
        self,
        sending: Sending,
        meta: MetaClient,
        renewal: Renewal,
        *,
        inode: Inode,
        chains: I64,
        path: str,
        lease_s: float,
        deadline_s: float | None = None,
    ) -> None:
        """`renewal` renews the session already; by `deadline_s` this has ended."""
        assert inode.layout is not None, inode
        self.path = path
        self.layout: Layout = inode.layout
        self._inode = inode
        self._storage = sending.storage
        self._meta = meta
        self._renewal = renewal
        self._lease_s = lease_s
        self._chains = chains
        self._pool = sending.pool(self.layout.chunk_bytes)
        self._window = Window(sending, self._pool, path)
        self._buffer: memoryview | None = None
        self._chunk = self._begin = self._end = 0  # of what is in the buffer: in which chunk, and from where to where
        self._length = inode.length
        self._written = Written(inode.length)
        self._presence = Presence(sending.storage, inode.inode_id, chains, self.layout.chunk_bytes, inode.length)
        self._dirty = self._ended = False
        self._deadline_s: float | None = None
        with self.until(deadline_s), self._window.remember():
            self._cut_last_chunk()

    @property
    def inode(self) -> Inode:
        """As meta last told it."""
        return self._inode

    @property
    def length(self) -> int:
        """With all that was written."""
        return self._length

    @property
    def ended(self) -> bool:
        """Whether it was closed or given up."""
        return self._ended

    def written(self) -> Written:
        """How far it is durable, for readers to be told at any time, from any thread."""
        return self._written

    def write(self, offset: int, data: Bytes) -> int:
        """Take all of `data` for `offset`; a gap before it becomes zeros. Waits while many chunks are under way.

        Raises: Fs3Error: this or an earlier piece could not be written, or the session is over.
        """
        view = flat(data)
        self._check(offset)
        self._check(offset + len(view))
        with self._window.unbroken():
            return self._take(offset, view)

    def write_batch(self, offsets: I64, datas: Sequence[memoryview]) -> list[Fs3Error | None]:
        """Write all of `datas[i]`, bytes, at `offsets[i]`, for all i; what befell each: [n].

        Ranges must not overlap in the file; gaps beyond its end become zeros. What has no error is acknowledged when
        this returns. All chunks are sent at once, from where the bytes lie: nothing else may change them meanwhile.

        Raises: as `write`; then nothing of the batch was written.
        """
        self.flush()
        lengths = [len(data) for data in datas]
        self._check(int(offsets.min(initial=0)))
        self._check(max(map(add, offsets.tolist(), lengths), default=0))  # in numbers that cannot overflow
        found = update_core.pieces(offsets, lengths, self.layout.chunk_bytes)
        errors: list[Fs3Error | None] = [None] * len(offsets)
        failure: Fs3Error | None = None
        for some in (*update_core.inside(found, self._length), *update_core.beyond(found, self._length)):
            befell = self._apply(some, datas) if failure is None else [failure] * len(some)
            for piece, error in zip(some, befell, strict=True):
                if error is not None:
                    named = error if error is failure else self._window.fail(error)
                    failure = failure or named
                    for source, _, _ in piece.parts:
                        errors[source] = errors[source] or named
        self._note_durable()
        return errors

    @contextlib.contextmanager
    def until(self, deadline_s: float | None) -> Iterator[None]:
        """`write_batch`, `sync` and `close` within this block end by then (a `lease_now_s` time), or have failed."""
        before, self._deadline_s = self._deadline_s, deadline_s
        try:
            yield
        finally:
            self._deadline_s = before

    def truncate(self, length: int) -> None:
        """Make the file `length` bytes long, with zeros where it grows; readers see it at once. Raises: as `write`."""
        self._check(length)
        self.flush()
        with self._window.unbroken():
            if length > self._length:
                self._grow(length)
                self.sync()
            elif length < self._length:
                with self._window.remember():
                    if length % self.layout.chunk_bytes:
                        self._presence.require([length // self.layout.chunk_bytes], self._deadline_s)
                self._length = length
                self._written = Written(length, self._written.epoch + 1)
                self._dirty = True
                self.sync()
                with self._window.remember():
                    self._remove_beyond()
            else:
                self.sync()

    def flush(self) -> None:
        """Wait until all that was written is acknowledged. Raises: as `write`."""
        self._check(0)
        with self._window.unbroken():
            if self._buffer is not None:
                self._flush()
            self._window.settle()
        self._written = self._written._replace(length=self._length)

    def sync(self) -> Inode:
        """`flush`, and tell meta the exact length, so that whoever opens the file from now on sees all of it."""
        self.flush()
        if self._dirty:
            self._tell(close=False)
        return self._inode

    def close(self) -> Inode:
        """`sync`, and end the session; any number of times. Raises: as `write`; `abandon` is due then."""
        if not self._ended:
            self.flush()
            self._tell(close=True)
            self._end_here()
        return self._inode

    def abandon(self) -> None:
        """End the session and write no more. What was synced stays; of the rest bytes that replaced others may, and
        bytes that made the file longer do if a renewal has told of them. Never raises an `Fs3Error`."""
        if self._ended:
            return
        if self._window.inherited:
            self._ended = True
            return
        self._window.cancel(ABANDON_S)
        self._end_here()
        self._renewal.abandon([self._inode.inode_id])

    def __enter__(self) -> FileUpdater:
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

    def _check(self, end: int) -> None:
        self._window.check()
        if self._ended:
            raise Invalid(f"{self.path}: the file is closed")
        if not 0 <= end <= MAX_FILE_BYTES:
            raise Invalid(f"{self.path}: a file has from 0 to {MAX_FILE_BYTES} bytes, not {end}")

    def _end_here(self) -> None:
        self._ended = True
        self._renewal.discard([self._inode.inode_id])
        if self._buffer is not None:
            self._pool.give_back(self._buffer)
            self._buffer = None

    def _tell(self, *, close: bool) -> None:
        sync = Sync(self._inode.inode_id, self._length, written=self._dirty, close=close, epoch=self._written.epoch)
        try:
            with self._window.remember():
                (self._inode,) = self._meta.sync_files([sync], timeout_s=self._left_s())
        except QuotaExceeded:
            self._cut_back()
            raise
        self._dirty = False

    def _cut_back(self) -> None:
        """What a quota had no room for goes; the file is as long as meta has heard and taken before."""
        with contextlib.suppress(Fs3Error):  # what is left then goes with the file, or with its next writer
            (now,) = self._meta.sync_files([Sync(self._inode.inode_id)], timeout_s=self._left_s())
            self._length = now.length
            self._written = Written(now.length, self._written.epoch + 1)
            shorter = Sync(now.inode_id, now.length, written=True, epoch=self._written.epoch)
            (self._inode,) = self._meta.sync_files([shorter], timeout_s=self._left_s())
            self._remove_beyond()

    def _left_s(self) -> float | None:
        return None if self._deadline_s is None else max(self._deadline_s - lease_now_s(), _LEAST_S)

    def _apply(self, some: Sequence[Piece], datas: Sequence[memoryview]) -> list[Fs3Error | None]:
        """Pieces of distinct chunks, of which the last may make the file longer; what befell each."""
        size = self.layout.chunk_bytes
        try:
            if some[0].begin > self._length:
                self._grow(some[0].begin)
            self._renewal.check(self._inode.inode_id, self._lease_s)
            whole = [
                piece.begin == piece.chunk * size and piece.end >= min(piece.begin + size, self._length)
                for piece in some
            ]
            parts = [piece.chunk for piece, all_of_it in zip(some, whole, strict=True) if not all_of_it]
            self._presence.require(parts, self._deadline_s)
            self._dirty = True
            updates = [
                self._update(piece.chunk, Op.REPLACE if all_of_it else Op.WRITE, piece.begin % size, piece.data(datas))
                for piece, all_of_it in zip(some, whole, strict=True)
            ]
            _, errors = self._storage.try_write(updates, deadline_s=self._deadline_s)
        except Fs3Error as error:
            return [error] * len(some)
        if not any(errors):
            self._length = max(self._length, some[-1].end)
        return errors

    def _take(self, offset: int, view: memoryview) -> int:
        """Copy what is not sent from where it lies, and send what cannot stay in the buffer; how many bytes."""
        if len(view):
            if offset > self._length:
                self._grow(offset)
            self._dirty = True
        taken, size = 0, self.layout.chunk_bytes
        while taken < len(view):
            index, at = divmod(offset + taken, size)
            if self._buffer is not None and not (index == self._chunk and self._begin <= at <= self._end):
                self._flush()
            if self._buffer is None and not at and len(view) - taken >= DIRECT_CHUNKS * size:
                taken += self._write_whole(index, view[taken:])
                continue
            taken += self._keep(index, at, view[taken:])
            if self._end == size:
                self._flush()
        self._note_durable()
        return taken

    def _keep(self, index: int, at: int, data: memoryview) -> int:
        """Copy into the buffer what fits; how many bytes."""
        if self._buffer is None:
            self._buffer = self._pool.take()
            self._chunk, self._begin, self._end = index, at, at
        part = min(self.layout.chunk_bytes - at, len(data))
        self._buffer[at : at + part] = data[:part]
        self._end = max(self._end, at + part)
        self._length = max(self._length, index * self.layout.chunk_bytes + at + part)
        return part

    def _write_whole(self, index: int, data: memoryview) -> int:
        """Send whole chunks from where they lie; how many bytes."""
        size = self.layout.chunk_bytes
        whole = len(data) // size * size
        for at in range(0, whole, size):
            self._send(index + at // size, 0, data[at : at + size], None)
        self._length = max(self._length, index * size + whole)
        self._window.settle()
        return whole

    def _note_durable(self) -> None:
        """What lies before the first piece that is not acknowledged yet may be told to readers."""
        under_way, size = self._window.first(), self.layout.chunk_bytes
        lengths = [self._length, *([under_way * size] if under_way is not None else [])]
        if self._buffer is not None:
            lengths.append(self._chunk * size + self._begin)
        self._written = self._written._replace(length=min(lengths))

    def _flush(self) -> None:
        assert self._buffer is not None
        buffer, self._buffer = self._buffer, None
        self._send(self._chunk, self._begin, buffer[self._begin : self._end], buffer)

    def _send(self, index: int, at: int, data: memoryview, buffer: memoryview | None) -> None:
        size = self.layout.chunk_bytes
        whole = not at and (len(data) == size or index * size + len(data) >= self._length)
        with self._window.remember():
            self._renewal.check(self._inode.inode_id, self._lease_s)
            if not whole:
                self._presence.require([index], self._deadline_s)
        self._window.send(self._update(index, Op.REPLACE if whole else Op.WRITE, at, data), buffer)

    def _update(self, index: int, op: Op, offset: int = 0, data: Bytes = b"") -> ChunkUpdate:
        return chunk_update(self._inode.inode_id, self.layout, self._chains, index, data, op=op, offset=offset)

    def _now(self, updates: list[ChunkUpdate]) -> None:
        self._renewal.check(self._inode.inode_id, self._lease_s)
        self._storage.write(updates, deadline_s=self._deadline_s)

    def _cut_last_chunk(self) -> None:
        """Take off what a writer that died left behind the end."""
        index, at = divmod(self._length, self.layout.chunk_bytes)
        if at and int(self._presence.found([index], self._deadline_s)[0]) > at:
            self._now([self._update(index, Op.TRUNCATE, at)])

    def _grow(self, length: int) -> None:
        """Zeros up to `length`, chunk by chunk."""
        self.flush()
        size = self.layout.chunk_bytes
        self._dirty = True
        with self._window.remember():
            if self._length % size:
                index = self._length // size
                end = min(length, (index + 1) * size)
                self._now([self._update(index, Op.TRUNCATE, end - index * size)])
                self._length = end
            while self._length < length:
                first = self._length // size
                count = min(-(-length // size) - first, UPDATES_AT_ONCE)
                end = min(length, (first + count) * size)
                self._remove(first, count)
                self._now(
                    [
                        self._update(index, Op.TRUNCATE, min(end - index * size, size))
                        for index in range(first, first + count)
                    ]
                )
                self._length = end

    def _remove_beyond(self) -> None:
        """Free what lies behind a length that has become smaller, as far as the file's chains know of anything."""
        size = self.layout.chunk_bytes
        index, at = divmod(self._length, size)
        self._presence.made_from(index)
        if at:
            self._now([self._update(index, Op.TRUNCATE, at)])
            index += 1
        hi, _ = file_chunk(self._inode.inode_id, 0)
        for chain in self._chains.tolist():
            for page in self._storage.list_chunks(hi, chain, deadline_s=self._deadline_s):
                beyond = page["lo"][page["lo"] >= index].astype(np.int64)
                for begin in range(0, len(beyond), UPDATES_AT_ONCE):
                    some = beyond[begin : begin + UPDATES_AT_ONCE]
                    self._now([self._update(one, Op.REMOVE) for one in some.tolist()])

    def _remove(self, first: int, count: int) -> None:
        """Remove those of `count` chunks from `first` on that exist."""
        chunks = np.arange(first, first + count, dtype=np.int64)
        there = chunks[self._presence.lengths(chunks, self._deadline_s) >= 0]
        if len(there):
            self._now([self._update(index, Op.REMOVE) for index in there.tolist()])
