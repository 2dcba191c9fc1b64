"""The bytes of a USRBIO ring, frozen (docs/formats.md). A change here is a new version of the ring."""

from __future__ import annotations

import struct

import numpy as np

from fs3.usrbio.ring_core import ApplicationRing, IoRing
from fs3.usrbio.ring_format import RANGE_RESULT, Op, RingLayout, read_header

DEPTH, RANGES = 2, 3


def by_hand() -> bytes:
    """After two batches were submitted, the first taken and completed with an error, and that reaped."""
    header = bytearray(4_096)
    struct.pack_into("<8sIII", header, 0, b"fs3ring\0", 1, DEPTH, RANGES)
    for at, counter in ((64, 2), (128, 1), (192, 1), (256, 1), (320, 1)):
        struct.pack_into("<Q", header, at, counter)
    submissions = struct.pack("<QII", 1, 0, 0) + struct.pack("<QII", 2, 1, 0)
    completions = struct.pack("<QQIHHQ", 1, 11, 0, 3, 0, 0) + bytes(32)
    slots = struct.pack("<QqHHIII", 1, 1_000, 1, 0, 2, 5, 6).ljust(64, b"\0")
    slots += struct.pack("<QqHHIII", 2, 2_000, 1, 0, 3, 5, 6).ljust(64, b"\0")
    messages = b"gone".ljust(256, b"\0") + bytes(256)
    first = [(0, 1), (10, 11), (20, 21), (30, 31)]
    second = [(2, 3, 4), (12, 13, 14), (22, 23, 24), (32, 33, 34)]
    columns = b"".join(struct.pack("<3q", *column, *[0] * (3 - len(column))) for column in (*first, (), *second, ()))
    results = struct.pack("<HHIQ", 3, 0, 0, 0) + struct.pack("<HHIQ", 0, 0, 64, 11) + bytes(16)
    return bytes(header) + submissions + completions + slots + messages + columns + results + bytes(48)


def test_the_bytes_are_those_of_the_document() -> None:
    layout = RingLayout(DEPTH, RANGES)
    memory = memoryview(bytearray(layout.bytes))
    application = ApplicationRing(layout, memory)
    for count, first, deadline_ns in ((2, 0, 1_000), (3, 2, 2_000)):
        columns = [np.arange(count, dtype="<i8") + first + 10 * place for place in range(4)]
        parts = [(place, column.data.cast("B")) for place, column in enumerate(columns)]
        application.prepare(Op.READ, count, parts, files=5, iov=6, deadline_ns=deadline_ns)
    application.publish()
    assert application.want(1)
    io = IoRing(read_header(memory), memory)
    request = io.take()
    assert request is not None
    results = np.zeros(2, dtype=RANGE_RESULT)
    results["status"], results["length"], results["chunk_length"] = [3, 0], [0, 11], [0, 64]
    assert io.complete(request, 3, "gone", results)
    assert len(application.reap()) == 1
    assert bytes(memory) == by_hand()
