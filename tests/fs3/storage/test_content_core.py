"""content_core against a plain model: bytes put together, sums made from the bytes."""

import random

import numpy as np
import pytest

from fs3 import checksum
from fs3.errors import Corrupt, Invalid
from fs3.storage import content_core as content
from fs3.storage.content_core import DATA, OLD
from fs3.transport.messages import Op

EDGES = [0, 1, 4095, 4096, 4097, 8192, 262143, 262144, 262145, 300_000, 524_288, 600_001]


def plain(op: Op, offset: int, data: bytes, old: bytes) -> bytes:
    """The new chunk, the obvious way."""
    if op is Op.REPLACE:
        return data
    if op is Op.TRUNCATE:
        return old[:offset].ljust(offset, b"\0")
    if not data:
        return old
    return old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]


def sums(data: bytes) -> np.ndarray:
    return checksum.fine_sums(memoryview(data))


@pytest.mark.parametrize("seed", range(150))
def test_parts_and_sums_are_those_of_the_plain_result(seed: int) -> None:
    rng = random.Random(seed)
    old = rng.randbytes(rng.choice([*EDGES, rng.randrange(600_000)]))
    data = rng.randbytes(rng.choice([*EDGES, rng.randrange(20_000)]))
    op = rng.choice([Op.WRITE, Op.WRITE, Op.REPLACE, Op.TRUNCATE])
    offset = 0 if op is Op.REPLACE else rng.choice([*EDGES, rng.randrange(600_000)])
    data = b"" if op is Op.TRUNCATE else data
    expected = plain(op, offset, data, old)

    parts = content.parts_of(op, offset, len(data), len(old), 2 << 20)
    at, new = 0, b""
    kept = {}
    for part in parts:
        assert part.begin == at
        at = part.end
        if part.source == OLD:
            kept[part] = memoryview(old)[part.begin : part.end]
            new += kept[part]
        else:
            new += data[part.begin - offset : part.end - offset] if part.source == DATA else bytes(at - part.begin)
    assert new == expected

    fine = checksum.fine_sums(memoryview(data), offset)
    merged = content.merged_fine(parts, kept, len(old), sums(old), offset, memoryview(data), fine)
    assert merged.tolist() == sums(expected).tolist()


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 300_000])
@pytest.mark.parametrize("length", [0, 1, 4096, 5000, 262_144, 262_145, 600_000])
def test_any_flipped_bit_or_sum_is_found(offset: int, length: int) -> None:
    data = bytearray(random.Random(length).randbytes(length))
    fine = checksum.fine_sums(memoryview(data), offset)
    coarse = content.check_update(memoryview(data), offset, fine)
    if offset == 0:
        expected = [checksum.crc(data[at : at + 262_144]) for at in range(0, length, 262_144)]
        assert coarse is not None and coarse.tolist() == expected
    for at in {0, length // 2, length - 1} if length else ():
        data[at] ^= 1
        with pytest.raises(Corrupt):
            content.check_update(memoryview(data), offset, fine)
        data[at] ^= 1
    for row in {0, len(fine) // 2, len(fine) - 1} if length else ():
        fine[row] ^= 1
        with pytest.raises(Corrupt):
            content.check_update(memoryview(data), offset, fine)
        fine[row] ^= 1
    with pytest.raises(Invalid, match="sums"):
        content.check_update(memoryview(data), offset, np.append(fine, np.uint32(0)))


@pytest.mark.parametrize("begin", [0, 4096, 262_144])
def test_old_bytes_are_compared_with_their_sums(begin: int) -> None:
    old = bytearray(random.Random(3).randbytes(600_001))
    fine = sums(bytes(old))
    coarse = checksum.coarse_from_fine(fine, len(old))
    content.check_old(memoryview(old)[begin:], begin, len(old), fine, coarse, "here")
    for at in (begin, 400_000, 600_000):
        old[at] ^= 1
        with pytest.raises(Corrupt, match="here"):
            content.check_old(memoryview(old)[begin:], begin, len(old), fine, coarse, "here")
        old[at] ^= 1


@pytest.mark.parametrize(
    ("op", "offset", "data_bytes"), [(Op.WRITE, 90_000, 20_000), (Op.TRUNCATE, 100_001, 0), (Op.REPLACE, 0, 100_001)]
)
def test_a_chunk_never_outgrows_its_size(op: Op, offset: int, data_bytes: int) -> None:
    with pytest.raises(Invalid, match="100000"):
        content.parts_of(op, offset, data_bytes, 50, 100_000)


def test_what_an_operation_does_not_take_is_refused() -> None:
    for op, offset, data_bytes in [(Op.REPLACE, 1, 5), (Op.TRUNCATE, 0, 5), (Op.REMOVE, 0, 0)]:
        with pytest.raises(Invalid):
            content.parts_of(op, offset, data_bytes, 0, 100)
