"""Reads and writes that are waited for, through rings: what the client's own do, for several threads at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fs3 import usrbio
from fs3.client.connect import Client
from fs3.client.storage import RANGE, ChunkUpdate, Op
from fs3.clock import deadline_after
from fs3.cluster.local import LocalCluster
from fs3.errors import Invalid, MaybeApplied, NotFound, Unavailable
from fs3.kvcache.keys_core import page_chunk
from fs3.usrbio import Files
from fs3.usrbio.reads import BESIDE_BYTES, RingReads
from tests.fs3.usrbio.conftest import SIZES, Batch, Stalled, until

PATHS = list(SIZES)


@pytest.fixture
def reads(cluster: LocalCluster, noise: dict[str, bytes], runtime_directory: Path) -> Iterator[RingReads]:
    made = RingReads(usrbio.open(cluster.url))
    yield made
    made.close()


def read(reads: RingReads, batch: Batch, out: memoryview, **options: float) -> None:
    reads.read_batch(batch.files, batch.index, batch.offsets, batch.lengths, out, batch.places, **options)


def check(batch: Batch, out: memoryview) -> None:
    """That the ranges have what they should, and nothing else was written."""
    expected = bytearray(len(out))
    rows = zip(batch.index, batch.offsets, batch.lengths, batch.places, strict=True)
    for file, offset, length, place in rows:
        expected[place : place + length] = batch.datas[file][offset : offset + length]
    assert out == expected


@pytest.mark.parametrize("count", [0, 1, 3, 500, 5_000])
def test_into_memory_of_any_kind(reads: RingReads, noise: dict[str, bytes], count: int) -> None:
    files = Files(reads.open_many(PATHS))
    batch = Batch.random(files, noise, count, count, most=2_000)
    size = 10 + int((batch.places + batch.lengths).max(initial=0))
    out = memoryview(bytearray(size))
    read(reads, batch, out)
    check(batch, out)
    with reads.iov(size + 100) as iov:
        inside = iov.view[50 : 50 + size]
        read(reads, batch, inside)
        check(batch, inside)
        assert not any(iov.view[:50]) and not any(iov.view[50 + size : size + 100])
        del inside


def test_more_than_is_read_beside_at_once(reads: RingReads, noise: dict[str, bytes]) -> None:
    files, size = Files(reads.open_many(["/noise-c"])), SIZES["/noise-c"]
    count = BESIDE_BYTES // size + 3
    out = memoryview(bytearray(count * size))
    zero = np.zeros(count, dtype=np.int64)
    places = np.random.default_rng(1).permutation(count) * size
    reads.read_batch(files, zero, zero, zero + size, out, places)
    assert all(out[at : at + size] == noise["/noise-c"] for at in range(0, count * size, size))


def test_chunks_as_the_client_reads_them(reads: RingReads, client: Client) -> None:
    (file,) = client.files.open_many(["/noise-a"])
    ranges = np.zeros(5, dtype=RANGE)
    ranges["hi"], ranges["lo"], ranges["length"] = 1 << 56 | file.inode_id, [0, 3, 99, 1, 2], 1_000
    ranges["chain"] = file.chains[ranges["lo"] % len(file.chains)]
    places = np.array([4, 0, 2, 3, 1], dtype=np.int64) * 1_000
    ours, theirs = memoryview(bytearray(5_000)), memoryview(bytearray(5_000))
    found = reads.read(ranges, ours, places)
    expected = client.storage.read(ranges, theirs, places)
    assert ours[:777] == theirs[:777] and ours[1_000:] == theirs[1_000:], "beyond a short chunk's end nothing is said"
    for name in ("status", "length", "chunk_length"):
        assert found[name].tolist() == expected[name].tolist()


def test_several_threads(reads: RingReads, noise: dict[str, bytes]) -> None:
    files = Files(reads.open_many(PATHS))

    def one(seed: int) -> None:
        batch = Batch.random(files, noise, seed, 200)
        out = memoryview(bytearray(int((batch.places + batch.lengths).max())))
        read(reads, batch, out)
        check(batch, out)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(one, range(24)))


def test_what_is_wrong_is_told(reads: RingReads, noise: dict[str, bytes]) -> None:
    files, one = Files(reads.open_many(PATHS)), np.ones(1, dtype=np.int64)
    for out, offset, place, words in (
        (memoryview(bytes(9)), 0, 0, "read-only"),
        (memoryview(bytearray(9)), 0, 9, "do not fit into a buffer of 9 bytes"),
        (memoryview(bytearray(9)), 0, -1, "do not fit into a buffer of 9 bytes"),
        (memoryview(bytearray(9)), 1 << 40, 0, "/noise-b: bytes .* are not within the file"),
    ):
        with pytest.raises(Invalid, match=words):
            reads.read_batch(files, one, one * offset, one, out, one * place)
    with pytest.raises(Invalid, match="lengths of type float64"):
        reads.read_batch(files, one, one, np.ones(1), memoryview(bytearray(9)), one)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="/nope"):
        reads.open_many(["/nope"])


def test_a_deadline(cluster: LocalCluster, reads: RingReads, noise: dict[str, bytes]) -> None:
    files = Files(reads.open_many(PATHS))
    batch = Batch.random(files, noise, 1, 500)
    out = memoryview(bytearray(int((batch.places + batch.lengths).max())))
    with Stalled(cluster), pytest.raises(Unavailable):
        read(reads, batch, out, deadline_s=deadline_after(0.2))
    with pytest.raises(Unavailable):
        read(reads, batch, out, deadline_s=deadline_after(-1))
    read(reads, batch, out, deadline_s=float("inf"))
    check(batch, out)


def test_a_call_under_way_when_all_is_closed_goes_on(
    cluster: LocalCluster, noise: dict[str, bytes], runtime_directory: Path
) -> None:
    io = usrbio.open(cluster.url)
    reads = RingReads(io)
    files = Files(reads.open_many(PATHS))
    batch = Batch.random(files, noise, 1, 500)
    out = memoryview(bytearray(int((batch.places + batch.lengths).max())))
    with ThreadPoolExecutor(1) as threads:
        with Stalled(cluster):
            reading = threads.submit(read, reads, batch, out)
            until(lambda: io.stats()["rings"] == 1, "no ring comes")
            reads.close()
            with pytest.raises(Invalid, match="closed"):
                read(reads, batch, out)
        reading.result()
    check(batch, out)
    with pytest.raises(Invalid, match="closed"):
        io.stats()


def updates(seed: int, sizes: list[int], datas: list[memoryview], **options: Any) -> list[ChunkUpdate]:
    ids = [page_chunk(seed, bytes([number]) * 32) for number in range(len(sizes))]
    return [
        ChunkUpdate(hi=hi, lo=lo, chain=options["chain"], op=options.get("op", Op.REPLACE), data=data)
        for (hi, lo), data in zip(ids, datas, strict=True)
    ]


@pytest.mark.parametrize("where", ["in one Iov", "anywhere", "in both"])
def test_whole_chunks_are_written_from_memory_of_any_kind(reads: RingReads, client: Client, where: str) -> None:
    chain = min(client.mgmtd.routing.chains)
    sizes = [100_000, 0, 1, 3 << 20, 5]
    noise = [np.random.default_rng(size).bytes(size) for size in sizes]
    ends = np.cumsum(sizes).tolist()
    with reads.iov(ends[-1]) as iov:
        for size, end, data in zip(sizes, ends, noise, strict=True):
            iov.view[end - size : end] = data
        inside = [iov.view[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        outside = [memoryview(data) for data in noise]
        datas = {"in one Iov": inside, "anywhere": outside, "in both": inside[:3] + outside[3:]}[where]
        seed = 500 + len(where)
        assert reads.try_write(updates(seed, sizes, datas, chain=chain)) == [None] * 5
        other = [memoryview(b"no")] * 5
        mixed = (
            updates(seed, sizes, other, chain=chain, op=Op.PUT_IF_ABSENT)[:4]
            + updates(seed, sizes, other, chain=chain)[4:]
        )
        assert reads.try_write(mixed) == [None] * 5
        del inside, datas
    ranges = np.array(
        [(one.hi, one.lo, 0, size, chain, 0) for one, size in zip(mixed, sizes, strict=True)], dtype=RANGE
    )
    out = memoryview(bytearray(ends[-1]))
    found = client.storage.read(ranges, out, np.array(ends) - sizes)
    assert found["length"].tolist() == [*sizes[:4], 2]
    assert out[: ends[3]] == b"".join(noise[:4]) and out[ends[3] : ends[3] + 2] == b"no"
    assert reads.try_write([]) == []


def test_chunks_that_cannot_be_written_are_told_one_by_one(
    cluster: LocalCluster, reads: RingReads, client: Client
) -> None:
    chain = min(client.mgmtd.routing.chains)
    two = updates(700, [3, 3], [memoryview(b"abc")] * 2, chain=chain)
    with Stalled(cluster):
        errors = reads.try_write(two, deadline_s=deadline_after(0.2))
    assert all(isinstance(error, Unavailable | MaybeApplied) for error in errors)
    assert all(isinstance(error, Unavailable) for error in reads.try_write(two, deadline_s=deadline_after(-1)))
    assert reads.try_write(two) == [None, None]
