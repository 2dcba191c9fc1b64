"""The bytes of a metadata backup, as docs/formats.md says. A change is a new version."""

from __future__ import annotations

import zstandard

from fs3.meta.backup_format import BackupHeader, Reader, Writer

HEADER = BackupHeader("cluster-1", "0.1.0", 1_700_000_000_000_000_000)
PAIRS = [(b"INOD\0\0\0\0\0\0\0\1", b"\1abc"), (b"METAcluster", b"cluster-1")]
INSIDE = (
    b'{"version": 1, "cluster": "cluster-1", "fs3": "0.1.0", "made_ns": 1700000000000000000}\n'
    + bytes.fromhex("0c00000004000000494e4f440000000000000001")
    + bytes.fromhex("01616263")
    + bytes.fromhex("0b000000090000004d455441636c7573746572636c75737465722d31")
    + bytes.fromhex("ffffffff000000000200000000000000eb425676")
)
MAGIC = b"fs3 metadata backup\n"


def test_what_is_written() -> None:
    writer = Writer(HEADER)
    written = writer.pairs(PAIRS) + writer.finish()
    assert written.startswith(MAGIC)
    assert zstandard.ZstdDecompressor().decompressobj().decompress(written[len(MAGIC) :]) == INSIDE
    assert zstandard.get_frame_parameters(written[len(MAGIC) :]).has_checksum


def test_what_is_read() -> None:
    """Another compressor's frame is as good."""
    frame = zstandard.ZstdCompressor(level=19, write_checksum=True, write_content_size=True).compress(INSIDE)
    reader = Reader()
    assert reader.feed(MAGIC + frame) == PAIRS
    assert reader.header == HEADER and reader.complete
