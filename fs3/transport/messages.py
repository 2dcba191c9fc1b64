"""The packed records of READ, WRITE, QUERY, LOCATE and SYNC_LIST, as numpy dtypes; the format is proto/data_plane.md.

A batch is one array, made, sent and answered without a Python object per range.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

Records = NDArray[Any]  # a structured array of one of the dtypes below

RANGE = np.dtype(
    [
        ("hi", "<u8"),
        ("lo", "<u8"),
        ("offset", "<u4"),
        ("length", "<u4"),
        ("chain", "<u4"),
        ("chain_version", "<u4"),
    ]
)
RESULT = np.dtype(
    [
        ("status", "<u2"),
        ("flags", "<u2"),
        ("n_sums", "<u4"),
        ("length", "<u4"),
        ("chunk_length", "<u4"),
        ("version", "<u8"),
    ]
)
UPDATE = np.dtype(
    [
        *[(name, RANGE[name]) for name in RANGE.names or ()],
        ("client", "<u8"),
        ("seq", "<u8"),
        ("channel", "<u4"),
        ("n_sums", "<u4"),
        ("version", "<u8"),
        ("op", "<u2"),
        ("flags", "<u2"),
        ("chunk_bytes", "<u4"),
        ("reserved", "<u8"),
    ]
)
AHEAD = np.dtype(
    [
        *[(name, RANGE[name]) for name in RANGE.names or ()],
        ("client", "<u8"),
        ("seq", "<u8"),
        ("channel", "<u4"),
        ("chunk_length", "<u4"),
        ("flags", "<u4"),
        ("reserved", "<u4"),
    ]
)
CHUNK_META = np.dtype(
    [
        ("hi", "<u8"),
        ("lo", "<u8"),
        ("version", "<u8"),
        ("pending", "<u8"),
        ("chain_version", "<u4"),
        ("length", "<u4"),
        ("crc", "<u4"),
        ("flags", "<u4"),
    ]
)
META_DAMAGED = 1  # flags of CHUNK_META; the others only in the answer to INSPECT
META_ABSENT = 2
META_REMOVED = 4
META_NO_TARGET = 8
LISTED = np.dtype([("hi", "<u8"), ("lo", "<u8"), ("version", "<u8"), ("chunk_length", "<u4"), ("reserved", "<u4")])

PLACE = np.dtype([("file", "<u4"), ("state", "<u4"), ("position", "<u8")])

SUM = np.dtype("<u4")
FILE_KEY = np.dtype("<u4")  # of a descriptor that came with the answer to a LOCATE
NO_FILE = 0xFFFFFFFF  # a PLACE's file where there is none, or no descriptor of it
COUNTERS = 0xFFFF  # the lower half of the key of an engine's change counters; the upper half is the engine's number
LIST_CHUNKS = 0xFFFFFFFF  # a QUERY record's offset that asks for every chunk of `hi`
LIST_KIND = 0xFFFFFFFE  # ... for every chunk of the kind of `hi`, from (hi, lo) on
MAX_LISTED = 65_536
MAX_REPORTED = 64  # ranges in a REPORT: each is a chunk to be read whole

assert (RANGE.itemsize, RESULT.itemsize, UPDATE.itemsize, CHUNK_META.itemsize, LISTED.itemsize) == (32, 24, 80, 48, 32)
assert (PLACE.itemsize, AHEAD.itemsize) == (16, 64)


class Op(IntEnum):
    """What an update does to its chunk."""

    WRITE = 1
    REPLACE = 2
    REMOVE = 3
    PUT_IF_ABSENT = 4
    TRUNCATE = 5
    FORGET = 6
    NOTE = 7


class UpdateFlag(IntFlag):
    """Flags of an update."""

    NONE = 0
    OS_DURABILITY = 1
    SYNC_REPLACE = 2
    SYNC_REMOVE = 4
    SYNC_RESULT = 8
    FRESH = 16
    DAMAGED = 32  # with SYNC_REPLACE: the sender's bytes fail their sums, and nobody has better ones
    RETRY = 64
    AHEAD = 128  # the bytes have gone ahead of the update, in AHEAD frames


def records(raw: bytes | bytearray | memoryview, dtype: np.dtype[Any], count: int) -> Records:
    """The first `count` records in `raw`, without copying. Raises: ValueError if `raw` is shorter."""
    return np.frombuffer(raw, dtype=dtype, count=count)
