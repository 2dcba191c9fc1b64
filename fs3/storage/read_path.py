"""READ and QUERY: from the ranges of a frame to the reply that `outbox.py` sends.

What is decided lies in read_core.py; here the engines are asked. The order is what makes a reply true (DESIGN.md,
section 4): hold the engines' blocks, look the chunks up, look at the lease, and only then answer. What is sent later
is what was looked up, since a block that is held or pinned does not change.

A batch of whole blocks costs no Python per range but a slice of the mapped file. Partial blocks are read and verified
here, by `preadv`; so are, into the page cache, ranges of which a sample is not there yet (`Cold`), on another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import FINE_BYTES
from fs3.errors import Corrupt, Invalid, StaleRouting
from fs3.storage import read_core, read_one
from fs3.storage.engine_api import ChunkEngine, Located, Place
from fs3.storage.read_body import FILE_SHIFT, Bodies, part_of
from fs3.storage.read_core import COARSE, EDGE, FINE, SumPlan
from fs3.storage.read_one import Range
from fs3.storage.reply import FileRange, Kept, Origin, Reply, data_reply, failed_of, plain_reply
from fs3.transport.frame_core import MAX_BODY_BYTES, Flag, Header
from fs3.transport.messages import LIST_CHUNKS, LIST_KIND, MAX_LISTED, RANGE, RESULT, SUM, Records, records

MANY_EDGES = 64  # more partial blocks than this are verified away from the IO threads
# Plain numbers: an operation on an IntFlag takes longer than the lookup of a chunk.
_CHECKSUM, _RELAXED, _NEED_ACK = int(Flag.CHECKSUM), int(Flag.RELAXED), int(Flag.NEED_ACK)

I64 = NDArray[np.int64]
Key = tuple[int, int, int]  # target, hi, lo


class ReadTable(Protocol):
    """Which target answers reads of a chain, and at which version: [largest chain id + 1]; target 0 is nobody."""

    @property
    def target(self) -> NDArray[np.uint32]: ...
    @property
    def version(self) -> NDArray[np.uint32]: ...


class Serving(Protocol):
    """What the write path knows of the targets here."""

    @property
    def reads(self) -> ReadTable: ...
    def engine(self, target_id: int) -> ChunkEngine: ...


class ReadPath:
    """Thread-safe. `check_lease` raises Unavailable once this daemon may not answer any more; `suspect(key)` hears of
    chunks whose partial blocks failed their sums, and must not block."""

    def __init__(
        self,
        engines: Sequence[ChunkEngine],
        serving: Serving,
        *,
        check_lease: Callable[[], None],
        suspect: Callable[[Key], None] = lambda key: None,
    ) -> None:
        self._engines = tuple(engines)
        self._number = {id(engine): number for number, engine in enumerate(self._engines)}
        self._serving = serving
        self._check_lease = check_lease
        self._suspect = suspect
        self.bodies = Bodies(self._engines)
        self._known: tuple[ReadTable | None, I64] = None, np.empty(0, dtype=np.int64)

    def check_lease(self) -> None:
        """Raises: Unavailable, once this daemon may not answer any more."""
        self._check_lease()

    def many_edges(self, ranges: Records) -> bool:
        """Whether verifying this batch's partial blocks would keep an IO thread for long."""
        cut = np.count_nonzero((ranges["offset"] | ranges["length"]) % FINE_BYTES)
        return bool(cut > MANY_EDGES)

    def read(self, header: Header, ranges: Records, *, by_sendfile: bool = True) -> Reply:
        """The reply to a READ of `ranges`; its blocks are kept until `reply.kept.release()`.

        Raises:
            Unavailable: this daemon's lease has run out.
            Invalid: more bytes than one reply may have.
        """
        if int(ranges["length"].sum(dtype=np.int64)) > MAX_BODY_BYTES:
            raise Invalid(f"a READ of more than {MAX_BODY_BYTES} bytes; ask for less at a time")
        kept = Kept()
        try:
            results, file, position = self.find(header, ranges, kept)
            self.refuse_damaged(ranges, results)
            reply = self._reply(header, ranges, results, file, position, kept, by_sendfile=by_sendfile)
            self._check_lease()
        except BaseException:
            kept.release()
            raise
        return reply

    def read_one(self, header: Header, asked: Range, *, by_sendfile: bool = True) -> Reply | None:
        """As `read`, of a single range, if that is the plain case (read_one.py); else None.

        Raises: Unavailable: this daemon's lease has run out.
        """
        kept = Kept()
        reply: Reply | None = None
        try:
            there = self.find_one(header, asked, kept)
            if there is not None:
                reply = self._reply_to_one(header, asked, there, kept, by_sendfile=by_sendfile)
            if reply is not None:
                self._check_lease()
        except BaseException:
            kept.release()
            raise
        if reply is None:
            kept.release()
        return reply

    def _reply_to_one(
        self, header: Header, asked: Range, there: tuple[ChunkEngine, Place], kept: Kept, *, by_sendfile: bool
    ) -> Reply | None:
        flags = header.flags
        found = read_one.find(*there, asked[2], asked[3], summed=bool(flags & _CHECKSUM))
        if found is None:
            return None
        file, position, length = found.file, found.position, found.length
        body, plain = part_of(file, position, length, by_sendfile=by_sendfile)
        flags = (flags & _CHECKSUM) | (0 if plain else _NEED_ACK)
        reply = data_reply(header, found.head, 1, [body], length, flags=flags)
        reply.plain, reply.need_ack, reply.kept = plain, not plain, kept
        reply.find_origins = lambda: [None, Origin(file, position, 0)]
        reply.on_disk, reply.disk_bytes = FileRange(file, position, length), length
        return reply

    def find_one(self, header: Header, asked: Range, kept: Kept) -> tuple[ChunkEngine, Place] | None:
        """Where the chunk of a range is, in plain Python; None if that is not the plain case, and `find` must look."""
        hi, lo, _, _, chain, version = asked
        table = self._serving.reads
        target = int(table.target[chain]) if chain < len(table.target) else 0
        if not target or table.version[chain] != version:
            return None
        engine = self._serving.engine(target)
        if (target, hi, lo) in engine.damaged():
            return None
        kept.hold(engine)
        place = engine.place(target, hi, lo)
        if place is None or (place.pending and not header.flags & _RELAXED) or self._serving.reads is not table:
            return None
        kept.names(engine, [place.block])
        return engine, place

    def engine_of(self, chain: int) -> ChunkEngine | None:
        """The engine of the target that answers reads of a chain, if one here does."""
        table = self._serving.reads
        target = int(table.target[chain]) if chain < len(table.target) else 0
        return self._serving.engine(target) if target else None

    def number_of(self, engine: ChunkEngine, file_no: int) -> int:
        """How `find` names a file of an engine."""
        return self._number[id(engine)] << FILE_SHIFT | file_no

    def query(self, header: Header, ranges: Records) -> Reply:
        """The reply to a QUERY. Raises: Unavailable, Invalid."""
        kept = Kept()
        try:
            results, _, _ = self.find(header, ranges, kept)
            results["length"] = 0
            body: list[bytes] = []
            for row in np.flatnonzero(ranges["offset"] >= LIST_KIND).tolist():
                listed = self._list(ranges[row], results[row : row + 1])
                if len(listed):
                    body.append(listed.tobytes())
            self._check_lease()
        finally:
            kept.release()
        reply = plain_reply(header, results.tobytes(), count=len(results), body=body)
        reply.failed = failed_of(results)
        return reply

    def _list(self, asked: Records, result: Records) -> Records:
        """The chunks of `asked["hi"]`, or of its kind; `result` [1] is told how many. `MAX_LISTED`: maybe not all."""
        status, target = read_core.route(asked.reshape(1), self._serving.reads.target, self._serving.reads.version)
        result["status"], result["version"], result["chunk_length"] = status, 0, 0
        if status[0]:
            return np.zeros(0, dtype=RESULT)
        engine = self._serving.engine(int(target[0]))
        whole_kind = int(asked["offset"]) != LIST_CHUNKS
        listed = engine.list_chunks(
            int(target[0]), int(asked["hi"]), int(asked["lo"]), MAX_LISTED, whole_kind=whole_kind
        )
        table = self._serving.reads
        status_now, target_now = read_core.route(asked.reshape(1), table.target, table.version)
        if status_now[0] or target_now[0] != target[0]:
            result["status"] = StaleRouting.code  # it may have stopped serving before the listing began
            return np.zeros(0, dtype=RESULT)
        result["length"] = len(listed)
        return listed

    def find(self, header: Header, ranges: Records, kept: Kept) -> tuple[Records, I64, I64]:
        """(results without sums, block file, position of the block) of each range [n]."""
        table = self._serving.reads
        status, targets = read_core.route(ranges, table.target, table.version)
        n = len(ranges)
        relaxed = bool(header.flags & _RELAXED)
        if len(self._engines) == 1:
            located = self._lookup(self._engines[0], targets, ranges["hi"], ranges["lo"], kept)
            status = self._still(table, ranges, status, targets)
            file = located.file.astype(np.int64)
            fields = (located.found, located.version, located.pending, located.length)
            return read_core.answer(ranges, status, *fields, relaxed=relaxed), file, located.position
        found = np.zeros(n, dtype=np.bool_)
        version, pending = np.zeros(n, dtype=np.uint64), np.zeros(n, dtype=np.uint64)
        length = np.zeros(n, dtype=np.uint32)
        file, position = np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=np.int64)
        engine_of = self._engines_of(table)
        numbers = np.where(targets != 0, engine_of[np.minimum(ranges["chain"], len(engine_of) - 1)], -1)
        for number in range(len(self._engines)):
            rows = np.flatnonzero(numbers == number)
            if not len(rows):
                continue
            some = self._lookup(self._engines[number], targets[rows], ranges["hi"][rows], ranges["lo"][rows], kept)
            found[rows], version[rows], pending[rows] = some.found, some.version, some.pending
            length[rows], position[rows] = some.length, some.position
            file[rows] = np.where(some.file >= 0, some.file.astype(np.int64) | number << FILE_SHIFT, -1)
        status = self._still(table, ranges, status, targets)
        return read_core.answer(ranges, status, found, version, pending, length, relaxed=relaxed), file, position

    def _still(
        self, table: ReadTable, ranges: Records, status: NDArray[np.uint16], targets: NDArray[np.uint32]
    ) -> NDArray[np.uint16]:
        """`status` [n] of a lookup under `table`, or that of now: a target may have stopped serving before it began."""
        newest = self._serving.reads
        if newest is table:
            return status
        status_now, targets_now = read_core.route(ranges, newest.target, newest.version)
        status_now[(targets_now != targets) & (status_now == 0)] = StaleRouting.code
        return np.where(status != 0, status, status_now)

    def _engines_of(self, table: ReadTable) -> I64:
        """The number of the engine that answers reads of a chain: [largest chain id + 1]."""
        known = self._known
        if known[0] is not table:
            targets = table.target.tolist()
            numbers = [self._number[id(self._serving.engine(one))] if one else -1 for one in targets]
            known = self._known = table, np.array(numbers, dtype=np.int64)
        return known[1]

    def _lookup(
        self,
        engine: ChunkEngine,
        targets: NDArray[np.uint32],
        hi: NDArray[np.uint64],
        lo: NDArray[np.uint64],
        kept: Kept,
    ) -> Located:
        kept.hold(engine)
        located = engine.lookup(targets, hi, lo)
        kept.names(engine, located.block)
        return located

    def refuse_damaged(self, ranges: Records, results: Records) -> None:
        """Chunks known to fail their sums are not even sent: the reader asks another replica at once."""
        bad = {key for engine in self._engines for key in engine.damaged()}
        if not bad:
            return
        table = self._serving.reads
        for row in np.flatnonzero(np.isin(ranges["lo"], [lo for _, _, lo in bad]) & (results["status"] == 0)).tolist():
            chain = int(ranges["chain"][row])
            target = int(table.target[chain]) if chain < len(table.target) else 0
            if (target, int(ranges["hi"][row]), int(ranges["lo"][row])) in bad:
                results["status"][row], results["length"][row] = Corrupt.code, 0

    def _reply(
        self,
        header: Header,
        ranges: Records,
        results: Records,
        file: I64,
        position: I64,
        kept: Kept,
        *,
        by_sendfile: bool,
    ) -> Reply:
        offset = ranges["offset"].astype(np.int64)
        summed = bool(header.flags & _CHECKSUM)
        edges: list[memoryview] = []
        edge_sums: list[int] = []
        while True:
            length = results["length"].astype(np.int64)
            if not summed:
                plan = read_core.without_sums(offset, length)
                break
            # Where nothing is served nothing is cut, whatever was asked for.
            plan = read_core.plan_sums(
                np.where(length > 0, offset, 0), length, results["chunk_length"].astype(np.int64)
            )
            edges, edge_sums, bad = self._verify_edges(plan, results, file, position)
            if not bad:
                break
            rows = list(bad)
            self._suspect_rows(ranges, rows)
            results["status"][rows] = list(bad.values())
            results["length"][rows] = 0
        head = results.tobytes()
        if summed:
            results["n_sums"] = plan.count
            head = results.tobytes() + self.sums_of(plan, file, position, edge_sums).tobytes()
        parts = read_core.plan_parts(plan, file, position)
        body, plain = self.bodies.make(parts, edges, by_sendfile=by_sendfile)
        flags = (header.flags & _CHECKSUM) | (0 if plain else _NEED_ACK)
        reply = data_reply(header, head, len(results), body, int(length.sum()), flags=flags)
        reply.failed = failed_of(results)
        reply.plain, reply.need_ack, reply.kept = plain, not plain, kept
        reply.find_origins = lambda: self.bodies.origins(parts)
        reply.on_disk = parts
        reply.disk_bytes = int(parts.length.sum() if not edges else parts.length[parts.edge < 0].sum())
        return reply

    def _verify_edges(
        self, plan: SumPlan, results: Records, file: I64, position: I64
    ) -> tuple[list[memoryview], list[int], dict[int, int]]:
        """The bytes and sums of the edges [e], and the ranges whose blocks fail, with the status that this means."""
        count = len(plan.edge_range)
        if count == 0:
            return [], [], {}
        scratch = memoryview(bytearray(int((plan.edge_end - plan.edge_begin).sum())))
        edges: list[memoryview] = []
        sums: list[int] = []
        bad: dict[int, int] = {}
        at = 0
        chunk_length = results["chunk_length"]
        rows = zip(plan.edge_range.tolist(), plan.edge_begin.tolist(), plan.edge_end.tolist(), strict=True)
        for row, begin, end in rows:
            engine, number = self.bodies.engine_of(int(file[row]))
            out = scratch[at : at + end - begin]
            at += end - begin
            try:
                part, crc = engine.read_verified(
                    number, int(position[row]), int(chunk_length[row]), begin, end - begin, out
                )
            except Corrupt:
                bad[row] = Corrupt.code
                part, crc = out, 0
            edges.append(part)
            sums.append(crc)
        return edges, sums, bad

    def _suspect_rows(self, ranges: Records, rows: Sequence[int]) -> None:
        table = self._serving.reads
        for hi, lo, chain in ranges[["hi", "lo", "chain"]][list(rows)].tolist():
            target = int(table.target[chain]) if chain < len(table.target) else 0
            if target:
                self._suspect((target, hi, lo))

    def sums_of(self, plan: SumPlan, file: I64, position: I64, edge_sums: list[int]) -> NDArray[np.uint32]:
        if plan.simple:
            where, coarse = plan.range, bool(len(plan.kind)) and plan.kind[0] == COARSE
            return self._gather(file[where], position[where], plan.index, coarse=coarse)
        out = np.zeros(len(plan.kind), dtype=SUM)
        for kind in (FINE, COARSE):
            picked = np.flatnonzero(plan.kind == kind)
            if len(picked):
                owner = plan.range[picked]
                out[picked] = self._gather(file[owner], position[owner], plan.index[picked], coarse=kind == COARSE)
        if edge_sums:
            out[plan.kind == EDGE] = np.array(edge_sums, dtype=np.uint32)
        return out

    def _gather(self, file: I64, position: I64, index: I64, *, coarse: bool) -> NDArray[np.uint32]:
        if len(self._engines) == 1:
            engine = self._engines[0]
            numbers = file.astype(np.int32)
            return (engine.gather_coarse if coarse else engine.gather_fine)(numbers, position, index)
        out = np.zeros(len(file), dtype=np.uint32)
        owner = file >> FILE_SHIFT
        for number in np.unique(owner).tolist():
            rows = np.flatnonzero(owner == number)
            engine = self._engines[number]
            numbers = (file[rows] & 0xFFFF_FFFF).astype(np.int32)
            out[rows] = (engine.gather_coarse if coarse else engine.gather_fine)(numbers, position[rows], index[rows])
        return out

    def warm(self, reply: Reply) -> Reply:
        """Have what a reply takes from the disk in the page cache; blocks for as long as the disk takes.

        Raises: Unavailable, with the reply's blocks released, if the lease has run out meanwhile.
        """
        self.bodies.load(reply)
        try:
            self._check_lease()
        except BaseException:
            reply.release()
            raise
        return reply


def ranges_of(header: Header, head: bytes | bytearray | memoryview, max_ranges: int) -> Records:
    """The RANGE records of a READ or QUERY. Raises: Invalid."""
    if header.count > max_ranges:
        raise Invalid(f"{header.count} ranges in a request; this daemon takes {max_ranges}")
    if len(head) != header.count * RANGE.itemsize or header.body_bytes:
        raise Invalid(f"{len(head)} + {header.body_bytes} bytes are not {header.count} ranges")
    return records(head, RANGE, header.count)


__all__ = ["ReadPath", "Serving", "ranges_of"]
