"""Many threads at once, or one alone: for what is used all the time and replaced once in a long while.

Who wants to be alone goes before those who come after: readers that never pause do not keep it out. The way of the many
is a plain lock for an instant, twice; they wait for an event only while somebody is alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType

from fs3.runtime import SYSTEM, Runtime


class Gate:
    """`with gate:` among many, `with gate.alone():` without any; neither may be entered again from inside."""

    def __init__(self, *, runtime: Runtime = SYSTEM) -> None:
        self._lock = runtime.lock()  # only ever held for an instant
        self._turn = runtime.lock()  # of those who want to be alone
        self._open = runtime.event()  # nobody is alone any more
        self._empty = runtime.event()  # the last of the many has left
        self._inside = 0
        self._alone = False  # somebody is, or waits to be

    def __enter__(self) -> None:
        while True:
            with self._lock:
                if not self._alone:
                    self._inside += 1
                    return
            self._open.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._alone and not self._inside:
                self._empty.set()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until nobody is inside, and keeps others out."""
        with self._turn:
            with self._lock:
                self._alone = True
                self._open.clear()
                self._empty.clear()
                waits = self._inside > 0
            try:
                if waits:
                    self._empty.wait()
                yield
            finally:
                with self._lock:
                    self._alone = False
                    self._open.set()
