"""Tells storage daemons which chunks came with bytes that failed their sums. Nobody waits for it: a report that is lost
costs nothing but time, since the next reader reports again and the daemons scrub.

Reports of a chunk are merged, kept few, and sent by one thread that ends when there is nothing left to say. The daemon
believes none of them; it reads its own block and repairs it if need be (fs3/storage/repair.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fs3.errors import Fs3Error
from fs3.runtime import SYSTEM, Runtime
from fs3.transport.frame_core import Kind
from fs3.transport.messages import MAX_REPORTED, RANGE
from fs3.transport.pool import ConnectionPool

MOST_WAITING = 1_024
AGAIN_S = 30.0  # the same chunk of the same target is not reported again before
_CALL_S = 10.0

_Damage = tuple[int, int, int, int]  # target, hi, lo, chain


class Reports:
    """What is still to be reported by one process; thread-safe. `endpoint_of(target)` is where to say it."""

    def __init__(
        self,
        endpoint_of: Callable[[int], str | None],
        pool: Callable[[], ConnectionPool],
        *,
        runtime: Runtime = SYSTEM,
    ) -> None:
        self._endpoint_of = endpoint_of
        self._pool = pool
        self._runtime = runtime
        self._guard = runtime.lock()
        self._waiting: dict[_Damage, None] = {}
        self._said_s: dict[_Damage, float] = {}
        self._sending = False

    def add(self, target_id: int, hi: int, lo: int, chain: int) -> None:
        """Report a chunk soon, unless that was done lately or too much waits already."""
        damage = (target_id, hi, lo, chain)
        now_s = self._runtime.now_s()
        with self._guard:
            if len(self._said_s) >= MOST_WAITING:
                self._said_s = {key: at_s for key, at_s in self._said_s.items() if now_s - at_s < AGAIN_S}
            if damage in self._said_s and now_s - self._said_s[damage] < AGAIN_S:
                return
            if len(self._waiting) >= MOST_WAITING or len(self._said_s) >= MOST_WAITING:
                return
            self._said_s[damage] = now_s
            self._waiting[damage] = None
            if self._sending:
                return
            self._sending = True
        self._runtime.spawn(self._send_all, name="fs3-report")

    def _send_all(self) -> None:
        while True:
            with self._guard:
                waiting, self._waiting = list(self._waiting), {}
                if not waiting:
                    self._sending = False
                    return
            by_endpoint: dict[str, list[_Damage]] = {}
            for damage in waiting:
                endpoint = self._endpoint_of(damage[0])
                if endpoint is not None:
                    by_endpoint.setdefault(endpoint, []).append(damage)
            for endpoint, some in by_endpoint.items():
                for at in range(0, len(some), MAX_REPORTED):
                    self._send(endpoint, some[at : at + MAX_REPORTED])

    def _send(self, endpoint: str, damage: list[_Damage]) -> None:
        ranges = np.zeros(len(damage), dtype=RANGE)
        for row, (_, hi, lo, chain) in enumerate(damage):
            ranges["hi"][row], ranges["lo"][row], ranges["chain"][row] = hi, lo, chain
        deadline_s = self._runtime.now_s() + _CALL_S
        pool = self._pool()
        try:
            connection = pool.borrow(endpoint, deadline_s=deadline_s, connect_timeout_s=1.0)
        except Fs3Error:
            return
        try:
            connection.stall_s = None  # the daemon reads whole chunks before it answers
            connection.send(Kind.REPORT, [ranges.tobytes()], count=len(ranges), deadline_s=deadline_s)
            connection.receive_head()
        except Fs3Error:
            return
        finally:
            pool.give_back(connection)
