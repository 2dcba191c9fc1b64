"""Writing a dataset so that it exists whole or not at all.

    tokens-0000-00000.shard  tokens-0000-00001.shard ...  tokenizer.json  |  manifest.json
    `------------- written and made durable first ---------------------'     appears last, at once

The four digits are the generation. Writing over a dataset makes the next generation beside it and then replaces the
manifest, so that at every moment there is one whole dataset; the files of the old one go afterwards. Files that no
manifest names are what an interrupted import left, and the next import removes them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Conflict, Corrupt, Exists, Fs3Error, Invalid, NotADirectory, NotFound
from fs3_loader.formats.manifest import (
    MANIFEST_NAME,
    Fingerprint,
    Manifest,
    ShardEntry,
    SourceEntry,
    TokenizerEntry,
)
from fs3_loader.formats.shard import ShardWriter
from fs3_loader.location import Location
from fs3_loader.tokenizing import DatasetTokenizer

_PROBE = "fs3-dataset.probe.part"
_SHARD = re.compile(r"tokens-(\d{4,})-\d{5,}\.shard")
_OURS = re.compile(
    r"tokens-\d{4,}-\d{5,}\.shard|tokenizer(-\d{4,})?\.json|manifest\.json(\.part)?|" + re.escape(_PROBE)
)


class Destination:
    """The folder that a dataset is to be written to, checked and made ready."""

    def __init__(self, location: Location, *, overwrite: bool) -> None:
        """Creates the folder and removes what an interrupted import left in it.

        Raises: Exists if it holds a dataset and `overwrite` is false; Invalid if it holds other files;
        NotADirectory if it is a file; PermissionDenied and its kin if it cannot be written.
        """
        kind = location.kind()
        if kind == "file":
            raise NotADirectory(f"{location.url} is a file; give a folder for the dataset")
        self.location = location
        self._created = kind == "nothing"
        names = location.names()
        self._replaces = MANIFEST_NAME in names
        if self._replaces and not overwrite:
            raise Exists(f"{location.url} already holds a dataset; give another folder, or --overwrite to replace it")
        foreign = sorted(name for name in names if not _OURS.fullmatch(name))
        if foreign and not self._replaces:
            raise Invalid(f"{location.url} holds other files ({foreign[0]}); give a new or empty folder")
        generations = [int(match[1]) for name in names if (match := _SHARD.fullmatch(name))]
        self.generation = max(generations, default=0) + 1 if self._replaces else 0
        location.make()
        try:
            location.write(_PROBE, b"")
        except BaseException:
            self.undo()
            raise
        location.remove(_PROBE)
        if not self._replaces:
            self._remove(set(names))

    def settle(self) -> None:
        """After the manifest is out: remove the files of older generations."""
        keep = {MANIFEST_NAME, tokenizer_name(self.generation)}
        names = set(self.location.names()) - keep
        self._remove({n for n in names if not ((m := _SHARD.fullmatch(n)) and int(m[1]) == self.generation)})

    def undo(self) -> None:
        """Remove the folder, if this import created it and nothing is in it."""
        if self._created:
            with contextlib.suppress(OSError, Fs3Error):
                self.location.fs.rmdir(self.location.root)

    def check_unpublished(self, shards: list[ShardEntry]) -> None:
        """Raises: Conflict if another import used the folder meanwhile."""
        names = self.location.names()
        if (MANIFEST_NAME in names) != self._replaces or any(names.get(s.file) != s.bytes for s in shards):
            raise self.conflict()

    def published_by_another(self) -> bool:
        """Whether the dataset here is of this generation: so another import made it, with files of the same names."""
        try:
            data = self.location.read(MANIFEST_NAME)
            return Manifest.decode(data, self.location.show(MANIFEST_NAME)).generation == self.generation
        except (NotFound, Corrupt, Invalid):
            return False

    def conflict(self) -> Conflict:
        """The error of an import that found another one at work in its folder."""
        return Conflict(f"another import into {self.location.url} ran at the same time; give each its own folder")

    def _remove(self, names: set[str]) -> None:
        for name in sorted(names):
            if _OURS.fullmatch(name):
                self.location.remove(name)


class DatasetWriter:
    """Takes samples, cuts them into shards, and makes the dataset appear with `finish`, or vanish with `abort`."""

    def __init__(
        self, destination: Destination, tokenizer: DatasetTokenizer, *, seq_len: int, shard_bytes: int
    ) -> None:
        self._destination = destination
        self._location = destination.location
        self._tokenizer = tokenizer
        self._seq_len = seq_len
        self._token_bytes = 2 if tokenizer.vocab_size <= 1 << 16 else 4
        self._per_shard = max(1, shard_bytes // ((seq_len + 1) * self._token_bytes))
        self._fingerprint = Fingerprint(
            seq_len=seq_len,
            vocab_size=tokenizer.vocab_size,
            token_bytes=self._token_bytes,
            tokenizer_sha256=tokenizer.sha256,
        )
        self._shards: list[ShardEntry] = []
        self._names: list[str] = []
        self._file: BinaryIO | None = None
        self._shard: ShardWriter | None = None

    @property
    def num_samples(self) -> int:
        """Samples taken so far."""
        return sum(entry.samples for entry in self._shards) + (self._shard.num_samples if self._shard else 0)

    def add(self, samples: NDArray[np.uint32]) -> None:
        """Append `samples` [n, seq_len + 1]. Raises: NoSpace, Unavailable and their kin."""
        while len(samples):
            shard = self._shard or self._begin()
            room = self._per_shard - shard.num_samples
            name = self._names[-1]
            part = samples[:room]
            self._fingerprint.add(self._location.call(name, lambda shard=shard, part=part: shard.add(part)))  # type: ignore[misc]
            samples = samples[room:]
            if shard.num_samples == self._per_shard:
                self._end()

    def finish(self, source: SourceEntry, num_tokens: int) -> Manifest:
        """Make the dataset appear. Raises: as `add`, and Conflict if another import used the folder meanwhile."""
        self._end()
        self._destination.check_unpublished(self._shards)
        generation = self._destination.generation
        name = tokenizer_name(generation)
        self._names.append(name)
        self._location.write(name, self._tokenizer.text.encode())
        self._location.sync_folder()
        manifest = Manifest(
            fingerprint=self._fingerprint.text(),
            generation=generation,
            seq_len=self._seq_len,
            vocab_size=self._tokenizer.vocab_size,
            token_bytes=self._token_bytes,
            num_samples=self.num_samples,
            num_tokens=num_tokens,
            tokenizer=TokenizerEntry(
                file=name,
                sha256=self._tokenizer.sha256,
                spec=self._tokenizer.spec,
                end_of_document=self._tokenizer.end_of_document,
            ),
            source=source,
            shards=tuple(self._shards),
        )
        self._publish(manifest.encode())
        self._destination.settle()
        return manifest

    def _publish(self, data: bytes) -> None:
        """From here on the files belong to the dataset: an interruption must not remove them once it is there."""
        written, self._names = self._names, []
        try:
            self._location.publish(MANIFEST_NAME, data)
        except BaseException:
            with contextlib.suppress(NotFound):
                if self._location.read(MANIFEST_NAME) == data:
                    raise
            self._names = written
            raise

    def abort(self) -> None:
        """Remove all that was written, unless its names are by now those of another import's dataset.

        What cannot be removed is left to the next import.
        """
        if self._file is not None:
            with contextlib.suppress(OSError, Fs3Error):
                self._location.discard(self._file)
            self._file = None
        names, self._names = self._names, []
        with contextlib.suppress(OSError, Fs3Error):
            if self._destination.published_by_another():
                return
            for name in names:
                with contextlib.suppress(OSError, Fs3Error):
                    self._location.remove(name)

    def _begin(self) -> ShardWriter:
        name = f"tokens-{self._destination.generation:04d}-{len(self._shards):05d}.shard"
        self._names.append(name)
        with self._name_is_new():
            self._file = self._location.create(name)
        self._shard = ShardWriter(self._file, token_bytes=self._token_bytes, tokens_per_sample=self._seq_len + 1)
        return self._shard

    def _end(self) -> None:
        """Finish the shard in progress, if any: checksums, footer, disk."""
        shard, file = self._shard, self._file
        if shard is None or file is None:
            return
        name = self._names[-1]

        def finish() -> ShardEntry:
            footer, end_crc = shard.finish()
            self._location.sync(file)
            file.close()
            return ShardEntry(file=name, samples=footer.num_samples, bytes=footer.file_bytes, end_crc32c=end_crc)

        with self._name_is_new():
            self._shards.append(self._location.call(name, finish))
        self._shard = self._file = None

    @contextlib.contextmanager
    def _name_is_new(self) -> Iterator[None]:
        """Raises: Conflict: the last name is another import's, and not removed by this one."""
        try:
            yield
        except Exists:
            self._names.pop()
            raise self._destination.conflict() from None


def tokenizer_name(generation: int) -> str:
    """The name of the tokenizer's file in the given generation of a dataset."""
    return f"tokenizer-{generation:04d}.json" if generation else "tokenizer.json"
