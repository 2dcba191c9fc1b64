"""Ranges of chunks as read-only memory: the page cache of this host's daemons, mapped, without a copy.

LOCATE with TO_KEEP brings descriptors of the reply's own, on which its blocks are locked. A mapping keeps that
description, and with it the lock: so a block that is mapped is reused by nobody before the last view of it is gone, in
this process or in a forked child, whatever becomes of the daemon. (Ranges of one call and block file share a
description, and so their pins end together.) Bytes are verified before they are handed out, or were in the last minutes
(verified_core.py). As with any mapped file, a sector that turns bad later is a SIGBUS.
"""

from __future__ import annotations

import errno
import mmap

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import FINE_BYTES, crc, pieces
from fs3.client.local_reads import parsed
from fs3.client.plan_core import I64
from fs3.client.same_host import SameHost
from fs3.client.select_core import ReplicaTable
from fs3.client.verified_core import blocks_mask
from fs3.errors import Corrupt, Fs3Error
from fs3.transport.descriptors import close_all
from fs3.transport.frame_core import Flag, Kind
from fs3.transport.local import LocalConnection
from fs3.transport.messages import Records

_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14: faults the pages in, and says EFAULT where the disk cannot
_FLAGS = int(Flag.CHECKSUM | Flag.TO_KEEP)


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
        try:
            connection = self._here.borrow(
                self._here.socket(endpoint), int(self._table.nodes[endpoint].node_id), deadline_s=self._deadline_s
            )
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
            files = dict(zip(keys.tolist(), fresh, strict=True))
            ends = np.cumsum(results["n_sums"].astype(np.int64)).tolist()
            wanted = self._ranges[["hi", "lo", "offset", "length"]][places].tolist()
            found = results[["status", "n_sums", "length", "chunk_length", "version"]].tolist()
            rows = zip(places.tolist(), wanted, found, where.tolist(), ends, strict=True)
            for place, (hi, lo, offset, length), (status, count, got, size, version), (file, _, at), end in rows:
                fd = files.get(file)
                if fd is None or status or got != length:
                    continue
                known = (connection.endpoint, connection.hello_reply.generation, file, at)
                range_ = (offset, length, size)
                try:
                    self.views[place] = self._view(fd, at, range_, sums[end - count : end], known, (hi, lo, version))
                except Corrupt:
                    self.damaged.append(place)
                except OSError:
                    continue  # no more descriptors or mappings, or a kernel that cannot fault pages in
        finally:
            close_all(fresh)  # the mappings keep what they need

    def _view(
        self,
        fd: int,
        position: int,
        range_: tuple[int, int, int],
        sums: NDArray[np.uint32],
        known: tuple[str, int, int, int],
        identity: tuple[int, int, int],
    ) -> memoryview:
        """One range, verified. Raises: OSError, Corrupt."""
        offset, length, chunk_length = range_
        begin = offset - offset % FINE_BYTES
        end = min(-(-(offset + length) // FINE_BYTES) * FINE_BYTES, chunk_length)
        start = position + begin
        page = start % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(fd, page + end - begin, access=mmap.ACCESS_READ, offset=start - page)
        view = memoryview(mapped)[page:]
        blocks = blocks_mask(begin // FINE_BYTES, -(-end // FINE_BYTES) - begin // FINE_BYTES)
        if blocks & ~self._here.verified.of(known, identity, self._here.now_s()):
            try:
                mapped.madvise(_POPULATE_READ)
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
                raise Corrupt("the disk cannot read it") from None
            cuts = pieces(begin, end - begin, chunk_length)
            if len(cuts) != len(sums) or any(
                crc(view[a - begin : b - begin]) != wanted for (a, b), wanted in zip(cuts, sums.tolist(), strict=True)
            ):
                raise Corrupt("the bytes do not match their sums")
            self._here.matched(known, identity, blocks)
        self._here.read_bytes += length
        return view[offset - begin : offset - begin + length]
