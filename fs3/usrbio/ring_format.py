"""The bytes of a ring, which an application and the I/O process share: version 2, frozen (docs/formats.md).

    header        4 KiB; counters, each in a cache line of its own and written by one side alone
    submissions   [depth]   which slots hold new batches, in order       the application writes
    completions   [depth]   which batches have ended, and how            the I/O process writes
    slots         [depth]   what a batch is                              the application writes
    messages      [depth]   in words why a batch failed                  the I/O process writes
    columns       [depth, 5, ranges]   the batch's ranges                the application writes
    results       [depth, ranges]      what became of each               the I/O process writes

A batch is a slot: a few numbers, and its ranges as columns, so that it is written with a handful of copies however
many ranges it has. READ has one column each for file (its place in a set of files), offset, length and place in the
memory; READ_CHUNKS has RANGE records in the room of the first four, and places. WRITE and WRITE_CHUNKS are the same in
the other direction; of version 1 there were only reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag

import numpy as np

from fs3.client.storage import RANGE
from fs3.errors import Invalid

MAGIC = b"fs3ring\0"
VERSION = 2
HEADER_BYTES = 4_096
MESSAGE_BYTES = 256
COLUMNS = 5
MAX_DEPTH = 1_024
MAX_RANGES = 65_536
MAX_RING_BYTES = 1 << 30

HEADER = np.dtype(
    {
        "names": ["magic", "version", "depth", "ranges", "submitted", "taken", "completed", "reaped", "wanted"],
        "formats": ["S8", "<u4", "<u4", "<u4", "<u8", "<u8", "<u8", "<u8", "<u8"],
        "offsets": [0, 8, 12, 16, 64, 128, 192, 256, 320],
        "itemsize": HEADER_BYTES,
    }
)
SUBMISSION = np.dtype([("seq", "<u8"), ("slot", "<u4"), ("reserved", "<u4")])
COMPLETION = np.dtype(
    [("seq", "<u8"), ("bytes", "<u8"), ("slot", "<u4"), ("status", "<u2"), ("reserved", "<u2"), ("reserved2", "<u8")]
)
SLOT = np.dtype(
    [
        ("seq", "<u8"),
        ("deadline_ns", "<i8"),
        ("op", "<u2"),
        ("flags", "<u2"),
        ("count", "<u4"),
        ("files", "<u4"),
        ("iov", "<u4"),
        ("reserved", "<u8", (4,)),
    ]
)
RANGE_RESULT = np.dtype([("status", "<u2"), ("reserved", "<u2"), ("chunk_length", "<u4"), ("length", "<u8")])

# Where in the header the counters are, in units of 8 bytes.
SUBMITTED, TAKEN, COMPLETED, REAPED, WANTED = (int(HEADER.fields[name][1]) // 8 for name in HEADER.names[4:])  # type: ignore[index]

assert (SUBMISSION.itemsize, COMPLETION.itemsize, SLOT.itemsize, RANGE_RESULT.itemsize) == (16, 32, 64, 16)
assert RANGE.itemsize == 8 * (COLUMNS - 1)


class Op(IntEnum):
    """What a batch asks for."""

    READ = 1
    READ_CHUNKS = 2
    WRITE = 3
    WRITE_CHUNKS = 4


WRITES = frozenset({Op.WRITE, Op.WRITE_CHUNKS})
OF_CHUNKS = frozenset({Op.READ_CHUNKS, Op.WRITE_CHUNKS})


class Flag(IntFlag):
    """How chunks are written: not those that exist; into the page cache only."""

    NONE = 0
    IF_ABSENT = 1
    OS_DURABILITY = 2


@dataclass(frozen=True, slots=True)
class RingLayout:
    """Where everything lies in a ring of `depth` batches of up to `ranges` ranges. Raises: Invalid."""

    depth: int
    ranges: int

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= MAX_DEPTH:
            raise Invalid(f"a ring of depth {self.depth}: it must be from 1 to {MAX_DEPTH}")
        if not 1 <= self.ranges <= MAX_RANGES:
            raise Invalid(f"batches of {self.ranges} ranges: from 1 to {MAX_RANGES} can be had; use several batches")
        if self.bytes > MAX_RING_BYTES:
            raise Invalid(
                f"a ring of depth {self.depth} with {self.ranges} ranges a batch takes {self.bytes} bytes,"
                f" at most {MAX_RING_BYTES} can be had; choose less of one"
            )

    @property
    def submissions(self) -> int:
        return HEADER_BYTES

    @property
    def completions(self) -> int:
        return self.submissions + self.depth * SUBMISSION.itemsize

    @property
    def slots(self) -> int:
        return self.completions + self.depth * COMPLETION.itemsize

    @property
    def messages(self) -> int:
        return self.slots + self.depth * SLOT.itemsize

    @property
    def columns(self) -> int:
        return self.messages + self.depth * MESSAGE_BYTES

    @property
    def results(self) -> int:
        return self.columns + self.depth * COLUMNS * 8 * self.ranges

    @property
    def bytes(self) -> int:
        """Of the whole ring."""
        return self.results + self.depth * self.ranges * RANGE_RESULT.itemsize


def write_header(memory: memoryview, layout: RingLayout) -> None:
    """Begin a ring in `memory`, which is zero."""
    header = np.ndarray((), HEADER, buffer=memory)
    header["magic"], header["version"] = MAGIC, VERSION
    header["depth"], header["ranges"] = layout.depth, layout.ranges


def read_header(memory: memoryview) -> RingLayout:
    """The layout of the ring that begins in `memory`. Raises: Invalid: it is none, or not of this version."""
    if len(memory) < HEADER_BYTES:
        raise Invalid(f"{len(memory)} bytes are no ring")
    header = np.ndarray((), HEADER, buffer=memory)
    if bytes(memory[: len(MAGIC)]) != MAGIC:
        raise Invalid("this memory holds no ring")
    if int(header["version"]) != VERSION:
        raise Invalid(
            f"a ring of version {int(header['version'])}; this I/O process knows {VERSION}: upgrade the older side"
        )
    layout = RingLayout(int(header["depth"]), int(header["ranges"]))
    if layout.bytes > len(memory):
        raise Invalid(f"a ring of {layout.bytes} bytes in {len(memory)} bytes of memory")
    return layout
