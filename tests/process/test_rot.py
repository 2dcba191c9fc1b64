"""Sectors that turn bad after a chunk was read and verified: no reader of this host takes their bytes for verified,
whatever brought them into the page cache with its own."""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fs3 import page_cache
from fs3.client.connect import Client, connect
from fs3.client.file import OpenFile
from fs3.cluster.local import LocalCluster
from fs3.errors import Corrupt, Invalid
from fs3.layout import LayoutChoice
from fs3.transport.messages import RANGE

SIZE = 1 << 20
CHUNKS = 24
LARGE_PAGE = page_cache.LARGE_PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies."""

    path: Path
    position: int
    size: int

    def cached(self) -> bool:
        """Whether the page cache has a byte of it; a look that brings nothing in."""
        with self.path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ, offset=self.position)
            return any(page_cache.resident(memory, at, at + mmap.PAGESIZE) for at in range(0, self.size, mmap.PAGESIZE))

    def rot(self) -> None:
        """Other bytes on the disk, and none in the page cache."""
        with self.path.open("r+b") as file:
            os.posix_fadvise(file.fileno(), self.position, self.size, os.POSIX_FADV_DONTNEED)
        fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        page = mmap.mmap(-1, mmap.PAGESIZE)
        page.write(b"rot!" * (mmap.PAGESIZE // 4))
        os.pwritev(fd, [page], self.position)
        os.close(fd)

    def leave(self) -> None:
        """Have the page cache let go of it."""
        with self.path.open("rb") as file:
            os.posix_fadvise(file.fileno(), self.position, self.size, os.POSIX_FADV_DONTNEED)


class Read:
    """A file of which all chunks were read and verified, and are known to lie here."""

    def __init__(self, client: Client, path: str, size: int = SIZE) -> None:
        self.client = client
        self.size = size
        self.data = np.random.default_rng(len(path)).bytes(CHUNKS * size)
        with client.files.create_writer(path, layout_choice=LayoutChoice(replicas=1, chunk_bytes=size)) as writer:
            writer.write(self.data)
        self.file: OpenFile = client.files.open_read(path)
        for _ in range(6):
            for number in range(CHUNKS):
                assert client.files.read(self.file, number * self.size, self.size) == self.bytes(number)
        self.places = {self.place(number): number for number in range(CHUNKS)}

    def bytes(self, number: int) -> bytes:
        return self.data[number * self.size : (number + 1) * self.size]

    def place(self, number: int) -> Place:
        asked = self.file.range_of(number * self.size, self.size)
        assert asked is not None
        kept = self.client.storage.same_host.kept._kept[asked.hi, asked.lo, asked.chain]
        return Place(Path(f"/proc/self/fd/{kept.file.fd}").readlink(), kept.position, self.size)

    def neighbours(self) -> list[tuple[int, int]]:
        """Chunks that lie in one large page."""
        pairs = [
            (number, self.places.get(Place(place.path, place.position + self.size, self.size)))
            for place, number in self.places.items()
            if place.position % LARGE_PAGE == 0
        ]
        return [(one, other) for one, other in pairs if other is not None]

    def batch(self, numbers: list[int]) -> bytes:
        out, count = bytearray(len(numbers) * self.size), len(numbers)
        which, offsets = np.zeros(count, dtype=np.int64), np.array(numbers, dtype=np.int64) * self.size
        self.client.files.read_batch([self.file], which, offsets, np.full(count, self.size), out)
        return bytes(out)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=1, replicas=1, port=0) as running:
        yield running


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    made = connect(cluster.url)
    yield made
    made.close()


@pytest.mark.parametrize("count", [12, 18])
def test_what_is_loaded_for_one_chunk_does_not_vouch_for_the_next(client: Client, count: int) -> None:
    """`count` chunks a call: few are read where they are known to be, more are asked for."""
    read = Read(client, f"/beside-{count}")
    one, rotten = read.neighbours()[0]
    read.place(one).leave()
    read.place(rotten).rot()
    assert not read.place(one).cached() and not read.place(rotten).cached()
    others = [number for number in range(CHUNKS) if number not in (one, rotten)][: count - 2]
    with pytest.raises(Corrupt, match="failed its checksum on every serving target"):
        read.batch([one, rotten, *others])
    assert read.batch([one, *others]) == b"".join(map(read.bytes, [one, *others]))


@pytest.mark.parametrize("size", [2 << 20, 4 << 20])
def test_no_large_page_has_bytes_of_two_large_chunks(cluster: LocalCluster, client: Client, size: int) -> None:
    read = Read(client, f"/large-{size}", size)
    order = sorted(read.places, key=lambda place: (place.path, place.position))
    one, following = next(
        (one, other)
        for one, other in itertools.pairwise(order)
        if one.path == other.path and other.position - one.position < 2 * size
    )
    assert one.position % LARGE_PAGE == 0 and following.position % LARGE_PAGE == 0
    one.leave()
    following.leave()
    assert not one.cached() and not following.cached()
    other = connect(cluster.url)
    try:
        number = read.places[one]
        assert other.files.read(read.file, number * size, size) == read.bytes(number)
    finally:
        other.close()
    assert one.cached() and not following.cached()


def test_what_is_mapped_is_verified_again_once_it_left_the_page_cache(client: Client) -> None:
    read = Read(client, "/mapped")
    rotten, same = 3, 12  # in large pages of their own: one that is mapped stays in the page cache
    first, length = np.zeros(1, dtype=np.int64), np.array([SIZE], dtype=np.int64)

    def mapped(number: int) -> memoryview:
        view = client.files.map_batch([read.file], first, np.array([number * SIZE]), length)[0]
        assert view is not None
        return view

    assert mapped(same) == read.bytes(same)
    read.place(same).leave()
    assert mapped(same) == read.bytes(same)
    read.place(rotten).rot()
    assert not read.place(rotten).cached()
    with pytest.raises(Corrupt, match="failed its checksum on every serving target"):
        mapped(rotten)


def test_ranges_that_overlap_where_they_go_are_refused_wherever_they_lie(client: Client) -> None:
    read = Read(client, "/overlap")
    asked = [read.file.range_of(number * SIZE, 8_192) for number in (1, 2)]
    ranges = np.array([(*one, 0) for one in asked if one is not None], dtype=RANGE)
    with pytest.raises(Invalid, match="overlap in the buffer"):
        client.storage.read(ranges, memoryview(bytearray(SIZE)), np.array([0, 4_096]))
