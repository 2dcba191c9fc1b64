"""Reading blocks with their sums checked, by `preadv`: a bad sector is an error then; in a mapping it is a SIGBUS."""

from __future__ import annotations

import numpy as np

from fs3 import checksum, ids
from fs3.checksum import FINE_BYTES
from fs3.errors import NotFound
from fs3.storage import content_core as content
from fs3.storage.blocks import BlockFile, BlockFiles
from fs3.storage.chunk_locks import Key
from fs3.storage.engine_api import ChunkData


def read_part(
    file: BlockFile, position: int, chunk_length: int, offset: int, length: int, out: memoryview | None
) -> tuple[memoryview, int]:
    """Bytes [offset, offset + length) of the block at `position`, and their sum; the blocks they lie in are verified.

    Raises: Corrupt.
    """
    assert offset >= 0 and offset + length <= chunk_length, (offset, length, chunk_length)
    begin, end = content.block_range(offset, offset + length, chunk_length)
    exact = (begin, end) == (offset, offset + length)
    buffer = out[:length] if exact and out is not None else memoryview(bytearray(end - begin))
    if length == 0:
        return buffer[:0], checksum.crc(b"")
    file.read(position + begin, buffer)
    # Only the sums of the range: a chunk of 64 MiB has 64 KiB of them.
    first = begin // FINE_BYTES
    at = file.fine_at(position) + first
    fine = file.sums[at : at + -(-(end - begin) // FINE_BYTES)]
    what = f"{file.path}: block at {position}"
    for row, expected in enumerate(fine.tolist()):
        content.check_block(buffer[row * FINE_BYTES : (row + 1) * FINE_BYTES], first + row, expected, what)
    if exact:
        return buffer, checksum.crc(buffer)
    part = buffer[offset - begin : offset - begin + length]
    if out is not None:
        out[:length] = part
        part = out[:length]
    return part, checksum.crc(part)


def read_whole(
    files: BlockFiles, key: Key, location: tuple[int, int], length: int, version: int, chain_version: int
) -> ChunkData:
    """A chunk at `location` (file number or -1, position), verified. Raises: Corrupt."""
    if location[0] < 0:
        return ChunkData(version, chain_version, 0, False, memoryview(b""), np.empty(0, dtype=np.uint32))
    file, position = files[location[0]], location[1]
    data = memoryview(bytearray(length))
    file.read(position, data)
    fine = file.fine(position, length)
    what = f"{file.path} ({ids.chunk_name(key[1], key[2])} of target {key[0]})"
    content.check_old(data, 0, length, fine, file.coarse(position, length), what)
    return ChunkData(version, chain_version, length, False, data, fine)


def no_version(key: Key, *, pending: bool) -> NotFound:
    """The error for a chunk that does not have the version that was asked for."""
    kind = "pending" if pending else "committed"
    return NotFound(f"target {key[0]} has no {kind} version of {ids.chunk_name(key[1], key[2])}")
