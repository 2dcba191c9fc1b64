"""Hedged reads, as all calls of a client share them: what was measured, the budget, and the connections that lost.

Of two replicas that were asked for the same ranges one answers first, and the caller goes on with that. The other's
answer is still on its way, and must not end in memory that the caller owns by then. So whoever takes a reply in reads
from one connection alone, and the one that lost is handed over here with all it still owes: a thread takes that into
memory of its own, and then gives the connection back. As long as a daemon owes such an answer it is asked only if
nobody else can answer; when it comes all is well again, and if none comes the daemon has failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from fs3.client.hedge_core import HedgeCore, HedgePolicy
from fs3.errors import Fs3Error
from fs3.runtime import Runtime
from fs3.transport.connection import Connection

MOST_LATE = 4  # connections to an endpoint that are waited for; more are closed
_PIECE_BYTES = 1 << 20


class Hedges:
    """Thread-safe."""

    def __init__(self, policy: HedgePolicy | None, runtime: Runtime, give_back: Callable[[Connection], None]) -> None:
        """Without a policy nothing is hedged."""
        self.enabled = policy is not None
        self._runtime = runtime
        self._give_back = give_back
        self._lock = runtime.lock()
        self._core = HedgeCore(policy or HedgePolicy())
        self._late: Counter[str] = Counter()

    @property
    def requests(self) -> int:
        """How many requests there were that might have been hedged."""
        return self._core.requests

    @property
    def sent(self) -> int:
        """How many were."""
        return self._core.hedges

    def asked(self) -> None:
        """A request was sent that may be hedged."""
        with self._lock:
            self._core.asked()

    def replied(self, endpoint: str, bytes_: int, seconds: float) -> None:
        """An endpoint began to answer a request for so many bytes after so long."""
        with self._lock:
            self._core.replied(endpoint, bytes_, seconds)

    def after_s(self, endpoint: str, bytes_: int) -> float:
        """How long to wait for an endpoint's answer before another replica is asked."""
        return self._core.after_s(endpoint, bytes_)

    def spend(self) -> bool:
        """Whether one more request may be hedged; if so it counts as done."""
        with self._lock:
            return self.enabled and self._core.spend()

    @property
    def late(self) -> Counter[str]:
        """Endpoints that owe answers which nobody waits for any more, and how many; not to be changed."""
        return self._late

    def owes(self, endpoint: str, change: int) -> None:
        """Count an answer that is late, or, negative, one that has come."""
        with self._lock:
            self._late[endpoint] += change
            if not self._late[endpoint]:
                del self._late[endpoint]

    def let_go(
        self,
        connection: Connection,
        bytes_: int,
        sent_s: float,
        *,
        lost: Callable[[], None],
        endpoint: str | None = None,
        give_back: Callable[[Connection], None] | None = None,
    ) -> None:
        """Take over a borrowed connection whose replies nobody needs any more; `lost` is called if none comes.

        The oldest is to a request for `bytes_`, sent at `sent_s`. A connection that is of another pool is given back
        there; `endpoint` is then how reads know its daemon.
        """
        endpoint, give_back = endpoint or connection.endpoint, give_back or self._give_back
        if connection.closed or self._late[endpoint] >= MOST_LATE:
            connection.close()
            give_back(connection)
            return

        def take_in() -> None:
            try:
                self._take_in(connection, bytes_, sent_s, lost)
            finally:
                self.owes(endpoint, -1)
                if connection.outstanding:
                    connection.close()
                give_back(connection)

        self.owes(endpoint, 1)
        self._runtime.spawn(take_in, name="fs3-late")

    def _take_in(self, connection: Connection, bytes_: int, sent_s: float, lost: Callable[[], None]) -> None:
        scratch = memoryview(bytearray(_PIECE_BYTES))
        measured = False
        try:
            while connection.outstanding:
                try:
                    header, _ = connection.receive_head()
                    left = header.body_bytes
                    while left > _PIECE_BYTES:
                        connection.receive_body([scratch], _PIECE_BYTES)
                        left -= _PIECE_BYTES
                    connection.receive_body([scratch[:left]])
                except Fs3Error:
                    if connection.closed:
                        raise
                if not measured:
                    measured = True
                    self.replied(connection.endpoint, bytes_, self._runtime.now_s() - sent_s)
        except Fs3Error:
            lost()
