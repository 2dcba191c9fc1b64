"""LOCATE: where in which block file the bytes of ranges lie, for a client of the same host and user that reads them.

The daemon touches none of the bytes. It answers what READ would answer, but for the body it gives places, and for the
ranges' own sums the stored ones of every whole 4 KiB block that a range touches, so that the client can verify the
edges too. What makes the answer true is READ's order (read_path.py): hold, look up, look at the lease. What keeps it
true until the client has acknowledged it are two pins on each block: the engine's, and a lock on the description that
the client reads by (descriptors.py).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fs3.errors import Unavailable
from fs3.storage import read_core, read_one
from fs3.storage.descriptors import Block, Budget, Descriptors
from fs3.storage.read_path import ReadPath
from fs3.storage.reply import Kept, Reply, failed_of, plain_reply
from fs3.transport.change_counters import NOT_KEPT
from fs3.transport.frame_core import Flag, Header
from fs3.transport.messages import COUNTERS, FILE_KEY, NO_FILE, PLACE, Records

FEW = 8  # ranges that are looked up faster one by one
_SHARE_OF_DESCRIPTORS = 4  # a quarter of what the process may have open is for clients
_ENGINE_SHIFT = 16
_NEED_ACK, _CHECKSUM, _TO_KEEP = int(Flag.NEED_ACK), int(Flag.CHECKSUM), int(Flag.TO_KEEP)


class Found(NamedTuple):
    """RESULT records of ranges [n], their sums, and per range the file (-1: none) and position of its block,
    and what they hold by."""

    results: bytes
    sums: bytes
    places: list[tuple[int, int]]
    states: list[int]  # of change_counters.py
    bytes: int
    failed: dict[int, int]


class LocatePath:
    """LOCATE on the engines of `reads`. Thread-safe."""

    def __init__(self, reads: ReadPath) -> None:
        self._reads = reads
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE_OF_DESCRIPTORS
        self._budget = Budget(most)

    def welcome(self, peer_user: int | None, *, to_keep_places: bool) -> Descriptors | None:
        """Descriptors for a client that connected over the Unix socket as `peer_user`; None for any other user."""
        return Descriptors(self._budget, to_keep_places=to_keep_places) if peer_user == os.geteuid() else None

    def locate(self, header: Header, ranges: Records, descriptors: Descriptors) -> Reply:
        """The reply to a LOCATE of `ranges`; its blocks are kept until `reply.release()`, and, with TO_KEEP, as long as
        the client has one of the reply's own descriptors, or a mapping by it.

        Raises:
            Unavailable: this daemon's lease has run out, or blocks cannot be locked here.
        """
        reads, kept, to_keep = self._reads, Kept(), bool(header.flags & _TO_KEEP)
        known = descriptors  # what the client has of this connection, its change counters too
        if to_keep:
            descriptors = Descriptors(self._budget)
            kept.also(descriptors.let_go)
        try:
            found = self._few(header, ranges, kept, known) if len(ranges) <= FEW else None
            found = found or self._many(header, ranges, kept, known if to_keep else None)
            places = np.zeros(len(ranges), dtype=PLACE)
            places["file"], unlock = self._lock(found.places, descriptors)
            places["position"] = [max(at, 0) for _, at in found.places]
            places["state"] = found.states
            if not to_keep:
                kept.also(unlock)
            reads.check_lease()
        except BaseException:
            kept.release()
            raise
        keys, fds = descriptors.unsent()
        if to_keep:
            more_keys, more_fds = known.unsent(counters=True)
            keys, fds = keys + more_keys, fds + more_fds
        head = b"".join([found.results, found.sums, places.tobytes(), np.array(keys, FILE_KEY).tobytes()])
        reply = plain_reply(header, head, count=len(ranges), flags=_CHECKSUM if to_keep else _CHECKSUM | _NEED_ACK)
        reply.failed, reply.located_bytes = found.failed, found.bytes
        reply.need_ack, reply.kept, reply.descriptors = not to_keep, kept, fds
        return reply

    def _few(self, header: Header, ranges: Records, kept: Kept, descriptors: Descriptors) -> Found | None:
        """Ranges looked up one by one, in plain Python (read_one.py); None if one is not the plain case.

        Of what is read, only what is looked up here can be kept: that is worth it for few, and large, ranges.
        """
        reads, results, sums, places, states, bytes_ = self._reads, [], [], [], [], 0
        for range_ in ranges:
            asked: read_one.Range = range_.item()
            states.append(self._state(asked, descriptors))  # before the chunk is looked up
            there = reads.find_one(header, asked, kept)
            located = read_one.whole(*there, asked[2], asked[3]) if there is not None else None
            if there is None or located is None:
                return None
            engine, place = there
            results.append(located[0])
            sums.append(located[1])
            places.append((reads.number_of(engine, place.file), place.position))
            bytes_ += located[2]
        return Found(b"".join(results), b"".join(sums), places, states, bytes_, {})

    def _state(self, asked: read_one.Range, descriptors: Descriptors) -> int:
        """What a place that is looked up next can be kept by, once the client has the engine's counters."""
        engine = self._reads.engine_of(asked[4]) if descriptors.to_keep_places else None
        if engine is None or engine.counters is None:
            return NOT_KEPT
        number = self._reads.number_of(engine, 0) >> 32
        has = descriptors.has_counters(number << _ENGINE_SHIFT | COUNTERS, engine.counters)
        return engine.counters.state(asked[0], asked[1]) if has else NOT_KEPT

    def _many(self, header: Header, ranges: Records, kept: Kept, known: Descriptors | None) -> Found:
        """The same for any ranges; their places can be kept if the client has `known`."""
        reads = self._reads
        states = [NOT_KEPT if known is None else self._state(range_.item(), known) for range_ in ranges]
        results, file, position = reads.find(header, ranges, kept)
        reads.refuse_damaged(ranges, results)
        length = results["length"].astype(np.int64)
        chunk_length = results["chunk_length"].astype(np.int64)
        begin, end = read_core.whole_blocks(ranges["offset"].astype(np.int64), length, chunk_length)
        plan = read_core.plan_sums(begin, end - begin, chunk_length)
        results["n_sums"] = plan.count
        sums = reads.sums_of(plan, file, position, [])
        places = list(zip(np.where(length > 0, file, -1).tolist(), position.tolist(), strict=True))
        return Found(results.tobytes(), sums.tobytes(), places, states, int(length.sum()), failed_of(results))

    def _lock(
        self, places: Sequence[tuple[int, int]], descriptors: Descriptors
    ) -> tuple[list[int], Callable[[], None]]:
        """What the client knows the files of these blocks by, and what ends the locks on them, which are taken here."""
        sizes: dict[int, tuple[int, int]] = {-1: (NO_FILE, 0)}  # by file; NO_FILE: the daemon must send it
        blocks: set[Block] = set()
        keys = []
        for number, at in places:
            if number not in sizes:
                engine, file_no = self._reads.bodies.engine_of(number)
                key = (number >> 32) << _ENGINE_SHIFT | file_no
                has = descriptors.has(key, engine, file_no)
                sizes[number] = (key, engine.file(file_no).block_bytes) if has else (NO_FILE, 0)
            key, size = sizes[number]
            keys.append(key)
            if size:
                blocks.add((key, at, size))
        try:
            return keys, descriptors.lock(list(blocks))
        except OSError as error:
            raise Unavailable(f"blocks cannot be locked: {error.strerror}; read them from this daemon") from None
