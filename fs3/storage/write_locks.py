"""The write path's locks: one per chunk and target, held from the decision about an update until its answer.

Unlike the engine's own (which cover one batch on disk), these are held while a successor is asked, so waiting for one
has a deadline. They are handed over in order of arrival. A batch takes its chunks in sorted order, so two batches never
wait for each other; across nodes a wait only ever points down the chain.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from fs3.runtime import SYSTEM, Lock, Runtime

Key = tuple[int, int, int]  # target, hi, lo


class WriteLocks:
    """Locks by key; a key without a holder takes no memory."""

    def __init__(self, *, runtime: Runtime = SYSTEM) -> None:
        self._runtime = runtime
        self._guard = threading.Lock()  # only ever held for an instant
        self._waiters: dict[Key, deque[Lock]] = {}

    def acquire(self, keys: Iterable[Key], deadline_s: float) -> set[Key]:
        """Those of `keys` (sorted by the caller, none twice) that were got before the deadline."""
        got = set()
        for key in keys:
            if self._take(key, deadline_s):
                got.add(key)
        return got

    def release(self, keys: Iterable[Key]) -> None:
        """Let go of keys that this caller holds."""
        with self._guard:
            for key in keys:
                waiters = self._waiters[key]
                if waiters:
                    waiters.popleft().release()
                else:
                    del self._waiters[key]

    def held(self) -> int:
        """How many chunks are being written."""
        return len(self._waiters)

    def _take(self, key: Key, deadline_s: float) -> bool:
        with self._guard:
            waiters = self._waiters.get(key)
            if waiters is None:
                self._waiters[key] = deque()
                return True
            mine = self._runtime.lock()
            mine.acquire()
            waiters.append(mine)
        if mine.acquire(timeout=max(deadline_s - self._runtime.now_s(), 0.0)):
            return True
        with self._guard:
            if mine in waiters:
                waiters.remove(mine)
                return False
        return True  # it was handed over while the wait ended
