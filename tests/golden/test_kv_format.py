"""The bytes of KV pages: keys, chunk ids, chains and footers, as docs/formats.md says. A change is a new version."""

from __future__ import annotations

import struct
from hashlib import blake2b

import pytest

from fs3.errors import Corrupt
from fs3.ids import ChainId, ChainTableId
from fs3.kvcache import Namespace, page_keys
from fs3.kvcache.keys_core import page_chunk
from fs3.kvcache.page_core import FOOTER_BYTES, Footer, pack_footer, unpack_footer
from fs3.layout import page_chain
from fs3.routing import ChainTable

NAMESPACE = Namespace(
    weights="0123abcd",
    dtype="float32",
    layout="mla-latent-v1",
    page_tokens=4,
    layers=3,
    shape=(3, 4, 24),
    adapters=("a", "b"),
)
DIGEST = "829c46fa0ff6ee49f85654f790d4683a4cc04645c6dd6bc75736ece4e6c2bf98"
KEYS = [
    "29635699db18610eb5d0446ef922fe3bbbb4c1278cc891a1b77d99dd013e0d95",
    "eb39fc11830eb90522c2ed0f76c7c9f090fee4579e2f1279863a2adca6b83d46",
]
CHUNKS = ["023ec19b1ba01ac2b66a8d119e99c90b", "02e592a723c9d905c2248ad375c8191c"]  # in the directory with inode 77
FOOTER = Footer(
    payload_bytes=1_152,
    created_ns=1_700_000_000_123_456_789,
    directory=77,
    depth=1,
    namespace=bytes(range(32)),
    key=bytes(range(32, 64)),
)
PACKED = (
    "4653334b56503100800400000000000015cd853dfe9c97174d00000000000000"
    "0100000000000000000102030405060708090a0b0c0d0e0f1011121314151617"
    "18191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637"
    "38393a3b3c3d3e3f0000000000000000000000000000000000000000ab1cd6cf"
)


def slow_crc32c(data: bytes) -> int:
    """CRC-32C, bit by bit from its definition."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def test_a_namespaces_digest() -> None:
    text = (
        '{"adapters":["a","b"],"dtype":"float32","layers":3,"layout":"mla-latent-v1","page_tokens":4,'
        '"quantization":"none","shape":[3,4,24],"weights":"0123abcd"}'
    )
    assert blake2b(text.encode(), digest_size=32, person=b"fs3-kv-names-v1").hexdigest() == DIGEST
    assert NAMESPACE.digest().hex() == DIGEST


def test_keys() -> None:
    tokens = [1, 2, 3, 256, 70_000, 5, 6, (1 << 32) - 1, 9]
    assert [key.hex() for key in page_keys(bytes.fromhex(DIGEST), tokens, 4)] == KEYS
    key = bytes.fromhex(DIGEST)
    for page, expected in zip((tokens[:4], tokens[4:8]), KEYS, strict=True):
        key = blake2b(key + struct.pack("<4I", *page), digest_size=32, person=b"fs3-kv-page-v1").digest()
        assert key.hex() == expected


def test_a_pages_chunk_and_chain() -> None:
    places = [page_chunk(77, bytes.fromhex(key)) for key in KEYS]
    assert [f"{hi:016x}{lo:016x}" for hi, lo in places] == CHUNKS
    for key, expected in zip(KEYS, CHUNKS, strict=True):
        text = struct.pack("<Q", 77) + bytes.fromhex(key)
        place = blake2b(text, digest_size=32, person=b"fs3-kv-place-v1")
        assert "02" + place.hexdigest()[:30] == expected
    table = ChainTable(
        table_id=ChainTableId(1), version=1, replicas=1, chains=tuple(ChainId(chain) for chain in range(10, 17))
    )
    assert [page_chain(lo, table) for _, lo in places] == [16, 14]


def test_a_footer() -> None:
    raw = pack_footer(FOOTER)
    assert raw.hex() == PACKED
    assert len(raw) == FOOTER_BYTES
    assert unpack_footer(raw) == FOOTER
    body = struct.pack(
        "<8sQQQII32s32s20x", b"FS3KVP1\0", 1_152, 1_700_000_000_123_456_789, 77, 1, 0, FOOTER.namespace, FOOTER.key
    )
    assert raw == body + struct.pack("<I", slow_crc32c(body))


@pytest.mark.parametrize("bit", range(0, FOOTER_BYTES * 8, 13))
def test_a_flipped_bit_is_noticed(bit: int) -> None:
    raw = bytearray(bytes.fromhex(PACKED))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt):
        unpack_footer(raw)


def test_what_is_no_footer() -> None:
    later = bytes.fromhex(PACKED)[:-4].replace(b"FS3KVP1", b"FS3KVP2")
    with pytest.raises(Corrupt, match="another version"):
        unpack_footer(later + struct.pack("<I", slow_crc32c(later)))
    for length in (0, FOOTER_BYTES - 1):
        with pytest.raises(Corrupt):
            unpack_footer(bytes(length))
