"""Reading ahead on a thread, with a bound: what the consumer will take next is fetched while it works.

The thread knows nothing of datasets: it calls `fetch(cursor)`, which returns a group of items and the cursor after it,
whenever fewer than `low_water` items wait, so at most `low_water - 1` and one group do. An error takes the place of
the item it struck: it is raised to the consumer once, after the items before it, and the thread ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from fs3.errors import Invalid

Item = TypeVar("Item")
Cursor = TypeVar("Cursor")

ABANDON_S = 60.0


class Prefetcher(Generic[Item, Cursor]):
    """A thread that runs ahead of its consumer from one cursor on. It holds no reference to the consumer."""

    def __init__(
        self, fetch: Callable[[Cursor], tuple[Sequence[Item], Cursor]], cursor: Cursor, *, low_water: int
    ) -> None:
        """`fetch` is called on the thread only, and returns at least one item."""
        self.pid = os.getpid()
        self._fetch = fetch
        self._low_water = low_water
        self._items: deque[Item] = deque()
        self._error: BaseException | None = None
        self._stop = False
        # Taken by itself: a signal's handler can come between a condition and its lock, which then stays locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, args=(cursor,), name="fs3-loader", daemon=True)

    def start(self) -> None:
        """Start the thread. Who is interrupted meanwhile stops it: it may run, or be about to."""
        self._thread.start()

    @property
    def goes_on(self) -> bool:
        """Whether it was started and not stopped, and is of this process."""
        return self._thread.ident is not None and not self._stop and self.pid == os.getpid()

    def take(self) -> tuple[Item, float]:
        """The next item, and the seconds waited for it.

        Raises: what `fetch` raised, once the items before it are taken; the prefetcher has then ended. Invalid: it was
        stopped meanwhile.
        """
        with self._lock:
            if self._items:
                return self._pop(), 0.0
            since = time.perf_counter()
            while not self._items and self._error is None and not self._stop:
                self._changed.wait()
            if self._items:
                return self._pop(), time.perf_counter() - since
            raise self._error or Invalid("the loader was closed, or moved, while its next batch was waited for")

    def stop(self) -> None:
        """End the thread, after the fetch in progress if there is one, and wait until it has ended, however long."""
        self._end(None)

    def abandon(self) -> None:
        """As `stop`, but wait at most `ABANDON_S`: nobody else will use what `fetch` uses, and the process may end."""
        self._end(ABANDON_S)

    def _end(self, wait_s: float | None) -> None:
        if self.pid != os.getpid():
            return
        with self._lock:
            self._stop = True
            self._items.clear()
            self._changed.notify_all()
        # One that has yet to begin is not waited for: it finds that it is stopped before it fetches anything.
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(wait_s)

    def _pop(self) -> Item:
        item = self._items.popleft()
        if len(self._items) < self._low_water:
            self._changed.notify_all()
        return item

    def _run(self, cursor: Cursor) -> None:
        while True:
            with self._lock:
                while len(self._items) >= self._low_water and not self._stop:
                    self._changed.wait()
                if self._stop:
                    return
            try:
                items, cursor = self._fetch(cursor)
            except BaseException as error:  # noqa: BLE001  (raised to the consumer, which alone can act on it)
                with self._lock:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._lock:
                if self._stop:
                    return
                self._items.extend(items)
                self._changed.notify_all()
