"""The identifiers of fs3, as distinct types, and the packings that are frozen: the chunk id's and the node id's.

A chunk id is two unsigned 64-bit halves, sorted and stored big-endian, so that the chunks of one file are neighbours:

    hi = kind << 56 | inode id (56 bits)        lo = chunk index           kind 1, a chunk of a file
    hi = kind << 56 | 7 bytes of the digest     lo = 8 more bytes of it    kind 2, a page of the KV cache

Numpy records carry the halves (`hi`, `lo`); keys in the metadata store carry `chunk_bytes(hi, lo)`.

A node id has 32 bits: the lower 24 are what the daemon's configuration says, the upper 8 number the worker processes of
a storage daemon. Each worker is a node of its own to everybody but those who place replicas: what dies together is a
machine, all nodes with the same lower bits. Worker 0 of node 3 is shown as "3", worker 1 as "3.1".
"""

from __future__ import annotations

import struct
from typing import NewType

from fs3.errors import Invalid

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

MAX_NODE = (1 << 24) - 1  # of a configured node id
MAX_WORKERS = 64
_WORKER_SHIFT = 24

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


def worker_node(machine: int, worker: int) -> NodeId:
    """The node id of a worker of the storage daemon that is configured with node id `machine`."""
    assert 0 < machine <= MAX_NODE and 0 <= worker < 256, (machine, worker)
    return NodeId(worker << _WORKER_SHIFT | machine)


def machine_of(node_id: int) -> NodeId:
    """The configured node id of the daemon that a node is a worker of, which is worker 0's own."""
    return NodeId(node_id & MAX_NODE)


def worker_of(node_id: int) -> int:
    """The number of a node among the workers of its daemon."""
    return node_id >> _WORKER_SHIFT


def node_name(node_id: int) -> str:
    """A node id as people read it: `3`, and `3.1` for worker 1 of node 3."""
    worker = worker_of(node_id)
    return f"{machine_of(node_id)}.{worker}" if worker else str(node_id)


def node_from_name(text: str) -> NodeId:
    """The node id that is written so, or as a plain number. Raises: Invalid."""
    machine, dot, worker = text.partition(".")
    numbers = [machine, worker] if dot else [machine]
    if all(number.isascii() and number.isdecimal() for number in numbers):
        if dot and 0 < int(machine) <= MAX_NODE and int(worker) < 256:
            return worker_node(int(machine), int(worker))
        if not dot and 0 < int(machine) < 1 << 32:
            return NodeId(int(machine))
    raise Invalid(f"node {text!r}: expected a node id such as 3, or 3.1 for worker 1 of node 3")
