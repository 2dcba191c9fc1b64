"""One suite for every `RangeReader`: whole batches filled in any order, and one line that names the file on failure.

Each reader runs on its own kind of filesystem: local files, fsspec's dict, and a cluster of three storage nodes.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from fs3.errors import Corrupt, Fs3Error, NotFound
from fs3_loader import reader as reader_module
from fs3_loader.location import Location
from fs3_loader.reader import RangeReader, merge_runs, open_reader

FILES = {"a": bytes(range(256)) * 4, "b": bytes(reversed(range(256))) * 3, "c": b"x"}

Open = Callable[[dict[str, bytes], dict[str, int]], RangeReader]


@pytest.fixture(params=["local", "memory", "fs3", "usrbio"])
def open_files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """`open_files(files, sizes)`: a reader over `files`, which are there with their contents."""
    opened: list[RangeReader] = []
    folder = {"local": str(tmp_path), "memory": "memory://fs3-reader-tests"}.get(request.param)
    usrbio = request.param == "usrbio"
    if usrbio:
        request.getfixturevalue("runtime_directory")
    folder = folder or request.getfixturevalue("cluster_url") + request.getfixturevalue("home")

    def make(files: dict[str, bytes], sizes: dict[str, int]) -> RangeReader:
        location = Location.parse(folder)
        for name, data in files.items():
            location.fs.pipe_file(location.path(name), data)
        opened.append(open_reader(location, list(sizes), list(sizes.values()), usrbio=usrbio))
        return opened[-1]

    yield make
    for reader in opened:
        reader.close()
    memory = fsspec.filesystem("memory")
    if memory.exists("/fs3-reader-tests"):
        memory.rm("/fs3-reader-tests", recursive=True)


def read(reader: RangeReader, ranges: Sequence[tuple[int, int, int]]) -> list[bytes]:
    """The bytes of (file, offset, length), received in one buffer in reverse order with gaps between."""
    index, offsets, lengths = (np.array(column) for column in zip(*ranges, strict=True))
    starts = (np.cumsum(lengths[::-1] + 3) - lengths[::-1])[::-1].astype(np.int64)
    out = bytearray(int(lengths.sum()) + 3 * len(ranges))
    reader.read_into(
        index.astype(np.int32), offsets.astype(np.int64), lengths.astype(np.int64), memoryview(out), starts
    )
    return [bytes(out[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def sizes_of(files: dict[str, bytes]) -> dict[str, int]:
    return {name: len(data) for name, data in files.items()}


def test_fills_every_range_whatever_their_order(open_files: Open) -> None:
    reader = open_files(FILES, sizes_of(FILES))
    names = list(FILES)
    ranges = [(0, 1000, 24), (2, 0, 1), (1, 5, 100), (0, 0, 10), (0, 10, 10), (0, 0, 1024), (1, 767, 1), (1, 5, 100)]
    expected = [FILES[names[f]][offset : offset + length] for f, offset, length in ranges]
    assert read(reader, ranges) == expected
    assert read(reader, ranges[2:3]) == expected[2:3]


def test_fills_random_batches(open_files: Open) -> None:
    reader, rng = open_files(FILES, sizes_of(FILES)), np.random.default_rng(2)
    for _ in range(20):
        ranges = []
        for file, data in enumerate(FILES.values()):
            for _ in range(5):
                start, end = sorted(rng.integers(0, len(data) + 1, 2).tolist())
                ranges.append((file, start, end - start))
        rng.shuffle(ranges)
        names = list(FILES)
        assert read(reader, ranges) == [FILES[names[f]][at : at + length] for f, at, length in ranges]


def test_names_a_missing_file(open_files: Open) -> None:
    reader = open_files(FILES, {"a": 1024, "gone": 5})
    assert read(reader, [(0, 0, 4)]) == [FILES["a"][:4]]
    with pytest.raises(NotFound, match=r"[^/]/gone"):
        read(reader, [(0, 0, 4), (1, 0, 4)])


def test_names_a_file_that_is_shorter_than_it_must_be(open_files: Open) -> None:
    reader = open_files(FILES, {"a": 2000})
    for _ in range(2):
        with pytest.raises(Fs3Error, match=r"shard .*/a "):
            read(reader, [(0, 1020, 8)])


def test_a_local_file_of_another_length_is_refused_whenever_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(FILES["a"])
    for size in (1000, 1025):
        reader = open_reader(Location.parse(str(tmp_path)), ["a"], [size])
        for _ in range(2):
            with pytest.raises(Corrupt, match=f"a has 1024 bytes, its manifest says {size}"):
                read(reader, [(0, 0, 24)])
        assert open_in(tmp_path) == []


class HttpError(Exception):
    """As clients of object stores have it: no OSError."""


class Overloaded(MemoryFileSystem):
    """Answers nothing, neither for one range nor for all."""

    cachable = False

    def __init__(self, error: Exception, *, for_all: bool) -> None:
        super().__init__()
        self.error, self.for_all = error, for_all

    def cat_ranges(self, paths: list[str], *arguments: Any, **options: Any) -> Any:
        if self.for_all:
            raise self.error
        return [self.error for _ in paths]


@pytest.mark.parametrize(
    ("error", "for_all", "said"),
    [
        (HttpError("503,\nslow down"), False, "store://b/a: 503, slow down"),
        (OSError("timed out"), False, "store://b/a: timed out"),
        (OSError("timed out"), True, "store://b: timed out"),
    ],
)
def test_what_any_filesystem_raises_is_one_line_that_says_where(error: Exception, for_all: bool, said: str) -> None:
    reader = open_reader(Location("store://b", Overloaded(error, for_all=for_all), "/b"), ["a"], [1024])
    with pytest.raises(Fs3Error) as caught:
        read(reader, [(0, 0, 24)])
    assert str(caught.value) == said


def test_a_local_file_that_shrinks_while_open_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(FILES["a"])
    reader = open_reader(Location.parse(str(tmp_path)), ["a"], [1024])
    assert read(reader, [(0, 1000, 24)]) == [FILES["a"][1000:]]
    (tmp_path / "a").write_bytes(b"short")
    with pytest.raises(Corrupt, match="ends at byte 5"):
        read(reader, [(0, 0, 24)])
    reader.close()


def open_in(folder: Path) -> list[str]:
    """The files of `folder` that this process has open."""
    paths = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since, by another thread
            paths.append(os.readlink(f"/proc/self/fd/{name}"))
    return [path for path in paths if path.startswith(f"{folder}/")]


def test_a_local_reader_that_is_dropped_unclosed_closes_its_files(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    reader = open_reader(Location.parse(str(tmp_path)), list(FILES), [len(data) for data in FILES.values()])
    read(reader, [(0, 0, 24), (1, 0, 24), (2, 0, 1)])
    assert len(open_in(tmp_path)) == 3
    del reader
    gc.collect()
    assert open_in(tmp_path) == []


def test_more_local_files_than_may_be_open(tmp_path: Path) -> None:
    count = reader_module.MAX_OPEN_FILES + 20
    for i in range(count):
        (tmp_path / f"{i}").write_bytes(b"%5d" % i)
    reader = open_reader(Location.parse(str(tmp_path)), [f"{i}" for i in range(count)], [5] * count)
    for _ in range(2):
        assert read(reader, [(i, 0, 5) for i in range(count)]) == [b"%5d" % i for i in range(count)]
    reader.close()


@given(data=st.data())
def test_merged_runs_copy_the_same_bytes(data: st.DataObject) -> None:
    """Replaying the merged runs on arrays leaves what the single ranges leave."""
    count = data.draw(st.integers(1, 12))
    files = np.array(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), dtype=np.int32)
    offsets = np.array(data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)), dtype=np.int64) * 2
    lengths = np.full(count, 2, dtype=np.int64)
    starts = np.arange(count, dtype=np.int64) * 2
    content = np.arange(3 * 40).reshape(3, 40)
    single, merged = np.zeros(2 * count), np.zeros(2 * count)
    for file, offset, start in zip(files, offsets, starts, strict=True):
        single[start : start + 2] = content[file, offset : offset + 2]
    runs = merge_runs(files, offsets, lengths, starts)
    for file, offset, length, start in runs:
        merged[start : start + length] = content[file, offset : offset + length]
    assert np.array_equal(single, merged)
    assert len(runs) <= count


def test_adjacent_ranges_become_one() -> None:
    files = np.zeros(5, dtype=np.int32)
    offsets = np.array([0, 2, 4, 8, 10], dtype=np.int64)
    runs = merge_runs(files, offsets, np.full(5, 2, dtype=np.int64), np.arange(5, dtype=np.int64) * 2)
    assert runs == [(0, 0, 6, 0), (0, 8, 4, 6)]
