"""Locks on ranges of block files that outlive the daemon: how a client that reads by itself keeps blocks from reuse.

A range is locked for reading on a description (what `open` makes, and what SCM_RIGHTS, `dup` and `mmap` share) that the
client has too. The kernel ends such an "open file description" lock with the last descriptor or mapping of that
description, in whatever process, and not before: neither the daemon's death nor the client's fork ends it. Whoever is
about to reuse a block asks through another description whether anybody has locked it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator

_FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid


def lock(fd: int, begin: int, length: int) -> None:
    """Lock bytes [begin, begin + length) for reading on the description of `fd`. Raises: OSError."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, begin, length, 0))


def unlock(fd: int, begin: int, length: int) -> None:
    """End the description's lock on these bytes, if it has one. Raises: OSError."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, begin, length, 0))


def first_lock(fd: int, begin: int, length: int) -> tuple[int, int] | None:
    """[begin, end) of some lock within these bytes that another description has, None if there is none.

    Raises: OSError.
    """
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, begin, length, 0)
    kind, _, start, size, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    if kind == fcntl.F_UNLCK:
        return None
    end = start + size if size else begin + length
    return max(start, begin), min(end, begin + length)


def locks(fd: int, begin: int, length: int) -> Iterator[tuple[int, int]]:
    """Every locked [begin, end) within these bytes, in no order. Raises: OSError."""
    left = [(begin, begin + length)]
    while left:
        start, stop = left.pop()
        found = first_lock(fd, start, stop - start) if stop > start else None
        if found is not None:
            yield found
            left += [(start, found[0]), (found[1], stop)]
