"""Blocking control-plane calls, over frames: thread-safe, and safe in a forked child, which opens connections anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError

from fs3.clock import lease_now_s
from fs3.errors import Corrupt, NotPrimary, Unavailable
from fs3.runtime import SYSTEM, Runtime
from fs3.transport.connection import Connection
from fs3.transport.credentials import Credentials
from fs3.transport.frame_core import Kind
from fs3.transport.methods import methods_of
from fs3.transport.pool import ConnectionPool

_PATIENCE_S = 1.0
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.25
_CONNECTIONS = 64  # to one daemon: a long poll keeps one, and each thread that calls another


class ControlChannel:
    """Connections to one address, opened when they are needed. `service` is the one that is called there."""

    def __init__(self, address: str, service: ServiceDescriptor) -> None:
        self.address = address
        self._methods = methods_of(service)
        self._pools: dict[Credentials, ConnectionPool] = {}
        self._pid = os.getpid()
        self._lent: set[Connection] = set()
        self._closed = False

    def call(self, method: str, request: Any, *, timeout_s: float, credentials: Credentials) -> Any:
        """The reply of `method`.

        Raises:
            Fs3Error: what the server raised.
            Unavailable: no answer within `timeout_s`, or the channel was closed.
        """
        deadline_s = lease_now_s() + timeout_s
        sent = self._send(method, request, timeout_s, credentials, wait=True)
        return sent.result(deadline_s - lease_now_s())

    def begin(self, method: str, request: Any, *, timeout_s: float, credentials: Credentials) -> Sent:
        """Send a request whose answer is wanted later: `result(timeout_s)` is as `call`, or else `drop` it.

        Raises: Busy: all connections are in use; Unavailable.
        """
        return self._send(method, request, timeout_s, credentials, wait=False)

    def _send(self, method: str, request: Any, timeout_s: float, credentials: Credentials, *, wait: bool) -> _Sent:
        deadline_s = lease_now_s() + timeout_s
        called = self._methods[method]
        pool = self._shown(credentials)
        connection = pool.borrow(self.address, deadline_s=deadline_s, connect_timeout_s=timeout_s, wait=wait)
        sent = _Sent(self._lent, pool, connection, method, called.reply)
        try:
            if self._closed:
                raise Unavailable(f"{self.address}: the connection was closed")
            parts = (called.name, request.SerializeToString())
            connection.send(Kind.CALL, parts, count=len(called.name), deadline_s=deadline_s)
        except BaseException:
            sent.drop()
            raise
        return sent

    def close(self) -> None:
        """Cancel what is under way and refuse later calls."""
        self._closed = True
        for pool in list(self._pools.values()):
            pool.close()
        for connection in list(self._lent) if self._pid == os.getpid() else ():
            connection.interrupt()

    def _shown(self, credentials: Credentials) -> ConnectionPool:
        """Connections on which HELLO has shown these credentials. Raises: Unavailable: the channel was closed."""
        if self._pid != os.getpid():
            self._pid, self._lent = os.getpid(), set()  # the parent's are the parent's
        if self._closed:
            raise Unavailable(f"{self.address}: the connection was closed")
        pool = self._pools.get(credentials)
        if pool is None:
            hello = credentials.hello(role="control")
            pool = self._pools.setdefault(credentials, ConnectionPool(hello, max_per_endpoint=_CONNECTIONS))
        return pool


class Sent(Protocol):
    """A call that was begun; one of these has to follow."""

    def result(self, timeout_s: float) -> Any: ...
    def drop(self) -> None: ...


class _Sent:
    """A request that was sent. Its connection is nobody else's until `result` or `drop`, one of which has to follow."""

    __slots__ = ("_connection", "_lent", "_method", "_pid", "_pool", "_reply")

    def __init__(
        self,
        lent: set[Connection],
        pool: ConnectionPool,
        connection: Connection,
        method: str,
        reply: Callable[[], Any],
    ) -> None:
        self._lent = lent
        self._pool = pool
        self._connection = connection
        self._method = method
        self._reply = reply
        self._pid = os.getpid()
        lent.add(connection)

    def result(self, timeout_s: float) -> Any:
        """The reply, within `timeout_s` from now. Raises: Fs3Error."""
        connection, address = self._connection, self._connection.endpoint
        try:
            if self._pid != os.getpid():
                raise Unavailable(f"{address}: the call is the parent process's")
            connection.deadline_s = lease_now_s() + timeout_s
            _, head = connection.receive_head()
            reply = self._reply()
            reply.ParseFromString(bytes(head))
            connection.receive_body(())
        except DecodeError:
            connection.close()
            raise Corrupt(f"{address}: the answer to {self._method} cannot be understood") from None
        finally:
            self._over()
        return reply

    def drop(self) -> None:
        """Want no answer any more."""
        self._connection.close()
        self._over()

    def _over(self) -> None:
        if self._pid != os.getpid():
            self._connection.close()  # the child's copy of it
            return
        self._lent.discard(self._connection)
        self._pool.give_back(self._connection)


