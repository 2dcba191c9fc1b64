"""The token shard: many samples of equal size in one immutable file. Documented in docs/formats.md.

    +-----------------------------+----------------------+---------+
    | samples, tokens_per_sample  | crc32c of each       | footer  |
    | u16 or u32 each, in order   | sample, u32 each     | 64 B    |
    +-----------------------------+----------------------+---------+
    0                             data_bytes             file size - 64

Data first and footer last, so that a writer streams and never seeks, and a file that lost its end has no footer and
is no shard. Fixed-size samples make the offset of a sample arithmetic: there is no index to read. Everything is
little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import crc
from fs3.errors import Corrupt, Invalid

SHARD_VERSION = 1
SHARD_MAGIC = b"fs3token"
FOOTER_BYTES = 64
CRC_BYTES = 4

# version, token bytes, tokens per sample, flags, samples, data bytes, table crc, four reserved words
_HEAD = struct.Struct("<IIIIQQI16x")
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class ShardFooter:
    """What the last 64 bytes of a shard say."""

    token_bytes: int
    tokens_per_sample: int
    num_samples: int
    table_crc32c: int

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return self.token_bytes * self.tokens_per_sample

    @property
    def data_bytes(self) -> int:
        """Bytes of all samples; the table of checksums begins here."""
        return self.sample_bytes * self.num_samples

    @property
    def file_bytes(self) -> int:
        """Length of the whole file."""
        return self.data_bytes + CRC_BYTES * self.num_samples + FOOTER_BYTES

    def encode(self) -> bytes:
        """The 64 bytes as they are stored."""
        head = _HEAD.pack(
            SHARD_VERSION,
            self.token_bytes,
            self.tokens_per_sample,
            0,
            self.num_samples,
            self.data_bytes,
            self.table_crc32c,
        )
        return head + _CRC.pack(crc(head)) + SHARD_MAGIC

    @classmethod
    def decode(cls, data: bytes, name: str) -> ShardFooter:
        """The footer in `data`, the last 64 bytes of the shard `name`.

        Raises: Corrupt if they are no footer or fail their checksum; Invalid if a newer release wrote them.
        """
        if len(data) != FOOTER_BYTES or data[-8:] != SHARD_MAGIC:
            raise Corrupt(f"shard {name} has no footer: it is cut short or no token shard; import the dataset again")
        head = data[: _HEAD.size]
        if (crc(head),) != _CRC.unpack_from(data, _HEAD.size):
            raise Corrupt(f"the footer of shard {name} fails its checksum; import the dataset again")
        version, token_bytes, tokens, _, samples, data_bytes, table_crc = _HEAD.unpack(head)
        if version != SHARD_VERSION:
            raise Invalid(f"shard {name} has version {version}, this fs3_loader reads {SHARD_VERSION}; upgrade it")
        footer = cls(token_bytes, tokens, samples, table_crc)
        if data_bytes != footer.data_bytes or token_bytes not in (2, 4):
            raise Corrupt(f"the footer of shard {name} contradicts itself; import the dataset again")
        return footer


class ByteSink(Protocol):
    """What a shard is written to: the `write` of any binary file."""

    def write(self, data: bytes, /) -> object: ...


class ShardWriter:
    """Streams samples into one shard; `finish` adds checksums and footer. Closing the file is the caller's."""

    def __init__(self, sink: ByteSink, *, token_bytes: int, tokens_per_sample: int) -> None:
        self._sink = sink
        self._dtype = token_dtype(token_bytes)
        self._tokens_per_sample = tokens_per_sample
        self._crcs: list[int] = []

    @property
    def num_samples(self) -> int:
        """Samples written so far."""
        return len(self._crcs)

    def add(self, samples: NDArray[np.integer]) -> bytes:
        """Append `samples` [n, tokens_per_sample]; returns their bytes as stored.

        Raises: Invalid if the shape is wrong or a token does not fit the token size.
        """
        if samples.ndim != 2 or samples.shape[1] != self._tokens_per_sample:
            raise Invalid(f"samples must be [n, {self._tokens_per_sample}], not {list(samples.shape)}")
        if samples.size and (int(samples.min()) < 0 or int(samples.max()) > np.iinfo(self._dtype).max):
            raise Invalid(f"token {samples.max()} does not fit {self._dtype.itemsize} bytes")
        data = samples.astype(self._dtype).tobytes()
        self._crcs.extend(sample_crcs(data, self._dtype.itemsize * self._tokens_per_sample).tolist())
        self._sink.write(data)
        return data

    def finish(self) -> tuple[ShardFooter, int]:
        """Write the table and the footer; returns the footer and the crc32c over both, which the manifest keeps."""
        table = np.array(self._crcs, dtype="<u4").tobytes()
        footer = ShardFooter(self._dtype.itemsize, self._tokens_per_sample, len(self._crcs), crc(table))
        end = table + footer.encode()
        self._sink.write(end)
        return footer, crc(end)


def token_dtype(token_bytes: int) -> np.dtype[np.unsignedinteger]:
    """The stored type of a token: little-endian u16 or u32."""
    if token_bytes not in (2, 4):
        raise Invalid(f"a token is stored in 2 or 4 bytes, not {token_bytes}")
    return np.dtype("<u2" if token_bytes == 2 else "<u4")


def sample_crcs(data: bytes | memoryview, sample_bytes: int) -> NDArray[np.uint32]:
    """crc32c of each run of `sample_bytes` in `data`, uint32 [n]."""
    view = memoryview(data)
    ends = range(sample_bytes, len(view) + 1, sample_bytes)
    return np.fromiter((crc(view[end - sample_bytes : end]) for end in ends), dtype=np.uint32, count=len(ends))


def decode_end(data: bytes, name: str) -> tuple[ShardFooter, NDArray[np.uint32]]:
    """Footer and checksum table from `data`, the end of shard `name` from its table on.

    Raises: Corrupt if either fails its checksum or the lengths disagree.
    """
    footer = ShardFooter.decode(data[-FOOTER_BYTES:], name)
    table = data[:-FOOTER_BYTES]
    if len(table) != CRC_BYTES * footer.num_samples or crc(table) != footer.table_crc32c:
        raise Corrupt(f"the checksum table of shard {name} fails its checksum; import the dataset again")
    return footer, np.frombuffer(table, dtype="<u4").astype(np.uint32)
