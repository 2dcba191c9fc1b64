"""Threads for requests that block: a bounded queue, and threads that are started as they are needed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from fs3.runtime import SYSTEM, Runtime, Thread

_LOG = logging.getLogger("fs3.storage")

Work = Callable[[], None]


class Pool:
    """At most `threads` threads, and at most `depth` pieces of work that wait for one."""

    def __init__(self, name: str, *, threads: int, depth: int, runtime: Runtime = SYSTEM) -> None:
        self._name = name
        self._most = threads
        self._depth = depth
        self._runtime = runtime
        self._changed = runtime.condition()
        self._waiting: deque[Work] = deque()
        self._threads: list[Thread] = []
        self._idle = 0
        self._closed = False

    def submit(self, work: Work) -> bool:
        """Have `work` done; False if too much waits already, or the pool is closed."""
        with self._changed:
            if self._closed or len(self._waiting) >= self._depth:
                return False
            self._waiting.append(work)
            if self._idle >= len(self._waiting):
                self._changed.notify()
            elif len(self._threads) < self._most:
                self._threads.append(self._runtime.spawn(self._run, name=f"{self._name}-{len(self._threads)}"))
            return True

    def close(self) -> None:
        """Take nothing more, finish what was taken, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closed:
                        return
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                work = self._waiting.popleft()
            try:
                work()
            except Exception:  # noqa: BLE001  # a defect in one request must not take a thread from all the others
                _LOG.exception("%s: a request failed", self._name)
