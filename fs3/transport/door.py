"""The port of a daemon that answers control calls: fs3 frames, which the Python client uses, and gRPC, for everybody.

A connection's first bytes tell which it is. One that speaks frames is served here, on the daemon's event loop; one that
begins as HTTP/2 does is passed on, byte for byte, to the gRPC server of this process, which listens on a socket that
has no name outside this machine. Unary gRPC costs some hundred microseconds a call in Python, and its threads do not
live through a fork; a frame costs a fifth of that, and is read and written by whoever calls.

Everything is bounded: connections, calls under way, what a peer may send before it is known, and how long it may take
for anything that it has begun.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from fs3.clock import lease_now_s
from fs3.errors import Busy, Fs3Error, Invalid, Unavailable
from fs3.pb import storage_pb2
from fs3.transport.credentials import CALLER, PROTOCOL, Credentials, stated_user
from fs3.transport.frame_core import HEADER_BYTES, Header, Kind, check_head, pack_header, unpack_header
from fs3.transport.methods import CALL, MAX_REQUEST_BYTES, methods_of
from fs3.transport.relay import relay
from fs3.transport.rpc import bounded
from fs3.user import User

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 4_096
_MAX_CALLS = 4_096  # under way in all
_MAX_CALLS_EACH = 64  # of one connection
_HELLO_BYTES = 4_096
_HTTP2 = b"PRI * HTTP/2.0"
_LONGEST_S = 3_600.0  # fsck and backups of large stores take long
_SWEEP_S = 1.0
_FIRST_S = 10.0  # to say HELLO
_STUCK_S = 30.0  # in the middle of a frame, or not taking replies
_IDLE_S = 5.0  # after which a connection goes if another comes and there are too many


class Servicer(Protocol):
    """Has a method for each rpc, made by `rpc.handler`."""

    credentials: Credentials


@dataclass(frozen=True, slots=True)
class _Callable:
    servicer: Servicer
    request: type[Message]
    run: Callable[[Servicer, Any], Awaitable[Message]]


class Door:
    """One port, and who is connected to it; for one event loop."""

    def __init__(self, name: str, grpc_server: grpc.aio.Server) -> None:
        """`name` is the daemon's kind; `grpc_server` answers the same services, and has not been started yet."""
        self._name = name
        self.port = 0
        self.credentials_of: Servicer | None = None
        self.methods: dict[bytes, _Callable] = {}
        self.calls = 0  # under way
        self.connections: set[_Caller] = set()
        self.stopping = False
        self._inside = secrets.token_hex(16)
        self._grpc = grpc_server
        self._grpc.add_insecure_port(f"unix-abstract:{self._inside}")
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    async def open(self, host: str, port: int) -> None:
        """Take the port (0: any; `port` then tells), but answer nobody before `start`. Raises: Invalid."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: _Arrival(self), host.strip("[]"), port, backlog=1_024, start_serving=False
            )
        except OSError:
            raise Invalid(
                f"{self._name} cannot listen on {host}:{port}: the port is taken or the address is not this machine's"
            ) from None
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def start(self, services: Sequence[tuple[ServiceDescriptor, Servicer]]) -> None:
        """Answer from now on: for each protobuf service, who answers it."""
        assert self._server is not None, "open comes first"
        self.credentials_of = services[0][1]
        self.methods = {
            method.name: _Callable(servicer, method.request, answer)
            for service, servicer in services
            for name, method in methods_of(service).items()
            if (answer := getattr(getattr(type(servicer), name), "__wrapped__", None)) is not None
        }
        await self._grpc.start()
        await self._server.start_serving()
        self._sweep()

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, let those under way finish for so long, and close everything."""
        self.stopping = True
        if self._server is not None:
            self._server.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        until_s = lease_now_s() + grace_s
        await self._grpc.stop(grace_s)
        tasks = [task for caller in self.connections for task in caller.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=max(until_s - lease_now_s(), 0.0))
        for caller in list(self.connections):
            caller.abort()
        for relaying in self._relays:
            relaying.cancel()

    def relay(self, first: bytes, transport: asyncio.Transport) -> None:
        """Have gRPC answer this connection, unless there are too many of its kind."""
        if len(self._relays) >= MAX_CONNECTIONS:
            transport.abort()
            return
        relaying = asyncio.get_running_loop().create_task(relay(first, transport, self._inside))
        self._relays.add(relaying)
        relaying.add_done_callback(self._relays.discard)

    def make_room(self) -> bool:
        """Whether one more connection can be had; the one that has been idle longest may go for it."""
        if len(self.connections) < MAX_CONNECTIONS:
            return True
        oldest = min(self.connections, key=lambda caller: caller.busy_s)
        if oldest.tasks or lease_now_s() - oldest.busy_s < _IDLE_S:
            return False
        oldest.abort()
        return True

    def _sweep(self) -> None:
        now_s = lease_now_s()
        for caller in list(self.connections):
            caller.sweep(now_s)
        self._sweeping = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)


