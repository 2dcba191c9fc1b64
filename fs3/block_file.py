"""The layout of a block file, which storage daemons write and clients of their host read: where what lies in it.

    header (4 KiB) | sums area: per slot, 4 B per 4 KiB and then 4 B per 256 KiB | data area: slots, one after the other

Since format 2 blocks of a large page (2 MiB) and more begin at one: no large page of the page cache has bytes of two
such blocks, so loading one never brings another in unseen. Files of format 1 are read, and go on being used.
docs/formats.md has the bytes.
"""

from __future__ import annotations

import functools
import struct
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fs3 import checksum
from fs3.checksum import COARSE_BYTES, FINE_BYTES
from fs3.page_cache import LARGE_PAGE_BYTES

MAGIC = b"FS3BLK\x00\x01"
FORMAT = 2
HEADER_BYTES = 4096  # and where the sums begin
_HEADER = struct.Struct("<8sIIQQQQ")
_CRC = struct.Struct("<I")
_DATA_ALIGN = {1: 1 << 20, FORMAT: LARGE_PAGE_BYTES}
PACKED_BYTES = _HEADER.size + _CRC.size

Position = TypeVar("Position", int, NDArray[np.int64])


class BlockLayout:
    """Block file `file_no` of `slots` blocks of `block_bytes`, one every `pitch` bytes."""

    def __init__(self, file_no: int, block_bytes: int, slots: int, version: int = FORMAT) -> None:
        self.file_no = file_no
        self.block_bytes = block_bytes
        self.slots = slots
        self.version = version
        self.fine_sums = block_bytes // FINE_BYTES  # sums of a slot of 4 KiB each, which come first
        self.stride = _stride(block_bytes)  # sums of a slot
        self.pitch = block_bytes
        if version > 1 and block_bytes >= LARGE_PAGE_BYTES:
            self.pitch = -(-block_bytes // LARGE_PAGE_BYTES) * LARGE_PAGE_BYTES
        self.data_at = _data_offset(self.stride, slots, _DATA_ALIGN[version])
        self.file_bytes = self.data_at + slots * self.pitch

    def pack(self) -> bytes:
        """What the file begins with."""
        numbers = (self.version, self.file_no, self.block_bytes, self.slots, HEADER_BYTES, self.data_at)
        header = _HEADER.pack(MAGIC, *numbers)
        return header + _CRC.pack(checksum.crc(header))

    @staticmethod
    def unpack(raw: bytes | bytearray) -> BlockLayout:
        """Raises: ValueError: what is wrong with these PACKED_BYTES."""
        if len(raw) < PACKED_BYTES or raw[:8] != MAGIC:
            raise ValueError("not a block file")
        _magic, version, number, block_bytes, slots, sums_at, data_at = _HEADER.unpack_from(raw)
        if version not in _DATA_ALIGN:
            raise ValueError(f"block file format {version}; this fs3 reads formats 1 to {FORMAT}")
        layout = BlockLayout(number, block_bytes, slots, version)
        crc = _CRC.unpack_from(raw, _HEADER.size)[0]
        if crc != checksum.crc(raw[: _HEADER.size]) or (sums_at, data_at) != (HEADER_BYTES, layout.data_at):
            raise ValueError("its header is damaged")
        return layout

    def position(self, slot: int) -> int:
        """The byte offset of a slot's data."""
        return self.data_at + slot * self.pitch

    def slot(self, position: int) -> int:
        """The slot whose data begins at `position`."""
        return (position - self.data_at) // self.pitch

    def fine_at(self, position: Position) -> Position:
        """The number, in the sums area, of the first 4 KiB sum of the block at `position`."""
        return (position - self.data_at) // self.pitch * self.stride

    def coarse_at(self, position: Position) -> Position:
        """As `fine_at`, of the first 256 KiB sum."""
        return self.fine_at(position) + self.fine_sums


def sums_of_pieces(
    sums: NDArray[np.uint32], fine: int, cuts: list[tuple[int, int]], chunk_length: int
) -> NDArray[np.uint32]:
    """Of the pieces (checksum.pieces) of whole blocks of a chunk, from `sums` of its slot, `fine` fine ones first."""
    index = [
        fine + begin // COARSE_BYTES if checksum.is_coarse(begin, end, chunk_length) else begin // FINE_BYTES
        for begin, end in cuts
    ]
    return sums[index]


def _stride(block_bytes: int) -> int:
    return block_bytes // FINE_BYTES + -(-block_bytes // COARSE_BYTES)


@functools.cache
def _data_offset(stride: int, slots: int, align: int) -> int:
    return -(-(HEADER_BYTES + slots * stride * 4) // align) * align
