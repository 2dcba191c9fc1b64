"""A dataset of token samples, opened by URL: any sample by number, a batch in one call, every byte checked.

Reading a sample never returns bytes that fail their crc32c. The checksums of a shard (4 bytes a sample) are fetched
once, when the shard is first read, as long as those of the whole dataset fit `checksum_cache_bytes`; for larger
datasets the checksum of each sample is read with the sample, as one more range of the same batch, and of each shard
the footer is looked at once: with the sum of the table in it, it tells one shard from another of equal size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fs3.checksum import crc
from fs3.errors import Corrupt, Invalid, IsADirectory, NotADirectory, NotFound
from fs3_loader.formats.manifest import MANIFEST_NAME, Manifest
from fs3_loader.formats.shard import CRC_BYTES, FOOTER_BYTES, ShardFooter, decode_end, sample_crcs, token_dtype
from fs3_loader.location import Location
from fs3_loader.reader import RangeReader, check_usrbio, open_reader

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

CHECKSUM_CACHE_BYTES = 256 * 1024 * 1024


class Dataset:
    """Fixed-size token samples behind a URL; make one with `Dataset.open`. Safe to pickle and to use after a fork.

    Not meant for several threads at once: give each its own.
    """

    def __init__(
        self,
        location: Location,
        manifest: Manifest,
        checksum_cache_bytes: int = CHECKSUM_CACHE_BYTES,
        usrbio: bool = False,
    ) -> None:
        self._location = location
        self._location_pid = os.getpid()
        self._manifest = manifest
        counts = np.array([shard.samples for shard in manifest.shards], dtype=np.int64)
        self._ends = np.cumsum(counts)
        self._firsts = self._ends - counts
        self._reader: RangeReader | None = None
        self._reader_pid = 0
        self._tables: dict[int, NDArray[np.uint32]] = {}
        self._footers: set[int] = set()  # those looked at, of the files that are open
        self._checksum_cache_bytes = checksum_cache_bytes
        self._usrbio = usrbio
        self._keep_tables = manifest.num_samples * CRC_BYTES <= checksum_cache_bytes

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        *,
        checksum_cache_bytes: int = CHECKSUM_CACHE_BYTES,
        usrbio: bool = False,
    ) -> Dataset:
        """The dataset in the folder `url`: a local path, fs3://HOST:PORT/path, or any fsspec URL.

        `checksum_cache_bytes`: memory for checksums, 4 bytes a sample; a dataset with more has them read as they come.
        `usrbio`: have samples read by the host's I/O process, which a busy interpreter here does not slow down; from
        fs3 only.

        Raises: NotFound or NotADirectory if there is none; Corrupt if its manifest is damaged; Unavailable; Invalid.
        """
        location = Location.parse(url)
        if usrbio:
            check_usrbio(location)
        try:
            data = location.read(MANIFEST_NAME)
        except (NotFound, NotADirectory, IsADirectory):
            raise _no_dataset(location) from None
        return cls(location, Manifest.decode(data, location.show(MANIFEST_NAME)), checksum_cache_bytes, usrbio)

    def twin(self) -> Dataset:
        """The same dataset with open files of its own, for another thread."""
        return Dataset(self.location, self._manifest, self._checksum_cache_bytes, self._usrbio)

    @property
    def url(self) -> str:
        """Where it was opened."""
        return self._location.url

    @property
    def location(self) -> Location:
        """The folder and its filesystem: a forked process must not share connections with its parent."""
        if self._location_pid != os.getpid():
            if not self._location.is_local:
                self._location = Location.parse(self._location.url)
            self._location_pid = os.getpid()
        return self._location

    @property
    def manifest(self) -> Manifest:
        """All that the manifest says."""
        return self._manifest

    @property
    def seq_len(self) -> int:
        """Tokens that a sample predicts; it holds one more."""
        return self._manifest.seq_len

    @property
    def vocab_size(self) -> int:
        """Number of token ids: every token is below it."""
        return self._manifest.vocab_size

    @property
    def fingerprint(self) -> str:
        """Digest of the content; equal for equal samples in equal order under the same tokenizer."""
        return self._manifest.fingerprint

    def __len__(self) -> int:
        return self._manifest.num_samples

    def __getitem__(self, index: int) -> torch.Tensor:
        """Sample `index` as an int64 tensor [seq_len + 1]; negative ones count from the end, as in a list.

        Raises: IndexError past the end; and as `read`.
        """
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"sample {index} of {self.url}, which has {size}")
        return self.read([index % size])[0]

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        """What PyTorch's DataLoader calls to fetch a batch at once."""
        return list(self.read(indices))

    def __getstate__(self) -> dict[str, Any]:
        return {
            "location": self.location,
            "manifest": self._manifest,
            "checksum_cache_bytes": self._checksum_cache_bytes,
            "usrbio": self._usrbio,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"Dataset({self.url!r}, {len(self)} samples of {self.seq_len} tokens)"

    def tokenizer_json(self) -> str:
        """The tokenizer's own file. Raises: Corrupt if it is not the one the dataset was made with."""
        entry = self._manifest.tokenizer
        data = self.location.read(entry.file)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise Corrupt(f"{self._location.show(entry.file)} is not the tokenizer of this dataset; import it again")
        return data.decode()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.tokenizer_json())

    def read(self, ids: ArrayLike) -> torch.Tensor:
        """Samples `ids` [n] as int64 tensor [n, seq_len + 1], in one batched read.

        Raises: Invalid if an id is out of range or no whole number; Corrupt, naming sample and shard, if a checksum
        does not match.
        """
        import torch

        return torch.from_numpy(self.read_tokens(ids).astype(np.int64))

    def read_tokens(self, ids: ArrayLike) -> NDArray[np.unsignedinteger]:
        """As `read`, but as stored: uint16 or uint32 [n, seq_len + 1], without torch."""
        given = np.asarray(ids)
        if given.size and given.dtype.kind not in "iu":
            raise Invalid(f"sample ids must be whole numbers that fit 64 bits, not {given.dtype}")
        wanted = given.astype(np.int64).reshape(-1)
        tokens = np.empty((len(wanted), self.seq_len + 1), dtype=token_dtype(self._manifest.token_bytes))
        if not wanted.size:
            return tokens
        if int(wanted.min()) < 0 or int(wanted.max()) >= len(self):
            raise Invalid(f"sample ids must be between 0 and {len(self) - 1}, not {wanted.min()} .. {wanted.max()}")
        shards = np.searchsorted(self._ends, wanted, side="right").astype(np.int32)
        within = wanted - self._firsts[shards]
        size = self._manifest.sample_bytes
        out = tokens.reshape(-1).view(np.uint8).data
        if self._keep_tables:
            self._load_tables(np.unique(shards).tolist())
            lengths = np.full(len(wanted), size, dtype=np.int64)
            self._ranges().read_into(shards, within * size, lengths, out, np.arange(len(wanted), dtype=np.int64) * size)
            expected = self._expected(shards, within)
        else:
            self._check_footers(np.unique(shards).tolist())
            expected = self._read_with_checksums(shards, within, out)
        found = sample_crcs(out, size)
        if not np.array_equal(found, expected):
            bad = int(np.flatnonzero(found != expected)[0])
            raise Corrupt(
                f"sample {wanted[bad]} (number {within[bad]} of shard {self._show(shards[bad])}) fails its checksum; "
                "restore the shard from a copy, or import the dataset again"
            )
        return tokens

    def close(self) -> None:
        """Give back open files; the next read opens them again."""
        if self._reader is not None and self._reader_pid == os.getpid():
            self._reader.close()
        self._reader = None
        self._footers.clear()

    def _ranges(self) -> RangeReader:
        """The reader of this process."""
        if self._reader is None or self._reader_pid != os.getpid():
            shards = self._manifest.shards
            files, sizes = [s.file for s in shards], [s.bytes for s in shards]
            self._reader = open_reader(self.location, files, sizes, usrbio=self._usrbio)
            self._reader_pid = os.getpid()
        return self._reader

    def _load_tables(self, shards: Iterable[int]) -> None:
        """Fetch and verify the ends of those shards whose checksums are not here yet, in one batched read."""
        missing = [shard for shard in shards if shard not in self._tables]
        lengths = [self._manifest.shards[shard].samples * CRC_BYTES + FOOTER_BYTES for shard in missing]
        for shard, end in zip(missing, self._read_ends(missing, lengths), strict=True):
            footer, table = decode_end(end, self._show(shard))
            self._check_end(shard, footer, crc(end))
            self._tables[shard] = table

    def _check_footers(self, shards: Iterable[int]) -> None:
        """Fetch and verify the footers of those shards that were not looked at yet, in one batched read."""
        missing = [shard for shard in shards if shard not in self._footers]
        for shard, end in zip(missing, self._read_ends(missing, [FOOTER_BYTES] * len(missing)), strict=True):
            footer = ShardFooter.decode(end, self._show(shard))
            self._check_end(shard, footer, crc(end, footer.table_crc32c))
            self._footers.add(shard)

    def _read_ends(self, shards: list[int], lengths: list[int]) -> list[bytes]:
        """The last `lengths` bytes of `shards`, in one batched read."""
        if not shards:
            return []
        sizes = np.array(lengths, dtype=np.int64)
        offsets = np.array([self._manifest.shards[shard].bytes for shard in shards], dtype=np.int64) - sizes
        starts = np.cumsum(sizes) - sizes
        out = memoryview(bytearray(int(sizes.sum())))
        self._ranges().read_into(np.array(shards, dtype=np.int32), offsets, sizes, out, starts)
        return [bytes(out[start : start + size]) for start, size in zip(starts.tolist(), lengths, strict=True)]

    def _check_end(self, shard: int, footer: ShardFooter, end_crc32c: int) -> None:
        """Raises: Corrupt: they are not those of the shard that the manifest names."""
        entry = self._manifest.shards[shard]
        if (footer.sample_bytes, end_crc32c) != (self._manifest.sample_bytes, entry.end_crc32c):
            raise Corrupt(f"shard {self._show(shard)} is not the one its manifest names; import the dataset again")

    def _expected(self, shards: NDArray[np.int32], within: NDArray[np.int64]) -> NDArray[np.uint32]:
        expected = np.empty(len(within), dtype=np.uint32)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            expected[here] = self._tables[shard][within[here]]
        return expected

    def _read_with_checksums(
        self, shards: NDArray[np.int32], within: NDArray[np.int64], out: memoryview
    ) -> NDArray[np.uint32]:
        """Read samples into `out` and their checksums beside, as one batch; the checksums, uint32 [n]."""
        count, size = len(within), self._manifest.sample_bytes
        samples = np.array([entry.samples for entry in self._manifest.shards], dtype=np.int64)
        buffer = memoryview(bytearray(count * (size + CRC_BYTES)))
        self._ranges().read_into(
            np.concatenate((shards, shards)),
            np.concatenate((within * size, samples[shards] * size + within * CRC_BYTES)),
            np.repeat(np.array([size, CRC_BYTES], dtype=np.int64), count),
            buffer,
            np.concatenate((np.arange(count) * size, count * size + np.arange(count) * CRC_BYTES)),
        )
        out[:] = buffer[: count * size]
        return np.frombuffer(buffer[count * size :], dtype="<u4").astype(np.uint32)

    def _show(self, shard: int | np.integer[Any]) -> str:
        return self._location.show(self._manifest.shards[int(shard)].file)


def _no_dataset(location: Location) -> NotFound | NotADirectory:
    kind = location.kind()
    if kind == "nothing":
        return NotFound(f"{location.url}: no such dataset; make one with: fs3-dataset import SRC... {location.url}")
    if kind == "file":
        return NotADirectory(f"{location.url} is a file; a dataset is the folder that holds {MANIFEST_NAME}")
    return NotFound(
        f"{location.url} is no dataset: it has no {MANIFEST_NAME}; "
        f"make one with: fs3-dataset import SRC... {location.url}"
    )
