"""One port that takes frames and gRPC: both are answered alike, strangers are turned away, and nothing piles up."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from fs3.client.control import ControlChannel
from fs3.clock import deadline_after, lease_now_s
from fs3.errors import Busy, Corrupt, Fs3Error, Invalid, NotPrimary, PermissionDenied, Unavailable
from fs3.pb import common_pb2, mgmtd_pb2, mgmtd_pb2_grpc
from fs3.transport import door as door_module
from fs3.transport import rpc
from fs3.transport.calls import FrameCalls
from fs3.transport.connection import Connection
from fs3.transport.credentials import CALLER, Credentials
from fs3.transport.door import Door
from fs3.transport.frame_core import HEADER_BYTES, Header, Kind, check_head, pack_header, unpack_header
from fs3.user import User

MGMTD = mgmtd_pb2.DESCRIPTOR.services_by_name["Mgmtd"]
SHOWN = Credentials(cluster_id="c", secret="s3cret")
LARGE = "x" * 3_000_000


class Mgmtd(mgmtd_pb2_grpc.MgmtdServicer):  # type: ignore[misc]  # generated code has no types
    """Answers, at length, late, never, with an error of fs3's or a defect, as the request's node id says."""

    credentials = SHOWN

    def __init__(self) -> None:
        self.under_way = 0
        self.most = 0
        self.cancelled = 0
        self.callers: list[User | None] = []

    @rpc.handler
    async def GetClusterInfo(self, request: common_pb2.Empty) -> mgmtd_pb2.ClusterInfo:
        return mgmtd_pb2.ClusterInfo(cluster_id="c")

    @rpc.handler
    async def Suspect(self, request: mgmtd_pb2.SuspectRequest) -> common_pb2.Empty:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            return await self._answer(request.node_id)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1

    async def _answer(self, how: int) -> Any:
        match how:
            case 0:
                return common_pb2.Empty()
            case 1:
                for _ in range(20):  # turns of the loop, in which others come
                    await asyncio.sleep(0)
                return common_pb2.Empty()
            case 2:
                await asyncio.Event().wait()
            case 3:
                raise NotPrimary("ask the other one")
            case 4:
                raise RuntimeError("a defect")
        return common_pb2.Empty()

    @rpc.handler
    async def Goodbye(self, request: mgmtd_pb2.GoodbyeRequest) -> common_pb2.Empty:
        await asyncio.sleep(0)
        self.callers.append(CALLER.get())
        return common_pb2.Empty()

    @rpc.handler
    async def GetRouting(self, request: mgmtd_pb2.GetRoutingRequest) -> mgmtd_pb2.GetRoutingReply:
        reply = mgmtd_pb2.GetRoutingReply()
        reply.routing.cluster_id = LARGE
        return reply


class Daemon:
    """The door and its servicer on a loop in a thread."""

    def __init__(self, port: int = 0) -> None:
        self.servicer = Mgmtd()
        self._pause = threading.Event()
        self._port = port
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        assert started.wait(30)

    async def _serve(self, started: threading.Event) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = rpc.aio_server()
        mgmtd_pb2_grpc.add_MgmtdServicer_to_server(self.servicer, server)
        self.door = Door("mgmtd", server)
        await self.door.open("127.0.0.1", self._port)
        self._port = self.door.port
        await self.door.start([(MGMTD, self.servicer)])
        started.set()
        await self._stop.wait()
        await self.door.stop(0.2)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def wait(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        give_up_s = deadline_after(seconds)
        while not condition():
            assert lease_now_s() < give_up_s, "it does not come"
            self._pause.wait(0.005)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    running = Daemon()
    yield running
    running.stop()


def suspect(how: int) -> mgmtd_pb2.SuspectRequest:
    return mgmtd_pb2.SuspectRequest(node_id=how)


def call(channel: ControlChannel, how: int, timeout_s: float = 10.0, credentials: Credentials = SHOWN) -> Any:
    return channel.call("Suspect", suspect(how), timeout_s=timeout_s, credentials=credentials)


def test_both_doors_answer_alike(daemon: Daemon) -> None:
    channel = ControlChannel(daemon.address, MGMTD)
    with grpc.insecure_channel(daemon.address, options=[("grpc.max_receive_message_length", 1 << 26)]) as other:
        stub: Any = mgmtd_pb2_grpc.MgmtdStub(other)  # type: ignore[no-untyped-call]
        for method, request in (
            ("GetClusterInfo", common_pb2.Empty()),
            ("GetRouting", mgmtd_pb2.GetRoutingRequest()),
            ("Suspect", suspect(0)),
        ):
            ours = channel.call(method, request, timeout_s=10.0, credentials=SHOWN)
            assert ours == getattr(stub, method)(request, timeout=10.0, metadata=SHOWN.metadata())
        with pytest.raises(NotPrimary, match="ask the other one"):
            call(channel, 3)
        with pytest.raises(grpc.RpcError) as raised:
            stub.Suspect(suspect(3), timeout=10.0, metadata=SHOWN.metadata())
        assert isinstance(rpc.error_of(raised.value, ""), NotPrimary)
    channel.close()


def test_either_door_tells_whose_a_call_is(daemon: Daemon) -> None:
    anna, bert = (dataclasses.replace(SHOWN, user=user) for user in ("1000:1000,27", "2000:2000"))
    channel = ControlChannel(daemon.address, MGMTD)
    request = mgmtd_pb2.GoodbyeRequest()
    with grpc.insecure_channel(daemon.address) as other:
        stub: Any = mgmtd_pb2_grpc.MgmtdStub(other)  # type: ignore[no-untyped-call]
        for shown in (anna, SHOWN, bert, anna):
            channel.call("Goodbye", request, timeout_s=10.0, credentials=shown)
            stub.Goodbye(request, timeout=10.0, metadata=shown.metadata())
        said = [User(1_000, (1_000, 27)), None, User(2_000, (2_000,)), User(1_000, (1_000, 27))]
        assert daemon.servicer.callers == [user for user in said for _ in range(2)]
        for wrong in ("anna", "1:" + ",".join(["7"] * 33), "1:" + "7," * 3_000):
            shown = dataclasses.replace(SHOWN, user=wrong)
            with pytest.raises(Invalid):
                channel.call("Goodbye", request, timeout_s=10.0, credentials=shown)
            with pytest.raises(grpc.RpcError):
                stub.Goodbye(request, timeout=10.0, metadata=shown.metadata())
        assert len(daemon.servicer.callers) == 8
    channel.close()


def test_an_error_leaves_the_connection_usable(daemon: Daemon) -> None:
    channel = ControlChannel(daemon.address, MGMTD)
    for _ in range(5):
        with pytest.raises(NotPrimary):
            call(channel, 3)
        call(channel, 0)
    with pytest.raises(Unavailable, match="its log says why"):
        call(channel, 4)
    call(channel, 0)
    assert len(daemon.door.connections) == 1
    channel.close()


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        (Credentials(), PermissionDenied),
        (Credentials(secret="wrong"), PermissionDenied),
        (Credentials(cluster_id="another", secret="s3cret"), PermissionDenied),
        (Credentials(secret="s3cret"), None),  # it does not know its cluster yet
    ],
)
def test_strangers_are_refused(daemon: Daemon, credentials: Credentials, expected: type[Fs3Error] | None) -> None:
    channel = ControlChannel(daemon.address, MGMTD)
    if expected is None:
        call(channel, 0, credentials=credentials)
    else:
        with pytest.raises(expected):
            call(channel, 0, credentials=credentials)
        assert daemon.servicer.most == 0
    channel.close()


def test_who_was_let_in_is_looked_at_again_when_the_daemon_learns_its_cluster(daemon: Daemon) -> None:
    daemon.servicer.credentials = Credentials(secret="s3cret")
    channel = ControlChannel(daemon.address, MGMTD)
    other = Credentials(cluster_id="another", secret="s3cret")
    call(channel, 0, credentials=other)
    daemon.servicer.credentials = SHOWN
    with pytest.raises(PermissionDenied, match="another"):
        call(channel, 0, credentials=other)
    call(channel, 0)
    channel.close()


def dial(daemon: Daemon) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", daemon.door.port), timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def frame(kind: int, head: bytes, request_id: int = 1, **fields: Any) -> bytes:
    fields.setdefault("deadline_ms", 10_000)
    header = Header(kind, request_id, head_bytes=len(head), **fields)
    return pack_header(header, head) + head


def hello() -> bytes:
    return frame(Kind.HELLO, SHOWN.hello(role="control").SerializeToString())


def ask(how: int, request_id: int, **fields: Any) -> bytes:
    name = b"Mgmtd.Suspect"
    return frame(Kind.CALL, name + suspect(how).SerializeToString(), request_id, count=len(name), **fields)


def answer(sock: socket.socket) -> tuple[Header, bytes]:
    """Raises: EOFError at the end of the connection."""
    raw = receive(sock, HEADER_BYTES)
    header = unpack_header(raw)
    head = receive(sock, header.head_bytes)
    check_head(raw, head)
    return header, head


def receive(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = sock.recv(size - len(got))
        if not piece:
            raise EOFError
        got += piece
    return got


NO_HELLO = "the first frame of a connection must be HELLO"


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" + bytes(64), Invalid, "not an fs3 frame"),
        (bytes(64), Invalid, "not an fs3 frame"),
        (ask(0, 1), Invalid, NO_HELLO),
        (frame(Kind.HELLO, b"\xff\xff"), Invalid, NO_HELLO),
        (frame(Kind.HELLO, bytes(5_000)), Invalid, "at most 4096"),
        (frame(Kind.HELLO, b"\x08\x63"), Invalid, "protocol 99"),
        (frame(Kind.HELLO, b"", body_bytes=10), Invalid, "have no body"),
        (hello()[:-1] + b"\0", Corrupt, "checksum"),
    ],
    ids=["HTTP/1", "zeros", "a call", "no message", "too long", "protocol", "a body", "damaged"],
)
def test_what_is_no_hello_ends_the_connection(daemon: Daemon, said: bytes, status: type[Fs3Error], words: str) -> None:
    with dial(daemon) as sock:
        sock.sendall(said)
        header, head = answer(sock)
        assert (header.status, header.reply) == (status.code, True) and words in head.decode()
        with pytest.raises(EOFError):
            answer(sock)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (frame(Kind.CALL, b"Mgmtd.Nothing", count=13), "no such method"),
        (frame(Kind.CALL, b"Mgmtd.Suspect", count=5_000_000), "no such method"),
        (frame(Kind.CALL, b"Mgmtd.Suspect\xff\xff", count=13), "cannot be understood"),
    ],
    ids=["no such method", "a name longer than the frame", "no message"],
)
def test_a_wrong_call_is_answered_and_the_next_one_served(daemon: Daemon, said: bytes, words: str) -> None:
    with dial(daemon) as sock:
        sock.sendall(hello() + said + ask(0, 2))
        assert answer(sock)[0].kind == Kind.HELLO
        header, head = answer(sock)
        assert header.status == Invalid.code and words in head.decode()
        assert answer(sock)[0] == Header(Kind.CALL, 2, reply=True)


def test_frames_come_in_any_pieces_and_any_number(daemon: Daemon) -> None:
    """More of them than may be under way at once: the rest waits, and all are answered."""
    with dial(daemon) as sock:
        stream = hello() + b"".join(ask(1, number) for number in range(1, 501))
        for at in range(0, 400, 7):
            sock.sendall(stream[at : at + 7])
        sock.sendall(stream[406:])
        assert answer(sock)[0].kind == Kind.HELLO
        assert sorted(answer(sock)[0].request_id for _ in range(500)) == list(range(1, 501))


def test_a_caller_that_is_gone_is_worked_for_no_longer(daemon: Daemon) -> None:
    with dial(daemon) as sock:
        sock.sendall(hello() + ask(2, 1) + ask(2, 2))
        daemon.wait(lambda: daemon.servicer.under_way == 2)
    daemon.wait(lambda: daemon.servicer.cancelled == 2)
    daemon.wait(lambda: not daemon.door.connections)
    assert daemon.door.calls == 0


def test_a_call_ends_with_its_time(daemon: Daemon) -> None:
    with dial(daemon) as sock:
        sock.sendall(hello() + ask(2, 1, deadline_ms=50))
        answer(sock)
        header, head = answer(sock)
        assert header.status == Unavailable.code and b"time was over" in head
    assert daemon.servicer.cancelled == 1


@pytest.mark.parametrize(
    "said",
    [b"", b"PRI * HT", b"FS31", hello()[:70], hello() + ask(0, 1)[:70]],
    ids=["nothing", "half of HTTP/2", "half a header", "half a HELLO", "half a call"],
)
def test_silence_ends_a_connection(daemon: Daemon, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_FIRST_S", 0.2), ("_STUCK_S", 0.2), ("_SWEEP_S", 0.05)):
        monkeypatch.setattr(door_module, name, seconds)
    with dial(daemon) as sock:
        sock.sendall(said)
        with pytest.raises((EOFError, ConnectionResetError)):
            while True:
                answer(sock)


def test_who_does_not_take_its_answers_is_cut_off(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "_STUCK_S", 0.3)
    name = b"Mgmtd.GetRouting"
    with dial(daemon) as sock:
        sock.sendall(hello() + b"".join(frame(Kind.CALL, name, number, count=len(name)) for number in range(1, 60)))
        daemon.wait(lambda: len(daemon.door.connections) == 1)
        daemon.wait(lambda: not daemon.door.connections)


def test_too_many_connections(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(door_module, "_IDLE_S", 0.3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            sock = stack.enter_context(dial(daemon))
            sock.sendall(hello())
            answer(sock)
        late = stack.enter_context(dial(daemon))
        late.sendall(hello())
        header, head = answer(late)
        assert header.status == Busy.code and b"try again" in head
        # The late one is closed; of the others one may go for another once it has been idle for long enough.
        daemon.wait(lambda: any(lease_now_s() - one.busy_s > 0.3 for one in list(daemon.door.connections)))
        later = stack.enter_context(dial(daemon))
        later.sendall(hello())
        assert answer(later)[0].status == 0


def test_a_port_that_is_taken_is_named(daemon: Daemon) -> None:
    async def body() -> None:
        with pytest.raises(Invalid, match=f"mgmtd cannot listen on 127.0.0.1:{daemon.door.port}: the port is taken"):
            await Door("mgmtd", rpc.aio_server()).open("127.0.0.1", daemon.door.port)

    asyncio.run(body())


# The blocking client


def test_close_ends_what_is_under_way(daemon: Daemon) -> None:
    channel = ControlChannel(daemon.address, MGMTD)
    failures: list[Fs3Error] = []

    def wait() -> None:
        try:
            call(channel, 2, timeout_s=30.0)
        except Fs3Error as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    daemon.wait(lambda: daemon.servicer.under_way == 1)
    channel.close()
    thread.join(10.0)  # the call's own time is 30 s
    assert isinstance(failures[0], Unavailable)
    with pytest.raises(Unavailable, match="was closed"):
        call(channel, 0)


def test_threads_share_a_channel(daemon: Daemon) -> None:
    channel = ControlChannel(daemon.address, MGMTD)
    done: list[int] = []

    def work() -> None:
        for _ in range(30):
            call(channel, 1)
        done.append(1)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 12 and len(daemon.door.connections) <= 12
    channel.close()


def test_a_forked_child_has_connections_of_its_own(daemon: Daemon) -> None:
    """While another thread of the parent waits for an answer, which the child's end must not disturb."""
    channel = ControlChannel(daemon.address, MGMTD)
    call(channel, 0)
    waiting = threading.Thread(target=lambda: call(channel, 1, timeout_s=30.0))
    waiting.start()
    for _ in range(5):
        child = os.fork()
        if not child:
            try:
                call(channel, 0)
                channel.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        call(channel, 0)
    waiting.join()
    channel.close()


