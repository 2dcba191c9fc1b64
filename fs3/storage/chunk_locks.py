"""One change at a time per chunk; a caller takes all chunks of its batch at once, so callers never wait in a circle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fs3.runtime import SYSTEM, Runtime

Key = tuple[int, int, int]  # target, hi, lo


class ChunkLocks:
    """The chunks that are being changed."""

    def __init__(self, *, runtime: Runtime = SYSTEM) -> None:
        self._freed = runtime.condition()
        self._busy: set[Key] = set()

    @contextlib.contextmanager
    def holding(self, keys: set[Key]) -> Iterator[None]:
        """Waits until none of `keys` is being changed, and keeps others from changing them."""
        with self._freed:
            while not self._busy.isdisjoint(keys):
                self._freed.wait()
            self._busy |= keys
        try:
            yield
        finally:
            with self._freed:
                self._busy -= keys
                self._freed.notify_all()

    def wait_for_target(self, target: int) -> None:
        """Returns once no chunk of the target is being changed."""
        with self._freed:
            while any(key[0] == target for key in self._busy):
                self._freed.wait()
