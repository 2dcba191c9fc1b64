"""A page on disk: its bytes, then a footer that says whose they are, so that a page proves its key when it is read.

    payload | footer (128 bytes, little-endian)
    footer: magic "FS3KVP1\\0" | payload bytes u64 | created ns u64 | directory inode u64 | depth u32 | reserved u32
            | namespace digest 32 | key 32 | reserved 20 | crc32c of the 124 bytes before u32

The chunk id holds 15 of the key's 32 bytes; the footer holds them all. The payload comes first and stays aligned.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fs3.checksum import Bytes, crc
from fs3.errors import Corrupt
from fs3.kvcache.keys_core import KEY_BYTES

FOOTER_BYTES = 128
_MAGIC = b"FS3KVP1\0"
_BODY = struct.Struct("<8sQQQII32s32s20x")
_CRC = struct.Struct("<I")

assert _BODY.size + _CRC.size == FOOTER_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """What a page says of itself. `depth` is its place in the chain of its prefix, 0 first."""

    payload_bytes: int
    created_ns: int
    directory: int
    depth: int
    namespace: bytes
    key: bytes


def pack_footer(footer: Footer) -> bytes:
    """The 128 bytes behind a payload."""
    assert len(footer.namespace) == len(footer.key) == KEY_BYTES
    body = _BODY.pack(
        _MAGIC,
        footer.payload_bytes,
        footer.created_ns,
        footer.directory,
        footer.depth,
        0,
        footer.namespace,
        footer.key,
    )
    return body + _CRC.pack(crc(body))


def unpack_footer(raw: Bytes) -> Footer:
    """Raises: Corrupt, if these bytes are no footer."""
    view = memoryview(raw)
    if len(view) != FOOTER_BYTES or _CRC.unpack_from(view, _BODY.size)[0] != crc(view[: _BODY.size]):
        raise Corrupt("a KV page's footer failed its checksum")
    magic, payload, created, directory, depth, _, namespace, key = _BODY.unpack_from(view)
    if magic != _MAGIC:
        raise Corrupt(f"a KV page's footer begins with {magic!r}; it was written by another version")
    return Footer(
        payload_bytes=payload, created_ns=created, directory=directory, depth=depth, namespace=namespace, key=key
    )
