"""A READ of one range is answered in plain Python where it can be: byte for byte what the batch's numpy answers."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from fs3.checksum import COARSE_BYTES, FINE_BYTES
from fs3.storage.reply import FileRange, Reply
from fs3.transport.frame_core import Flag, Header, Kind
from fs3.transport.messages import Op

_LENGTHS = [1, 100, 4096, 4097, 65_536, 262_144, 262_145, 300_000, 540_672, (1 << 20) - 3, 1 << 20]


@pytest.fixture(scope="module")
def lengths(daemon: Any) -> list[int]:
    rng = random.Random(5)
    connection = daemon.connect()
    daemon.put(connection, {index: rng.randbytes(length) for index, length in enumerate(_LENGTHS)})
    daemon.write(connection, [(len(_LENGTHS), Op.REPLACE, b"")])
    connection.close()
    return [*_LENGTHS, 0]


def bytes_of(reply: Reply) -> bytes:
    """All that would be sent."""
    return b"".join(
        os.pread(part.file.fd, part.length, part.position) if isinstance(part, FileRange) else part
        for part in reply.parts
    )


@pytest.mark.parametrize("flags", [Flag.NONE, Flag.CHECKSUM, Flag.CHECKSUM | Flag.RELAXED])
@pytest.mark.parametrize("by_sendfile", [False, True])
def test_it_equals_the_batch(daemon: Any, lengths: list[int], flags: int, by_sendfile: bool) -> None:
    rng = random.Random(6)
    reads = daemon.server.reads
    plain = 0
    for number in range(600):
        index = rng.randrange(len(lengths) + 1)  # the last is no chunk
        size = lengths[index] if index < len(lengths) else 0
        unit = rng.choice([1, FINE_BYTES, FINE_BYTES, COARSE_BYTES])
        begin, end = sorted(rng.randrange(size + 2 * unit) // unit * unit for _ in range(2))
        asked = daemon.ranges([(index, begin, rng.choice([end - begin, size, 1 << 20]))])
        if rng.random() < 0.05:
            asked["chain_version"] += 1
        if rng.random() < 0.05:
            asked["chain"] = 1_000
        header = Header(Kind.READ, number, flags=int(flags), count=1)
        batch = reads.read(header, asked, by_sendfile=by_sendfile)
        one = reads.read_one(header, asked[0].item(), by_sendfile=by_sendfile)
        if one is None:
            batch.release()
            continue
        plain += 1
        assert bytes_of(one) == bytes_of(batch), (index, begin, end)
        for field in ("total", "plain", "need_ack", "status", "failed", "body_bytes", "disk_bytes", "own_bytes"):
            assert getattr(one, field) == getattr(batch, field), field
        assert one.find_origins is not None and batch.find_origins is not None
        assert one.find_origins() == batch.find_origins()
        one.release()
        batch.release()
    assert 100 < plain < 590 and daemon.kept() == 0
