"""A blocking connection to a storage daemon's data port, for clients and predecessors in a chain.

One thread owns a connection from `send` to the last byte of the reply: it gathers with `sendmsg` and receives straight
into the caller's memory, which is what measured fastest from Python. Two kernel habits shape the code:

    settimeout() makes the socket nonblocking underneath and so breaks MSG_WAITALL; SO_RCVTIMEO and SO_SNDTIMEO keep it,
    and return short on expiry. They are armed with a coarse tick, so that a call costs no setsockopt, and every loop
    looks at the absolute deadline.
    The default congestion control may be BBR, which halves loopback; same-host sockets ask for another.

Format: proto/data_plane.md.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from google.protobuf.message import DecodeError

from fs3.checksum import Bytes
from fs3.clock import deadline_after, lease_now_s
from fs3.errors import Corrupt, Invalid, Unavailable, from_code
from fs3.pb import storage_pb2
from fs3.transport.frame_core import (
    HEADER_BYTES,
    ONE_WAY,
    TRAILER_BYTES,
    Flag,
    Header,
    Kind,
    check_head,
    pack_header,
    unpack_header,
    unpack_trailer,
)
from fs3.transport.sockets import connect_to

MAX_IOVECS = 1_024

_TRAILER, _NEED_ACK = int(Flag.TRAILER), int(Flag.NEED_ACK)  # `&` with an IntFlag costs 3 us
_TICK_S = 0.5
_TIMEVAL = struct.Struct("ll")


class Connection:
    """One socket after its HELLO. Not for several threads at once.

    An answer that carries a status raises it and leaves the connection usable; every other error closes it, since
    nobody knows where in a frame the stream then stands.
    """

    __slots__ = (
        "_awaited",
        "_body_left",
        "_head",
        "_need_ack",
        "_received_id",
        "_receiving",
        "_request_id",
        "_sock",
        "_tick_s",
        "_trailer",
        "deadline_s",
        "endpoint",
        "hello_reply",
        "idle_since_s",
        "stall_s",
    )

    def __init__(self, sock: socket.socket, endpoint: str) -> None:
        self._sock: socket.socket | None = sock
        self.endpoint = endpoint
        self.hello_reply = storage_pb2.HelloReply()
        self.deadline_s = deadline_after(5.0)
        self.stall_s: float | None = None  # longest wait for the next byte of a reply; None: the deadline alone
        self.idle_since_s = 0.0
        self._request_id = 0
        self._received_id = 0
        self._awaited: deque[int] = deque()
        self._need_ack = False
        self._receiving = Header(Kind.HELLO, 0)
        self._body_left = 0
        self._head = memoryview(bytearray(64 << 10))
        self._trailer = memoryview(bytearray(TRAILER_BYTES))
        self._tick_s = 0.0

    @classmethod
    def open(cls, endpoint: str, hello: storage_pb2.Hello, *, timeout_s: float) -> Connection:
        """Connect to "host:port" or "unix:/path" and exchange HELLO.

        Raises:
            Unavailable: nobody listens there, or no answer came in time.
            PermissionDenied, Invalid: the daemon refused this caller.
        """
        sock = connect_to(endpoint, timeout_s)
        connection = cls(sock, endpoint)
        try:
            connection.send(Kind.HELLO, [hello.SerializeToString()], count=0, deadline_s=deadline_after(timeout_s))
            _, head = connection.receive_head()
            connection.receive_body(())
            connection.hello_reply.ParseFromString(bytes(head))
        except DecodeError:
            connection.close()
            raise Unavailable(f"{endpoint} answered HELLO with something else; is a storage daemon there?") from None
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def closed(self) -> bool:
        """Whether the socket is gone; a closed connection never comes back."""
        return self._sock is None

    @property
    def outstanding(self) -> int:
        """How many requests are still unanswered."""
        return len(self._awaited)

    def close(self) -> None:
        """Release the socket; any number of times."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    @property
    def last_request_id(self) -> int:
        """The id of the newest request."""
        return self._request_id

    def detach(self) -> socket.socket:
        """Hand the socket over to somebody else, at a time when nothing is outstanding; to be closed by them."""
        sock, self._sock = self._sock, None
        assert sock is not None and not self._awaited, f"{self.endpoint} is closed or in use"
        return sock

    def interrupt(self) -> None:
        """Have whoever uses it fail soon; from any thread."""
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def send(
        self,
        kind: Kind,
        head_parts: Sequence[Bytes],
        body_parts: Sequence[Bytes] = (),
        *,
        count: int,
        flags: int = 0,
        hop: int = 0,
        deadline_s: float,
    ) -> int:
        """Send one request frame and return its id; `deadline_s` (a `lease_now_s` time) also bounds its reply.

        Acknowledges on the way every reply received whole so far.

        Raises:
            Unavailable: the peer is gone or took nothing until the deadline. The frame may have arrived.
        """
        self.deadline_s = deadline_s
        head = head_parts[0] if len(head_parts) == 1 else b"".join(head_parts)
        header = Header(
            kind,
            self._request_id + 1,
            flags=flags,
            count=count,
            head_bytes=len(head),
            body_bytes=sum(len(part) for part in body_parts),
            deadline_ms=max(1, int((deadline_s - lease_now_s()) * 1_000)),
            hop=hop,
            ack_id=self._received_id,
        )
        parts = [pack_header(header, head), head, *body_parts]
        self._request_id += 1
        if kind not in ONE_WAY:
            self._awaited.append(self._request_id)
        try:
            self._send_all(parts)
        except BaseException:
            self.close()  # also if interrupted: it may be out in part, or whole, and its answer is no other request's
            raise
        self._need_ack = False
        return self._request_id

    def wait(self, until_s: float, other: Connection | None = None) -> Connection | None:
        """Which of this and `other` has a reply that has begun to arrive; None: neither had until then.

        This one also if it is over, which `receive_head` then says; `other` is not waited for any longer if it is.
        """
        poll = select.poll()
        if self._sock is None:
            return self
        poll.register(self._sock, select.POLLIN)
        if other is not None and other._sock is not None:
            poll.register(other._sock, select.POLLIN)
        while True:
            ready = poll.poll(max((until_s - lease_now_s()) * 1_000, 0.0))
            if any(fd == self._sock.fileno() for fd, _ in ready):
                return self
            if not ready:
                return None
            assert other is not None and other._sock is not None
            if other.has_reply():
                return other
            poll.unregister(other._sock)

    def has_reply(self) -> bool:
        """Whether a byte has arrived that was not taken in."""
        with contextlib.suppress(OSError):
            return self._sock is not None and bool(self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        return False

    def receive_head(self) -> tuple[Header, memoryview]:
        """The header and head of the next reply; the head's memory is reused by the next call.

        Raises:
            Unavailable: the peer is gone, or the deadline has passed.
            Corrupt, Invalid: what came is no reply to this side's requests.
            Fs3Error: the reply's own status, as the class it stands for; the connection stays open.
        """
        raw = self._head[:HEADER_BYTES]
        self._receive_raw_header(raw)
        try:
            header = unpack_header(raw)
            if header.head_bytes > len(self._head) - HEADER_BYTES:
                self._grow(header.head_bytes + HEADER_BYTES)
                raw = self._head[:HEADER_BYTES]
            head = self._head[HEADER_BYTES : HEADER_BYTES + header.head_bytes]
            if header.head_bytes:
                self._receive_all([head], header.head_bytes)
            check_head(raw, head)
            if not header.reply or header.request_id not in self._awaited:
                raise Corrupt(f"{self.endpoint} sent frame {header.request_id}, which answers nothing")
        except (Corrupt, Invalid):
            self.close()
            raise
        self._receiving, self._body_left = header, header.body_bytes
        if header.status:
            if header.body_bytes or header.flags & _TRAILER:
                self.close()
            self._finish()
            raise from_code(header.status, bytes(head).decode(errors="replace"))
        if not header.body_bytes and not header.flags & _TRAILER:
            self._finish()
        return header, head

    def receive_body(self, views: Sequence[memoryview], part_bytes: int | None = None) -> None:
        """Fill `views` with the reply's body, or with its next `part_bytes`, which is how long they are together.

        With the last byte of the body its trailer is taken in.

        Raises: Unavailable, as `receive_head`.
        """
        left = self._body_left
        if part_bytes is not None and part_bytes < left:
            self._receive_all(views, part_bytes)
            self._body_left = left - part_bytes
        elif self._receiving.flags & _TRAILER:
            self._receive_all([*views, self._trailer], left + TRAILER_BYTES)
            self._finish()
        elif left:
            self._receive_all(views, left)
            self._finish()

    def receive_trailer(self) -> tuple[int, int]:
        """(status, first bad record) of the reply just received; (0, 0) if it has no trailer. Raises: Corrupt."""
        if not self._receiving.flags & _TRAILER:
            return 0, 0
        try:
            return unpack_trailer(self._trailer)
        except Corrupt:
            self.close()
            raise

    @property
    def owes_ack(self) -> bool:
        """Whether the peer keeps blocks for replies that have arrived, until a request or `acknowledge` says so."""
        return self._need_ack and self._sock is not None

    def acknowledge(self) -> None:
        """Tell the peer that its replies have arrived, if it waits for that.

        Raises: Unavailable.
        """
        if self.owes_ack:
            self.send(Kind.ACK, [b""], count=0, deadline_s=deadline_after(1.0))

    def alive(self) -> bool:
        """Whether an idle connection still looks usable: open, and nothing has come that nobody asked for."""
        if self._sock is None or self._awaited:
            return False
        try:
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _finish(self) -> None:
        """The reply `_receiving` has arrived whole."""
        header = self._receiving
        self._awaited.remove(header.request_id)
        self._received_id = self._awaited[0] - 1 if self._awaited else self._request_id
        if header.flags & _NEED_ACK:
            self._need_ack = True

    def _grow(self, size: int) -> None:
        grown = memoryview(bytearray(size + (size >> 2)))
        grown[:HEADER_BYTES] = self._head[:HEADER_BYTES]
        self._head = grown

    def _arm(self, begun_s: float) -> socket.socket:
        """The socket, with a timeout set that ends no later than it must. Raises: Unavailable past the deadline."""
        if self._sock is None:
            raise Unavailable(f"the connection to {self.endpoint} is closed")
        now_s = lease_now_s()
        left_s = self.deadline_s - now_s
        if self.stall_s is not None:
            left_s = min(left_s, begun_s + self.stall_s - now_s)
        if left_s <= 0:
            self.close()
            raise Unavailable(f"{self.endpoint} did not answer in time")
        tick_s = _TICK_S if left_s > _TICK_S else max(left_s, 0.001)
        if tick_s != self._tick_s:
            packed = _TIMEVAL.pack(int(tick_s), int(tick_s % 1 * 1_000_000))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, packed)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, packed)
            self._tick_s = tick_s
        return self._sock

    def _receive_raw_header(self, raw: memoryview) -> None:
        self._receive_all([raw], HEADER_BYTES)

    def _receive_all(self, views: Sequence[memoryview], total: int) -> None:
        begun_s = lease_now_s()
        for left in _batches(views):
            while left:
                sock = self._arm(begun_s)
                try:
                    if len(left) == 1:
                        got = sock.recv_into(left[0], 0, socket.MSG_WAITALL)
                    else:
                        got = sock.recvmsg_into(left, 0, socket.MSG_WAITALL)[0]
                except BlockingIOError:
                    continue
                except OSError as error:
                    self.close()
                    raise Unavailable(f"{self.endpoint} broke off: {error.strerror or error}") from None
                if not got:
                    self.close()
                    raise Unavailable(f"{self.endpoint} closed the connection")
                total -= got
                if not total:
                    return
                left = _rest(left, got)
                if left:
                    begun_s = lease_now_s()
        assert not total, f"memory for {total} bytes fewer than {self.endpoint} sends"

    def _send_all(self, parts: Sequence[Bytes]) -> None:
        begun_s = lease_now_s()
        for left in _batches([memoryview(part) for part in parts if len(part)]):
            while left:
                sock = self._arm(begun_s)
                try:
                    sent = sock.sendmsg(left)
                except BlockingIOError:
                    continue
                except OSError as error:
                    self.close()
                    raise Unavailable(f"{self.endpoint} broke off: {error.strerror or error}") from None
                left = _rest(left, sent)
                if left:
                    begun_s = lease_now_s()


def _batches(views: Sequence[memoryview]) -> Iterator[Sequence[memoryview]]:
    """`views` in runs that one system call takes, empty ones left out."""
    if len(views) <= MAX_IOVECS and all(views):
        yield views
        return
    filled = [view for view in views if view.nbytes]
    for at in range(0, len(filled), MAX_IOVECS):
        yield filled[at : at + MAX_IOVECS]


def _rest(views: Sequence[memoryview], done: int) -> Sequence[memoryview]:
    """What is left of `views` after their first `done` bytes."""
    for index, view in enumerate(views):
        if done < view.nbytes:
            return [view[done:], *views[index + 1 :]]
        done -= view.nbytes
    return ()


class OpenConnection(Protocol):
    """As `Connection.open`; the simulator has one of its own."""

    def __call__(self, endpoint: str, hello: storage_pb2.Hello, *, timeout_s: float) -> Connection: ...
