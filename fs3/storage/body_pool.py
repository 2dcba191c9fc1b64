"""Memory for the bodies of requests: reused, bounded, and handed out in the order of asking.

Every place in a chain (hop) has a share of its own. A request at hop h holds its body while it waits for hop h + 1 on
another node; if both drew on one share, two nodes full of first hops would wait for each other. So hop h depends only
on hop h + 1, and the last on nobody.

Whoever finds no room is granted memory later, from the thread that gives some back; until then he stops reading. One
who goes away meanwhile says so (`forget`): a full share must not remember everybody who ever asked.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fs3.transport.buffers import allocate

_SMALLEST_BYTES = 64 << 10
_KEPT_FRACTION = 4  # a share keeps at most 1/4 of itself idle

Grant = Callable[["Body"], None]


@dataclass(slots=True, eq=False)
class Body:
    """A loan: `memory` is at least as large as was asked; to be given back to `share`."""

    memory: memoryview
    share: Share


class Share:
    """The memory of one hop; at most `limit_bytes` lent at a time."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._idle: dict[int, list[memoryview]] = {}
        self._idle_bytes = 0
        self._waiting: deque[tuple[int, Grant]] = deque()
        self.lent_bytes = 0

    def take(self, size: int, grant: Grant) -> Body | None:
        """Memory for `size` bytes, or None: then `grant` is called with it later, on any thread."""
        wanted = rounded(size)
        with self._lock:
            if self._waiting or not self._fits(wanted):
                self._waiting.append((wanted, grant))
                return None
            return self._lend(wanted)

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for memory; a glance, without the lock."""
        return bool(self._waiting)

    def give_back(self, body: Body) -> None:
        """End a loan; nothing may use its memory any more."""
        with self._lock:
            self.lent_bytes -= body.memory.nbytes
            self._keep(body.memory)
            granted = self._granted()
        for grant, loan in granted:
            grant(loan)

    def forget(self, grant: Grant) -> None:
        """Whoever waits with this `grant` does not want memory any more; nothing happens if it was granted already."""
        with self._lock:
            left = [waiting for waiting in self._waiting if waiting[1] is not grant]
            if len(left) == len(self._waiting):
                return
            self._waiting = deque(left)
            granted = self._granted()  # a large one at the front may have kept small ones waiting
        for other, loan in granted:
            other(loan)

    def _granted(self) -> list[tuple[Grant, Body]]:
        granted: list[tuple[Grant, Body]] = []
        while self._waiting and self._fits(self._waiting[0][0]):
            wanted, grant = self._waiting.popleft()
            granted.append((grant, self._lend(wanted)))
        return granted

    def _keep(self, memory: memoryview) -> None:
        size = memory.nbytes
        most = self._limit // _KEPT_FRACTION
        if size > most:
            return
        while self._idle_bytes + size > most:
            other = next(iter(self._idle))
            self._idle[other].pop()
            self._idle_bytes -= other
            if not self._idle[other]:
                del self._idle[other]
        same = self._idle.pop(size, [])
        same.append(memory)
        self._idle[size] = same  # last: sizes that are not used any more go first
        self._idle_bytes += size

    def _fits(self, wanted: int) -> bool:
        return self.lent_bytes == 0 or self.lent_bytes + wanted <= self._limit

    def _lend(self, wanted: int) -> Body:
        self.lent_bytes += wanted
        idle = self._idle.get(wanted)
        if idle:
            self._idle_bytes -= wanted
            memory = idle.pop()
            if not idle:
                del self._idle[wanted]
            return Body(memory, self)
        return Body(memoryview(allocate(wanted)), self)


def rounded(size: int) -> int:
    """What is lent for `size` bytes: four sizes per doubling, so that a buffer fits the next user too."""
    power = max(_SMALLEST_BYTES, 1 << (size - 1).bit_length())
    if power == _SMALLEST_BYTES:
        return power
    step = power // 8
    return -(-size // step) * step


class BodyPool:
    """A share per hop."""

    def __init__(self, *, hops: int, share_bytes: int) -> None:
        self.shares = tuple(Share(share_bytes) for _ in range(hops))

    @property
    def lent_bytes(self) -> int:
        """The bodies in memory now."""
        return sum(share.lent_bytes for share in self.shares)
