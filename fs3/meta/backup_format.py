"""The bytes of a metadata backup (docs/formats.md): a header, the pairs of the store in order, and an end that counts.

    Writer     pairs in, bytes out, compressed
    Reader     bytes in, pairs out; knows whether it has seen all of them

Pure: no files, no clocks.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import zstandard

from fs3 import checksum
from fs3.errors import Corrupt, Invalid

MAGIC = b"fs3 metadata backup\n"
VERSION = 1
_PAIR = struct.Struct("<II")
_END = struct.Struct("<IIQI")
_LAST = 0xFFFFFFFF  # stands where a key's length would
_HEADER_BYTES = 64 << 10
_LEVEL = 3


@dataclass(frozen=True, slots=True)
class BackupHeader:
    """Whose names these are, and of when (by the clock of the meta daemon that made it, for people)."""

    cluster_id: str
    fs3_version: str
    made_ns: int


class Writer:
    """Give it the pairs in the order of their keys, then `finish`; write down what each call returns."""

    def __init__(self, header: BackupHeader) -> None:
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
        self._crc = 0
        self._count = 0
        facts = {"version": VERSION, "cluster": header.cluster_id, "fs3": header.fs3_version, "made_ns": header.made_ns}
        line = json.dumps(facts).encode() + b"\n"
        self._first = MAGIC + self._zstd.compress(line)

    def pairs(self, pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The next pairs of the store."""
        first, self._first = self._first, b""
        return first + self._zstd.compress(b"".join(self._packed(pairs)))

    def finish(self) -> bytes:
        """The end."""
        first, self._first = self._first, b""
        end = _END.pack(_LAST, 0, self._count, self._crc)
        return first + self._zstd.compress(end) + self._zstd.flush()

    def _packed(self, pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
        for key, value in pairs:
            record = b"".join((_PAIR.pack(len(key), len(value)), key, value))
            self._crc = checksum.crc(record, self._crc)
            self._count += 1
            yield record


class Reader:
    """Give it the bytes in any pieces; `header` is known after the first pairs, `complete` after the last byte."""

    def __init__(self) -> None:
        self.header: BackupHeader | None = None
        self.count = 0
        self._ended = False
        self._magic = b""
        self._zstd = zstandard.ZstdDecompressor().decompressobj()
        self._rest = b""
        self._crc = 0

    @property
    def complete(self) -> bool:
        """Whether all of it was there, and good."""
        return self._ended and bool(self._zstd.eof)

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The pairs that are whole now.

        Raises:
            Invalid: it is no backup, or one of a version that this fs3 does not know.
            Corrupt: it is damaged.
        """
        if len(self._magic) < len(MAGIC):
            missing = len(MAGIC) - len(self._magic)
            self._magic, data = self._magic + data[:missing], data[missing:]
            if not MAGIC.startswith(self._magic):
                raise Invalid("this is no backup of fs3's metadata")
        if not data:
            return []
        over = bool(self._zstd.eof)
        try:
            self._rest += b"" if over else self._zstd.decompress(data)
        except zstandard.ZstdError as error:
            raise Corrupt(f"the backup is damaged: {error}") from None
        if over or self._zstd.unused_data or (self._ended and self._rest):
            raise Corrupt("the backup goes on after its end")
        if self.header is None and not self._read_header():
            return []
        return self._read_pairs()

    def _read_header(self) -> bool:
        line, newline, rest = self._rest.partition(b"\n")
        if not newline:
            if len(line) > _HEADER_BYTES:
                raise Corrupt("the backup's header does not end")
            return False
        try:
            facts = json.loads(line)
            if facts["version"] != VERSION:
                raise Invalid(f"a backup of version {facts['version']}, this fs3 reads version {VERSION}")
            self.header = BackupHeader(str(facts["cluster"]), str(facts["fs3"]), int(facts["made_ns"]))
        except (ValueError, KeyError, TypeError):
            raise Corrupt("the backup's header cannot be read") from None
        self._rest = rest
        return True

    def _read_pairs(self) -> list[tuple[bytes, bytes]]:
        rest, at = self._rest, 0
        pairs = []
        while len(rest) - at >= _PAIR.size:
            key_bytes, value_bytes = _PAIR.unpack_from(rest, at)
            if key_bytes == _LAST:
                if len(rest) - at < _END.size:
                    break
                _, _, count, crc = _END.unpack_from(rest, at)
                at += _END.size
                if (count, crc) != (self.count, self._crc) or at != len(rest):
                    raise Corrupt(f"the backup is damaged: {self.count} records were read, and it was made of {count}")
                self._ended = True
                break
            end = at + _PAIR.size + key_bytes + value_bytes
            if end > len(rest):
                break
            self._crc = checksum.crc(rest[at:end], self._crc)
            self.count += 1
            key_at = at + _PAIR.size
            pairs.append((rest[key_at : key_at + key_bytes], rest[key_at + key_bytes : end]))
            at = end
        self._rest = rest[at:]
        return pairs
