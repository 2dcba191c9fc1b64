"""Reading blocks with their sums checked, by `preadv`: a bad sector is an error then; in a mapping it is a SIGBUS."""

from __future__ import annotations

import contextlib

import numpy as np

from fs3 import checksum, ids
from fs3.checksum import FINE_BYTES
from fs3.errors import Corrupt, NotFound
from fs3.storage import content_core as content
from fs3.storage import metadata as md
from fs3.storage.blocks import BlockFile, BlockFiles
from fs3.storage.chunk_locks import Key
from fs3.storage.engine_api import AsIs, ChunkData, Verdict

_VERIFY_BYTES = 1 << 20  # read at once; a multiple of the coarse unit


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
    fine = file.fine(position, end, first)
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
    coarse = file.coarse(position, length)
    content.check_sums(fine, coarse, length, what)
    content.check_old(data, 0, length, fine, coarse, what)
    return ChunkData(version, chain_version, length, False, data, fine)


def verify(files: BlockFiles, key: Key, raw: bytes | None) -> Verdict:
    """Whether the bytes that a committed chunk's record names, and both levels of their sums, are as they were written.

    Raises: NotFound (no such chunk).
    """
    record = committed(key, raw)
    if record.file < 0:
        return Verdict(record.version, 0, "")
    file, length = files[record.file], record.length
    position = file.position(record.slot)
    what = f"{file.path} ({ids.chunk_name(key[1], key[2])} of target {key[0]})"
    try:
        fine, coarse = file.fine(position, length), file.coarse(position, length)
        if checksum.crc(coarse.tobytes()) != record.crc:
            raise Corrupt(f"{what}: its sums are not those that were recorded")
        content.check_sums(fine, coarse, length, what)
        with file.from_disk(min(length, _VERIFY_BYTES)) as read:
            for at in range(0, length, _VERIFY_BYTES):
                part = read(position + at, min(_VERIFY_BYTES, length - at))
                content.check_old(part, at, length, fine, coarse, what)
    except Corrupt as error:
        return Verdict(record.version, length, str(error))
    return Verdict(record.version, length, "")


def read_as_is(files: BlockFiles, record: md.Version) -> AsIs:
    """A version's bytes and stored sums, whatever they are; zeros where the disk cannot read."""
    data = memoryview(bytearray(record.length))
    fine = np.zeros(-(-record.length // FINE_BYTES), dtype=np.uint32)
    if record.file >= 0:
        file = files[record.file]
        position = file.position(record.slot)
        for at in range(0, record.length, _VERIFY_BYTES):
            part = data[at : at + _VERIFY_BYTES]
            try:
                file.read(position + at, part)
            except Corrupt:
                for inner in range(0, len(part), FINE_BYTES):
                    block = part[inner : inner + FINE_BYTES]
                    with contextlib.suppress(Corrupt):
                        file.read(position + at + inner, block)
        with contextlib.suppress(Corrupt):
            fine = file.fine(position, record.length)
    return AsIs(record.version, record.chain_version, data, fine, record.crc, not record.flags & md.FLAG_OS)


def committed(key: Key, raw: bytes | None) -> md.Version:
    """The record of a committed chunk that exists. Raises: NotFound."""
    record = md.unpack_version(raw) if raw is not None else None
    if record is None or record.removed:
        raise no_version(key, pending=False)
    return record


def no_version(key: Key, *, pending: bool) -> NotFound:
    """The error for a chunk that does not have the version that was asked for."""
    kind = "pending" if pending else "committed"
    return NotFound(f"target {key[0]} has no {kind} version of {ids.chunk_name(key[1], key[2])}")
