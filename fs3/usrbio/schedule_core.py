"""Whose batch is next: the rings of all applications, high priority before low, taking turns within one.

The lowest priority never has all the workers: one stays free of it, so that a batch of a higher one need not wait for
long ones of the lowest to end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Generic, TypeVar

R = TypeVar("R")


class Priority(IntEnum):
    """Of a ring."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


class Schedule(Generic[R]):
    """The rings there are. Not thread-safe."""

    def __init__(self, workers: int) -> None:
        self._most_low = max(workers - 1, 1)
        self._low_running = 0
        self._rings: dict[Priority, deque[R]] = {priority: deque() for priority in Priority}

    def add(self, ring: R, priority: Priority) -> None:
        """From now on it has its turns."""
        self._rings[priority].append(ring)

    def remove(self, ring: R) -> None:
        """It has none any more; nothing happens if it had none."""
        for rings in self._rings.values():
            if ring in rings:
                rings.remove(ring)

    def rings(self) -> list[R]:
        """All there are."""
        return [ring for rings in self._rings.values() for ring in rings]

    def next(self, waiting: Callable[[R], bool]) -> tuple[R, Priority] | None:
        """The ring whose batch is to be taken now, of those that are `waiting`; it goes behind its equals."""
        for priority, rings in self._rings.items():
            if priority == Priority.LOW and self._low_running >= self._most_low:
                return None
            for turn, ring in enumerate(rings):
                if waiting(ring):
                    rings.rotate(-turn)
                    rings.append(rings.popleft())
                    return ring, priority
        return None

    def begun(self, priority: Priority) -> None:
        """A batch of a ring of `priority` is being worked on."""
        self._low_running += priority == Priority.LOW

    def ended(self, priority: Priority) -> None:
        """It no longer is."""
        self._low_running -= priority == Priority.LOW
