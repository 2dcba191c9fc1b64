"""The transaction that all engines share: a snapshot underneath, own writes on top, a read set for `commit`.

An engine gives it a `Snapshot` to read from and a `Committer` to hand the finished sets to; everything that makes
a transaction a transaction (reading one's own writes, what a range read conflicts with, limits) is decided here once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fs3.errors import Conflict
from fs3.kv.occ_core import ReadSet, WriteSet

_MIN_PAGE = 16

Pairs = list[tuple[bytes, bytes]]


class Snapshot(Protocol):
    """The committed state at `version`."""

    @property
    def version(self) -> int: ...

    async def get(self, key: bytes) -> bytes | None: ...

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What is at each key, in order."""
        ...

    async def scan(self, begin: bytes, end: bytes, limit: int, reverse: bool) -> Pairs:
        """Up to `limit` pairs of [begin, end), from its end if `reverse`."""
        ...


class Committer(Protocol):
    """Where a transaction goes when it is done."""

    async def commit(self, read_version: int, reads: ReadSet, writes: WriteSet) -> None:
        """Validate and write durably. Raises: Conflict, MaybeApplied, Invalid."""
        ...


class BufferedTransaction:
    """Implements `fs3.kv.api.Transaction`."""

    __slots__ = ("_committer", "_reads", "_snapshot", "_version", "_writes")

    def __init__(self, snapshot: Snapshot, committer: Committer) -> None:
        self._snapshot: Snapshot | None = snapshot
        self._committer = committer
        self._version = snapshot.version
        self._reads = ReadSet()
        self._writes = WriteSet()

    def _open(self) -> Snapshot:
        assert self._snapshot is not None, "a transaction is of no use after commit"
        return self._snapshot

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        source = self._open()
        if not snapshot:
            self._reads.keys.add(key)
        write = self._writes.writes.get(key)
        if isinstance(write, bytes):
            return write
        return self._writes.resolve(key, await source.get(key))

    async def get_many(self, keys: Sequence[bytes], *, snapshot: bool = False) -> list[bytes | None]:
        source = self._open()
        if not snapshot:
            self._reads.keys.update(keys)
        found = await source.get_many(keys)
        if not self._writes:
            return found
        resolve = self._writes.resolve
        return [resolve(key, value) for key, value in zip(keys, found, strict=True)]

    async def range(
        self, begin: bytes, end: bytes, *, limit: int, reverse: bool = False, snapshot: bool = False
    ) -> Pairs:
        assert limit > 0, limit
        source = self._open()
        if begin >= end:
            return []
        if self._writes.touches(begin, end):
            found = await self._merged(source, begin, end, limit, reverse)
        else:
            found = await source.scan(begin, end, limit, reverse)
        if not snapshot:
            if len(found) < limit:
                self._reads.ranges.append((begin, end))
            elif reverse:
                self._reads.ranges.append((found[-1][0], end))
            else:
                self._reads.ranges.append((begin, found[-1][0] + b"\0"))
        return found

    async def _merged(self, source: Snapshot, begin: bytes, end: bytes, limit: int, reverse: bool) -> Pairs:
        """Pages of the snapshot, each with the own writes that fall into the part it covers."""
        writes = self._writes
        own = [key for key in writes.writes if begin <= key < end]
        found: Pairs = []
        while len(found) < limit and begin < end:
            want = max(limit - len(found), _MIN_PAGE)
            base = dict(await source.scan(begin, end, want, reverse))
            if len(base) < want:
                low, high = begin, end
            elif reverse:
                low, high = min(base), end
            else:
                low, high = begin, max(base) + b"\0"
            for key in sorted(base.keys() | {key for key in own if low <= key < high}, reverse=reverse):
                value = writes.resolve(key, base.get(key))
                if value is not None:
                    found.append((key, value))
            begin, end = (begin, low) if reverse else (high, end)
        return found[:limit]

    def put(self, key: bytes, value: bytes) -> None:
        self._writes.put(key, value)

    def delete(self, key: bytes) -> None:
        self._writes.delete(key)

    def delete_range(self, begin: bytes, end: bytes) -> None:
        self._writes.delete_range(begin, end)

    def add(self, key: bytes, delta: int) -> None:
        self._writes.add(key, delta)

    def read_conflict(self, key: bytes) -> None:
        self._reads.keys.add(key)

    def read_conflict_range(self, begin: bytes, end: bytes) -> None:
        if begin < end:
            self._reads.ranges.append((begin, end))

    async def commit(self) -> None:
        self._open()
        self._snapshot = None  # whoever waits for the disk does not hold the snapshot
        await self._committer.commit(self._version, self._reads, self._writes)

    def conflicts(self) -> tuple[frozenset[bytes], tuple[tuple[bytes, bytes], ...]]:
        """The keys and ranges `commit` would check, for tests that assert what an operation depends on."""
        return frozenset(self._reads.keys), tuple(self._reads.ranges)

    def written(self) -> frozenset[bytes]:
        """The keys this transaction would write, for the same tests."""
        return frozenset(self._writes.writes)


def conflict_error() -> Conflict:
    """What a losing transaction gets."""
    return Conflict("a concurrent transaction changed what this one had read; read again and retry")