def test_a_daemon_that_comes_back_is_called_again() -> None:
    first = Daemon()
    channel = ControlChannel(first.address, MGMTD)
    call(channel, 0)
    port = first.door.port
    first.stop()
    with pytest.raises(Unavailable):
        call(channel, 0, timeout_s=1.0)
    second = Daemon(port)
    call(channel, 0)
    channel.close()
    second.stop()


def test_a_storage_daemons_connection_is_no_control_connection(daemon: Daemon) -> None:
    connection = Connection.open(daemon.address, SHOWN.hello(role="client"), timeout_s=5.0)
    connection.send(Kind.READ, [b""], count=0, deadline_s=deadline_after(5.0))
    with pytest.raises(Invalid, match="no frames of kind 2"):
        connection.receive_head()
    connection.close()


# The asyncio client


def run(body: Callable[[FrameCalls], Any]) -> None:
    async def main() -> None:
        calls = FrameCalls(MGMTD)
        try:
            await body(calls)
        finally:
            await calls.aclose()

    asyncio.run(main())


def test_many_calls_share_a_connection(daemon: Daemon) -> None:
    async def body(calls: FrameCalls) -> None:
        async def one(how: int, timeout_s: float = 10.0) -> Any:
            return await calls(daemon.address, "Suspect", suspect(how), timeout_s=timeout_s, credentials=SHOWN)

        answers = await asyncio.gather(*(one(number % 2) for number in range(200)))
        assert len(answers) == 200
        with pytest.raises(NotPrimary):
            await one(3)
        with pytest.raises(Unavailable, match="in time"):
            await one(2, 0.05)
        reply = await calls(
            daemon.address, "GetRouting", mgmtd_pb2.GetRoutingRequest(), timeout_s=10.0, credentials=SHOWN
        )
        assert reply.routing.cluster_id == LARGE
        assert len(daemon.door.connections) == 1

    run(body)
    daemon.wait(lambda: daemon.servicer.cancelled == 1)


