"""Reads over a real socket: the right bytes and sums for any range, the right status for what cannot be read, and bytes
that stay what they were until the client has them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fs3 import checksum
from fs3.clock import deadline_after
from fs3.errors import Corrupt, Fs3Error, Invalid, NotFound, StaleRouting
from fs3.transport.frame_core import HEADER_BYTES, Flag, Kind, unpack_header
from fs3.transport.messages import LIST_CHUNKS, LISTED, MAX_REPORTED, RESULT, Op

_LENGTHS = [1, 100, 4096, 4097, 65_536, 70_000, 262_144, 300_000, 1 << 20]


@pytest.fixture(scope="module")
def chunks(daemon: Any) -> dict[int, bytes]:
    rng = random.Random(7)
    made = {index: rng.randbytes(_LENGTHS[index % len(_LENGTHS)]) for index in range(len(_LENGTHS) * 3)}
    connection = daemon.connect()
    daemon.put(connection, made)
    connection.close()
    return made


@pytest.fixture
def connection(daemon: Any) -> Iterator[Any]:
    made = daemon.connect()
    yield made
    made.close()


def _verify(asked: list[tuple[int, int, int]], chunks: dict[int, bytes], answer: Any) -> None:
    assert answer.trailer == (0, 0)
    at = 0
    for (index, offset, length), result, body in zip(asked, answer.results, answer.bodies, strict=True):
        whole = chunks[index]
        expected = whole[offset : offset + length]
        assert result["status"] == 0 and result["chunk_length"] == len(whole) and result["version"] >= 1
        assert body == expected, (index, offset, length)
        pieces = checksum.pieces(offset, len(expected), len(whole)) if expected else []
        assert result["n_sums"] == len(pieces)
        for begin, end in pieces:
            assert answer.sums[at] == checksum.crc(whole[begin:end]), (index, begin, end)
            at += 1
    assert at == len(answer.sums)


def test_random_ranges(daemon: Any, chunks: dict[int, bytes], connection: Any) -> None:
    rng = random.Random(11)
    for count in [1, 2, 5, 20, 200]:
        asked = []
        for _ in range(count):
            index = rng.choice(list(chunks))
            size = len(chunks[index])
            offset = rng.choice([0, rng.randrange(size + 1), rng.randrange(size + 1) // 4096 * 4096, size + 5])
            asked.append((index, offset, rng.choice([0, 1, 4096, 65_536, rng.randrange(size + 100)])))
        _verify(asked, chunks, daemon.read(connection, asked))


def test_whole_blocks(daemon: Any, chunks: dict[int, bytes], connection: Any) -> None:
    rng = random.Random(12)
    large = [index for index, data in chunks.items() if len(data) == 1 << 20]
    asked = [(rng.choice(large), rng.randrange(256) * 4096, 4096) for _ in range(256)]
    _verify(asked, chunks, daemon.read(connection, asked))


def test_whole_chunks(daemon: Any, chunks: dict[int, bytes], connection: Any) -> None:
    asked = [(index, 0, len(data)) for index, data in chunks.items()]
    _verify(asked, chunks, daemon.read(connection, asked))


def test_without_sums(daemon: Any, chunks: dict[int, bytes], connection: Any) -> None:
    asked = [(8, 100, 300_000), (2, 0, 4096), (5, 69_999, 5)]
    answer = daemon.read(connection, asked, flags=0)
    assert answer.bodies == [chunks[index][offset : offset + length] for index, offset, length in asked]
    assert not len(answer.sums) and not answer.results["n_sums"].any()


def test_many_requests_without_waiting(daemon: Any, chunks: dict[int, bytes], connection: Any) -> None:
    asked = {daemon.ask(connection, [(8, number * 4096, 4096)]): number for number in range(200)}
    while asked:
        header, answer = daemon.take(connection)
        number = asked.pop(header.request_id)
        _verify([(8, number * 4096, 4096)], chunks, answer)


def test_over_the_unix_socket(daemon: Any, chunks: dict[int, bytes]) -> None:
    connection = daemon.connect(f"unix:{daemon.server.config.unix_dir / 'storage-1.sock'}")
    asked = [(index, 10, 500_000) for index in chunks if len(chunks[index]) > 10]
    _verify(asked, chunks, daemon.read(connection, asked))
    connection.close()


def test_one_bad_range_does_not_spoil_the_others(daemon: Any, chunks: dict[int, bytes], connection: Any) -> None:
    ranges = daemon.ranges([(8, 0, 100), (999, 0, 100), (8, 0, 100), (8, 4096, 4096)])
    ranges["chain_version"][2] += 1
    connection.send(Kind.READ, [ranges.tobytes()], count=4, flags=Flag.CHECKSUM, deadline_s=deadline_after(10))
    _, answer = daemon.take(connection)
    assert answer.results["status"].tolist() == [0, NotFound.code, StaleRouting.code, 0]
    assert answer.bodies == [chunks[8][:100], b"", b"", chunks[8][4096:8192]]


def _flip(daemon: Any, index: int, at: int) -> None:
    engine, located = daemon.located(index)
    file = engine.file(int(located.file[0]))
    position = int(located.position[0]) + at
    os.pwrite(file.fd, bytes([os.pread(file.fd, 1, position)[0] ^ 1]), position)


def test_a_damaged_edge_is_not_handed_out(daemon: Any, connection: Any) -> None:
    data = random.Random(1).randbytes(100_000)
    daemon.put(connection, {100: data, 101: data})
    _flip(daemon, 100, 50_000)
    asked = [(101, 5, 20), (100, 49_990, 30_000), (100, 10, 49_000), (100, 10, 100), (101, 4000, 90_000)]
    answer = daemon.read(connection, asked)
    # The second's first block is the damaged one; the third ends before it, the fourth is far from it.
    assert answer.results["status"].tolist() == [0, Corrupt.code, 0, 0, 0]
    assert answer.bodies == [data[5:25], b"", data[10:49_010], data[10:110], data[4000:94_000]]
    assert sum(engine.stats().corrupt for engine in daemon.server.engines) >= 1
    # The daemon looks at the chunk that it stumbled over; from then on no part of it is read from here.
    engine, _ = daemon.located(100)
    daemon.until(lambda: any(key[2] == 100 for key in engine.damaged()), "the chunk is marked")
    answer = daemon.read(connection, asked)
    assert answer.results["status"].tolist() == [0, Corrupt.code, Corrupt.code, Corrupt.code, 0]
    assert answer.bodies == [data[5:25], b"", b"", b"", data[4000:94_000]]


def test_a_report_is_checked_and_not_believed(daemon: Any, connection: Any) -> None:
    data = random.Random(3).randbytes(300_000)
    daemon.put(connection, {144: data, 145: data})
    _flip(daemon, 144, 200_000)
    ranges = daemon.ranges([(144, 0, 0), (145, 0, 0), (987_654, 0, 0), (144, 0, 0)])
    ranges["chain"][3] = 1 << 20
    for _ in range(2):
        connection.send(Kind.REPORT, [ranges.tobytes()], count=4, deadline_s=deadline_after(10))
        _, head = connection.receive_head()
        status = np.frombuffer(head, dtype=RESULT, count=4)["status"].tolist()
        assert status == [Corrupt.code, 0, NotFound.code, NotFound.code]
    answer = daemon.read(connection, [(144, 0, 4096), (145, 0, 300_000)])
    assert answer.results["status"].tolist() == [Corrupt.code, 0]
    assert answer.bodies == [b"", data]
    # Other bytes end it: nobody needs the old ones any more.
    daemon.put(connection, {144: data})
    assert daemon.read(connection, [(144, 0, 300_000)]).bodies == [data]
    too_many = daemon.ranges([(145, 0, 0)] * (MAX_REPORTED + 1))
    connection.send(Kind.REPORT, [too_many.tobytes()], count=len(too_many), deadline_s=deadline_after(10))
    with pytest.raises(Invalid, match="65 ranges"):
        connection.receive_head()


def test_a_damaged_whole_block_shows_in_its_sum(daemon: Any, connection: Any) -> None:
    data = random.Random(2).randbytes(100_000)
    daemon.put(connection, {102: data})
    _flip(daemon, 102, 5000)
    answer = daemon.read(connection, [(102, 4096, 4096)])
    assert answer.sums.tolist() == [checksum.crc(data[4096:8192])]
    assert checksum.crc(answer.bodies[0]) != answer.sums[0]


def test_many_cut_ranges_are_verified_elsewhere(daemon: Any, chunks: dict[int, bytes], connection: Any) -> None:
    rng = random.Random(13)
    asked = [(8, rng.randrange(1 << 19), rng.randrange(1, 9000)) for _ in range(300)]
    assert daemon.server.reads.many_edges(daemon.ranges(asked))
    _verify(asked, chunks, daemon.read(connection, asked))


def test_what_is_not_in_the_page_cache_is_fetched_first(daemon: Any, connection: Any) -> None:
    data = random.Random(3).randbytes(1 << 20)
    daemon.put(connection, {103: data})
    engine, located = daemon.located(103)
    fd = engine.file(int(located.file[0])).fd
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    answer = daemon.read(connection, [(103, 0, 1 << 20), (103, 8192, 4096)])
    assert answer.bodies == [data, data[8192:12_288]] and answer.trailer == (0, 0)
    _verify([(103, 0, 1 << 20)], {103: data}, daemon.read(connection, [(103, 0, 1 << 20)]))


def test_query(daemon: Any, chunks: dict[int, bytes], connection: Any) -> None:
    ranges = daemon.ranges([(index, 0, 0) for index in [*chunks, 999]])
    connection.send(Kind.QUERY, [ranges.tobytes()], count=len(ranges), deadline_s=deadline_after(10))
    header, head = connection.receive_head()
    results = np.frombuffer(head, dtype=RESULT, count=header.count)
    assert results["status"].tolist() == [0] * len(chunks) + [NotFound.code]
    assert results["chunk_length"].tolist() == [*(len(data) for data in chunks.values()), 0]
    assert not results["length"].any() and header.body_bytes == 0


def test_query_for_the_chunks_of_a_file(daemon: Any, chunks: dict[int, bytes], connection: Any) -> None:
    found: dict[int, int] = {}
    for first in range(len(daemon.chains)):
        ranges = daemon.ranges([(first, LIST_CHUNKS, 0), (first, 0, 0)])
        ranges["lo"][0] = 0
        connection.send(Kind.QUERY, [ranges.tobytes()], count=2, deadline_s=deadline_after(10))
        header, head = connection.receive_head()
        results = np.frombuffer(head, dtype=RESULT, count=2).copy()
        body = memoryview(bytearray(header.body_bytes))
        connection.receive_body([body])
        listed = np.frombuffer(body, dtype=LISTED)
        assert results["length"].tolist() == [len(listed), 0]
        found |= dict(zip(listed["lo"].tolist(), listed["chunk_length"].tolist(), strict=True))
    assert {index: length for index, length in found.items() if index < 100} == {
        index: len(data) for index, data in chunks.items()
    }


def test_limits(daemon: Any, chunks: dict[int, bytes], connection: Any) -> None:
    most = daemon.server.config.max_ranges
    with pytest.raises(Invalid, match="ranges in a request"):
        daemon.read(connection, [(0, 0, 1)] * (most + 1))
    with pytest.raises(Invalid, match="ask for less"):
        daemon.read(connection, [(8, 0, 1 << 20)] * 300)
    assert len(daemon.read(connection, [(0, 0, 1)] * most).bodies) == most


def test_nothing_is_kept_after_the_answers(daemon: Any, chunks: dict[int, bytes]) -> None:
    connection = daemon.connect()
    for _ in range(3):
        daemon.read(connection, [(8, 0, 1 << 20), (8, 5, 10), (0, 0, 1)])
    with pytest.raises(Fs3Error):
        daemon.read(connection, [(8, 0, 1 << 20)] * 300)
    connection.acknowledge()
    daemon.until(lambda: daemon.kept() == 0, "every block was released")


def test_bytes_stay_until_the_client_has_them(daemon: Any) -> None:
    contents = {version: random.Random(version + 100).randbytes(1 << 20) for version in range(1, 14)}
    writer, reader = daemon.connect(), daemon.connect()
    daemon.put(writer, {104: contents[1]})
    for _ in range(24):  # more than the socket's buffers take
        daemon.ask(reader, [(104, 0, 1 << 20)])
    daemon.until(lambda: daemon.kept() > 0, "the reader's answers are on their way")
    # Each replacement takes a free block and frees one: without the hold the first block would be written again.
    for version in range(2, 14):
        daemon.put(writer, {104: contents[version]})
    seen = []
    for _ in range(24):
        header, answer = daemon.take(reader)
        assert header.flags & Flag.NEED_ACK and answer.trailer == (0, 0)
        version = int(answer.results["version"][0])
        seen.append(version)
        assert checksum.crc(answer.bodies[0]) == checksum.crc(contents[version]), f"version {version} has other bytes"
    assert seen[0] == 1 and seen == sorted(seen)
    assert daemon.kept() > 0, "kept until acknowledged"
    reader.acknowledge()
    daemon.until(lambda: daemon.kept() == 0, "the acknowledgement released the blocks")


def test_a_client_that_goes_away_lets_go_of_its_blocks(daemon: Any, chunks: dict[int, bytes]) -> None:
    reader = daemon.connect()
    daemon.ask(reader, [(8, 0, 1 << 20)] * 20)
    daemon.until(lambda: daemon.kept() > 0, "the answer is on its way")
    reader.close()
    daemon.until(lambda: daemon.kept() == 0, "the blocks are free")


def test_a_client_that_does_not_read_stops_nobody(daemon: Any, chunks: dict[int, bytes]) -> None:
    stuck = [daemon.connect() for _ in range(4)]
    for connection in stuck:
        for _ in range(30):
            daemon.ask(connection, [(8, 0, 1 << 20)] * 16)
    others = [daemon.connect() for _ in range(4)]
    for connection in others:
        for _ in range(5):
            asked = [(8, 4096, 8192), (7, 5, 100_000)]
            _verify(asked, chunks, daemon.read(connection, asked))
    for connection in stuck:
        connection.close()


def test_requests_beyond_what_is_queued_wait_in_the_socket(daemon: Any, chunks: dict[int, bytes]) -> None:
    """The daemon reads no further than its limit of queued answers, and answers all in the end."""
    reader = daemon.connect()
    count = daemon.server.config.max_requests * 3
    for _ in range(count):
        daemon.ask(reader, [(8, 0, 200_000)])
    for _ in range(count):
        _, answer = daemon.take(reader)
        assert answer.bodies == [chunks[8][:200_000]]


def test_removed_chunks_are_not_found(daemon: Any, connection: Any) -> None:
    daemon.put(connection, {105: b"x" * 10})
    assert not daemon.write(connection, [(105, Op.REMOVE, b"")])["status"].any()
    assert daemon.read(connection, [(105, 0, 10)]).results["status"].tolist() == [NotFound.code]


def test_a_reply_is_framed_as_documented(daemon: Any, chunks: dict[int, bytes], connection: Any) -> None:
    daemon.ask(connection, [(2, 0, 4096)])
    sock = connection._sock
    raw = b""
    expected = HEADER_BYTES + RESULT.itemsize + 4 + 4096 + 16
    while len(raw) < expected:
        raw += sock.recv(expected - len(raw))
    header = unpack_header(raw)
    assert (header.kind, header.reply, header.count) == (Kind.READ, True, 1)
    assert header.flags == Flag.CHECKSUM | Flag.TRAILER
    assert (header.head_bytes, header.body_bytes) == (28, 4096)
    connection.close()
