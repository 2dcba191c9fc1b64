"""What a READ's reply, all of it in memory, holds of the small ranges that were asked for.

The rules are those of a large reply that is received into place (exchange.py), and as there a byte counts only once it
has been verified. What success will look like is worked out while the daemon is busy (`Expected`), so that little is
left to do when the reply is here and tasks wait.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import sums_of
from fs3.client import verify_core
from fs3.client.plan_core import I64, packed_offsets
from fs3.errors import Corrupt
from fs3.transport.messages import RESULT, SUM, Records


@dataclass(frozen=True, slots=True)
class Expected:
    """The reply in which all of ranges [n] are there whole: where each is in the body, and whether each has one sum."""

    ranges: Records
    begin: list[int]
    end: list[int]
    single: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The bytes of each of ranges [n], None where they are not `whole`: there from first to last, and verified.

    `corrupt`, their places: came and failed their sums, or are known to the daemon to do so.
    """

    data: list[bytes | None]
    whole: bool
    corrupt: list[int]


def expect(ranges: Records) -> Expected:
    """What a reply to `ranges` [n] looks like if all goes well."""
    length: I64 = ranges["length"].astype(np.int64)
    end = np.cumsum(length)
    single = verify_core.single(ranges["offset"], length)
    return Expected(ranges, (end - length).tolist(), end.tolist(), single)


def find(expected: Expected, head: memoryview, body: memoryview) -> Found:
    """What a reply with CHECKSUM has of the ranges that were asked for.

    Raises: Corrupt: it is no reply to them.
    """
    ranges, count = expected.ranges, len(expected.ranges)
    if len(head) < count * RESULT.itemsize or len(head) % SUM.itemsize:
        raise Corrupt(f"a reply with a head of {len(head)} bytes, to {count} ranges")
    results = np.frombuffer(head, dtype=RESULT, count=count)
    sums = np.frombuffer(head, dtype=SUM, offset=count * RESULT.itemsize)
    if (
        expected.single
        and len(sums) == count
        and len(body) == expected.end[-1]
        and not results["status"].any()
        and bool((results["length"] == ranges["length"]).all())
    ):
        data = [bytes(body[a:b]) for a, b in zip(expected.begin, expected.end, strict=True)]
        if sums_of(data) == sums.tolist():
            return Found(data, True, [])  # type: ignore[arg-type]  # a list of bytes, all of them there
    return _find_some(ranges, results, sums, body)


def _find_some(ranges: Records, results: Records, sums: NDArray[np.uint32], body: memoryview) -> Found:
    """As `find`, whatever the reply."""
    length: I64 = results["length"].astype(np.int64)
    wanted: I64 = ranges["length"].astype(np.int64)
    offset: I64 = ranges["offset"].astype(np.int64)
    chunk_length: I64 = results["chunk_length"].astype(np.int64)
    outside = (length > wanted) | ((length > 0) & (offset + length > chunk_length))
    if outside.any() or int(length.sum()) != len(body):
        raise Corrupt("a reply with other bytes than were asked for")
    begin = packed_offsets(length)
    status = results["status"]
    corrupt: NDArray[np.bool_] = status == Corrupt.code
    pieces = verify_core.pieces_of(offset, length, chunk_length, begin)
    if len(pieces.begin) != len(sums):
        corrupt |= status == 0
    else:
        corrupt[pieces.owner[verify_core.mismatches(body, pieces.begin, pieces.end, sums)]] = True
    whole = (status == 0) & (length == wanted) & ~corrupt
    rows = zip(whole.tolist(), begin.tolist(), (begin + length).tolist(), strict=True)
    data = [bytes(body[a:b]) if one else None for one, a, b in rows]
    return Found(data, bool(whole.all()), np.flatnonzero(corrupt).tolist())
