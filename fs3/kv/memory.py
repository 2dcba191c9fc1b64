"""The in-memory engine: the truth in simulations and tests, with the same transactions as the durable engines.

Every key holds its versions, oldest first (a removal is a version too), so that a transaction reads the state at its
start however long it runs. Versions that no open transaction can see any more are dropped at the next commit.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import AsyncIterator, Sequence

from fs3.errors import Unavailable
from fs3.kv.api import Limits
from fs3.kv.occ_core import History, ReadSet, WriteSet, check_limits
from fs3.kv.transaction import BufferedTransaction, Pairs, conflict_error
from fs3.kv.watchers import Watchers

LIMITS = Limits(max_operations=100_000, max_transaction_bytes=10_000_000)
_WINDOW_CHANGES = 200_000


class _Versions:
    """The store itself: per key [(version, value or None)], and the sorted list of keys."""

    __slots__ = ("_keys", "_stale", "_values", "open_at")

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._values: dict[bytes, list[tuple[int, bytes | None]]] = {}
        self._stale: deque[tuple[int, bytes]] = deque()
        self.open_at: dict[int, int] = {}  # version -> open snapshots

    def at(self, key: bytes, version: int) -> bytes | None:
        for written, value in reversed(self._values.get(key, ())):
            if written <= version:
                return value
        return None

    def scan(self, begin: bytes, end: bytes, limit: int, reverse: bool, version: int) -> Pairs:
        low, high = bisect.bisect_left(self._keys, begin), bisect.bisect_left(self._keys, end)
        found: Pairs = []
        for index in range(high - 1, low - 1, -1) if reverse else range(low, high):
            key = self._keys[index]
            value = self.at(key, version)
            if value is not None:
                found.append((key, value))
                if len(found) == limit:
                    break
        return found

    def apply(self, writes: WriteSet, version: int) -> None:
        for begin, end in writes.cleared:
            low, high = bisect.bisect_left(self._keys, begin), bisect.bisect_left(self._keys, end)
            for key in self._keys[low:high]:
                self._write(key, None, version)
        for key in writes.writes:
            base = self._values[key][-1][1] if key in self._values else None
            self._write(key, writes.resolve(key, base), version)
        self._drop_unseen(version)

    def _write(self, key: bytes, value: bytes | None, version: int) -> None:
        versions = self._values.get(key)
        if versions is None:
            if value is None:
                return
            bisect.insort(self._keys, key)
            versions = self._values[key] = []
        if versions and versions[-1][0] == version:
            versions[-1] = (version, value)
        else:
            versions.append((version, value))
        self._stale.append((version, key))

    def _drop_unseen(self, newest: int) -> None:
        oldest = min(self.open_at, default=newest)
        while self._stale and self._stale[0][0] <= oldest:
            _, key = self._stale.popleft()
            versions = self._values.get(key)
            if versions is None:
                continue
            while len(versions) > 1 and versions[1][0] <= oldest:
                versions.pop(0)
            if len(versions) == 1 and versions[0][1] is None:
                del self._values[key]
                del self._keys[bisect.bisect_left(self._keys, key)]


class _Snapshot:
    """Keeps `version` readable until nobody refers to it."""

    __slots__ = ("_store", "version")

    def __init__(self, store: _Versions, version: int) -> None:
        self._store = store
        self.version = version
        store.open_at[version] = store.open_at.get(version, 0) + 1

    def __del__(self) -> None:
        left = self._store.open_at[self.version] - 1
        if left:
            self._store.open_at[self.version] = left
        else:
            del self._store.open_at[self.version]

    async def get(self, key: bytes) -> bytes | None:
        return self._store.at(key, self.version)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        at, version = self._store.at, self.version
        return [at(key, version) for key in keys]

    async def scan(self, begin: bytes, end: bytes, limit: int, reverse: bool) -> Pairs:
        return self._store.scan(begin, end, limit, reverse, self.version)


class MemoryKV:
    """Implements `fs3.kv.api.KVEngine`; nothing survives the process."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._history = History(_WINDOW_CHANGES)
        self._store = _Versions()
        self._watchers = Watchers()
        self._closed = False

    @property
    def limits(self) -> Limits:
        return self._limits

    def begin(self, *, patient: bool = False) -> BufferedTransaction:
        """Raises: Unavailable after `close`."""
        if self._closed:
            raise Unavailable("the metadata store is closed")
        return BufferedTransaction(_Snapshot(self._store, self._history.version), self)

    async def commit(self, read_version: int, reads: ReadSet, writes: WriteSet) -> None:
        """Called by the transaction; decides and applies without ever yielding to another task."""
        if self._closed:
            raise Unavailable("the metadata store is closed")
        check_limits(self._limits, writes, reads)
        if self._history.conflict(read_version, reads) is not None:
            raise conflict_error()
        if writes:
            self._store.apply(writes, self._history.record(writes))
            self._watchers.notify(writes)

    def watch(self, prefix: bytes) -> AsyncIterator[None]:
        return self._watchers.add(prefix)

    async def close(self) -> None:
        self._closed = True
        self._watchers.close()
