"""What a READ is answered: whom its ranges concern, which bytes and which sums, and how the body is cut.

All in numpy over the whole batch: a Python object per range would cost more than the range's bytes. The steps:

    route       (chain, version) of each range -> target, or why not
    answer      what is known of the chunks -> result records
    plan_sums   which sums cover each range; the rule is `checksum.pieces`, part of the wire format
    plan_parts  the body: whole blocks straight from the block files, partial edge blocks from verified copies

A range is laid out as [head edge | middle | tail edge]; the edges are the parts of 4 KiB blocks that the range cuts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import COARSE_BYTES, FINE_BYTES
from fs3.errors import Committing, NotFound, StaleRouting, Unavailable
from fs3.transport.messages import RESULT, Records

I64 = NDArray[np.int64]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]

FINE, COARSE, EDGE = 0, 1, 2
_RUNS = np.array([EDGE, FINE, COARSE, FINE, EDGE], dtype=np.int8)


def route(ranges: Records, target_of: U32, version_of: U32) -> tuple[U16, U32]:
    """(status, target) of ranges [n]; the tables are indexed by chain id, target 0 is none that serves here."""
    chain = ranges["chain"]
    inside = chain < len(target_of)
    index = chain if inside.all() else np.where(inside, chain, 0)
    target = target_of[index]
    status = np.zeros(len(ranges), dtype=np.uint16)
    status[target == 0] = Unavailable.code
    stale = (version_of[index] != ranges["chain_version"]) | ~inside
    if stale.any():
        status[stale] = StaleRouting.code
        target = np.where(stale, np.uint32(0), target)
    return status, target


def answer(
    ranges: Records,
    status: U16,
    found: NDArray[np.bool_],
    version: NDArray[np.uint64],
    pending: NDArray[np.uint64],
    chunk_length: U32,
    *,
    relaxed: bool,
) -> Records:
    """The RESULT records [n] without sums; `status` is what `route` said, the rest what the index knows."""
    code = status.copy()
    well = status == 0
    if not found.all():
        code[well & ~found] = NotFound.code
    if not relaxed and pending.any():
        code[well & (pending != 0)] = Committing.code
    results = np.zeros(len(ranges), dtype=RESULT)
    left = chunk_length.astype(np.int64) - ranges["offset"]
    length = np.minimum(np.maximum(left, 0), ranges["length"])
    served = code == 0
    if served.all():
        results["length"], results["chunk_length"], results["version"] = length, chunk_length, version
    else:
        results["status"] = code
        results["length"] = np.where(served, length, 0)
        results["chunk_length"] = np.where(served, chunk_length, 0)
        results["version"] = np.where(well, version, 0)
    return results


def whole_blocks(offset: I64, length: I64, chunk_length: I64) -> tuple[I64, I64]:
    """[begin, end) of the whole 4 KiB blocks that ranges [n] touch, a chunk's last perhaps short; none for no bytes."""
    begin = offset // FINE_BYTES * FINE_BYTES
    end = np.minimum(-(-(offset + length) // FINE_BYTES) * FINE_BYTES, chunk_length)
    some = length > 0
    return np.where(some, begin, 0), np.where(some, end, 0)


@dataclass(frozen=True, slots=True)
class SumPlan:
    """The sums of a batch, in order: `count[n]` per range; per sum [s] its kind, its range, and which one it is.

    `index` is the 4 KiB block of the chunk (FINE), its 256 KiB unit (COARSE), or the number of the edge (EDGE). Edges
    [e] are ranges `edge_begin .. edge_end` of the chunk of range `edge_range`.
    `simple`: there are no edges, and all sums are of one kind.
    """

    count: I64
    kind: NDArray[np.int8]
    range: I64
    index: I64
    edge_range: I64
    edge_begin: I64
    edge_end: I64
    middle_begin: I64
    middle_end: I64
    simple: bool = False


_NONE = np.empty(0, dtype=np.int64)


def plan_sums(offset: I64, length: I64, chunk_length: I64) -> SumPlan:
    """The sums of ranges [n] that lie within their chunks; a range of no bytes has none."""
    end = offset + length
    if (length > 0).all() and not ((offset | np.where(end == chunk_length, 0, end)) % FINE_BYTES).any():
        blocks = _blocks(length, FINE_BYTES)
        unit = _blocks(offset, COARSE_BYTES)
        unit_stop = np.where(end == chunk_length, _blocks(end, COARSE_BYTES), end // COARSE_BYTES)
        has_unit = (unit < unit_stop) & (blocks > 1)
        if not has_unit.any():
            return _plan_alike(FINE, blocks, offset // FINE_BYTES, offset, end)
        if has_unit.all() and (unit * COARSE_BYTES == offset).all() and (unit_stop * COARSE_BYTES >= end).all():
            return _plan_alike(COARSE, unit_stop - unit, unit, offset, end)
    return _plan_general(offset, length, end, chunk_length)


def _plan_alike(kind: int, count: I64, first: I64, offset: I64, end: I64) -> SumPlan:
    """The plan of ranges [n] that have `count` sums of this kind each, from number `first` on."""
    owner = np.arange(len(count), dtype=np.int64)
    index = first
    if (count != 1).any():
        owner = np.repeat(owner, count)
        index = np.arange(len(owner), dtype=np.int64) + (first - np.cumsum(count) + count)[owner]
    kinds = np.full(len(owner), kind, dtype=np.int8)
    return SumPlan(count, kinds, owner, index, _NONE, _NONE, _NONE, offset, end, simple=True)


def _plan_general(offset: I64, length: I64, end: I64, chunk_length: I64) -> SumPlan:
    empty = length == 0
    first_block, last_block = offset // FINE_BYTES, (end - 1) // FINE_BYTES
    # The middle: whole blocks only; a chunk's last block is whole when the range ends where the chunk does.
    begin = -(-offset // FINE_BYTES) * FINE_BYTES
    stop = np.where(end == chunk_length, end, end // FINE_BYTES * FINE_BYTES)
    cut_single = (first_block == last_block) & ((begin != offset) | (stop != end))
    none = empty | cut_single
    begin, stop = np.where(none, end, begin), np.where(none, end, stop)
    head = (begin > offset) & ~empty
    tail = (end > stop) & ~empty
    unit = -(-begin // COARSE_BYTES) * COARSE_BYTES
    unit_stop = np.where(stop == chunk_length, stop, stop // COARSE_BYTES * COARSE_BYTES)
    no_unit = unit >= unit_stop
    unit, unit_stop = np.where(no_unit, stop, unit), np.where(no_unit, stop, unit_stop)
    counts = np.stack(
        [
            head.astype(np.int64),
            _blocks(unit - begin, FINE_BYTES),
            _blocks(unit_stop - unit, COARSE_BYTES),
            _blocks(stop - unit_stop, FINE_BYTES),
            tail.astype(np.int64),
        ],
        axis=1,
    )
    firsts = np.stack(
        [first_block, begin // FINE_BYTES, unit // COARSE_BYTES, unit_stop // FINE_BYTES, last_block], axis=1
    )
    flat = counts.reshape(-1)
    run = np.repeat(np.arange(len(flat), dtype=np.int64), flat)
    within = np.arange(len(run), dtype=np.int64) - (np.cumsum(flat) - flat)[run]
    kind = _RUNS[run % 5]
    owner = run // 5
    index = firsts.reshape(-1)[run] + within
    edges = np.flatnonzero(kind == EDGE)
    at_head = run[edges] % 5 == 0
    edge_range = owner[edges]
    index[edges] = np.arange(len(edges), dtype=np.int64)
    edge_begin = np.where(at_head, offset[edge_range], stop[edge_range])
    edge_end = np.where(at_head, begin[edge_range], end[edge_range])
    return SumPlan(counts.sum(axis=1), kind, owner, index, edge_range, edge_begin, edge_end, begin, stop)


def _blocks(length: I64, size: int) -> I64:
    counted: I64 = -(-length // size)
    return counted


def without_sums(offset: I64, length: I64) -> SumPlan:
    """The plan of a READ that asks for no sums: every range is middle, whatever it cuts."""
    zero = np.zeros(len(offset), dtype=np.int64)
    return SumPlan(zero, np.empty(0, dtype=np.int8), _NONE, _NONE, _NONE, _NONE, _NONE, offset, offset + length)


@dataclass(frozen=True, slots=True)
class Parts:
    """The body [p] in order. `edge` is the number of the edge that a part is, or -1: then its `length` bytes lie at
    `position` of `file`. `range` is the first range that a part belongs to."""

    edge: I64
    file: I64
    position: I64
    length: I64
    range: I64


def plan_parts(plan: SumPlan, file: I64, position: I64) -> Parts:
    """The body of a batch whose ranges' blocks [n] begin at `position` of `file`; neighbours on disk are merged."""
    n = len(file)
    begin, length = plan.middle_begin, plan.middle_end - plan.middle_begin
    if len(plan.edge_range):
        # Per range: head edge, middle, tail edge; an edge before the middle is its head.
        at_head = plan.edge_begin < plan.middle_begin[plan.edge_range]
        slot = plan.edge_range * 3 + np.where(at_head, 0, 2)
        edge = np.full((n, 3), -1, dtype=np.int64)
        edge.reshape(-1)[slot] = np.arange(len(slot), dtype=np.int64)
        lengths = np.zeros((n, 3), dtype=np.int64)
        lengths[:, 1] = length
        lengths.reshape(-1)[slot] = plan.edge_end - plan.edge_begin
        kept = np.flatnonzero(lengths.reshape(-1))
        owner = kept // 3
        parts = Parts(edge.reshape(-1)[kept], file[owner], (position + begin)[owner], lengths.reshape(-1)[kept], owner)
    else:
        kept = np.flatnonzero(length)
        where = position + begin
        parts = Parts(np.full(len(kept), -1, dtype=np.int64), file[kept], where[kept], length[kept], kept)
    return _merged(parts)


def _merged(parts: Parts) -> Parts:
    if len(parts.file) < 2:
        return parts
    follows = (
        (parts.file[1:] == parts.file[:-1])
        & (parts.position[1:] == parts.position[:-1] + parts.length[:-1])
        & (parts.edge[1:] < 0)
        & (parts.edge[:-1] < 0)
    )
    if not follows.any():
        return parts
    starts = np.flatnonzero(np.concatenate([[True], ~follows]))
    return Parts(
        parts.edge[starts],
        parts.file[starts],
        parts.position[starts],
        np.add.reduceat(parts.length, starts),
        parts.range[starts],
    )
