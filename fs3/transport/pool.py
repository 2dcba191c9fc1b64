"""Connections to storage daemons that are kept open between calls: for clients, and for predecessors in a chain.

A connection costs a round trip and a HELLO; a call of a few ranges costs less than that. So connections are lent, come
back when the call is over, and wait for the next one; how many there may be is bounded per endpoint, and waiting for
one ends at the caller's deadline.

A reply that the peer keeps blocks for is acknowledged by the next request; where none comes soon, by a thread that is
there while there are such replies. A frame for each reply would cost both sides as much as a small read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fs3.errors import Busy, Fs3Error, Unavailable
from fs3.pb import storage_pb2
from fs3.runtime import SYSTEM, Runtime
from fs3.transport.connection import Connection, OpenConnection

_FRESH_S = 0.01  # an idle connection younger than this is not probed before it is used
_ACK_AFTER_S = 0.02  # of idleness
_ACK_REST_S = 5.0  # without anything to acknowledge, after which the thread ends


class ConnectionPool:
    """Connections that all say the same HELLO, kept open between calls and bounded per endpoint.

    Safe for any number of threads, and across fork: a child forgets its parent's connections.
    """

    def __init__(
        self,
        hello: storage_pb2.Hello,
        *,
        max_per_endpoint: int = 16,
        idle_s: float = 60.0,
        open_connection: OpenConnection = Connection.open,
        runtime: Runtime = SYSTEM,
    ) -> None:
        self._hello = hello
        self._open = open_connection
        self._runtime = runtime
        self._max = max_per_endpoint
        self._idle_s = idle_s
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = self._runtime.condition()
        self._idle: dict[str, list[Connection]] = {}
        self._lent: dict[str, int] = {}
        self._closed = False
        self._owing = self._runtime.event()
        self._acknowledging = False

    def borrow(
        self, endpoint: str, *, deadline_s: float, connect_timeout_s: float = 5.0, wait: bool = True
    ) -> Connection:
        """A connection to `endpoint` that nobody else uses; hand it to `give_back` whatever happens to it.

        Raises:
            Busy: all of the endpoint's connections stayed in use until the deadline, or are in use, without `wait`.
            Unavailable, PermissionDenied, Invalid: as `Connection.open`.
        """
        if os.getpid() != self._pid:
            self._reset()
        with self._changed:
            while self._lent.get(endpoint, 0) >= self._max:
                left_s = deadline_s - self._runtime.now_s()
                if not wait or left_s <= 0 or not self._changed.wait(left_s):
                    raise Busy(f"all {self._max} connections to {endpoint} are in use")
            if self._closed:
                raise Unavailable("the client is closed")
            self._lent[endpoint] = self._lent.get(endpoint, 0) + 1
            idle = self._idle.setdefault(endpoint, [])
            connection = idle.pop() if idle else None
        now_s = self._runtime.now_s()
        while connection is not None:
            idle_for_s = now_s - connection.idle_since_s
            if idle_for_s < _FRESH_S or (idle_for_s < self._idle_s and connection.alive()):
                return connection
            connection.close()
            with self._changed:
                connection = idle.pop() if idle else None
        try:
            timeout_s = min(connect_timeout_s, deadline_s - now_s)
            if timeout_s <= 0:
                raise Unavailable(f"{endpoint} was not connected in time")
            return self._open(endpoint, self._hello, timeout_s=timeout_s)
        except BaseException:
            self._release(endpoint, None)
            raise

    def give_back(self, connection: Connection) -> None:
        """Take a borrowed connection back; a closed one, or one with answers outstanding, is dropped."""
        self._release(connection.endpoint, connection)

    def _acknowledge_idle(self) -> None:
        while self._owing.wait(_ACK_REST_S) or not self._rest():
            self._owing.clear()
            self._runtime.sleep(_ACK_AFTER_S)
            for connection in self._take_owing(self._runtime.now_s() - _ACK_AFTER_S):
                try:
                    connection.acknowledge()
                except Fs3Error:
                    connection.close()
                self._release(connection.endpoint, connection)

    def _rest(self) -> bool:
        """End the thread, unless there is something to acknowledge after all."""
        with self._changed:
            self._acknowledging = self._owing.is_set() and not self._closed
            return not self._acknowledging

    def _take_owing(self, idle_since_s: float) -> list[Connection]:
        """Borrow the connections that owe an acknowledgement and have been idle since then."""
        taken = []
        with self._changed:
            for endpoint, idle in self._idle.items():
                late = [one for one in idle if one.owes_ack and one.idle_since_s <= idle_since_s]
                if len(late) < sum(one.owes_ack for one in idle):
                    self._owing.set()  # look again
                idle[:] = [one for one in idle if one not in late]
                self._lent[endpoint] = self._lent.get(endpoint, 0) + len(late)
                taken += late
        return taken

    def _release(self, endpoint: str, connection: Connection | None) -> None:
        if os.getpid() != self._pid:
            return
        begin = False
        with self._changed:
            self._lent[endpoint] -= 1
            if connection is not None and not connection.closed:
                if connection.outstanding or self._closed:
                    connection.close()
                else:
                    connection.idle_since_s = self._runtime.now_s()
                    idle = self._idle[endpoint]
                    idle.append(connection)
                    if connection.owes_ack:
                        self._owing.set()
                        begin, self._acknowledging = not self._acknowledging, True
                    if idle[0].idle_since_s < connection.idle_since_s - self._idle_s:
                        idle.pop(0).close()
            self._changed.notify()
        if begin:
            self._runtime.spawn(self._acknowledge_idle, name="fs3-ack")

    @contextmanager
    def lent(self, endpoint: str, *, deadline_s: float) -> Iterator[Connection]:
        """`borrow` and `give_back` around a block; an exception that is no `Fs3Error` closes the connection."""
        connection = self.borrow(endpoint, deadline_s=deadline_s)
        try:
            yield connection
        except Fs3Error:
            raise
        except BaseException:
            connection.close()
            raise
        finally:
            self.give_back(connection)

    def drop_idle(self, endpoint: str) -> None:
        """Close the idle connections to an endpoint that has just failed."""
        with self._changed:
            stale = self._idle.get(endpoint, [])
            gone, stale[:] = list(stale), []
        for connection in gone:
            connection.close()

    def close(self) -> None:
        """Close every idle connection now and the lent ones as they come back; `borrow` then raises Unavailable."""
        if os.getpid() != self._pid:
            self._reset()
        with self._changed:
            self._closed = True
            gone = [connection for idle in self._idle.values() for connection in idle]
            self._idle.clear()
            self._changed.notify_all()
        for connection in gone:
            connection.close()
