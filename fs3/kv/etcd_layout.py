"""Where a store's keys lie in etcd, and which keys share a stamp.

    fs3/NAME/v                   the format of all this, and of how it is used (etcd_core): "1"
    fs3/NAME/k KEY               a key of the store NAME
    fs3/NAME/s GROUP             the stamp of a group of keys: when one of them last changed
    fs3/NAME/w                   the stamp of changes that reach over several groups
    fs3/NAME/c ENGINE NUMBER     a commit record: the last that an engine knows to have sent, ENGINE 8 random bytes
    fs3/NAME/f REVISION          the floor: what began before this revision may range over nothing any more, u64

Numbers are big-endian. A name holds no slash, so no store's keys lie among another's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from fs3.errors import Invalid
from fs3.kv.api import prefix_end

Grouping = Callable[[bytes], bytes]
"""From a key to its group. The group G of a key k must be such that

(1) k starts with G;
(2) a greater key has the same or a greater group;
(3) if G + b"\\0" is in G, then so is every key that starts with G.

Cutting every key at a length that depends on its first four bytes keeps all three.
"""

FORMAT = b"1"

_KIND_BYTES = 4
_RECORD = struct.Struct(">8sI")
_U64 = struct.Struct(">Q")


def by_kind(key: bytes) -> bytes:
    """The grouping that is right for any keys: by their first four bytes."""
    return key[:_KIND_BYTES]


def sole_group(grouping: Grouping, begin: bytes, end: bytes) -> bytes | None:
    """The group of every key with begin <= key < end, or None if there may be several."""
    group = grouping(begin)
    if grouping(end) == group:
        return group
    whole = group.rstrip(b"\xff") != b"" and grouping(group + b"\0") == group
    return group if whole and end <= prefix_end(group) else None


class Layout:
    """The keys of one store."""

    __slots__ = ("_root", "format", "wide")

    def __init__(self, name: str) -> None:
        """Raises: Invalid if the name is empty or holds a slash."""
        if not name or "/" in name:
            raise Invalid(f"{name!r} cannot be the name of a store in etcd: it must not be empty or hold a slash")
        self._root = f"fs3/{name}/".encode()
        self.format = self._root + b"v"
        self.wide = self._root + b"w"

    def data(self, key: bytes) -> bytes:
        return self._root + b"k" + key

    def key_of(self, data: bytes) -> bytes:
        """The inverse of `data`."""
        return data[len(self._root) + 1 :]

    def watched(self, prefix: bytes) -> tuple[bytes, bytes]:
        """The half-open range of the keys that start with `prefix`."""
        data = self.data(prefix)
        return data, prefix_end(data)

    def stamp(self, group: bytes) -> bytes:
        return self._root + b"s" + group

    def stamps(self) -> tuple[bytes, bytes]:
        """The half-open range of all stamps."""
        return self._root + b"s", self._root + b"t"

    def record(self, engine: bytes, number: int) -> bytes:
        return self._root + b"c" + _RECORD.pack(engine, number)

    def records(self) -> tuple[bytes, bytes]:
        """The half-open range of all commit records."""
        return self._root + b"c", self._root + b"d"

    def floor(self, revision: int) -> bytes:
        return self._root + b"f" + _U64.pack(revision)

    def floors(self, above: int = -1) -> tuple[bytes, bytes]:
        """The half-open range of the floors that are higher than `above`."""
        return self.floor(above + 1), self._root + b"g"
