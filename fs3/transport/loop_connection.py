"""A data connection that an event loop drives, for many small requests: nobody waits in a thread for a reply.

Frames go out whole, in one `send`; what comes in lies in one buffer, which is used again, and is handed on frame by
frame. Waking a thread for a request and the loop for its answer would cost more than both frames do.

Format: proto/data_plane.md.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from fs3.clock import deadline_after, lease_now_s
from fs3.errors import Corrupt, Fs3Error, Unavailable
from fs3.transport.connection import Connection
from fs3.transport.frame_core import (
    HEADER_BYTES,
    TRAILER_BYTES,
    Flag,
    Header,
    Kind,
    check_head,
    pack_header,
    unpack_header,
    unpack_trailer,
)

_BUFFER_BYTES = 256 << 10
_TRAILER, _NEED_ACK = int(Flag.TRAILER), int(Flag.NEED_ACK)  # `&` with an IntFlag costs 3 us

Replied = Callable[[Header, memoryview, memoryview], None]
"""What is done with a reply: its header, head and body, whose memory is reused once this returns."""


class LoopConnection:
    """One socket after its HELLO; everything here is for the loop's thread, or for anyone once the loop has ended."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: Connection,
        *,
        max_frame_bytes: int,
        replied: Replied,
        lost: Callable[[Fs3Error], None],
    ) -> None:
        """Takes over the socket of `connection`. `lost` is called at most once, and not by `close`."""
        self.endpoint = connection.endpoint
        self.hello_reply = connection.hello_reply
        self._loop = loop
        self._max_frame_bytes = max_frame_bytes
        self._replied = replied
        self._lost = lost
        self._request_id = connection.last_request_id
        self._received_id = self._request_id
        self._awaited: set[int] = set()
        self._memory = memoryview(bytearray(_BUFFER_BYTES))
        self._begin = self._end = 0  # what has arrived and was not handed on
        self._header: Header | None = None  # of the frame at `_begin`, once that much of it is here
        self._sock: socket.socket | None = connection.detach()
        self._sock.setblocking(False)
        loop.add_reader(self._sock, self._readable)

    @property
    def closed(self) -> bool:
        """Whether the socket is gone."""
        return self._sock is None

    def send(self, kind: Kind, head: bytes, *, count: int, flags: int = 0, deadline_s: float) -> int:
        """Send a request without a body and return its id.

        Raises: Unavailable: the peer is gone, or so far behind that not even a request fits on its way.
        """
        request_id = self._request_id + 1
        header = Header(
            kind,
            request_id,
            flags=flags,
            count=count,
            head_bytes=len(head),
            deadline_ms=max(1, int((deadline_s - lease_now_s()) * 1_000)),
            ack_id=self._received_id,
        )
        packed = pack_header(header, head) + head
        if self._sock is None:
            raise Unavailable(f"the connection to {self.endpoint} is closed")
        self._request_id = request_id  # before anything can interrupt this: what answers it must meet no other request
        try:
            sent = self._sock.send(packed)
        except OSError as error:
            sent, why = 0, error.strerror or str(error)
        else:
            why = "it takes no requests"
        if sent < len(packed):
            self.close()
            raise Unavailable(f"{self.endpoint} broke off: {why}")
        if kind != Kind.ACK:
            self._awaited.add(request_id)
        return request_id

    def close(self) -> None:
        """Release the socket; any number of times. What is unanswered stays so."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(sock)
        sock.close()

    def abandon(self) -> None:
        """Release the socket in a forked child, whose parent still waits for it with the same epoll descriptor."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def _readable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            got = sock.recv_into(self._memory[self._end :])
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(Unavailable(f"{self.endpoint} broke off: {error.strerror or error}"))
            return
        if not got:
            self._lose(Unavailable(f"{self.endpoint} closed the connection"))
            return
        self._end += got
        try:
            while self._sock is not None and self._next():
                pass
        except Fs3Error as error:
            self._lose(error)

    def _lose(self, error: Fs3Error) -> None:
        self.close()
        self._lost(error)

    def _next(self) -> bool:
        """Hand on the frame at `_begin`, if it is here whole. Raises: Corrupt, Invalid."""
        memory, begin = self._memory, self._begin
        have = self._end - begin
        header = self._header
        if header is None:
            if have < HEADER_BYTES:
                self._make_room(HEADER_BYTES)
                return False
            header = self._header = unpack_header(memory[begin : begin + HEADER_BYTES])
            if not header.reply or header.request_id not in self._awaited:
                raise Corrupt(f"{self.endpoint} sent frame {header.request_id}, which answers nothing")
        body_at = HEADER_BYTES + header.head_bytes
        trailer_at = body_at + header.body_bytes
        size = trailer_at + (TRAILER_BYTES if header.flags & _TRAILER else 0)
        if have < size:
            if size > self._max_frame_bytes:
                raise Corrupt(f"{self.endpoint} sent a frame of {size} bytes, more than was asked for")
            self._make_room(size)
            return False
        head = memory[begin + HEADER_BYTES : begin + body_at]
        check_head(memory[begin : begin + HEADER_BYTES], head)
        if header.flags & _TRAILER and not header.status:
            header.status = unpack_trailer(memory[begin + trailer_at : begin + size])[0]
        self._header = None
        self._begin = begin + size
        if self._begin == self._end:
            self._begin = self._end = 0
        self._awaited.remove(header.request_id)
        self._received_id = min(self._awaited, default=self._request_id + 1) - 1
        self._replied(header, head, memory[begin + body_at : begin + trailer_at])
        if header.flags & _NEED_ACK and self._sock is not None:
            self._acknowledge()
        return self._end > 0

    def _acknowledge(self) -> None:
        self.send(Kind.ACK, b"", count=0, deadline_s=deadline_after(1.0))

    def _make_room(self, size: int) -> None:
        """Have room for a frame of `size` bytes from `_begin` on."""
        if self._begin + size <= len(self._memory):
            return
        arrived = self._memory[self._begin : self._end]
        if size > len(self._memory):
            self._memory = memoryview(bytearray(size + (size >> 2)))
            self._memory[: len(arrived)] = arrived
        else:
            self._memory[: len(arrived)] = bytes(arrived)
        self._begin, self._end = 0, len(arrived)
