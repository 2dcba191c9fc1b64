"""Parts of files in the page cache, in large pages where the kernel has them.

What a plain read or `posix_fadvise` brings in from a random place of a file lies in pages of 4 KiB, and is copied out
of there a third as fast as from pages of 2 MiB. A mapping with MADV_HUGEPAGE is filled in 2 MiB at a time (Linux 6.18,
ext4), which the disk likes better too. Nothing here holds the interpreter's lock while the disk works, which
`mmap.madvise` does.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

import numpy as np

LARGE_BYTES = 1 << 20  # from so many bytes on, reading whole large pages pays
LARGE_PAGE_BYTES = 2 << 20  # on x86-64, and most others
_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14: faults pages in, and says EFAULT where the disk cannot
_HUGE = 14  # MADV_HUGEPAGE
_HARDWARE = 133  # EHWPOISON
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap, _madvise, _mincore = _libc.mmap, _libc.munmap, _libc.madvise, _libc.mincore
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def load(fd: int, position: int, length: int) -> bool:
    """Have the page cache hold these bytes of a file, and those beside them in the same large pages; blocks.

    False if it may not: they are few, this kernel cannot do that, or the disk cannot read them. Reading tells.
    """
    if length < LARGE_BYTES:
        return False
    begin = position // LARGE_PAGE_BYTES * LARGE_PAGE_BYTES
    end = min(-(-(position + length) // LARGE_PAGE_BYTES) * LARGE_PAGE_BYTES, os.fstat(fd).st_size)
    if end < position + length:
        return False
    address = _mmap(None, end - begin, mmap.PROT_READ, mmap.MAP_SHARED, fd, begin)
    if address == _FAILED:
        return False
    try:
        _madvise(address, end - begin, _HUGE)
        return not _madvise(address, end - begin, _POPULATE_READ)
    finally:
        _munmap(address, end - begin)


def populate(memory: mmap.mmap, begin: int, end: int) -> None:
    """Fault in [begin, end) of a mapping, large pages if they can be had.

    Raises: OSError: EIO: the disk cannot read it; anything else: this kernel cannot do that.
    """
    start = begin // mmap.PAGESIZE * mmap.PAGESIZE
    address = _address(memory)
    _madvise(address, -(-len(memory) // mmap.PAGESIZE) * mmap.PAGESIZE, _HUGE)
    if _madvise(address + start, end - start, _POPULATE_READ):
        number = ctypes.get_errno()
        number = errno.EIO if number in (errno.EFAULT, _HARDWARE) else number
        raise OSError(number, os.strerror(number))


def resident(memory: mmap.mmap, begin: int, end: int) -> bool:
    """Whether the page cache has all of [begin, end) of a mapping of a file that this user owns, or may write to."""
    start = begin // mmap.PAGESIZE * mmap.PAGESIZE
    pages = -(-(end - start) // mmap.PAGESIZE)
    there = ctypes.create_string_buffer(pages)
    if _mincore(_address(memory) + start, end - start, there):
        return False
    return there.raw == b"\x01" * pages


def _address(memory: mmap.mmap) -> int:
    return int(np.frombuffer(memory, dtype=np.uint8).ctypes.data)
