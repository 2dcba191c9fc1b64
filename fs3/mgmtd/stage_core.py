"""Changes of keys in parts: of a size that a store takes as one value, or of which a transaction takes one.

A part that lies in the store is a frozen format: for each change the length of the key (u16), of the value (u32, all
ones: the key is removed), the key, the value; big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from fs3.errors import Corrupt

Change = tuple[bytes, bytes | None]
"""A key, and what it holds from now on; None: nothing."""

PART_BYTES = 64 << 10

_HEAD = struct.Struct(">HI")
_REMOVED = (1 << 32) - 1
_STAGE = struct.Struct(">QI")


@dataclass(frozen=True, slots=True)
class Stage:
    """The newest stage's number, and how many parts of it are in force (0: it is being filled, or done with)."""

    number: int = 0
    parts: int = 0

    def pack(self) -> bytes:
        return _STAGE.pack(self.number, self.parts)

    @classmethod
    def unpack(cls, raw: bytes | None) -> Stage:
        return cls() if raw is None else cls(*_STAGE.unpack(raw))


def size_of(change: Change) -> int:
    """The bytes of a change, in a part or in a transaction."""
    key, value = change
    return _HEAD.size + len(key) + len(value or b"")


def batches(changes: Iterable[Change], *, most: int, most_bytes: int) -> Iterator[list[Change]]:
    """All changes in order, as many at a time as both limits allow, but at least one."""
    batch: list[Change] = []
    size = 0
    for change in changes:
        if batch and (len(batch) == most or size + size_of(change) > most_bytes):
            yield batch
            batch, size = [], 0
        batch.append(change)
        size += size_of(change)
    if batch:
        yield batch


def pack(changes: Iterable[Change]) -> bytes:
    """One part."""
    return b"".join(
        _HEAD.pack(len(key), _REMOVED if value is None else len(value)) + key + (value or b"") for key, value in changes
    )


def unpack(part: bytes) -> list[Change]:
    """Raises: Corrupt."""
    changes: list[Change] = []
    at = 0
    while at < len(part):
        try:
            key_bytes, value_bytes = _HEAD.unpack_from(part, at)
        except struct.error:
            raise Corrupt("a part of a staged decision cannot be read") from None
        at += _HEAD.size
        removed = value_bytes == _REMOVED
        end = at + key_bytes + (0 if removed else value_bytes)
        if end > len(part):
            raise Corrupt("a part of a staged decision is cut short")
        key = part[at : at + key_bytes]
        changes.append((key, None if removed else part[at + key_bytes : end]))
        at = end
    return changes


def overlaid(stored: Mapping[bytes, bytes], changes: Iterable[Change], prefix: bytes) -> list[bytes]:
    """The values of the keys with `prefix` once `changes` are made to what is `stored` of them, in the keys' order."""
    found = dict(stored)
    for key, value in changes:
        if not key.startswith(prefix):
            continue
        if value is None:
            found.pop(key, None)
        else:
            found[key] = value
    return [found[key] for key in sorted(found)]
