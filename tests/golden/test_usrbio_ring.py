"""The bytes of a USRBIO ring, frozen (docs/formats.md). A change here is a new version of the ring."""

from __future__ import annotations

import struct

import numpy as np

from fs3.client.storage import RANGE
from fs3.usrbio.ring_core import ApplicationRing, IoRing
from fs3.usrbio.ring_format import RANGE_RESULT, Flag, Op, RingLayout, read_header

DEPTH, RANGES = 2, 3


def by_hand() -> bytes:
    """After two batches were submitted, the first taken and completed with an error, and that reaped."""
    header = bytearray(4_096)
    struct.pack_into("<8sIII", header, 0, b"fs3ring\0", 2, DEPTH, RANGES)
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


def test_a_batch_that_writes() -> None:
    """The same slot and columns, with flags for chunks."""
    layout = RingLayout(1, 2)
    memory = memoryview(bytearray(layout.bytes))
    application = ApplicationRing(layout, memory)
    ranges = np.array([(1, 2, 0, 4, 5, 0), (6, 7, 0, 9, 10, 0)], dtype=RANGE)
    parts = [(0, ranges.view(np.uint8).data), (4, np.array([11, 12]).data.cast("B"))]
    flags = Flag.IF_ABSENT | Flag.OS_DURABILITY
    application.prepare(Op.WRITE_CHUNKS, 2, parts, files=0, iov=8, deadline_ns=3, flags=flags)
    application.publish()
    assert memory[layout.slots : layout.messages] == struct.pack("<QqHHIII", 1, 3, 4, 3, 2, 0, 8).ljust(64, b"\0")
    columns = struct.pack("<QQIIII", 1, 2, 0, 4, 5, 0) + struct.pack("<QQIIII", 6, 7, 0, 9, 10, 0)
    assert memory[layout.columns : layout.results] == columns + struct.pack("<2q", 11, 12)
    assert (Op.READ, Op.READ_CHUNKS, Op.WRITE, Op.WRITE_CHUNKS) == (1, 2, 3, 4)
    request = IoRing(read_header(memory), memory).take()
    assert request is not None and request.flags == flags and request.places.tolist() == [11, 12]
    assert (request.ranges == ranges).all()
