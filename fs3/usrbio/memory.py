"""Memory that an application and its I/O process share: a memfd, whose size is sealed, mapped by both.

Huge pages are taken where the machine has some set aside (hugetlbfs), else asked for (transparent ones, which many
kernels do not give to shared memory). All pages are there before the first read: a page that came only when it was
written to would cost more than the read, and a machine without memory says so here, not with a SIGBUS later. The seals
are checked by whoever is handed such memory: a file that could be made shorter would be that SIGBUS, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import threading
import weakref

import psutil

from fs3.errors import Invalid, NoSpace

HUGE_BYTES = 2 << 20
_MADV_POPULATE_WRITE = 23  # Linux 5.14
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

# Keeps the interpreter lock, as the call takes a microsecond: to get the lock back from a busy thread takes 5,000.
_eventfd_write = ctypes.PyDLL(None).eventfd_write
_eventfd_write.argtypes = (ctypes.c_int, ctypes.c_uint64)

_fence_lock = threading.Lock()


def ring_bell(descriptor: int) -> None:
    """Wake whoever waits at an eventfd; neither blocks nor lets another thread of the process run."""
    _eventfd_write(descriptor, 1)


def fence() -> None:
    """Stores before it are seen before stores after it: what a lock's release and acquisition promise."""
    with _fence_lock:
        pass
    with _fence_lock:
        pass


class SharedMemory:
    """`size` bytes at `view`, in the file `descriptor`, closed with it."""

    def __init__(self, descriptor: int, size: int) -> None:
        """Map it. The descriptor is closed if that fails. Raises: OSError; NoSpace: there are not so many pages."""
        self.descriptor = descriptor
        self.size = size
        try:
            memory = mmap.mmap(descriptor, size, mmap.MAP_SHARED)
            _populate(memory, descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        self.view = memoryview(memory)
        self._close = weakref.finalize(self, os.close, descriptor)

    @classmethod
    def make(cls, size: int, name: str) -> SharedMemory:
        """`size` zero bytes at least. Raises: NoSpace."""
        available = psutil.virtual_memory().available
        if size > available:
            raise NoSpace(f"{size} bytes of shared memory: this machine has {available} to spare; ask for less")
        if size >= HUGE_BYTES:
            whole = -(-size // HUGE_BYTES) * HUGE_BYTES
            with contextlib.suppress(OSError):  # none set aside, or not enough
                return cls(_sealed(whole, name, os.MFD_HUGETLB | os.MFD_HUGE_2MB), whole)
        whole = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            return cls(_sealed(whole, name, 0), whole)
        except OSError as error:
            raise NoSpace(f"{size} bytes of shared memory: {error.strerror}") from None

    @classmethod
    def given(cls, descriptor: int, size: int) -> SharedMemory:
        """Memory that a peer has made; the descriptor is closed if it is refused. Raises: Invalid, NoSpace."""
        try:
            has, seals = os.fstat(descriptor).st_size, fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        except OSError:
            os.close(descriptor)
            raise Invalid("what was passed is no shared memory") from None
        if size < 1 or has < size or seals & (_SEALS ^ fcntl.F_SEAL_SEAL) != _SEALS ^ fcntl.F_SEAL_SEAL:
            os.close(descriptor)
            raise Invalid(f"shared memory of {has} bytes with seals {seals:#x}: {size} are needed, and a sealed size")
        try:
            return cls(descriptor, size)
        except OSError as error:
            raise NoSpace(f"{size} bytes of shared memory cannot be mapped: {error.strerror}") from None

    def close(self) -> None:
        """Give the memory back. It is unmapped with the last view of it, as arrays do not say that they look at it."""
        self.descriptor = -1
        self._close()
        self.view = memoryview(b"")


def _sealed(size: int, name: str, flags: int) -> int:
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _populate(memory: mmap.mmap, descriptor: int, size: int) -> None:
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    try:
        memory.madvise(_MADV_POPULATE_WRITE)
    except OSError:
        os.posix_fallocate(descriptor, 0, size)  # an older kernel
