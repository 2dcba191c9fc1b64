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

from fs3.checksum import FINE_BYTES, crc, pieces
from fs3.client.plan_core import I64
from fs3.client.same_host import SameHost, parsed
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
        self.views: dict[int, memoryview] = {}
        self.damaged: list[int] = []  # places whose bytes do not match, or cannot be read

    def map(self, endpoint: int, places: I64) -> None:
        """Ranges number `places` [m] of `ranges`, from an endpoint of the table that is on this host."""
        try:
            connection = self._here.borrow(
                self._here.socket(endpoint), int(self._table.nodes[endpoint].node_id), deadline_s=self._deadline_s
            )
        except Fs3Error:
            return
        try:
            for at in range(0, len(places), connection.hello_reply.max_ranges):
                self._map(connection, places[at : at + connection.hello_reply.max_ranges])
        except Fs3Error:
            connection.close()
        finally:
            self._here.give_back(connection)

    def _map(self, connection: LocalConnection, places: I64) -> None:
        asked = self._ranges[places].tobytes()
        connection.send(Kind.LOCATE, [asked], count=len(places), flags=_FLAGS, deadline_s=self._deadline_s)
        _, head = connection.receive_head()
        results, sums, where, keys = parsed(head, len(places), connection.endpoint)
        fresh = connection.fresh()
        try:
            if len(fresh) != len(keys):
                raise Corrupt(f"{connection.endpoint} sent {len(fresh)} of {len(keys)} descriptors")
            files = dict(zip(keys.tolist(), fresh, strict=True))
            ends = np.cumsum(results["n_sums"].astype(np.int64)).tolist()
            for row, place in enumerate(places.tolist()):
                fd = files.get(int(where["file"][row]))
                wanted, result = self._ranges[place], results[row]
                if fd is None or result["status"] or result["length"] != wanted["length"]:
                    continue
                identity = (int(wanted["hi"]), int(wanted["lo"]), int(result["version"]))
                at = int(where["position"][row])
                known = (connection.endpoint, connection.hello_reply.generation, int(where["file"][row]), at)
                range_ = (int(wanted["offset"]), int(wanted["length"]), int(result["chunk_length"]))
                mine = sums[ends[row] - int(result["n_sums"]) : ends[row]].tolist()
                try:
                    self.views[place] = self._view(fd, at, range_, mine, known, identity)
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
        sums: list[int],
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
                crc(view[a - begin : b - begin]) != wanted for (a, b), wanted in zip(cuts, sums, strict=True)
            ):
                raise Corrupt("the bytes do not match their sums")
            self._here.matched(known, identity, blocks)
        self._here.read_bytes += length
        return view[offset - begin : offset - begin + length]
