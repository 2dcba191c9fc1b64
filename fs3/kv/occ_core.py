"""Optimistic concurrency control: what a transaction writes, what it read, and whether the two still fit the world.

Every commit gets the next version. A transaction remembers the version it began at; it may commit if no later version
changed a key it read or a key inside a range it read (so a row that appears in a listed range, a phantom, conflicts).
This is FoundationDB's resolver in small: of each recent commit only its keys are kept, never values. When the window
of remembered changes is exceeded the oldest are forgotten, and a transaction that began before them must start again.
"""

from __future__ import annotations

import bisect
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from fs3.errors import Corrupt, Invalid, TooLarge
from fs3.kv.api import Limits

_COUNTER_BYTES = 8
_HEAD_BYTES = 8
_WRAP = 1 << 64
_MISSING = object()


def decode_counter(value: bytes | None) -> int:
    """A signed 64-bit little-endian counter; absent counts as 0, a shorter value is extended with zero bytes."""
    if value is None:
        return 0
    return int.from_bytes(value[:_COUNTER_BYTES].ljust(_COUNTER_BYTES, b"\0"), "little", signed=True)


def encode_counter(value: int) -> bytes:
    """The 8 bytes of a counter; it wraps around at 64 bits."""
    return (value % _WRAP).to_bytes(_COUNTER_BYTES, "little")


class WriteSet:
    """Buffered writes: ranges cleared first, then per key a value (bytes), a removal (None) or an addition (int)."""

    __slots__ = ("cleared", "writes")

    def __init__(self) -> None:
        self.cleared: list[tuple[bytes, bytes]] = []
        self.writes: dict[bytes, bytes | int | None] = {}

    def __bool__(self) -> bool:
        return bool(self.writes or self.cleared)

    def put(self, key: bytes, value: bytes) -> None:
        self.writes[key] = value

    def delete(self, key: bytes) -> None:
        self.writes[key] = None

    def delete_range(self, begin: bytes, end: bytes) -> None:
        if begin >= end:
            return
        for key in [key for key in self.writes if begin <= key < end]:
            del self.writes[key]
        self.cleared.append((begin, end))

    def add(self, key: bytes, delta: int) -> None:
        current = self.writes.get(key, _MISSING)
        if isinstance(current, int):
            self.writes[key] = current + delta
        elif current is _MISSING and not self.is_cleared(key):
            self.writes[key] = delta
        else:
            base = current if isinstance(current, bytes) else None
            self.writes[key] = encode_counter(decode_counter(base) + delta)

    def merge(self, later: WriteSet) -> None:
        """Make this set what it and then `later` do."""
        for begin, end in later.cleared:
            self.delete_range(begin, end)
        for key, write in later.writes.items():
            if isinstance(write, int):
                self.add(key, write)
            else:
                self.writes[key] = write

    def is_cleared(self, key: bytes) -> bool:
        return any(begin <= key < end for begin, end in self.cleared)

    def resolve(self, key: bytes, base: bytes | None) -> bytes | None:
        """The value of `key` after these writes, `base` being the one before them."""
        write = self.writes.get(key, _MISSING)
        if write is _MISSING:
            return None if self.cleared and self.is_cleared(key) else base
        if isinstance(write, int):
            return encode_counter(decode_counter(base) + write)
        assert write is None or isinstance(write, bytes)
        return write

    def touches(self, begin: bytes, end: bytes) -> bool:
        """Whether a key of [begin, end) is written or a cleared range reaches into it."""
        return any(b < end and begin < e for b, e in self.cleared) or any(begin <= key < end for key in self.writes)


@dataclass(slots=True)
class ReadSet:
    """What a transaction depends on: single keys and half-open ranges."""

    keys: set[bytes] = field(default_factory=set)
    ranges: list[tuple[bytes, bytes]] = field(default_factory=list)


def check_limits(limits: Limits, writes: WriteSet, reads: ReadSet) -> None:
    """Raises: TooLarge, Invalid (a single key or value), naming the limit, if a transaction is too large to commit."""
    operations = len(writes.writes) + len(writes.cleared) + len(reads.keys) + len(reads.ranges)
    if operations > limits.max_operations:
        raise TooLarge(f"transaction of {operations} operations: at most {limits.max_operations} are allowed")
    total = 0
    for key, write in writes.writes.items():
        size = len(write) if isinstance(write, bytes) else _COUNTER_BYTES
        if not 0 < len(key) <= limits.max_key_bytes:
            raise Invalid(f"key of {len(key)} bytes: 1 to {limits.max_key_bytes} are allowed")
        if size > limits.max_value_bytes:
            raise Invalid(f"value of {size} bytes: at most {limits.max_value_bytes} are allowed")
        total += len(key) + size
    total += sum(len(begin) + len(end) for begin, end in writes.cleared)
    total += sum(len(key) for key in reads.keys) + sum(len(begin) + len(end) for begin, end in reads.ranges)
    if total > limits.max_transaction_bytes:
        raise TooLarge(f"transaction of {total} bytes: at most {limits.max_transaction_bytes} are allowed")


