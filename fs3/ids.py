"""The identifiers of fs3, as distinct types, and the one packing that is frozen: the 16-byte chunk id.

A chunk id is two unsigned 64-bit halves, sorted and stored big-endian, so that the chunks of one file are neighbours:

    hi = kind << 56 | inode id (56 bits)        lo = chunk index           kind 1, a chunk of a file
    hi = kind << 56 | 7 bytes of the digest     lo = 8 more bytes of it    kind 2, a page of the KV cache

Numpy records carry the halves (`hi`, `lo`); keys in the metadata store carry `chunk_bytes(hi, lo)`.
"""

from __future__ import annotations

import struct
from typing import NewType

NodeId = NewType("NodeId", int)
TargetId = NewType("TargetId", int)
ChainId = NewType("ChainId", int)
ChainTableId = NewType("ChainTableId", int)
InodeId = NewType("InodeId", int)
ClientId = NewType("ClientId", int)

KIND_FILE = 1
KIND_KV_PAGE = 2

ROOT_INODE = InodeId(1)
MAX_INODE = (1 << 56) - 1
MAX_CHUNK_INDEX = (1 << 63) - 1

_PACKED = struct.Struct(">QQ")


def file_chunk(inode: int, index: int) -> tuple[int, int]:
    """The (hi, lo) of chunk `index` of file `inode`."""
    assert 0 < inode <= MAX_INODE and 0 <= index <= MAX_CHUNK_INDEX, (inode, index)
    return KIND_FILE << 56 | inode, index


def kv_page_chunk(digest: bytes) -> tuple[int, int]:
    """The (hi, lo) of the KV page whose key's digest begins with `digest` (at least 15 bytes are used)."""
    assert len(digest) >= 15, len(digest)
    return KIND_KV_PAGE << 56 | int.from_bytes(digest[:7], "big"), int.from_bytes(digest[7:15], "big")


def chunk_kind(hi: int) -> int:
    """The kind of a chunk, from the upper half of its id."""
    return hi >> 56


def chunk_bytes(hi: int, lo: int) -> bytes:
    """The 16 bytes of a chunk id, in the order in which stores sort them."""
    return _PACKED.pack(hi, lo)


def chunk_from_bytes(raw: bytes) -> tuple[int, int]:
    """The (hi, lo) of a 16-byte chunk id."""
    hi, lo = _PACKED.unpack(raw)
    return hi, lo


def chunk_name(hi: int, lo: int) -> str:
    """A chunk id as people read it: `file 7 chunk 3`, `kv page 0a1b...`."""
    if chunk_kind(hi) == KIND_FILE:
        return f"file {hi & MAX_INODE} chunk {lo}"
    return f"kv page {chunk_bytes(hi, lo)[1:].hex()}"
