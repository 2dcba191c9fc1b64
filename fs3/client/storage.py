"""The client of the storage daemons: batches of chunk ranges and chunk updates, over whatever replicas serve them.

Every call is one request per storage node (or a few, where a frame's limits cut it), fails over inside, and ends before
its deadline. Thread-safe; a forked child goes on as a client of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from fs3.client.hedge_core import HedgePolicy
from fs3.client.kept_places import FEW, Kept
from fs3.client.mapping import Mapper
from fs3.client.mgmtd import MgmtdClient
from fs3.client.peers import PIECE_BYTES, SLACK_BYTES, Peers
from fs3.client.plan_core import I64, Asked, group_by, overlap
from fs3.client.read_one import Answer, read_one
from fs3.client.read_path import ReadCall
from fs3.client.same_host import SameHost
from fs3.client.select_core import NONE, ReplicaTable, choose
from fs3.client.write_path import ChunkUpdate, WriteCall
from fs3.errors import Busy, Fs3Error, Invalid, NotFound, StaleRouting
from fs3.ids import file_chunk
from fs3.layout import Layout, stripe_chains
from fs3.runtime import SYSTEM, Runtime
from fs3.transport.connection import Connection, OpenConnection
from fs3.transport.frame_core import Kind
from fs3.transport.messages import LIST_CHUNKS, LIST_KIND, MAX_LISTED, RANGE, RESULT, Op, Records

__all__ = ["RANGE", "ChunkUpdate", "Op", "StorageClient"]

_ASKED = list(Asked._fields)
_CHUNK = ["hi", "lo", "chain"]

UPDATES_AT_ONCE = 1_024
LONGEST_S = 1e6  # that a call may take: what frames can say, and kernels can wait for
HEDGING = HedgePolicy()


class StorageClient:
    """Chunk reads and writes of one process; share it among threads, close it at the end."""

    def __init__(
        self,
        mgmtd: MgmtdClient,
        *,
        secret: str = "",
        client_id: int | None = None,
        timeout_s: float = 30.0,
        stall_s: float = 3.0,
        max_connections: int = 16,
        max_lanes: int | None = None,
        same_host: bool = True,
        verify: bool = True,
        hedging: HedgePolicy | None = HEDGING,
        piece_bytes: int = PIECE_BYTES,
        open_connection: OpenConnection = Connection.open,
        runtime: Runtime = SYSTEM,
    ) -> None:
        """`timeout_s` bounds a call that names no deadline; a daemon silent for `stall_s` inside one is given up for
        another; `max_connections` is per endpoint, `max_lanes` how many of them a large read uses at once (None: half
        as many as there are cores, at most 4). Without `same_host` daemons of this host are asked like any others, and
        not read from (same_host.py); without `verify` they are asked for no sums. `hedging` says when a read that is
        late is asked of a second replica; None: never. A whole chunk of two times `piece_bytes` (a multiple of 4 KiB)
        and more goes down a chain of several replicas piece by piece. `client_id` stands for a session with mgmtd,
        which is otherwise opened at the first change."""
        self._timeout_s = timeout_s
        self._runtime = runtime
        self._mgmtd = mgmtd
        self._peers = Peers(
            mgmtd,
            secret=secret,
            client_id=client_id,
            max_connections=max_connections,
            max_lanes=max_lanes,
            stall_s=stall_s,
            same_host=same_host,
            verify=verify,
            hedging=hedging,
            piece_bytes=piece_bytes,
            open_connection=open_connection,
            runtime=runtime,
        )

    @property
    def client_id(self) -> int:
        """By which daemons know this client's updates: its session with mgmtd; one is opened if there is none yet."""
        return self._peers.identity().client_id

    @property
    def peers(self) -> Peers:
        """What all its calls share."""
        return self._peers

    def deadline_s(self) -> float:
        """When a call that begins now and names no deadline must have ended."""
        return self._times(None)[1]

    @property
    def same_host(self) -> SameHost:
        """What is read from block files of this host, and what is known of them."""
        return self._peers.same_host

    @property
    def keeps_places(self) -> bool:
        """Whether places of any chunks on this host are known."""
        return len(self.same_host.kept) > 0

    def close(self) -> None:
        """Close every connection; later calls raise Unavailable."""
        self._peers.close()

    def read(
        self, ranges: Records, out: memoryview, out_offsets: NDArray[np.int64], *, deadline_s: float | None = None
    ) -> Records:
        """Read RANGE records [n], each into `out[out_offsets[i] :][: length]`; RESULT records [n].

        `chain_version` of `ranges` is filled in here. A chunk that does not exist is status NotFound in its result, a
        chunk shorter than its range a smaller `length`; the rest of `out` there is left as it was. Every byte of
        `length` has been verified.

        Raises:
            Invalid: `out` is read-only or too small, or two ranges would have a byte of it in common; the deadline is
                no number, or more than eleven days ahead.
            Corrupt: no replica of a chunk has bytes that match their sums.
            Unavailable: not all was answered before the deadline (a `lease_now_s` time; default `timeout_s` from now).
        """
        begun_s, deadline_s = self._times(deadline_s)
        if not len(ranges):
            return np.zeros(0, dtype=RESULT)
        lengths: I64 = ranges["length"].astype(np.int64)
        if (
            len(out_offsets) != len(ranges)
            or int(out_offsets.min()) < 0
            or bool((out_offsets > len(out) - lengths).any())
        ):
            raise Invalid(f"{len(ranges)} ranges do not fit into a buffer of {len(out)} bytes where they should go")
        if out.readonly:
            raise Invalid("the buffer is read-only; read into a bytearray, or a writable array")
        if len(ranges) > 1 and overlap(out_offsets, lengths):
            raise Invalid(
                f"{len(ranges)} ranges overlap in the buffer where they should go; give each a place of its own"
            )
        if len(ranges) <= FEW and self.keeps_places:
            known = self._read_kept(ranges, out, out_offsets)
            if known is not None:
                return known
        if len(ranges) == 1:
            hi, lo, offset, length, chain, _ = ranges[0].item()
            begin = int(out_offsets[0])
            return self.read_one(
                Asked(hi, lo, offset, length, chain), out[begin : begin + length], deadline_s=deadline_s
            )
        return ReadCall(self._peers, Kind.READ, ranges, deadline_s, begun_s, out=out, out_offsets=out_offsets).run()

    def _read_kept(self, ranges: Records, out: memoryview, out_offsets: NDArray[np.int64]) -> Records | None:
        rows: list[tuple[int, int, int, int, int, int]] = ranges.tolist()
        asked = [Asked(*row[:5]) for row in rows]
        outs = [out[at : at + one.length] for at, one in zip(out_offsets.tolist(), asked, strict=True)]
        kept = self.read_kept(asked, outs)
        if kept is None:
            return None
        results = [
            (0, 0, 0, len(part), one.chunk_length, one.identity[2]) for one, part in zip(kept, outs, strict=True)
        ]
        return np.array(results, dtype=RESULT)

    def read_kept(self, asked: Sequence[Asked], outs: Sequence[memoryview]) -> list[Kept] | None:
        """Read each of `asked`, a few, into its writable `outs`, from block files of this host, without asking anybody.

        None: not all are known to lie there, and no byte counts. Raises: Unavailable: the client is closed.
        """
        self._peers.table()
        return self.same_host.read_kept(asked, outs)

    def read_one(self, asked: Asked, out: memoryview, *, deadline_s: float | None = None) -> Records:
        """As `read`, of a single range, which goes into the writable bytes `out` [asked.length]; RESULT records [1]."""
        begun_s, deadline_s = self._times(deadline_s)
        answer = read_one(self._peers, asked, out, deadline_s)
        if isinstance(answer, Answer):
            return np.array([(0, 0, 0, asked.length, answer.chunk_length, answer.version)], dtype=RESULT)
        ranges = np.array([(*asked, 0)], dtype=RANGE)
        start = np.zeros(1, dtype=np.int64)
        call = ReadCall(self._peers, Kind.READ, ranges, deadline_s, begun_s, out=out, out_offsets=start)
        return call.run(answer)

    def map(self, ranges: Records, *, deadline_s: float | None = None) -> list[memoryview | None]:
        """RANGE records [n], each wholly within its chunk, as read-only memory of this host's daemons (mapping.py).

        None where a range cannot be mapped, for whatever reason: read it. Mappings take descriptors of the process.
        """
        _, deadline_s = self._times(deadline_s)
        here, table = self._peers.same_host, self._peers.table()
        kept = len(here.mappings) > 0
        views = [here.mapped(Asked(*row)) if kept else None for row in ranges[_ASKED].tolist()]
        left = np.flatnonzero([view is None for view in views])
        if len(left):
            fresh = self._map(table, ranges[left], deadline_s)
            for place, row in enumerate(left.tolist()):
                views[row] = fresh.get(place)
        return views

    def _map(self, table: ReplicaTable, ranges: Records, deadline_s: float) -> dict[int, memoryview]:
        """By their number, those that daemons of this host could tell the places of."""
        near = self._peers.same_host.near(table)
        if near is None:
            return {}
        try:
            rows = table.rows(ranges["chain"])
        except StaleRouting:
            return {}
        ranges["chain_version"] = table.chain_version[rows]
        candidates = table.endpoint[rows]
        columns = choose(
            candidates,
            (candidates != NONE) & near[candidates],
            ranges["length"].astype(np.int64),
            self._peers.loads(table),
            slack=SLACK_BYTES,
            rotation=self._peers.rotation(),
            groups=rows,
        )
        self._prefer_mapped(table, ranges, candidates, columns, near)
        reachable = np.flatnonzero(columns != NONE)
        with Mapper(self._peers.same_host, table, ranges, deadline_s) as mapper:
            for endpoint, mine in group_by(candidates[reachable, columns[reachable]]):
                mapper.begin(endpoint, reachable[mine])
            mapper.finish()
        for place in mapper.damaged:
            target = int(table.target[rows[place], columns[place]])
            self._peers.report(target, *ranges[_CHUNK][place].tolist())
        return mapper.views

    def _prefer_mapped(
        self, table: ReplicaTable, ranges: Records, candidates: I64, columns: I64, near: NDArray[np.bool_]
    ) -> None:
        """Change `columns` [n] to the daemon of which a chunk is mapped already, so that it stays one mapping."""
        here = self._peers.same_host
        for row, chunk in enumerate(ranges[_CHUNK].tolist() if len(here.mappings) else ()):
            socket = here.mappings.mapped_by(chunk)
            for column, endpoint in enumerate(candidates[row].tolist() if socket else ()):
                if endpoint != NONE and near[endpoint] and here.socket(table, endpoint) == socket:
                    columns[row] = column

    def write(self, updates: Sequence[ChunkUpdate], *, deadline_s: float | None = None) -> Records:
        """Apply updates of distinct chunks, in any order; RESULT records [n], with each chunk's version and length.

        Acknowledged means: on every serving replica, on stable storage unless `durable` is false.

        Raises:
            Fs3Error: what became of the first update that failed; those before and after it may have been applied.
            MaybeApplied: nobody knows whether that update was, or still will be, applied.
            Every other error says that the update was not, and will not be.
        """
        results, errors = self.try_write(updates, deadline_s=deadline_s)
        for error in errors:
            if error is not None:
                raise error
        return results

    def try_write(
        self, updates: Sequence[ChunkUpdate], *, deadline_s: float | None = None
    ) -> tuple[Records, list[Fs3Error | None]]:
        """As `write`, with each update's error, or None, beside the results. Raises: Busy, if none was sent."""
        begun_s, deadline_s = self._times(deadline_s)
        results = np.zeros(len(updates), dtype=RESULT)
        errors: list[Fs3Error | None] = []
        for at in range(0, len(updates), UPDATES_AT_ONCE):
            call = WriteCall(self._peers, updates[at : at + UPDATES_AT_ONCE], deadline_s, begun_s)
            try:
                errors += call.run()
            except Busy as error:
                if not at:
                    raise
                return results, errors + [error] * (len(updates) - at)
            results[at : at + UPDATES_AT_ONCE] = call.results
        return results, errors

    def put_if_absent(self, updates: Sequence[ChunkUpdate], *, deadline_s: float | None = None) -> NDArray[np.bool_]:
        """Write whole chunks that do not exist yet; which of them this call wrote: [n]. Raises: as `write`."""
        for update in updates:
            assert update.op == Op.PUT_IF_ABSENT, update.op
        return np.asarray(self.write(updates, deadline_s=deadline_s)["version"] != 0)

    def query(
        self,
        hi: NDArray[np.uint64],
        lo: NDArray[np.uint64],
        chain: NDArray[np.uint32],
        *,
        deadline_s: float | None = None,
    ) -> Records:
        """RESULT records of chunks [n] without their bytes: version and chunk_length, or status NotFound.

        Raises: Unavailable.
        """
        begun_s, deadline_s = self._times(deadline_s)
        ranges = np.zeros(len(hi), dtype=RANGE)
        ranges["hi"], ranges["lo"], ranges["chain"] = hi, lo, chain
        return ReadCall(self._peers, Kind.QUERY, ranges, deadline_s, begun_s).run()

    def list_chunks(self, hi: int, chain: int, *, deadline_s: float | None = None) -> Iterator[Records]:
        """Pages of LISTED records, by rising `lo`, of the chunks on `chain` whose upper half is `hi`.

        Raises: Unavailable.
        """
        return self._list(hi, chain, LIST_CHUNKS, deadline_s)

    def list_kind(self, kind: int, chain: int, *, deadline_s: float | None = None) -> Iterator[Records]:
        """Pages of LISTED records, by rising (hi, lo), of all chunks of `kind` on `chain`. Raises: Unavailable."""
        return self._list(kind << 56, chain, LIST_KIND, deadline_s)

    def _list(self, hi: int, chain: int, what: int, deadline_s: float | None) -> Iterator[Records]:
        lo = 0
        while True:
            begun_s, page_deadline_s = self._times(deadline_s)
            ranges = np.zeros(1, dtype=RANGE)
            ranges["hi"], ranges["lo"], ranges["chain"], ranges["offset"] = hi, lo, chain, what
            call = ReadCall(self._peers, Kind.QUERY, ranges, page_deadline_s, begun_s)
            call.run()
            page = call.batch.listed
            if len(page):
                yield page
            if len(page) < MAX_LISTED:
                return
            hi, lo = int(page["hi"][-1]), int(page["lo"][-1]) + 1  # a lower half of all ones does not occur

    def remove(
        self,
        hi: NDArray[np.uint64],
        lo: NDArray[np.uint64],
        chain: NDArray[np.uint32],
        *,
        durable: bool = True,
        deadline_s: float | None = None,
    ) -> None:
        """Remove chunks [n]; one that does not exist is no error. Raises: as `write`."""
        rows = zip(hi.tolist(), lo.tolist(), chain.tolist(), strict=True)
        self._remove((ChunkUpdate(hi=a, lo=b, chain=c, op=Op.REMOVE, durable=durable) for a, b, c in rows), deadline_s)

    def remove_file_chunks(
        self, inode: int, layout: Layout, length: int | None, *, deadline_s: float | None = None
    ) -> None:
        """Remove every chunk of a file; if nobody knows its length (None), its chains are asked what they have.

        Raises: as `write`, or NotFound: its chain table is gone.
        """
        chains = stripe_chains(layout, self._mgmtd.routing.table(layout.chain_table, layout.chain_table_version))
        durable = layout.durability == 0
        hi, _ = file_chunk(inode, 0)

        def of_known_length(length: int) -> Iterator[ChunkUpdate]:
            for index in range(-(-length // layout.chunk_bytes)):
                chain = int(chains[index % len(chains)])
                yield ChunkUpdate(hi=hi, lo=index, chain=chain, op=Op.REMOVE, durable=durable)

        def of_unknown_length() -> Iterator[ChunkUpdate]:
            for chain in chains.tolist():
                for page in self.list_chunks(hi, chain, deadline_s=deadline_s):
                    for lo in page["lo"].tolist():
                        yield ChunkUpdate(hi=hi, lo=lo, chain=chain, op=Op.REMOVE, durable=durable)

        self._remove(of_unknown_length() if length is None else of_known_length(length), deadline_s)

    def _remove(self, updates: Iterable[ChunkUpdate], deadline_s: float | None) -> None:
        rest = iter(updates)
        while batch := list(islice(rest, UPDATES_AT_ONCE)):
            for error in self.try_write(batch, deadline_s=deadline_s)[1]:
                if error is not None and not isinstance(error, NotFound):
                    raise error

    def _times(self, deadline_s: float | None) -> tuple[float, float]:
        """When a call begins, and must have ended. Raises: Invalid: that is no time, or ages away."""
        begun_s = self._runtime.now_s()
        if deadline_s is None:
            deadline_s = begun_s + self._timeout_s
        if not deadline_s <= begun_s + LONGEST_S:  # nor if it is not a number
            raise Invalid(
                f"a deadline {deadline_s - begun_s:.0f} s ahead: name a time of `fs3.clock.lease_now_s`, at most"
                f" {LONGEST_S:,.0f} s ahead, or none"
            )
        return begun_s, max(deadline_s, 0.0)
