"""From text files to a dataset: learn or load a tokenizer, tokenize, pack into windows, write shards, publish.

Everything is bounded: text is read in pieces of a few megabytes, tokenized in groups of them and written as it comes;
a tokenizer is learned from at most `train_bytes` of text, taken from files spread evenly over the sources.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fs3.errors import Fs3Error, Invalid
from fs3_loader.formats.manifest import Manifest, SourceEntry
from fs3_loader.location import Location
from fs3_loader.packing_core import Packer
from fs3_loader.sampler_core import Permutation
from fs3_loader.sources import NotText, SourceFile, find_sources, read_text
from fs3_loader.tokenizing import DatasetTokenizer, TokenizerSpec, learn_bpe, load_tokenizer
from fs3_loader.writer import DatasetWriter, Destination

GROUP_CHARS = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What to import, and how."""

    sources: Sequence[str]
    url: str
    tokenizer: str
    seq_len: int = 256
    shard_bytes: int = 64 * 1024 * 1024
    train_bytes: int = 64 * 1024 * 1024
    glob: str | None = None
    end_of_document: str | None = None
    overwrite: bool = False


class Progress(Protocol):
    """Who is told how far the import is."""

    def stage(self, name: str, total_bytes: int) -> None:
        """A stage begins that will read `total_bytes`."""

    def advance(self, num_bytes: int) -> None:
        """So many more of them were read."""


class Silent:
    """A `Progress` that tells nobody."""

    def stage(self, name: str, total_bytes: int) -> None:
        """See `Progress.stage`."""

    def advance(self, num_bytes: int) -> None:
        """See `Progress.advance`."""


def import_dataset(options: ImportOptions, progress: Progress | None = None) -> Manifest:
    """Import text into a dataset; returns its manifest. On any failure nothing that was written remains.

    Raises: Invalid, NotFound, Exists and their kin, each naming the source, file or folder and the way out.
    """
    progress = progress or Silent()
    spec = TokenizerSpec.parse(options.tokenizer)
    packer = Packer(options.seq_len)
    if options.shard_bytes < 1 or options.train_bytes < 1:
        raise Invalid("the shard size and the bytes to train on must be at least 1")
    loaded = load_tokenizer(spec, options.end_of_document) if spec.path is not None else None
    files = find_sources(options.sources, options.glob)
    destination = Destination(Location.parse(options.url), overwrite=options.overwrite)
    try:
        tokenizer = loaded or _learn(spec, files, options.train_bytes, progress)
        writer = DatasetWriter(destination, tokenizer, seq_len=options.seq_len, shard_bytes=options.shard_bytes)
        try:
            source = _write(files, tokenizer, packer, writer, progress)
            return writer.finish(source, packer.num_tokens)
        except BaseException:
            writer.abort()
            raise
    except BaseException:
        destination.undo()
        raise


def _learn(spec: TokenizerSpec, files: Sequence[SourceFile], train_bytes: int, progress: Progress) -> DatasetTokenizer:
    chosen, total = [], 0
    for index in Permutation(len(files), 0, 0).at(np.arange(len(files))).tolist():
        if total >= train_bytes:
            break
        with contextlib.suppress(NotText):
            next(read_text(files[index]), None)
            chosen.append(index)
            total += files[index].bytes
    progress.stage("learning the tokenizer", min(total, train_bytes))

    def texts() -> Iterator[str]:
        left = train_bytes
        for index in sorted(chosen):
            try:
                for text in read_text(files[index]):
                    if left <= 0:
                        return
                    data = text.encode()[:left]
                    yield data.decode(errors="ignore")  # less what the cut leaves of a character
                    left -= len(data)
            except NotText:
                pass
            progress.advance(files[index].bytes)

    failures: list[Fs3Error] = []

    def guarded() -> Iterator[str]:
        # The tokenizers package replaces what its iterator raises with an error of its own.
        try:
            yield from texts()
        except Fs3Error as error:
            failures.append(error)

    learned = learn_bpe(spec, guarded())
    if failures:
        raise failures[0]
    return learned


def _write(
    files: Sequence[SourceFile],
    tokenizer: DatasetTokenizer,
    packer: Packer,
    writer: DatasetWriter,
    progress: Progress,
) -> SourceEntry:
    progress.stage("tokenizing", sum(file.bytes for file in files))
    counts = _Counts()
    end = np.array([tokenizer.end_of_document], dtype=np.uint32)
    for group in _groups(_pieces(files, counts, progress)):
        for tokens, (_, ends) in zip(tokenizer.encode([text for text, _ in group]), group, strict=True):
            writer.add(packer.add(np.concatenate((tokens, end)) if ends else tokens))
    if not counts.files:
        raise Invalid(f"none of the {counts.skipped} files is UTF-8 text; give other sources or a --glob")
    if not writer.num_samples:
        raise Invalid(
            f"the sources make {packer.num_tokens} tokens, fewer than one sample of {packer.seq_len} + 1; "
            "give more text or a smaller --seq"
        )
    return SourceEntry(
        files=counts.files,
        bytes=counts.bytes,
        skipped_files=counts.skipped,
        dropped_tokens=packer.unpredicted,
    )


@dataclass(slots=True)
class _Counts:
    files: int = 0
    skipped: int = 0
    bytes: int = 0


def _pieces(files: Sequence[SourceFile], counts: _Counts, progress: Progress) -> Iterator[tuple[str, bool]]:
    """The text of every file in pieces, each with whether it ends its document."""
    for file in files:
        last: str | None = None
        try:
            for text in read_text(file):
                if last is not None:
                    yield last, False
                last = text
        except NotText:
            counts.skipped += 1
        else:
            counts.files += 1
            counts.bytes += file.bytes
        if last is not None:
            yield last, True
        progress.advance(file.bytes)


def _groups(pieces: Iterator[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """`pieces` in groups that the tokenizer works on in parallel, of about `GROUP_CHARS` characters."""
    group: list[tuple[str, bool]] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece[0])
        if size >= GROUP_CHARS:
            yield group
            group, size = [], 0
    if group:
        yield group
