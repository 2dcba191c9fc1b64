"""Ranges of chunks as read-only memory: the page cache of this host's daemons, mapped, without a copy.

LOCATE with TO_KEEP brings descriptors of the reply's own, on which its blocks are locked. A mapping keeps that
description, and with it the lock: so a block that is mapped is reused by nobody before the last view of it is gone, in
this process or in a forked child, whatever becomes of the daemon. (Ranges of one call and block file share a
description, and so their pins end together.) Bytes are verified before they are handed out, or were in the last minute
(verified_core.py). As with any mapped file, a sector that turns bad later is a SIGBUS.

Where the daemon's change counters can tell how long it stays the newest, the whole chunk is mapped and handed out again
(kept_mappings.py).
"""

from __future__ import annotations

import mmap
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import whole_blocks
from fs3.client.kept_mappings import BlockPlace, Mapped, verify
from fs3.client.kept_places import BlockFile, Chunk, are_counters
from fs3.client.local_reads import parsed
from fs3.client.plan_core import I64
from fs3.client.same_host import SameHost
from fs3.client.select_core import ReplicaTable
from fs3.client.verified_core import Identity, blocks_mask
from fs3.errors import Corrupt, Fs3Error
from fs3.page_cache import resident
from fs3.transport.change_counters import NOT_KEPT, CounterView, word_of
from fs3.transport.descriptors import close_all
from fs3.transport.frame_core import Flag, Kind
from fs3.transport.local import LocalConnection
from fs3.transport.messages import Records

_FLAGS = int(Flag.CHECKSUM | Flag.TO_KEEP)


class _Chunk(NamedTuple):
    """Where a chunk of `length` bytes lies, what its mapping and its verified blocks are known by, and what tells how
    long it stays the newest (None: nothing does)."""

    fd: int
    position: int
    length: int
    chunk: Chunk
    place: BlockPlace
    identity: Identity
    holds: tuple[BlockFile, CounterView] | None
    state: int  # of its counter when the daemon answered


class Mapper:
    """Maps some ranges of `ranges` [n]; what it cannot map, for whatever reason, has no view and is to be read."""

    def __init__(self, here: SameHost, table: ReplicaTable, ranges: Records, deadline_s: float) -> None:
        self._here = here
        self._table = table
        self._ranges = ranges
        self._deadline_s = deadline_s
        self._sent: list[tuple[LocalConnection, dict[int, I64]]] = []
        self.views: dict[int, memoryview] = {}
        self.damaged: list[int] = []  # places whose bytes do not match, or cannot be read

    def __enter__(self) -> Mapper:
        return self

    def __exit__(self, *exc: object) -> None:
        for connection, _ in self._sent:
            if connection.outstanding:
                connection.close()
            self._here.give_back(connection)

    def begin(self, endpoint: int, places: I64) -> None:
        """Ask an endpoint of the table that is on this host for ranges number `places` [m]."""
        socket, node = self._here.socket(self._table, endpoint), self._table.nodes[endpoint]
        try:
            connection = self._here.borrow(socket, int(node.node_id), deadline_s=self._deadline_s)
        except Fs3Error:
            return
        sent: dict[int, I64] = {}
        self._sent.append((connection, sent))
        most = connection.hello_reply.max_ranges
        try:
            for at in range(0, len(places), most):
                frame = places[at : at + most]
                head = self._ranges[frame].tobytes()
                request = connection.send(
                    Kind.LOCATE, [head], count=len(frame), flags=_FLAGS, deadline_s=self._deadline_s
                )
                sent[request] = frame
        except Fs3Error:
            connection.close()

    def finish(self) -> None:
        """Map what was asked for; `views` and `damaged` then tell what became of it."""
        for connection, sent in self._sent:
            try:
                while sent:
                    header, head = connection.receive_head()
                    self._map(connection, sent.pop(header.request_id), head)
            except Fs3Error:
                connection.close()

    def _map(self, connection: LocalConnection, places: I64, head: memoryview) -> None:
        results, sums, where, keys = parsed(head, len(places), connection.endpoint)
        fresh = connection.fresh()
        try:
            if len(fresh) != len(keys):
                raise Corrupt(f"{connection.endpoint} sent {len(fresh)} of {len(keys)} descriptors")
            run = (connection.endpoint, connection.hello_reply.generation)
            files = dict(zip(keys.tolist(), fresh, strict=True))
            for key in [key for key in files if are_counters(key)]:
                self._here.counters(run, key, files.pop(key))
            ends = np.cumsum(results["n_sums"].astype(np.int64)).tolist()
            wanted = self._ranges[["hi", "lo", "chain", "offset", "length"]][places].tolist()
            found = results[["status", "n_sums", "length", "chunk_length", "version"]].tolist()
            rows = zip(places.tolist(), wanted, found, where.tolist(), ends, strict=True)
            for place, (hi, lo, chain, offset, length), (status, count, got, size, version), at, end in rows:
                file, state, position = at
                fd = files.get(file)
                if fd is None or status or got != length:
                    continue
                known = (*run, file, position)
                holds = self._here.holds_by(run, file, fd) if state != NOT_KEPT else None
                chunk = _Chunk(fd, position, size, (hi, lo, chain), known, (hi, lo, version), holds, state)
                try:
                    self.views[place] = self._view(chunk, offset, length, sums[end - count : end])
                except Corrupt:
                    self._here.verified.forget(chunk.place)
                    self.damaged.append(place)
                except OSError:
                    continue  # no more descriptors or mappings, or a kernel that cannot fault pages in
        finally:
            close_all(fresh)  # the mappings keep what they need

    def _view(self, chunk: _Chunk, offset: int, length: int, sums: NDArray[np.uint32]) -> memoryview:
        """One range, verified. Raises: OSError, Corrupt."""
        begin, end = whole_blocks(offset, length, chunk.length)
        kept = self._here.mappings.same(chunk.chunk, chunk.place, chunk.identity)
        if kept is not None:
            first, memory, view = 0, kept.memory, kept.view
        else:
            first, last = (begin, end) if chunk.holds is None else (0, chunk.length)
            memory, view = _mapped(chunk.fd, chunk.position + first, last - first)
        blocks = blocks_mask(begin, end)
        trusted = not blocks & ~self._here.verified.of(chunk.place, chunk.identity, self._here.now_s())
        skip = len(memory) - len(view) - first
        if trusted and not resident(memory, skip + begin, skip + end):
            self._here.verified.forget(chunk.place)
            trusted = False
        if not trusted:
            verify(memory, view, first, (begin, end), chunk.length, sums)
            self._here.matched(chunk.place, chunk.identity, blocks)
        if chunk.holds is not None:
            file, counters = chunk.holds
            word = word_of(*chunk.identity[:2])
            mapped = Mapped(memory, view, chunk.place, chunk.identity, file, counters, word, chunk.state)
            self._here.mappings.keep(chunk.chunk, mapped)
        self._here.read_bytes += length
        return view[offset - first : offset - first + length]


def _mapped(fd: int, position: int, length: int) -> tuple[mmap.mmap, memoryview]:
    """Raises: OSError."""
    skip = position % mmap.ALLOCATIONGRANULARITY
    memory = mmap.mmap(fd, skip + length, access=mmap.ACCESS_READ, offset=position - skip)
    return memory, memoryview(memory)[skip:]
