"""A few threads for what a storage daemon does by itself: settling pending versions, recovery of other replicas.

A chore is named by a key; asking again for one that waits does nothing, asking for one that runs makes it run once
more. A chore that is not finished returns in how many seconds it wants to go on.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable

from fs3.errors import Fs3Error
from fs3.runtime import SYSTEM, Runtime

Key = tuple[str, int]
_LOG = logging.getLogger("fs3.storage")
_RETRY_S = 0.5
_DEFECT_S = 10.0  # every time is a traceback in the log


class Chores:
    """Runs `work(number)` of the kind a key names, on at most `threads` threads."""

    def __init__(
        self, kinds: dict[str, Callable[[int], float | None]], *, threads: int, runtime: Runtime = SYSTEM
    ) -> None:
        self._runtime = runtime
        self._kinds = kinds
        self._changed = runtime.condition()
        self._due: list[tuple[float, int, Key]] = []
        self._when: dict[Key, float] = {}
        self._running: dict[Key, float | None] = {}  # when it was asked to run again
        self._asked = 0
        self._closed = False
        self._threads = [runtime.spawn(self._run, name=f"fs3-chore-{number}") for number in range(threads)]

    def ask(self, kind: str, number: int, *, in_s: float = 0.0) -> None:
        """Have the chore run, in `in_s` seconds at the latest."""
        with self._changed:
            key = (kind, number)
            due_s = self._runtime.now_s() + in_s
            if key not in self._running:
                self._put(key, due_s)
            elif (asked_s := self._running[key]) is None or due_s < asked_s:
                self._running[key] = due_s

    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        with self._changed:
            return not self._running and not self._when

    def resting(self) -> bool:
        """Whether nothing runs; what is due later may wait."""
        with self._changed:
            return not self._running

    def close(self) -> None:
        """Start nothing more and wait for what runs."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _put(self, key: Key, due_s: float) -> None:
        if self._when.get(key, due_s + 1) > due_s:
            self._when[key] = due_s
            self._asked += 1
            heapq.heappush(self._due, (due_s, self._asked, key))
            self._changed.notify()

    def _next(self) -> Key | None:
        with self._changed:
            while not self._closed:
                if not self._due:
                    self._changed.wait()
                    continue
                due_s, _, key = self._due[0]
                left_s = due_s - self._runtime.now_s()
                if self._when.get(key) != due_s:
                    heapq.heappop(self._due)  # asked for again, sooner
                elif left_s > 0:
                    self._changed.wait(left_s)
                else:
                    heapq.heappop(self._due)
                    del self._when[key]
                    self._running[key] = None
                    return key
        return None

    def _run(self) -> None:
        while (key := self._next()) is not None:
            kind, number = key
            again_s: float | None
            try:
                again_s = self._kinds[kind](number)
            except Fs3Error as error:
                _LOG.warning("%s %d: %s (%s); trying again", kind, number, error, type(error).__name__)
                again_s = _RETRY_S
            except Exception:  # noqa: BLE001  # a defect in one chore must not take a thread from all the others
                _LOG.exception("%s %d failed; trying again", kind, number)
                again_s = _DEFECT_S
            with self._changed:
                asked_s = self._running.pop(key)
                if self._closed:
                    continue
                if asked_s is not None:
                    self._put(key, asked_s)
                if again_s is not None:
                    self._put(key, self._runtime.now_s() + again_s)
