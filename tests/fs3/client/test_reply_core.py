"""Replies in memory: what counts as read is what is there whole and matches its sums, whatever else the reply holds."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fs3 import checksum
from fs3.client.reply_core import expect, find
from fs3.errors import Corrupt, NotFound
from fs3.transport.messages import RANGE, RESULT, Records

CHUNK = random.Random(3).randbytes(300_000)


def asked(pairs: list[tuple[int, int]]) -> Records:
    ranges = np.zeros(len(pairs), dtype=RANGE)
    ranges["offset"], ranges["length"] = zip(*pairs, strict=True)
    return ranges


def reply(ranges: Records, statuses: dict[int, int] | None = None) -> tuple[bytearray, bytearray]:
    """(head, body) as a daemon makes them, of ranges of CHUNK."""
    results = np.zeros(len(ranges), dtype=RESULT)
    sums: list[int] = []
    body = bytearray()
    for place, (result, one) in enumerate(zip(results, ranges, strict=True)):
        result["status"] = (statuses or {}).get(place, 0)
        if result["status"]:
            continue
        offset = int(one["offset"])
        part = CHUNK[offset : offset + int(one["length"])]
        pieces = checksum.pieces(offset, len(part), len(CHUNK)) if part else []
        sums += [checksum.crc(CHUNK[a:b]) for a, b in pieces]
        result["n_sums"], result["length"], result["chunk_length"] = len(pieces), len(part), len(CHUNK)
        body += part
    return bytearray(results.tobytes() + np.array(sums, dtype="<u4").tobytes()), body


def blocks(rng: random.Random, count: int) -> list[tuple[int, int]]:
    return [(rng.randrange(len(CHUNK) // 4096) * 4096, 4096) for _ in range(count)]


def anything(rng: random.Random, count: int) -> list[tuple[int, int]]:
    return [(rng.randrange(len(CHUNK)), rng.choice([1, 10, 4096, 8192])) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", [blocks, anything])
def test_whole_ranges_are_found_and_damaged_ones_are_not(kind, seed: int) -> None:
    rng = random.Random(seed)
    pairs = kind(rng, rng.randrange(1, 40))
    ranges = asked(pairs)
    statuses = {place: NotFound.code for place in range(len(pairs)) if rng.random() < 0.1} if seed % 2 else {}
    head, body = reply(ranges, statuses)
    wanted = [None if place in statuses else CHUNK[a : a + n] for place, (a, n) in enumerate(pairs)]
    wanted = [data if data is None or len(data) == pairs[place][1] else None for place, data in enumerate(wanted)]
    found = find(expect(ranges), memoryview(head), memoryview(body))
    assert (found.data, found.corrupt) == (wanted, [])
    assert found.whole == (None not in wanted)
    if not body:
        return
    at = rng.randrange(len(body))
    body[at] ^= 1 << rng.randrange(8)
    ends = np.cumsum([0 if place in statuses else len(CHUNK[a : a + n]) for place, (a, n) in enumerate(pairs)])
    hit = int(np.searchsorted(ends, at, side="right"))
    found = find(expect(ranges), memoryview(head), memoryview(body))
    assert found.corrupt == [hit] and not found.whole
    assert found.data == [None if place == hit else data for place, data in enumerate(wanted)]


def test_what_is_no_reply_to_the_ranges_is_refused() -> None:
    ranges = asked([(0, 4096), (8192, 4096)])
    head, body = reply(ranges)
    longer, _ = reply(asked([(0, 4096), (8192, 4097)]))
    for bad_head, bad_body in [(head[:40], body), (head, body[:-1]), (longer, body + b"x")]:
        with pytest.raises(Corrupt):
            find(expect(ranges), memoryview(bad_head), memoryview(bad_body))


def test_a_range_beyond_its_chunk_is_refused() -> None:
    ranges = asked([(0, 8192)])
    head, body = reply(ranges)
    np.frombuffer(head, dtype=RESULT, count=1)["chunk_length"] = 100
    with pytest.raises(Corrupt):
        find(expect(ranges), memoryview(head), memoryview(body))


def test_too_few_sums_verify_nothing() -> None:
    ranges = asked([(0, 4096), (8192, 4096)])
    head, body = reply(ranges)
    found = find(expect(ranges), memoryview(head[:-4]), memoryview(body))
    assert found.data == [None, None] and found.corrupt == [0, 1]
