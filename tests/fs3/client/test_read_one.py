"""One range in plain Python: the bytes and errors of a batch, and no batch where nothing is amiss."""

from __future__ import annotations

import numpy as np
import pytest

from fs3.client.plan_core import Asked
from fs3.client.read_one import Answer, Begun, read_one
from fs3.client.storage import ChunkUpdate, StorageClient
from fs3.clock import deadline_after
from fs3.errors import Busy, Corrupt, StaleRouting
from fs3.ids import file_chunk
from fs3.transport.frame_core import Kind

HI, _ = file_chunk(7, 0)
SIZE = (3 << 20) + 5_000


@pytest.fixture
def client(cluster):
    made = StorageClient(cluster.mgmtd, timeout_s=20.0, client_id=77)
    yield made
    made.close()


@pytest.fixture
def data(client) -> bytes:
    made = np.random.default_rng(2).bytes(SIZE)
    client.write([ChunkUpdate(hi=HI, lo=0, chain=1, data=made)])
    return made


def asked(offset: int, length: int, *, lo: int = 0) -> Asked:
    return Asked(HI, lo, offset, length, 1)


def plainly(client: StorageClient, offset: int, length: int, *, lo: int = 0) -> tuple[object, bytes]:
    out = bytearray(length)
    return read_one(client.peers, asked(offset, length, lo=lo), memoryview(out), deadline_after(20.0)), bytes(out)


def test_any_range_equals_memory(cluster, data) -> None:
    # Without hedging, which hands over what is late.
    client = StorageClient(cluster.mgmtd, timeout_s=20.0, client_id=78, hedging=None)
    rng = np.random.default_rng(4)
    for number in range(300):
        unit = [1, 4 << 10, 256 << 10][number % 3]
        begin = int(rng.integers(0, SIZE // unit)) * unit
        end = min(begin + int(rng.integers(1, SIZE)) // unit * unit + 1, SIZE) if number % 5 else SIZE
        answer, got = plainly(client, begin, end - begin)
        assert answer == Answer(SIZE, 1) and got == data[begin:end], (begin, end)
    client.close()


def requests(cluster) -> int:
    return sum(header.kind == Kind.READ for server in cluster.servers for header in server.asked)


def test_it_is_one_request(cluster, client, data) -> None:
    out = bytearray(SIZE)
    results = client.read_one(asked(0, SIZE), memoryview(out))
    assert out == data and requests(cluster) == 1
    assert results[["status", "length", "chunk_length", "version"]].tolist() == [(0, SIZE, SIZE, 1)]


@pytest.mark.parametrize(("offset", "length"), [(0, 4_096), (100, 5_000), (0, SIZE)])
def test_a_chunk_that_is_short_or_absent_is_a_result(client, data, offset: int, length: int) -> None:
    for lo, shift in ((0, SIZE - 50), (9, 0)):
        assert plainly(client, offset + shift, length, lo=lo)[0] is None
        out = bytearray(length)
        (result,) = client.read_one(asked(offset + shift, length, lo=lo), memoryview(out))
        there = data[offset + shift :] if lo == 0 else b""
        assert result["length"] == len(there) and out[: len(there)] == there and not any(out[len(there) :])


@pytest.mark.parametrize("length", [4_096, 5_000, SIZE])
def test_damage_is_read_from_another_replica_and_told(cluster, client, data, length: int) -> None:
    for server in cluster.servers[:2]:
        server.corrupt = True
    for _ in range(6):
        out = bytearray(length)
        client.read_one(asked(0, length), memoryview(out))
        assert out == data[:length]
    cluster.servers[2].corrupt = True
    with pytest.raises(Corrupt, match=r"\(101, 102, 103\)"):
        client.read_one(asked(0, length), memoryview(bytearray(length)))


@pytest.mark.parametrize("code", [Busy.code, StaleRouting.code])
def test_a_refusal_is_the_batchs(cluster, client, data, code: int) -> None:
    for server in cluster.servers:
        server.frame_status = [code]
    assert plainly(client, 0, 100)[0] is None
    out = bytearray(100)
    client.read_one(asked(0, 100), memoryview(out))
    assert out == data[:100]


def test_a_reply_that_breaks_off_is_asked_for_again(cluster, client, data) -> None:
    for server in cluster.servers:
        server.die_in_reply = 1
    for _ in range(4):
        out = bytearray(SIZE)
        client.read_one(asked(0, SIZE), memoryview(out))
        assert out == data


def test_what_is_late_is_handed_over_with_its_connection(cluster, client, data) -> None:
    while not all(any(header.kind == Kind.READ for header in server.asked) for server in cluster.servers):
        plainly(client, 0, 100)  # until all are connected to
    for server in cluster.servers:
        server.goes_on.clear()
    answer, _ = plainly(client, 0, SIZE)
    assert isinstance(answer, Begun) and answer.lane.connection.outstanding == 1
    for server in cluster.servers:
        server.goes_on.set()
    client.peers.give_back(answer.lane.connection)


def test_nobody_is_asked_who_is_not_thought_well_of(cluster, client, data) -> None:
    client.peers.failed(client.peers.table(), 0)
    before = requests(cluster)
    assert plainly(client, 0, 100)[0] is None and requests(cluster) == before
