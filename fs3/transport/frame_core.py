"""The frame: its 64-byte header, its trailer, and the checks both sides make before they believe a byte of it.

Format: proto/data_plane.md. Pure: bytes in, values out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from fs3.checksum import Bytes, crc
from fs3.errors import Corrupt, Invalid

MAGIC = 0x31335346
VERSION = 1
HEADER_BYTES = 64
TRAILER_BYTES = 16
REPLY = 0x80

# What a peer may send before HELLO has agreed on anything larger.
MAX_HEAD_BYTES = 16 << 20
MAX_BODY_BYTES = 256 << 20

_HEADER = struct.Struct("<IBBHQIIQIHBBQ12x")
_TRAILER = struct.Struct("<HHII")
_CRC = struct.Struct("<I")


class Kind(IntEnum):
    """What a frame asks for; its reply has the same kind with bit 0x80 set in the header."""

    HELLO = 1
    READ = 2
    WRITE = 3
    QUERY = 4
    ACK = 5
    SYNC_LIST = 6
    SYNC_DONE = 7
    STATS = 8
    REPORT = 9
    SCRUB = 10
    INSPECT = 11
    CALL = 12
    LOCATE = 13
    AHEAD = 14


ONE_WAY = (Kind.ACK, Kind.AHEAD)  # never answered


class Flag(IntFlag):
    """Flags of a frame."""

    NONE = 0
    CHECKSUM = 1
    TRAILER = 2
    RELAXED = 4
    NEED_ACK = 8
    TO_KEEP = 16


class Feature(IntFlag):
    """What a HELLO offers, and its reply takes up."""

    NONE = 0
    SAME_HOST = 1  # LOCATE, and descriptors of block files
    KEEP = 2  # ... and of the counters by which a client knows whether a place still holds
    AHEAD = 4  # the bytes of an update may go ahead of it; the reply says so to everybody


@dataclass(slots=True)
class Header:
    """A frame's header as values; `reply` tells an answer from a question."""

    kind: int
    request_id: int
    reply: bool = False
    flags: int = 0
    count: int = 0
    head_bytes: int = 0
    body_bytes: int = 0
    deadline_ms: int = 0
    status: int = 0
    hop: int = 0
    ack_id: int = 0


def pack_header(header: Header, head: Bytes = b"") -> bytes:
    """The 64 bytes before `head`; `header.head_bytes` must already be its length."""
    packed = _HEADER.pack(
        MAGIC,
        VERSION,
        header.kind | (REPLY if header.reply else 0),
        header.flags,
        header.request_id,
        header.count,
        header.head_bytes,
        header.body_bytes,
        header.deadline_ms,
        header.status,
        header.hop,
        0,
        header.ack_id,
    )
    return packed + _CRC.pack(crc(head, crc(packed)))


def unpack_header(raw: Bytes) -> Header:
    """The header in the 64 bytes `raw`. The crc covers the head too: `check_head` once that has arrived.

    Raises:
        Invalid: not fs3's magic, or another version of the protocol, or sizes no peer may send.
    """
    magic, version, kind, flags, request_id, count, head, body, deadline, status, hop, _, ack_id = _HEADER.unpack_from(
        raw
    )
    if magic != MAGIC:
        raise Invalid(f"not an fs3 frame (magic {magic:#010x}); is this the port of an fs3 daemon?")
    if version != VERSION:
        raise Invalid(f"data-plane version {version}, this side speaks {VERSION}; upgrade the older one")
    if head > MAX_HEAD_BYTES or body > MAX_BODY_BYTES:
        raise Invalid(f"frame of {head} + {body} bytes is larger than any peer may send")
    return Header(
        kind & ~REPLY, request_id, bool(kind & REPLY), flags, count, head, body, deadline, status, hop, ack_id
    )


def check_head(raw_header: Bytes, head: Bytes) -> None:
    """Raises: Corrupt if header and head do not match the header's crc."""
    view = memoryview(raw_header)
    if crc(head, crc(view[:60])) != _CRC.unpack_from(view, 60)[0]:
        raise Corrupt("a frame's head failed its checksum")


def pack_trailer(status: int, record: int) -> bytes:
    """The 16 bytes after the body of a reply."""
    packed = _TRAILER.pack(status, 0, record, 0)
    return packed + _CRC.pack(crc(packed))


def unpack_trailer(raw: Bytes) -> tuple[int, int]:
    """(status, first bad record). Raises: Corrupt."""
    view = memoryview(raw)
    if crc(view[:12]) != _CRC.unpack_from(view, 12)[0]:
        raise Corrupt("a frame's trailer failed its checksum")
    status, _, record, _ = _TRAILER.unpack_from(view)
    return status, record