class _Arrival(asyncio.Protocol):
    """A connection of which nobody knows yet what it speaks."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._over = asyncio.get_running_loop().call_later(_FIRST_S, transport.abort)

    def connection_lost(self, error: Exception | None) -> None:
        self._over.cancel()

    def data_received(self, data: bytes) -> None:
        self._first += data
        short = min(len(self._first), len(_HTTP2))
        if self._first[:short] != _HTTP2[:short]:
            caller = _Caller(self._door, self._transport)
            self._transport.set_protocol(caller)
            self._over.cancel()
            caller.data_received(self._first)
        elif short == len(_HTTP2):
            self._transport.pause_reading()
            self._over.cancel()
            self._door.relay(self._first, self._transport)


class _Caller(asyncio.Protocol):
    """A connection that speaks frames."""

    def __init__(self, door: Door, transport: asyncio.Transport) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.busy_s = lease_now_s()  # when something last happened here
        self._door = door
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._rest = bytearray()
        self._hello: storage_pb2.Hello | None = None
        self._user: User | None = None
        self._passed: Credentials | None = None  # those that the peer's were last compared with
        self._choked_s: float | None = None  # since when it takes no replies
        self._ending = False
        self._refusal = "" if door.make_room() else f"{MAX_CONNECTIONS} connections are open already; try again later"
        door.connections.add(self)

    # What asyncio calls

    def data_received(self, data: bytes) -> None:
        self.busy_s = lease_now_s()
        if self._ending:
            return
        if self._rest:
            self._rest += data
            taken = self._take(memoryview(self._rest))
            if taken:
                self._rest = self._rest[taken:]
        else:
            taken = self._take(memoryview(data))
            if taken < len(data):
                self._rest += data[taken:]

    def connection_lost(self, error: Exception | None) -> None:
        self._door.connections.discard(self)
        for task in self.tasks:
            task.cancel()

    def pause_writing(self) -> None:
        self._choked_s = lease_now_s()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._choked_s = None
        self._go_on()

    # What the door calls

    def sweep(self, now_s: float) -> None:
        """Close what has taken too long."""
        quiet_s = now_s - self.busy_s
        silent = self._hello is None and quiet_s > _FIRST_S
        stuck = bool(self._rest) and not self.tasks and quiet_s > _STUCK_S
        choked = self._choked_s is not None and now_s - self._choked_s > _STUCK_S
        if silent or stuck or choked:
            self.abort()

    def abort(self) -> None:
        self._transport.abort()

    # Frames

    def _take(self, view: memoryview) -> int:
        """Handle the whole frames in `view`; how many bytes they have."""
        at, header = 0, Header(Kind.HELLO, 0)
        try:
            while len(view) - at >= HEADER_BYTES and not self._ending:
                raw = view[at : at + HEADER_BYTES]
                header = unpack_header(raw)
                self._check(header)
                end = at + HEADER_BYTES + header.head_bytes
                if end > len(view):
                    break
                head = bytes(view[at + HEADER_BYTES : end])
                check_head(raw, head)
                at = end
                self._begin(header, head)
        except Fs3Error as error:
            self._end(header, error)
        return len(view) if self._ending else at

    def _check(self, header: Header) -> None:
        """Raises: Invalid unless a peer may send this."""
        if header.reply or header.body_bytes:
            raise Invalid("this port takes calls: frames that are no reply, and have no body")
        most = _HELLO_BYTES if self._hello is None else MAX_REQUEST_BYTES
        if header.head_bytes > most:
            raise Invalid(f"a frame of {header.head_bytes} bytes: at most {most} are allowed")

    def _begin(self, header: Header, head: bytes) -> None:
        """Raises: Fs3Error that ends the connection."""
        if self._hello is None:
            self._greet(header, head)
        elif header.kind == CALL:
            self._call(header, head)
        elif header.kind != Kind.ACK:
            raise Invalid(f"this port takes no frames of kind {header.kind}; is it a storage daemon's that you want?")

    def _greet(self, header: Header, head: bytes) -> None:
        """Raises: Fs3Error that ends the connection."""
        try:
            hello = storage_pb2.Hello.FromString(head)
        except DecodeError:
            hello = None
        if header.kind != Kind.HELLO or hello is None:
            raise Invalid("the first frame of a connection must be HELLO")
        try:
            if self._refusal:
                raise Busy(self._refusal)
            if hello.protocol != PROTOCOL:
                raise Invalid(f"protocol {hello.protocol}, this daemon speaks {PROTOCOL}; upgrade the older one")
            assert self._door.credentials_of is not None, "nobody is answered before the start"
            self._pass(self._door.credentials_of.credentials, hello)
            self._user = stated_user(hello.user)
        except Fs3Error as error:
            self._end(header, error)
            return
        self._hello = hello
        self._reply(header, storage_pb2.HelloReply(protocol=PROTOCOL, max_body_bytes=0).SerializeToString())

    def _pass(self, credentials: Credentials, hello: storage_pb2.Hello) -> None:
        """Raises: PermissionDenied."""
        if credentials is not self._passed:
            credentials.check(hello.cluster_id, hello.secret)
            self._passed = credentials

    def _call(self, header: Header, head: bytes) -> None:
        assert self._hello is not None
        method = self._door.methods.get(head[: header.count]) if header.count <= len(head) else None
        try:
            if method is None:
                raise Invalid(f"no such method: {head[: min(header.count, 60)]!r}; upgrade the older side")
            if self._door.stopping:
                raise Unavailable("this daemon is stopping")
            if self._door.calls >= _MAX_CALLS:
                raise Busy(f"{_MAX_CALLS} calls are under way; try again later")
            self._pass(method.servicer.credentials, self._hello)
            try:
                request = method.request.FromString(head[header.count :])
            except DecodeError:
                raise Invalid(f"the request of {head[: header.count].decode()} cannot be understood") from None
        except Fs3Error as error:
            self._reply(header, error=error)
            return
        self._door.calls += 1
        task = self._loop.create_task(self._answer(header, method, request))
        self.tasks.add(task)
        if len(self.tasks) >= _MAX_CALLS_EACH:
            self._transport.pause_reading()

    async def _answer(self, header: Header, method: _Callable, request: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        left_s = min(header.deadline_ms / 1_000, _LONGEST_S)
        over = self._loop.call_later(left_s, task.cancel)
        CALLER.set(self._user)  # in this task's context
        try:
            reply = await method.run(method.servicer, request)
        except Fs3Error as error:
            self._reply(header, error=error)
        except asyncio.CancelledError:
            self._reply(header, error=Unavailable("the call's time was over before it had an answer"))
        except Exception:  # noqa: BLE001  # whatever it is, the caller is told, and the log
            _log.exception("a call failed")
            self._reply(header, error=Unavailable("the daemon failed to answer; its log says why"))
        else:
            self._reply(header, reply.SerializeToString())
        finally:
            over.cancel()
            self._door.calls -= 1
            self.tasks.discard(task)
            self.busy_s = lease_now_s()
            if len(self.tasks) == _MAX_CALLS_EACH - 1:
                self._go_on()

    def _go_on(self) -> None:
        if self._choked_s is None and len(self.tasks) < _MAX_CALLS_EACH and not self._transport.is_closing():
            self._transport.resume_reading()

    def _reply(self, header: Header, head: bytes = b"", *, error: Fs3Error | None = None) -> None:
        if self._transport.is_closing():
            return
        if error is not None:
            head = bounded(str(error)).encode(errors="replace")
        elif len(head) > MAX_REQUEST_BYTES:
            error = Invalid(f"an answer of {len(head)} bytes: at most {MAX_REQUEST_BYTES} fit; ask for less")
            head = str(error).encode()
        status = 0 if error is None else error.code
        answer = Header(header.kind, header.request_id, reply=True, head_bytes=len(head), status=status)
        self._transport.write(pack_header(answer, head) + head)

    def _end(self, header: Header, error: Fs3Error) -> None:
        """Say why, and close."""
        self._reply(header, error=error)
        self._ending = True
        self._transport.close()
