"""A connection against a scripted peer on a real socket: frames both ways, deadlines, peers that die mid-frame.

The peer answers with bytes made by frame_core, cut into small segments or scattered over many destinations, so that
partial receives and more than 1,024 pieces are met.
"""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fs3.clock import deadline_after
from fs3.errors import Busy, Corrupt, Fs3Error, Invalid, StaleRouting, Unavailable
from fs3.pb import storage_pb2
from fs3.transport.connection import Connection
from fs3.transport.frame_core import HEADER_BYTES, Flag, Header, Kind, pack_header, pack_trailer, unpack_header
from fs3.transport.loop_connection import LoopConnection
from fs3.transport.pool import ConnectionPool

HELLO = storage_pb2.Hello(protocol=1, cluster_id="c", client_id=7, role="client")


def read_exactly(sock: socket.socket, size: int) -> bytes:
    out = bytearray()
    while len(out) < size:
        got = sock.recv(size - len(out))
        if not got:
            raise EOFError
        out += got
    return bytes(out)


def read_frame(sock: socket.socket) -> tuple[Header, bytes, bytes]:
    header = unpack_header(read_exactly(sock, HEADER_BYTES))
    return header, read_exactly(sock, header.head_bytes), read_exactly(sock, header.body_bytes)


def reply(asked: Header, head: bytes = b"", body: bytes = b"", *, flags: int = 0, status: int = 0) -> bytes:
    header = Header(asked.kind, asked.request_id, True, flags, 1, len(head), len(body), status=status)
    trailer = pack_trailer(0, 0) if flags & Flag.TRAILER else b""
    return pack_header(header, head) + head + body + trailer


