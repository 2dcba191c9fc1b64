"""Large buffers that are used again and again.

A freshly mapped destination receives at a seventh of the speed of one whose pages are already there, and 4 KiB pages at
two thirds of that of huge ones (measured). So buffers come from `mmap` with MADV_HUGEPAGE and are kept when their user
is done. Lending is not bounded here but by whoever borrows (a writer's window, a server's requests in flight); what is
kept idle is.
"""

from __future__ import annotations

import contextlib
import mmap
import threading

_HUGE_BYTES = 2 << 20


class BufferPool:
    """Writable buffers of `buffer_bytes` each, at most `keep` of them idle. Thread-safe; a forked child may go on."""

    def __init__(self, buffer_bytes: int, *, keep: int = 32) -> None:
        self.buffer_bytes = buffer_bytes
        self._keep = keep
        self._idle: list[memoryview] = []
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        """A buffer with arbitrary content, the borrower's until `give_back`."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return memoryview(allocate(self.buffer_bytes))

    def give_back(self, buffer: memoryview) -> None:
        """End the loan; nothing may use the buffer, or views of it, from here on."""
        assert buffer.nbytes == self.buffer_bytes, (buffer.nbytes, self.buffer_bytes)
        with self._lock:
            if len(self._idle) < self._keep:
                self._idle.append(buffer)


def allocate(size: int) -> mmap.mmap:
    """`size` bytes of anonymous memory, private to the process, in huge pages where the kernel has them."""
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE_BYTES:
        with contextlib.suppress(OSError):  # a kernel without transparent huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
