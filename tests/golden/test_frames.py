"""The bytes of frames and records, frozen (proto/data_plane.md). A change here is a new version of the protocol.

The header is also laid out by hand from the document's table, with an independent CRC, so that the vectors do not only
repeat what the code does.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from fs3 import checksum
from fs3.errors import Corrupt, Invalid
from fs3.transport.frame_core import (
    Feature,
    Flag,
    Header,
    Kind,
    check_head,
    pack_header,
    pack_trailer,
    unpack_header,
    unpack_trailer,
)
from fs3.transport.messages import (
    AHEAD,
    CHUNK_META,
    FILE_KEY,
    LISTED,
    META_DAMAGED,
    NO_FILE,
    PLACE,
    RANGE,
    RESULT,
    UPDATE,
    Op,
    UpdateFlag,
    records,
)

HEAD = b"head"
REQUEST = Header(Kind.READ, 0x1122334455667788, False, Flag.CHECKSUM | Flag.RELAXED, 2, len(HEAD), 0, 1_500, 0, 3, 0x99)
REPLY = Header(Kind.WRITE, 7, True, Flag.TRAILER | Flag.NEED_ACK, 1, 0, 1 << 27, 0, 13, 0, 0)

HEADERS = [
    (
        REQUEST,
        HEAD,
        "4653333101020500887766554433221102000000040000000000000000000000"
        "dc05000000000300990000000000000000000000000000000000000065e1fdae",
    ),
    (
        REPLY,
        b"",
        "4653333101830a00070000000000000001000000000000000000000800000000"
        "000000000d000000000000000000000000000000000000000000000010c63195",
    ),
]

RECORDS = [
    (RANGE, (1 << 56 | 7, 2, 3, 4, 5, 6), "0700000000000001020000000000000003000000040000000500000006000000"),
    (RESULT, (13, 1, 2, 3, 4, 5), "0d0001000200000003000000040000000500000000000000"),
    (
        UPDATE,
        (1 << 56 | 7, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2, 1, 65_536, 0),
        "0700000000000001020000000000000003000000040000000500000006000000"
        "07000000000000000800000000000000090000000a0000000b00000000000000"
        "02000100000001000000000000000000",
    ),
    (
        AHEAD,
        (1 << 56 | 7, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 0),
        "0700000000000001020000000000000003000000040000000500000006000000"
        "07000000000000000800000000000000090000000a0000000100000000000000",
    ),
    (
        CHUNK_META,
        (1, 2, 3, 4, 5, 6, 7, 0),
        "010000000000000002000000000000000300000000000000040000000000000005000000060000000700000000000000",
    ),
    (PLACE, (1 << 16 | 2, 0, 3 << 32 | 4), "02000100000000000400000003000000"),
    (LISTED, (1, 2, 3, 4, 0), "0100000000000000020000000000000003000000000000000400000000000000"),
]


def slow_crc32c(data: bytes) -> int:
    """CRC-32C, bit by bit from its definition."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def test_the_checksum_is_castagnolis() -> None:
    assert checksum.crc(b"123456789") == slow_crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize(("header", "head", "expected"), HEADERS)
def test_headers(header: Header, head: bytes, expected: str) -> None:
    raw = pack_header(header, head)
    assert raw.hex() == expected
    assert unpack_header(raw) == header
    check_head(raw, head)


def test_the_header_is_laid_out_as_documented() -> None:
    fields: list[tuple[int, str, int]] = [
        (0, "<I", 0x31335346),
        (4, "<B", 1),
        (5, "<B", 2),
        (6, "<H", 1 | 4),
        (8, "<Q", 0x1122334455667788),
        (16, "<I", 2),
        (20, "<I", 4),
        (24, "<Q", 0),
        (32, "<I", 1_500),
        (36, "<H", 0),
        (38, "<B", 3),
        (40, "<Q", 0x99),
    ]
    raw = bytearray(64)
    for offset, form, value in fields:
        struct.pack_into(form, raw, offset, value)
    struct.pack_into("<I", raw, 60, slow_crc32c(bytes(raw[:60]) + HEAD))
    assert pack_header(REQUEST, HEAD) == bytes(raw)


