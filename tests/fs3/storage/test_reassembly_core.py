"""Frames come out of the stream as they were put in, however it is cut; what is malformed is refused before memory is
given to it."""

from __future__ import annotations

import random

import pytest

from fs3.errors import Corrupt, Fs3Error, Invalid
from fs3.storage.reassembly_core import Frame, FrameAssembler
from fs3.transport.frame_core import Header, Kind, pack_header


def _frame(request_id: int, head: bytes, body: bytes = b"", kind: int = Kind.WRITE) -> bytes:
    header = Header(kind, request_id, head_bytes=len(head), body_bytes=len(body))
    return pack_header(header, head) + head + body


def _feed(assembler: FrameAssembler, stream: bytes, cuts: list[int]) -> list[Frame]:
    """Push `stream` in pieces of at most `cuts` bytes, as a connection would."""
    frames: list[Frame] = []
    at, turn = 0, 0
    while True:
        while (frame := assembler.next()) is not None or assembler.wanted_body:
            if frame is None:
                assembler.give_body(memoryview(bytearray(assembler.wanted_body + 100)))
            else:
                frames.append(frame)
        if at == len(stream):
            return frames
        space = assembler.space()
        take = min(len(space), cuts[turn % len(cuts)], len(stream) - at)
        assert take > 0
        space[:take] = stream[at : at + take]
        assembler.received(take)
        at, turn = at + take, turn + 1


def _contents(frames: list[Frame]) -> list[tuple[int, bytes, bytes]]:
    return [(frame.header.request_id, bytes(frame.head), bytes(frame.body)) for frame in frames]


def _assembler() -> FrameAssembler:
    return FrameAssembler(max_head_bytes=1 << 20, max_body_bytes=1 << 20)


def test_every_cut_of_a_short_stream_gives_the_same_frames() -> None:
    parts = [(1, b"head", b""), (2, b"", b"body of two"), (3, b"", b""), (4, b"h" * 40, b"b" * 70)]
    stream = b"".join(_frame(*part) for part in parts)
    for first in range(1, len(stream)):
        assert _contents(_feed(_assembler(), stream, [first, 1 << 20])) == parts
    for size in range(1, 130):
        assert _contents(_feed(_assembler(), stream, [size])) == parts


def test_heads_and_bodies_larger_than_the_buffer() -> None:
    rng = random.Random(1)
    parts = [
        (number, rng.randbytes(rng.choice([0, 32, 65_000, 65_536, 65_537, 200_000])), rng.randbytes(body))
        for number, body in enumerate([0, 1, 65_536, 300_000, 0, 70_000, 5, 0, 0, 65_473])
    ]
    stream = b"".join(_frame(*part) for part in parts)
    for cuts in ([1 << 20], [65_536], [4096], [63, 65_537, 1, 30_000], [1000]):
        assert _contents(_feed(_assembler(), stream, cuts)) == parts


def test_many_small_frames_in_one_piece() -> None:
    parts = [(number, bytes(32), b"") for number in range(3000)]
    assert _contents(_feed(_assembler(), b"".join(_frame(*part) for part in parts), [1 << 20])) == parts


def test_a_frame_that_has_begun_is_known_to_have() -> None:
    assembler = _assembler()
    assert not assembler.in_frame
    stream = _frame(1, b"abc")
    _feed(assembler, stream[:10], [100])
    assert assembler.in_frame
    assert len(_feed(assembler, stream[10:], [100])) == 1
    assert not assembler.in_frame


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"GET / HTTP/1.1\r\nHost: somewhere-or-other.example\r\nAccept: */*\r\n\r\n", Invalid),
        (_frame(1, b"x" * ((1 << 20) + 1)), Invalid),
        (_frame(1, b"", b"x" * ((1 << 20) + 1)), Invalid),
        (pack_header(Header(Kind.READ, 1, reply=True)), Invalid),
        (_frame(1, b"abcd")[:-1] + b"X", Corrupt),
        (b"\xff" + _frame(1, b"")[1:], Invalid),
        (_frame(1, b"")[:40] + b"\x01" + _frame(1, b"")[41:], Corrupt),
    ],
)
def test_malformed(stream: bytes, error: type[Fs3Error]) -> None:
    with pytest.raises(error):
        _feed(_assembler(), stream, [17])


def test_memory_is_wanted_once_the_beginning_of_the_body_is_here() -> None:
    for size, enough in ((10, 10), (32 << 10, 32 << 10), (300_000, 32 << 10)):
        assembler = FrameAssembler(max_head_bytes=100, max_body_bytes=1 << 20)
        stream = _frame(1, b"head", bytes(size))
        at = len(stream) - size + enough - 1
        left = memoryview(stream)[:at]
        while left:
            space = assembler.space()
            taken = min(len(space), len(left), 1_000)
            space[:taken] = left[:taken]
            assembler.received(taken)
            left = left[taken:]
            assert assembler.next() is None and assembler.wanted_body == 0
        assert assembler.due_body is not None
        assembler.space()[:1] = stream[at : at + 1]
        assembler.received(1)
        assert assembler.next() is None and assembler.wanted_body == size


def test_no_memory_is_asked_for_a_frame_whose_head_is_damaged() -> None:
    assembler = _assembler()
    stream = bytearray(_frame(1, b"head", b"body"))
    stream[66] ^= 1
    space = assembler.space()
    space[: len(stream)] = stream
    assembler.received(len(stream))
    with pytest.raises(Corrupt):
        assembler.next()
    assert assembler.wanted_body == 0
