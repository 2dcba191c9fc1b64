"""Counters of what changes in one chunk engine, in memory that the daemon shares with clients of its host: by them a
client knows, without asking, whether the place of a chunk that it was told still holds.

A file of 4,096 words (u64, little-endian) in the engine's folder, mapped by both sides:

    0           MAGIC; anything else: this run of the daemon is over
    1           until when what is here can be relied on: nanoseconds of CLOCK_BOOTTIME, as word 3's namespace has it
    2           counts changes of what the daemon serves, and of which chains
    3           the inode of the daemon's time namespace
    8 ...       count changes of chunks, several to a word (`word_of`)

A counter is odd while something is being changed, and even again, and larger, when the change can be seen and before
anybody is told of it. A place goes with the sum of its two counters, read before it was looked up (`state`). As long as
that is the sum, and the time has not come, the place is right, no other bytes lie there, and the daemon may serve them.
Who opens the engine next ends the file of the run before, first of all.

A daemon that has died does not answer, so mgmtd, which finds its ports closed, need not wait for its lease. But its
counters stand still, and what others write then is not in them. So the time is never more than RELY_S ahead, a thread
of the daemon moves it on, and mgmtd waits that long before it has others go on. Format: proto/data_plane.md.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from fs3.clock import lease_now_ns

RELY_S = 0.25  # at most so long after a daemon's death is what it shared relied on; mgmtd waits for that
WORDS = 4_096
NOT_KEPT = 0xFFFFFFFF  # a state that no place may be kept with
MAGIC = 0x3130_4E41_4843_3366  # "f3CHAN01"

_BYTES = WORDS * 8
_UNTIL, _SERVING, _NAMESPACE, _FIRST = 1, 2, 3, 8
_STATE_BITS = 0x7FFFFFFF
_U64 = (1 << 64) - 1


def word_of(hi: int, lo: int) -> int:
    """The word that counts a chunk's changes."""
    return _FIRST + ((hi * 0x9E3779B97F4A7C15 + lo * 0xC2B2AE3D27D4EB4F & _U64) >> 40) % (WORDS - _FIRST)


class ChangeCounters:
    """The daemon's side. Each counter is one thread's to change, the time any thread's."""

    def __init__(self, path: Path) -> None:
        """New ones at `path`; those that are there are ended. Raises: OSError."""
        end(path)
        self._path = path
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _BYTES)  # a page without room on the disk would be a SIGBUS
            self._memory = mmap.mmap(fd, _BYTES)
            self._inode = os.fstat(fd).st_ino
        finally:
            os.close(fd)
        self._words = memoryview(self._memory).cast("Q")
        self._words[_NAMESPACE] = time_namespace()
        self._words[0] = MAGIC

    def rely_until(self, until_s: float) -> None:
        """What is here may be relied on until then (`lease_now_s`); 0: from now on no more.

        Nor if somebody has removed the file: the next run would not find what it has to end.
        """
        self._words[_UNTIL] = int(max(until_s, 0.0) * 1e9) if self._is_there() else 0

    def _is_there(self) -> bool:
        try:
            return os.stat(self._path).st_ino == self._inode
        except OSError:
            return False

    def begin(self, hi: int, lo: int) -> None:
        """A chunk is about to change."""
        self._words[word_of(hi, lo)] += 1

    def begin_serving(self) -> None:
        """What is served is about to change."""
        self._words[_SERVING] += 1

    def end(self, hi: int, lo: int) -> None:
        """It has changed, and everybody who looks sees it."""
        self._words[word_of(hi, lo)] += 1

    def end_serving(self) -> None:
        """It has changed."""
        self._words[_SERVING] += 1

    def state(self, hi: int, lo: int) -> int:
        """What a place of the chunk that is looked up after this holds by."""
        serving, chunk = self._words[_SERVING], self._words[word_of(hi, lo)]
        return NOT_KEPT if (serving | chunk) & 1 else (serving + chunk) & _STATE_BITS

    def share(self) -> int:
        """A descriptor to map them by, for reading alone; the caller's to close. Raises: OSError."""
        return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Nothing here holds any more."""
        self._words[_UNTIL] = self._words[0] = 0


class CounterView:
    """A client's side. Thread-safe, and across fork."""

    __slots__ = ("_memory", "_words")

    def __init__(self, fd: int) -> None:
        """Those that `fd`, which stays the caller's, is of. Raises: OSError, ValueError: not to be used here."""
        self._memory = mmap.mmap(fd, _BYTES, prot=mmap.PROT_READ)
        self._words = memoryview(self._memory).cast("Q")
        if self._words[_NAMESPACE] != time_namespace():
            raise ValueError("the daemon's clock is another")

    def over(self) -> bool:
        """Whether the daemon's run is over."""
        return self._words[0] != MAGIC

    def hold(self, word: int, state: int) -> bool:
        """Whether a place with this state still held when this was called; look after reading there.

        The time last: if it has not come now, it had not when the counters were read.
        """
        words = self._words
        return (
            (words[_SERVING] + words[word]) & _STATE_BITS == state
            and words[0] == MAGIC
            and lease_now_ns() < words[_UNTIL]
        )


def end(path: Path) -> None:
    """End the counters of a run that is over for all who still look at them, if there are any. Raises: OSError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if os.fstat(fd).st_size >= _BYTES:
            with mmap.mmap(fd, _BYTES) as memory:
                memory[:16] = bytes(16)
    finally:
        os.close(fd)
    os.unlink(path)


def time_namespace() -> int:
    """Which offset CLOCK_BOOTTIME has here; 0 where all have the same."""
    try:
        return os.stat("/proc/self/ns/time").st_ino
    except OSError:
        return 0