@dataclass(frozen=True, slots=True)
class Changes:
    """What a commit touched, without the values: single keys, sorted, and cleared half-open ranges."""

    keys: list[bytes]
    cleared: list[tuple[bytes, bytes]]

    @classmethod
    def of(cls, writes: WriteSet) -> Changes:
        return cls(sorted(writes.writes), writes.cleared)

    def touches(self, begin: bytes, end: bytes) -> bool:
        """Whether something in [begin, end) was touched."""
        return self._has_key(begin, end) or any(b < end and begin < e for b, e in self.cleared)

    def _has_key(self, begin: bytes, end: bytes) -> bool:
        at = bisect.bisect_left(self.keys, begin)
        return at < len(self.keys) and self.keys[at] < end

    def pack(self) -> bytes:
        """The frozen form in the log of a store that several processes share (docs/formats.md)."""
        parts = self.keys + [bound for pair in self.cleared for bound in pair]
        head = struct.pack(f"<{2 + len(parts)}I", len(self.keys), len(self.cleared), *map(len, parts))
        return head + b"".join(parts)

    @classmethod
    def unpack(cls, raw: bytes) -> Changes:
        """Raises: Corrupt."""
        try:
            keys, cleared = struct.unpack_from("<2I", raw)
            lengths = struct.unpack_from(f"<{keys + 2 * cleared}I", raw, _HEAD_BYTES)
        except struct.error:
            raise Corrupt("a record of the store's log cannot be read") from None
        at = _HEAD_BYTES + 4 * len(lengths)
        if at + sum(lengths) != len(raw):
            raise Corrupt("a record of the store's log has the wrong length")
        parts = []
        for length in lengths:
            parts.append(raw[at : at + length])
            at += length
        bounds = parts[keys:]
        return cls(parts[:keys], list(zip(bounds[::2], bounds[1::2], strict=True)))


class History:
    """The recent commits, newest last; decides conflicts and hands out versions.

    Point reads are decided by one look-up, range reads by bisecting the keys of each commit that is newer than the
    reader, of which there are as many as transactions run at the same time.
    """

    __slots__ = ("_changes", "_clears", "_commits", "_last", "_max_changes", "floor", "version")

    def __init__(self, max_changes: int) -> None:
        self.version = 0  # of the newest commit
        self.floor = 0  # of the newest commit that was forgotten
        self._max_changes = max_changes
        self._changes = 0
        self._last: dict[bytes, int] = {}
        self._commits: deque[tuple[int, list[bytes]]] = deque()
        self._clears: deque[tuple[int, bytes, bytes]] = deque()

    def conflict(self, read_version: int, reads: ReadSet) -> int | None:
        """The version of a commit after `read_version` that changed what was read, or None if there is none."""
        if read_version == self.version:
            return None
        if read_version < self.floor:
            return self.floor
        for key in reads.keys:
            if self._last.get(key, 0) > read_version:
                return self._last[key]
        for version, begin, end in reversed(self._clears):
            if version <= read_version:
                break
            if any(b < end and begin < e for b, e in reads.ranges) or any(begin <= key < end for key in reads.keys):
                return version
        return self._range_conflict(read_version, reads.ranges) if reads.ranges else None

    def _range_conflict(self, read_version: int, ranges: Iterable[tuple[bytes, bytes]]) -> int | None:
        for version, keys in reversed(self._commits):
            if version <= read_version:
                break
            for begin, end in ranges:
                at = bisect.bisect_left(keys, begin)
                if at < len(keys) and keys[at] < end:
                    return version
        return None

    def record(self, writes: WriteSet) -> int:
        """Take note of a commit and return its version, the next one."""
        self.learn(self.version + 1, Changes.of(writes))
        return self.version

    def learn(self, version: int, changes: Changes) -> None:
        """Take note of a commit that has `version`, which is newer than all before."""
        assert version > self.version, (version, self.version)
        self.version = version
        self._commits.append((version, changes.keys))
        self._last.update(dict.fromkeys(changes.keys, version))
        self._clears.extend((version, begin, end) for begin, end in changes.cleared)
        self._changes += len(changes.keys) + 1
        while self._changes > self._max_changes and len(self._commits) > 1:
            self._forget_oldest()

    def advance(self, version: int) -> None:
        """The newest commit's version is `version` from now on; it had a lower one while others were decided."""
        assert version >= self.version, (version, self.version)
        self.version = version

    def restart(self, version: int) -> None:
        """Know nothing of what happened up to `version`: whoever began before it conflicts."""
        self._commits.clear()
        self._clears.clear()
        self._last.clear()
        self._changes = 0
        self.version = self.floor = version

    def _forget_oldest(self) -> None:
        version, keys = self._commits.popleft()
        self._changes -= len(keys) + 1
        self.floor = version
        for key in keys:
            if self._last[key] == version:
                del self._last[key]
        while self._clears and self._clears[0][0] <= version:
            self._clears.popleft()