@pytest.mark.parametrize("bit", range(0, 64 * 8, 7))
def test_a_flipped_bit_in_a_header_or_head_is_noticed(bit: int) -> None:
    raw = bytearray(pack_header(REQUEST, HEAD))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises((Corrupt, Invalid)):
        unpack_header(raw)
        check_head(raw, HEAD)
    with pytest.raises(Corrupt):
        check_head(pack_header(REQUEST, HEAD), b"heae")


def test_sizes_no_peer_may_send_are_refused_before_memory_is_taken() -> None:
    for field in ("head_bytes", "body_bytes"):
        header = Header(Kind.READ, 1)
        setattr(header, field, (1 << 31) - 1)
        with pytest.raises(Invalid, match="larger than any peer may send"):
            unpack_header(pack_header(header))


def test_trailers() -> None:
    raw = pack_trailer(10, 3)
    assert raw.hex() == "0a0000000300000000000000254da51c"
    assert unpack_trailer(raw) == (10, 3)
    with pytest.raises(Corrupt):
        unpack_trailer(b"\x0b" + raw[1:])


@pytest.mark.parametrize(("dtype", "values", "expected"), RECORDS)
def test_records(dtype: np.dtype[Any], values: tuple[int, ...], expected: str) -> None:
    assert np.array([values], dtype=dtype).tobytes().hex() == expected
    assert records(bytes.fromhex(expected), dtype, 1)[0].item() == values


def test_numbers_of_kinds_flags_and_operations() -> None:
    kinds = {"HELLO": 1, "READ": 2, "WRITE": 3, "QUERY": 4, "ACK": 5, "SYNC_LIST": 6, "SYNC_DONE": 7, "STATS": 8}
    kinds |= {"REPORT": 9, "SCRUB": 10, "INSPECT": 11, "CALL": 12, "LOCATE": 13, "AHEAD": 14}
    assert {kind.name: kind.value for kind in Kind} == kinds
    assert ([int(one) for one in Feature], NO_FILE, FILE_KEY.str) == ([1, 2, 4], 0xFFFFFFFF, "<u4")
    assert [int(flag) for flag in Flag] == [1, 2, 4, 8, 16]
    assert [flag.name for flag in Flag] == ["CHECKSUM", "TRAILER", "RELAXED", "NEED_ACK", "TO_KEEP"]
    assert [op.value for op in (Op.WRITE, Op.REPLACE, Op.REMOVE, Op.PUT_IF_ABSENT, Op.TRUNCATE)] == [1, 2, 3, 4, 5]
    assert [int(UpdateFlag[name]) for name in ("OS_DURABILITY", "SYNC_REPLACE", "SYNC_REMOVE")] == [1, 2, 4]
    assert (int(UpdateFlag.SYNC_RESULT), int(UpdateFlag.DAMAGED), META_DAMAGED) == (8, 32, 1)


@pytest.mark.parametrize(
    ("offset", "length", "chunk", "expected"),
    [
        (0, 100, 100, [(0, 100)]),
        (100, 200, 9_000, [(100, 300)]),
        (4_096, 4_096, 9_000, [(4_096, 8_192)]),
        (0, 9_000, 9_000, [(0, 9_000)]),
        (0, 8_192, 9_000, [(0, 4_096), (4_096, 8_192)]),
        (4_000, 5_000, 9_000, [(4_000, 4_096), (4_096, 8_192), (8_192, 9_000)]),
        (258_048, 270_336, 600_000, [(258_048, 262_144), (262_144, 524_288), (524_288, 528_384)]),
        (524_288, 75_712, 600_000, [(524_288, 600_000)]),
    ],
)
def test_how_ranges_are_cut_for_their_sums(
    offset: int, length: int, chunk: int, expected: list[tuple[int, int]]
) -> None:
    assert checksum.pieces(offset, length, chunk) == expected


def test_numbers_of_what_forgets_and_what_repeats() -> None:
    assert (Op.FORGET.value, Op.NOTE.value) == (6, 7)
    assert (int(UpdateFlag.FRESH), int(UpdateFlag.RETRY), int(UpdateFlag.AHEAD)) == (16, 64, 128)
    assert [int(flag) for flag in UpdateFlag] == [1, 2, 4, 8, 16, 32, 64, 128]