class Channel(Protocol):
    """What `ControlService` needs of a connection to one address; `ControlChannel` is the one in production."""

    def call(self, method: str, request: Any, *, timeout_s: float, credentials: Credentials) -> Any: ...
    def close(self) -> None: ...


class ControlService:
    """Several daemons of one service, any of which may answer: the one that did last is asked first. Thread-safe.

    Where one of them says that it does not decide now (`NotPrimary`), they are asked again until the deadline: another
    is taking over. One that says nothing is waited for a second, then the others are asked, and it again for longer.
    `open_channel(address)` and `runtime` are ports.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        service: ServiceDescriptor | None = None,
        *,
        open_channel: Callable[[str], Channel] | None = None,
        runtime: Runtime = SYSTEM,
    ) -> None:
        assert addresses, "at least one address"
        assert (service is None) != (open_channel is None), "either a service or a port of one's own"
        self._given = self.addresses = tuple(addresses)
        self._service = service
        self._open_channel = open_channel
        self._runtime = runtime
        self._channels = {address: self._open(address) for address in self.addresses}
        self._preferred = self.addresses[0]
        self._closed = False

    def learn(self, addresses: Sequence[str]) -> None:
        """Know these daemons too, instead of those that were learned before."""
        wanted = tuple(dict.fromkeys((*self._given, *addresses)))
        if wanted == self.addresses or self._closed:
            return
        for address in wanted:
            if address not in self._channels:
                self._channels[address] = self._open(address)
        self.addresses = wanted
        if self._closed:
            self.close()

    def call(self, method: str, request: Any, *, timeout_s: float, credentials: Credentials) -> Any:
        """The reply of the first daemon that answers, within `timeout_s` in all; must be safe to repeat.

        Raises:
            Fs3Error: what the daemon that answered raised.
            Unavailable: none answered; the message names every address.
        """
        now_s = self._runtime.now_s
        deadline_s = now_s() + timeout_s
        pause_s, patience_s = _FIRST_PAUSE_S, getattr(request, "wait_ms", 0) / 1000 + _PATIENCE_S
        while True:
            reasons: list[str] = []
            worth_asking_again = False
            addresses = sorted(self.addresses, key=lambda address: address != self._preferred)
            for index, address in enumerate(addresses):
                asked_s = now_s()
                share_s = max((deadline_s - asked_s) / (len(addresses) - index), 0.001)
                if len(addresses) > 1:
                    share_s = min(share_s, patience_s)
                try:
                    reply = self._channels[address].call(method, request, timeout_s=share_s, credentials=credentials)
                except Unavailable as error:
                    worth_asking_again |= isinstance(error, NotPrimary) or now_s() - asked_s >= share_s
                    reasons.append(str(error))
                    continue
                self._preferred = address
                return reply
            left_s = deadline_s - now_s()
            if not worth_asking_again or left_s <= 0 or self._closed:
                raise Unavailable("; ".join(reasons))
            self._runtime.sleep(min(pause_s, left_s))
            pause_s, patience_s = min(pause_s * 2, _LONGEST_PAUSE_S), patience_s * 2

    def close(self) -> None:
        """Cancel what is under way and refuse later calls."""
        self._closed = True
        for channel in list(self._channels.values()):
            channel.close()

    def _open(self, address: str) -> Channel:
        if self._open_channel is not None:
            return self._open_channel(address)
        assert self._service is not None
        return ControlChannel(address, self._service)
