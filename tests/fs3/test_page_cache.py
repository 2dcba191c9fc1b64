"""Parts of files in the page cache: all of what was asked for is there, and what cannot be had is told."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from fs3 import page_cache

SIZE = 8 << 20


@pytest.fixture
def file(tmp_path: Path) -> int:
    """On the disk and not in the page cache."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, os.urandom(SIZE + 4096))
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return fd


def is_there(fd: int, position: int, length: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(length)], position, os.RWF_NOWAIT) == length
    except BlockingIOError:
        return False


@pytest.mark.parametrize(
    ("position", "length"), [(0, 1 << 20), (3 << 20, 4 << 20), (4096, 3 << 20), (7 << 20, 1 << 20)]
)
def test_what_was_loaded_is_there(file: int, position: int, length: int) -> None:
    assert page_cache.load(file, position, length)
    assert is_there(file, position, length)


def test_what_is_small_or_beyond_the_end_is_left_to_whoever_reads_it(file: int) -> None:
    assert not page_cache.load(file, 0, page_cache.LARGE_BYTES - 1)
    assert not page_cache.load(file, SIZE - 4096, 1 << 20)
    assert not page_cache.load(os.open("/dev/null", os.O_RDONLY), 0, 1 << 20)


def test_a_part_of_a_mapping_is_faulted_in(file: int) -> None:
    memory = mmap.mmap(file, SIZE, access=mmap.ACCESS_READ)
    page_cache.populate(memory, (1 << 20) + 5, (3 << 20) + 7)
    assert is_there(file, (1 << 20) + 5, (2 << 20) + 2)
    os.ftruncate(file, 4096)
    with pytest.raises(OSError, match="Input/output error") as raised:
        page_cache.populate(memory, 1 << 20, 2 << 20)
    assert raised.value.errno == errno.EIO