def test_other_credentials_take_another_connection(daemon: Daemon) -> None:
    async def body(calls: FrameCalls) -> None:
        wrong = Credentials(secret="wrong")
        for credentials, expected in (
            (SHOWN, None),
            (wrong, PermissionDenied),
            (wrong, PermissionDenied),
            (SHOWN, None),
        ):
            with pytest.raises(expected) if expected else contextlib.nullcontext():
                await calls(daemon.address, "Suspect", suspect(0), timeout_s=10.0, credentials=credentials)

    run(body)


def test_nobody_there_is_told_at_once_and_again_when_somebody_is() -> None:
    first = Daemon()
    port = first.door.port

    async def body(calls: FrameCalls) -> None:
        async def one() -> Any:
            return await calls(f"127.0.0.1:{port}", "Suspect", suspect(0), timeout_s=5.0, credentials=SHOWN)

        await one()
        await asyncio.to_thread(first.stop)
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"refused|broke off"):
                await one()
        second = await asyncio.to_thread(Daemon, port)
        await one()
        await asyncio.to_thread(second.stop)

    run(body)


def test_a_closed_caller_fails_what_is_under_way(daemon: Daemon) -> None:
    async def body(calls: FrameCalls) -> None:
        waiting = asyncio.ensure_future(calls(daemon.address, "Suspect", suspect(2), timeout_s=30.0, credentials=SHOWN))
        await asyncio.to_thread(daemon.wait, lambda: daemon.servicer.under_way == 1)
        await calls.aclose()
        with pytest.raises(Unavailable, match="closed"):
            await waiting

    run(body)
