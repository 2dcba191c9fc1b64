"""Frames out of a stream of bytes that arrives in any pieces, for one connection of a server.

The owner receives into `space()`, tells `received(n)`, and takes frames with `next()` until there is none. A body goes
straight into memory that the owner provides: `wanted_body` says for which header and of how many bytes, and nothing
more is received until `give_body`. Memory is wanted only once the beginning of the body is here, or all of it if it is
small: who announces much and sends nothing takes none from anybody. Sans-I/O; what is malformed raises, and the
connection is over.

    header (64) -> head -> crc of both -> body, if any -> frame
"""

from __future__ import annotations

from dataclasses import dataclass

from fs3.checksum import Bytes
from fs3.errors import Invalid
from fs3.transport.frame_core import HEADER_BYTES, Header, check_head, unpack_header

_BUFFER_BYTES = 64 << 10
_EAGER_BYTES = 32 << 10  # of a body that come before there is memory for it
_ROOM_BYTES = 8 << 10  # with less at its end, what is left in the buffer moves to its front


@dataclass(slots=True)
class Frame:
    """One request; `body` is the memory that the owner gave, or empty."""

    header: Header
    head: Bytes
    body: memoryview


_NO_BODY = memoryview(b"")


class FrameAssembler:
    """See the module. `max_head_bytes` and `max_body_bytes` may be raised once the peer is known."""

    def __init__(self, *, max_head_bytes: int, max_body_bytes: int) -> None:
        self.max_head_bytes = max_head_bytes
        self.max_body_bytes = max_body_bytes
        self.header: Header | None = None  # of the frame that is being received, once that much is known
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._begin = 0
        self._end = 0
        self._raw = b""
        self._head: Bytes | None = None
        self._long_head: memoryview | None = None  # of a head that is larger than the buffer
        self._body: memoryview | None = None
        self._filled = 0  # bytes of `_long_head` or `_body`

    @property
    def in_frame(self) -> bool:
        """Whether a frame has begun to arrive and is not whole."""
        return self.header is not None or self._end > self._begin

    @property
    def body_received(self) -> int:
        """How much of the body that is being received is here."""
        return self._filled if self._body is not None else 0

    @property
    def due_body(self) -> Header | None:
        """The header of a body that is to come, or is coming, and has no memory yet."""
        header = self.header
        due = header is not None and header.body_bytes and self._head is not None and self._body is None
        return header if due else None

    @property
    def wanted_body(self) -> int:
        """How many bytes of memory the next step needs, or 0."""
        header = self.due_body
        if header is None or self._end - self._begin < min(header.body_bytes, _EAGER_BYTES):
            return 0
        return header.body_bytes

    def space(self) -> memoryview:
        """Where the next bytes of the stream go; not empty once `next` has said None, unless a body is wanted."""
        if self.wanted_body:
            return _NO_BODY
        target = self._body if self._body is not None else self._long_head
        if target is not None:
            return target[self._filled :]
        if self._begin and len(self._buffer) - self._end < _ROOM_BYTES:
            left = self._end - self._begin
            self._view[:left] = bytes(self._view[self._begin : self._end])
            self._begin, self._end = 0, left
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """`count` bytes have been put at the beginning of `space()`."""
        if self._body is not None or self._long_head is not None:
            self._filled += count
        else:
            self._end += count

    def give_body(self, memory: memoryview) -> None:
        """Memory for the body that is wanted, of at least its length."""
        body = memory[: self.wanted_body]
        ready = min(self._end - self._begin, len(body))
        body[:ready] = self._view[self._begin : self._begin + ready]
        self._skip(ready)
        self._body, self._filled = body, ready

    def next(self) -> Frame | None:
        """The next whole frame, if it is here.

        Raises:
            Invalid: not a frame of this protocol, or larger than this peer may send.
            Corrupt: header and head fail their checksum.
        """
        if self.header is None and not self._take_header():
            return None
        header = self.header
        assert header is not None
        if self._head is None and not self._take_head(header):
            return None
        if header.body_bytes and (self._body is None or self._filled < header.body_bytes):
            return None
        frame = Frame(header, self._head or b"", self._body if self._body is not None else _NO_BODY)
        self.header, self._head, self._body, self._filled = None, None, None, 0
        return frame

    def _take_header(self) -> bool:
        if self._end - self._begin < HEADER_BYTES:
            return False
        self._raw = bytes(self._view[self._begin : self._begin + HEADER_BYTES])
        header = unpack_header(self._raw)
        self._skip(HEADER_BYTES)
        self.header = header
        if header.reply:
            raise Invalid("a reply was sent to a server")
        if header.head_bytes > self.max_head_bytes or header.body_bytes > self.max_body_bytes:
            raise Invalid(
                f"a frame of {header.head_bytes} + {header.body_bytes} bytes; this daemon takes "
                f"{self.max_head_bytes} + {self.max_body_bytes}"
            )
        return True

    def _take_head(self, header: Header) -> bool:
        wanted = header.head_bytes
        head: Bytes
        if self._long_head is not None:
            if self._filled < wanted:
                return False
            head, self._long_head, self._filled = self._long_head, None, 0
        elif self._end - self._begin >= wanted:
            head = bytes(self._view[self._begin : self._begin + wanted])
            self._skip(wanted)
        elif wanted > len(self._buffer):
            ready = self._end - self._begin
            self._long_head = memoryview(bytearray(wanted))
            self._long_head[:ready] = self._view[self._begin : self._end]
            self._skip(ready)
            self._filled = ready
            return False
        else:
            return False
        check_head(self._raw, head)
        self._head = head
        return True

    def _skip(self, count: int) -> None:
        self._begin += count
        if self._begin == self._end:
            self._begin = self._end = 0
