"""The manifest: one JSON file that makes a folder of shards a dataset. Documented in docs/formats.md.

It is written last and names every other file with its size and the checksum of its end, so a folder without one is no
dataset (whatever an interrupted import left), and a folder with one is complete.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from fs3.checksum import crc
from fs3.errors import Corrupt, Fs3Error, Invalid
from fs3_loader.formats.shard import CRC_BYTES, FOOTER_BYTES

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "fs3-tokens"
MANIFEST_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard: its file beside the manifest, and what the file must be."""

    file: str
    samples: int
    bytes: int
    end_crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerEntry:
    """The tokenizer file beside the manifest; `spec` is what the import was asked for, such as bpe:4096."""

    file: str
    sha256: str
    spec: str
    end_of_document: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceEntry:
    """What the import read."""

    files: int
    bytes: int
    skipped_files: int
    dropped_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A dataset, as its manifest describes it."""

    fingerprint: str
    generation: int
    seq_len: int
    vocab_size: int
    token_bytes: int
    num_samples: int
    num_tokens: int
    tokenizer: TokenizerEntry
    source: SourceEntry
    shards: tuple[ShardEntry, ...]

    @property
    def sample_bytes(self) -> int:
        """Stored bytes of one sample."""
        return (self.seq_len + 1) * self.token_bytes

    def encode(self) -> bytes:
        """The file's bytes: readable JSON, its own crc32c last."""
        body: dict[str, Any] = {"format": MANIFEST_FORMAT, "version": MANIFEST_VERSION, **asdict(self)}
        body["crc32c"] = _body_crc(body)
        return json.dumps(body, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes, name: str) -> Manifest:
        """The manifest in `data`, read from the path or URL `name`.

        Raises: Corrupt if it is damaged; Invalid if a newer release wrote it or it is another format.
        """
        try:
            body = json.loads(data)
        except (ValueError, UnicodeDecodeError) as error:
            raise _damaged(name, f"not JSON: {error}") from None
        if not isinstance(body, dict) or body.get("format") != MANIFEST_FORMAT:
            raise Invalid(f"{name} is no manifest of an fs3 dataset (its format is not {MANIFEST_FORMAT})")
        if body.get("version") != MANIFEST_VERSION:
            raise Invalid(
                f"manifest {name} has version {body.get('version')}, this fs3_loader reads {MANIFEST_VERSION}; "
                "upgrade it"
            )
        stored = body.pop("crc32c", None)
        try:
            if stored != _body_crc(body):
                raise _damaged(name, "its checksum does not match")
            manifest = cls._from_body(body)
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(name, f"{type(error).__name__} {error}") from None
        manifest._check(name)
        return manifest

    @classmethod
    def _from_body(cls, body: dict[str, Any]) -> Manifest:
        plain = {field.name: body[field.name] for field in fields(cls)}
        plain["tokenizer"] = TokenizerEntry(**plain["tokenizer"])
        plain["source"] = SourceEntry(**plain["source"])
        plain["shards"] = tuple(ShardEntry(**shard) for shard in plain["shards"])
        manifest = cls(**plain)
        for entry in (manifest, manifest.tokenizer, manifest.source, *manifest.shards):
            _check_types(entry)
        return manifest

    def _check(self, name: str) -> None:
        for shard in self.shards:
            expected = shard.samples * (self.sample_bytes + CRC_BYTES) + FOOTER_BYTES
            if shard.bytes != expected or "/" in shard.file or shard.samples < 1:
                raise _damaged(name, f"shard {shard.file} cannot have {shard.samples} samples in {shard.bytes} bytes")
        if sum(shard.samples for shard in self.shards) != self.num_samples or not self.shards:
            raise _damaged(name, f"its shards do not add up to {self.num_samples} samples")


class Fingerprint:
    """Digest of a dataset's content: token layout, tokenizer and every sample in order, however cut into shards."""

    def __init__(self, *, seq_len: int, vocab_size: int, token_bytes: int, tokenizer_sha256: str) -> None:
        head = f"{MANIFEST_FORMAT} {MANIFEST_VERSION} {seq_len} {vocab_size} {token_bytes} {tokenizer_sha256}\n"
        self._digest = hashlib.sha256(head.encode())

    def add(self, sample_bytes: bytes) -> None:
        """Count in the stored bytes of the next samples."""
        self._digest.update(sample_bytes)

    def text(self) -> str:
        """`sha256:` and 64 hexadecimal digits."""
        return "sha256:" + self._digest.hexdigest()


def _body_crc(body: dict[str, Any]) -> int:
    """crc32c of the manifest without its checksum, as compact JSON with sorted keys."""
    return crc(json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def _check_types(entry: Any) -> None:
    """Raises: ValueError: a text is none, or a number is not whole or not one of 63 bits."""
    for field in fields(entry):
        value = getattr(entry, field.name)
        whole = type(value) is int and 0 <= value < 1 << 63
        if (field.type == "int" and not whole) or (field.type == "str" and type(value) is not str):
            raise ValueError(f"{field.name} is {value!r}")


def _damaged(name: str, why: str) -> Fs3Error:
    return Corrupt(f"manifest {name} is damaged ({why}); restore it from a copy, or import again with --overwrite")