@contextmanager
def peer(
    script: Callable[[socket.socket], None],
    *,
    unix: str | None = None,
    hello: bytes = storage_pb2.HelloReply(protocol=1, max_ranges=99).SerializeToString(),
) -> Iterator[str]:
    """An endpoint whose every connection gets HELLO answered and is then handed to `script`."""
    listener = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    listener.bind(unix or ("127.0.0.1", 0))
    listener.listen()
    sockets: list[socket.socket] = []

    def talk(sock: socket.socket) -> None:
        try:
            asked, head, _ = read_frame(sock)
            assert storage_pb2.Hello.FromString(head) == HELLO
            sock.sendall(reply(asked, hello))
            script(sock)
        except (EOFError, OSError):
            pass
        finally:
            sock.close()

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sockets.append(sock)
            threading.Thread(target=talk, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"unix:{unix}" if unix else f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for sock in sockets:
            sock.close()


def echo(sock: socket.socket) -> None:
    """Answers every frame with its own head and body, in segments of 1,000 bytes."""
    while True:
        asked, head, body = read_frame(sock)
        if asked.kind == Kind.ACK:
            continue
        raw = reply(asked, head, body, flags=Flag.TRAILER)
        for at in range(0, len(raw), 1_000):
            sock.sendall(raw[at : at + 1_000])


def ask(connection: Connection, body: bytes, pieces: int = 1) -> bytes:
    parts = [body[at * len(body) // pieces : (at + 1) * len(body) // pieces] for at in range(pieces)]
    connection.send(Kind.READ, [b"he", b"ad"], parts, count=1, deadline_s=deadline_after(20.0))
    header, head = connection.receive_head()
    assert bytes(head) == b"head"
    target = memoryview(bytearray(header.body_bytes))
    connection.receive_body(_cut(target, pieces))
    assert connection.receive_trailer() == (0, 0)
    return bytes(target)


def _cut(view: memoryview, pieces: int) -> list[memoryview]:
    return [view[at * len(view) // pieces : (at + 1) * len(view) // pieces] for at in range(pieces)]


def test_who_answers_hello_with_something_else_is_not_available() -> None:
    with (
        peer(echo, hello=b"\xff" * 40) as endpoint,
        pytest.raises(Unavailable, match=f"{endpoint} answered HELLO with something else"),
    ):
        Connection.open(endpoint, HELLO, timeout_s=5.0)


@pytest.mark.parametrize("pieces", [1, 3, 2_500])
@pytest.mark.parametrize("size", [0, 1, 70_001, 3 << 20])
def test_a_frame_comes_back_whole_however_it_is_cut(size: int, pieces: int) -> None:
    body = bytes(range(251)) * (size // 251 + 1)
    with peer(echo) as endpoint:
        connection = Connection.open(endpoint, HELLO, timeout_s=5.0)
        assert connection.hello_reply.max_ranges == 99
        for _ in range(2):
            assert ask(connection, body[:size], pieces) == body[:size]
        connection.close()


def test_a_unix_socket_carries_the_same_frames(tmp_path: os.PathLike[str]) -> None:
    with peer(echo, unix=os.path.join(tmp_path, "s")) as endpoint:
        connection = Connection.open(endpoint, HELLO, timeout_s=5.0)
        assert ask(connection, b"x" * 5_000) == b"x" * 5_000
        connection.close()


def test_a_status_is_raised_and_the_connection_goes_on() -> None:
    def script(sock: socket.socket) -> None:
        asked, _, _ = read_frame(sock)
        sock.sendall(reply(asked, b"chain 3 is at version 9", status=StaleRouting.code))
        echo(sock)

    with peer(script) as endpoint:
        connection = Connection.open(endpoint, HELLO, timeout_s=5.0)
        connection.send(Kind.READ, [b""], count=0, deadline_s=deadline_after(5.0))
        with pytest.raises(StaleRouting, match="chain 3 is at version 9"):
            connection.receive_head()
        assert ask(connection, b"still here") == b"still here"
        connection.close()


def test_replies_in_another_order_are_told_apart_and_acknowledged_only_without_gaps() -> None:
    acks: list[int] = []

    def script(sock: socket.socket) -> None:
        first, second = read_frame(sock)[0], read_frame(sock)[0]
        sock.sendall(reply(second, b"2", flags=Flag.NEED_ACK))
        acks.append(read_frame(sock)[0].ack_id)
        sock.sendall(reply(first, b"1"))
        header, _, _ = read_frame(sock)
        assert header.kind == Kind.ACK
        acks.append(header.ack_id)

    with peer(script) as endpoint:
        connection = Connection.open(endpoint, HELLO, timeout_s=5.0)
        one = connection.send(Kind.READ, [b""], count=0, deadline_s=deadline_after(5.0))
        two = connection.send(Kind.READ, [b""], count=0, deadline_s=deadline_after(5.0))
        header, head = connection.receive_head()
        assert (header.request_id, bytes(head)) == (two, b"2")
        connection.acknowledge()
        header, head = connection.receive_head()
        assert (header.request_id, bytes(head), connection.outstanding) == (one, b"1", 0)
        connection._need_ack = True  # the reply that asked was acknowledged above; ask again for the final state
        connection.acknowledge()
        with pytest.raises(Unavailable):
            connection.send(Kind.READ, [b""], count=0, deadline_s=deadline_after(5.0))
            connection.receive_head()
        assert acks[0] == one - 1 and acks[1] >= two
        connection.close()


def test_a_peer_that_dies_inside_a_body_is_unavailable_and_the_connection_closed() -> None:
    def script(sock: socket.socket) -> None:
        asked, _, _ = read_frame(sock)
        sock.sendall(reply(asked, b"", b"y" * 10_000)[:5_000])

    with peer(script) as endpoint:
        connection = Connection.open(endpoint, HELLO, timeout_s=5.0)
        connection.send(Kind.READ, [b""], count=0, deadline_s=deadline_after(5.0))
        header, _ = connection.receive_head()
        with pytest.raises(Unavailable, match="closed the connection"):
            connection.receive_body([memoryview(bytearray(header.body_bytes))])
        assert connection.closed
        with pytest.raises(Unavailable):
            connection.send(Kind.READ, [b""], count=0, deadline_s=deadline_after(5.0))


@pytest.mark.parametrize("stalls", [False, True])
def test_a_silent_peer_ends_with_the_deadline_or_the_stall_limit(stalls: bool) -> None:
    quiet = threading.Event()
    with peer(lambda sock: quiet.wait(20)) as endpoint:
        connection = Connection.open(endpoint, HELLO, timeout_s=5.0)
        connection.stall_s = 0.02 if stalls else None
        connection.send(Kind.READ, [b""], count=0, deadline_s=deadline_after(60.0 if stalls else 0.02))
        with pytest.raises(Unavailable, match="did not answer in time"):
            connection.receive_head()
        assert connection.closed
        quiet.set()


class Interrupted(socket.socket):
    """As if a signal came while a frame was being sent, of which so many bytes have gone."""

    goes = 0

    def sendmsg(self, buffers, *rest) -> int:  # type: ignore[no-untyped-def, override]
        return self.send(b"".join(buffers))

    def send(self, data, *rest) -> int:  # type: ignore[no-untyped-def, override]
        super().send(data[: self.goes])
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [Kind.READ, Kind.AHEAD])
@pytest.mark.parametrize("goes", [10, 1_000])
def test_a_connection_interrupted_while_it_sends_is_of_no_use_to_anybody_else(kind: Kind, goes: int) -> None:
    ours, theirs = socket.socketpair()
    with theirs, Interrupted(fileno=ours.detach()) as sock:
        sock.goes = goes
        connection = Connection(sock, "the daemon")
        with pytest.raises(KeyboardInterrupt):
            connection.send(kind, [b"head"], [b"body"], count=1, deadline_s=deadline_after(20.0))
        assert connection.closed


def test_a_loop_interrupted_while_it_sends_uses_no_number_twice() -> None:
    ours, theirs = socket.socketpair()
    loop = asyncio.new_event_loop()
    with theirs, Interrupted(fileno=ours.detach()) as sock:
        sock.goes = 1_000
        connection = LoopConnection(
            loop, Connection(sock, "the daemon"), max_frame_bytes=1 << 20, replied=lambda *_: None, lost=lambda _: None
        )
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                connection.send(Kind.READ, b"head", count=1, deadline_s=deadline_after(20.0))
        assert [read_frame(theirs)[0].request_id for _ in range(2)] == [1, 2]
        connection.close()
    loop.close()


@pytest.mark.parametrize("spoil", ["head", "magic", "id"])
def test_a_damaged_reply_is_refused_and_closes(spoil: str) -> None:
    def script(sock: socket.socket) -> None:
        asked, _, _ = read_frame(sock)
        if spoil == "id":
            asked.request_id += 5
        raw = bytearray(reply(asked, b"results"))
        if spoil != "id":
            raw[-1 if spoil == "head" else 0] ^= 1
        sock.sendall(raw)

    with peer(script) as endpoint:
        connection = Connection.open(endpoint, HELLO, timeout_s=5.0)
        connection.send(Kind.READ, [b""], count=0, deadline_s=deadline_after(5.0))
        with pytest.raises((Corrupt, Invalid)):
            connection.receive_head()
        assert connection.closed


def test_nobody_there_is_unavailable_and_nonsense_is_invalid() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port} cannot be reached"):
        Connection.open(f"127.0.0.1:{port}", HELLO, timeout_s=5.0)
    with pytest.raises(Invalid, match="expected host:port"):
        Connection.open("nonsense", HELLO, timeout_s=5.0)


def test_the_pool_reuses_bounds_and_drops_what_broke() -> None:
    with peer(echo) as endpoint:
        pool = ConnectionPool(HELLO, max_per_endpoint=2)
        one = pool.borrow(endpoint, deadline_s=deadline_after(5.0))
        two = pool.borrow(endpoint, deadline_s=deadline_after(5.0))
        with pytest.raises(Busy, match="all 2 connections"):
            pool.borrow(endpoint, deadline_s=deadline_after(0.01))
        pool.give_back(one)
        assert pool.borrow(endpoint, deadline_s=deadline_after(5.0)) is one
        one.close()
        pool.give_back(one)
        with pool.lent(endpoint, deadline_s=deadline_after(5.0)) as third:
            assert third is not one and third is not two
            third.send(Kind.READ, [b"head"], count=0, deadline_s=deadline_after(5.0))
        with pool.lent(endpoint, deadline_s=deadline_after(5.0)) as fourth:
            assert fourth is not third, "a connection with an answer outstanding must not be lent again"
            assert ask(fourth, b"a") == b"a"
        pool.close()
        assert fourth.closed
        pool.give_back(two)
        assert two.closed


def test_the_pool_acknowledges_with_the_next_request_or_when_none_comes() -> None:
    seen: queue.Queue[tuple[int, int]] = queue.Queue()

    def script(sock: socket.socket) -> None:
        while True:
            asked, _, _ = read_frame(sock)
            seen.put((asked.kind, asked.ack_id))
            if asked.kind != Kind.ACK:
                sock.sendall(reply(asked, b"", b"12345", flags=Flag.NEED_ACK | Flag.TRAILER))

    with peer(script) as endpoint:
        pool = ConnectionPool(HELLO, max_per_endpoint=1)
        asked = []
        for parts in ([(5, None)], [(2, 2), (3, None)]):
            with pool.lent(endpoint, deadline_s=deadline_after(5.0)) as connection:
                asked.append(connection.send(Kind.READ, [b""], count=1, deadline_s=deadline_after(5.0)))
                connection.receive_head()
                for size, part_bytes in parts:
                    connection.receive_body([memoryview(bytearray(size))], part_bytes)
                assert connection.owes_ack and connection.receive_trailer() == (0, 0)
        assert [seen.get(timeout=5) for _ in range(2)] == [(Kind.READ, 1), (Kind.READ, asked[0])]
        assert seen.get(timeout=5) == (Kind.ACK, asked[1]), "nobody asks any more"
        with pool.lent(endpoint, deadline_s=deadline_after(5.0)) as again:
            assert again is connection and not again.owes_ack
        pool.close()


def test_the_pool_notices_a_peer_that_went_away_while_idle() -> None:
    gone = threading.Event()

    def script(sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_RDWR)
        gone.set()

    with peer(script) as endpoint:
        pool = ConnectionPool(HELLO)
        connection = pool.borrow(endpoint, deadline_s=deadline_after(5.0))
        pool.give_back(connection)
        connection.idle_since_s -= 1.0
        assert gone.wait(5)
        assert pool.borrow(endpoint, deadline_s=deadline_after(5.0)) is not connection
        pool.close()


def test_a_forked_child_opens_its_own_connections() -> None:
    with peer(echo) as endpoint:
        pool = ConnectionPool(HELLO)
        with pool.lent(endpoint, deadline_s=deadline_after(5.0)) as connection:
            fileno = connection._sock.fileno() if connection._sock else -1
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with pool.lent(endpoint, deadline_s=deadline_after(5.0)) as mine:
                    code = 0 if mine is not connection and ask(mine, b"child") == b"child" else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pool.lent(endpoint, deadline_s=deadline_after(5.0)) as again:
            assert again is connection and again._sock is not None and again._sock.fileno() == fileno
            assert ask(again, b"parent") == b"parent"
        pool.close()


def test_of_two_connections_the_one_whose_reply_begins_is_told() -> None:
    answer = {name: threading.Event() for name in ("first", "second")}

    def script(sock: socket.socket) -> None:
        asked, head, _ = read_frame(sock)
        answer[head.decode()].wait(20.0)
        sock.sendall(reply(asked, head))
        read_frame(sock)

    def ask_both(endpoint: str) -> list[Connection]:
        both = [Connection.open(endpoint, HELLO, timeout_s=5.0) for _ in answer]
        for connection, name in zip(both, answer, strict=True):
            connection.send(Kind.READ, [name.encode()], count=1, deadline_s=deadline_after(20.0))
        return both

    with peer(script) as endpoint:
        first, second = ask_both(endpoint)
        assert first.wait(deadline_after(0.0), second) is None
        answer["second"].set()
        assert first.wait(deadline_after(20.0), second) is second
        assert bytes(second.receive_head()[1]) == b"second"
        answer["first"].set()
        assert first.wait(deadline_after(20.0), second) is first
        first.close()
        assert first.wait(deadline_after(20.0)) is first  # whose end `receive_head` tells
        for event in answer.values():
            event.clear()
        first, second = ask_both(endpoint)
        second.interrupt()
        assert first.wait(deadline_after(0.05), second) is None  # a second one that is over is not waited for
        answer["first"].set()
        assert first.wait(deadline_after(20.0), second) is first
        first.close()
        second.close()


class Driven:
    """A LoopConnection in the running loop, and what it was told; `frame` waits for the next reply."""

    def __init__(self, endpoint: str, *, max_frame_bytes: int = 8 << 20) -> None:
        self.replies: asyncio.Queue[tuple[int, int, bytes, bytes]] = asyncio.Queue()
        self.lost: list[Fs3Error] = []
        self.ended = asyncio.Event()
        self.connection = LoopConnection(
            asyncio.get_running_loop(),
            Connection.open(endpoint, HELLO, timeout_s=5.0),
            max_frame_bytes=max_frame_bytes,
            replied=self._replied,
            lost=self._lost,
        )

    def _replied(self, header: Header, head: memoryview, body: memoryview) -> None:
        self.replies.put_nowait((header.request_id, header.status, bytes(head), bytes(body)))

    def _lost(self, error: Fs3Error) -> None:
        self.lost.append(error)
        self.ended.set()

    def send(self, head: bytes) -> int:
        return self.connection.send(Kind.READ, head, count=1, deadline_s=deadline_after(20.0))


@pytest.mark.parametrize("segment", [1, 7, 1_000, 1 << 20])
def test_a_loop_gets_whole_frames_however_they_come(segment: int) -> None:
    bodies = [bytes(range(251)) * size for size in (0, 1, 3, 40, 9)]

    def in_reverse(sock: socket.socket) -> None:
        asked = [read_frame(sock)[0] for _ in bodies]
        pairs = zip(reversed(asked), reversed(bodies), strict=True)
        raw = b"".join(reply(one, b"head", body, flags=Flag.TRAILER) for one, body in pairs)
        for at in range(0, len(raw), segment):
            sock.sendall(raw[at : at + segment])
        sock.recv(1)

    async def go(endpoint: str) -> None:
        driven = Driven(endpoint)
        ids = [driven.send(b"x" * 100) for _ in bodies]
        got = [await driven.replies.get() for _ in bodies]
        pairs = zip(reversed(ids), reversed(bodies), strict=True)
        assert got == [(request_id, 0, b"head", body) for request_id, body in pairs]
        driven.connection.close()
        assert not driven.lost

    with peer(in_reverse) as endpoint:
        asyncio.run(go(endpoint))


def test_a_loop_gets_replies_larger_than_any_before() -> None:
    async def go(endpoint: str) -> None:
        driven = Driven(endpoint)
        for size in (10, 300_000, 40, 1_000_000, 999_999):
            driven.send(b"z" * size)
            _, _, head, _ = await driven.replies.get()
            assert head == b"z" * size
        driven.connection.close()

    with peer(echo) as endpoint:
        asyncio.run(go(endpoint))


def test_a_status_and_the_acknowledgement_that_a_peer_needs() -> None:
    seen: list[Header] = []
    acknowledged = threading.Event()

    def script(sock: socket.socket) -> None:
        sock.sendall(reply(read_frame(sock)[0], b"no", status=StaleRouting.code))
        sock.sendall(reply(read_frame(sock)[0], b"", b"data", flags=Flag.TRAILER | Flag.NEED_ACK))
        seen.append(read_frame(sock)[0])
        acknowledged.set()

    async def go(endpoint: str) -> None:
        driven = Driven(endpoint)
        first, second = driven.send(b""), driven.send(b"")
        assert await driven.replies.get() == (first, StaleRouting.code, b"no", b"")
        assert await driven.replies.get() == (second, 0, b"", b"data")
        assert await asyncio.to_thread(acknowledged.wait, 5.0)
        assert (seen[0].kind, seen[0].ack_id) == (Kind.ACK, second)
        driven.connection.close()

    with peer(script) as endpoint:
        asyncio.run(go(endpoint))


def _flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda asked: b"", Unavailable),
        (lambda asked: reply(asked, b"head", b"body")[:-1], Unavailable),
        (lambda asked: b"HTTP/1.1 400 Bad Request" + bytes(100), Invalid),
        (lambda asked: _flipped(reply(asked, b"head"), HEADER_BYTES + 1), Corrupt),
        (lambda asked: _flipped(reply(asked, b"", b"body", flags=Flag.TRAILER), -2), Corrupt),
        (lambda asked: reply(Header(Kind.READ, asked.request_id + 1)), Corrupt),
        (lambda asked: reply(asked) * 2, Corrupt),
        (lambda asked: reply(asked, b"", bytes(100_000)), Corrupt),
    ],
    ids=["end", "cut short", "no frame", "head", "trailer", "not asked", "twice", "too large"],
)
def test_a_loop_hears_once_that_a_peer_is_no_good(answer: Callable[[Header], bytes], error: type[Fs3Error]) -> None:
    def script(sock: socket.socket) -> None:
        sock.sendall(answer(read_frame(sock)[0]))
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)

    async def go(endpoint: str) -> None:
        driven = Driven(endpoint, max_frame_bytes=50_000)
        driven.send(b"")
        await asyncio.wait_for(driven.ended.wait(), 10.0)
        assert [type(one) for one in driven.lost] == [error] and driven.connection.closed
        with pytest.raises(Unavailable):
            driven.send(b"")
        driven.connection.close()
        assert len(driven.lost) == 1

    with peer(script) as endpoint:
        asyncio.run(go(endpoint))


def test_a_peer_that_takes_nothing_is_given_up() -> None:
    done = threading.Event()

    async def go(endpoint: str) -> None:
        driven = Driven(endpoint)
        with pytest.raises(Unavailable, match="broke off"):
            for _ in range(10_000):
                driven.send(bytes(60_000))
        assert driven.connection.closed
        done.set()

    def idle(sock: socket.socket) -> None:
        done.wait(20.0)

    with peer(idle) as endpoint:
        asyncio.run(go(endpoint))
