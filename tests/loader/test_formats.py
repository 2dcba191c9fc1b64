"""Shard and manifest: frozen bytes, and no damage that goes unnoticed."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.checksum import crc
from fs3.errors import Corrupt, Fs3Error, Invalid
from fs3_loader.formats.manifest import Fingerprint, Manifest, ShardEntry, SourceEntry, TokenizerEntry
from fs3_loader.formats.shard import CRC_BYTES, FOOTER_BYTES, ShardFooter, ShardWriter, decode_end, sample_crcs

GOLDEN = Path(__file__).parent.parent / "golden"


def shard_bytes(samples: np.ndarray, token_bytes: int) -> tuple[bytes, ShardFooter]:
    file = io.BytesIO()
    writer = ShardWriter(file, token_bytes=token_bytes, tokens_per_sample=samples.shape[1])
    writer.add(samples[:1])
    writer.add(samples[1:])
    footer, _ = writer.finish()
    return file.getvalue(), footer


def example_manifest() -> Manifest:
    shards = tuple(
        ShardEntry(
            file=f"tokens-0000-0000{i}.shard", samples=n, bytes=n * (10 + CRC_BYTES) + FOOTER_BYTES, end_crc32c=i
        )
        for i, n in enumerate((3, 2))
    )
    return Manifest(
        fingerprint="sha256:" + "0f" * 32,
        generation=0,
        seq_len=4,
        vocab_size=300,
        token_bytes=2,
        num_samples=5,
        num_tokens=22,
        tokenizer=TokenizerEntry(file="tokenizer.json", sha256="1e" * 32, spec="bpe:300", end_of_document=0),
        source=SourceEntry(files=2, bytes=99, skipped_files=1, dropped_tokens=1),
        shards=shards,
    )


@pytest.mark.parametrize("token_bytes", [2, 4])
def test_the_shard_is_frozen(token_bytes: int) -> None:
    samples = np.array([[0, 1, 2, 3], [300, 299, 65535, 0], [7, 7, 7, 7]], dtype=np.uint32)
    if token_bytes == 4:
        samples[2] += 1 << 20
    data, _ = shard_bytes(samples, token_bytes)
    assert data == (GOLDEN / f"token_shard_v1_u{8 * token_bytes}.bin").read_bytes()


def test_the_manifest_is_frozen() -> None:
    data = (GOLDEN / "manifest_v1.json").read_bytes()
    assert example_manifest().encode() == data
    assert Manifest.decode(data, "x") == example_manifest()


def test_the_fingerprint_is_frozen_and_blind_to_how_samples_are_cut() -> None:
    one = Fingerprint(seq_len=4, vocab_size=300, token_bytes=2, tokenizer_sha256="1e" * 32)
    two = Fingerprint(seq_len=4, vocab_size=300, token_bytes=2, tokenizer_sha256="1e" * 32)
    one.add(b"abcdef")
    two.add(b"abc")
    two.add(b"def")
    assert one.text() == two.text() == "sha256:854e4a331db934683f5b0ce5efd9afa8359476ce7d7a450a96bd4f4b269f8558"
    other = Fingerprint(seq_len=5, vocab_size=300, token_bytes=2, tokenizer_sha256="1e" * 32)
    other.add(b"abcdef")
    assert other.text() != one.text()


def test_a_shard_reads_back() -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (5, 9), dtype=np.uint32)
    data, footer = shard_bytes(samples, 2)
    assert len(data) == footer.file_bytes
    read, table = decode_end(data[footer.data_bytes :], "s")
    assert read == footer
    assert np.array_equal(table, sample_crcs(data[: footer.data_bytes], footer.sample_bytes))
    assert np.array_equal(np.frombuffer(data[: footer.data_bytes], "<u2").reshape(5, 9), samples)


@given(at=st.integers(0, 5 * CRC_BYTES + FOOTER_BYTES - 1), flip=st.integers(1, 255))
def test_any_changed_byte_of_a_shards_end_is_noticed(at: int, flip: int) -> None:
    data, footer = shard_bytes(np.arange(45, dtype=np.uint32).reshape(5, 9), 2)
    end = bytearray(data[footer.data_bytes :])
    end[at] ^= flip
    with pytest.raises(Corrupt, match="the-shard"):
        decode_end(bytes(end), "the-shard")


@given(length=st.integers(0, 5 * CRC_BYTES + FOOTER_BYTES - 1))
def test_a_shard_cut_short_is_noticed(length: int) -> None:
    data, footer = shard_bytes(np.arange(45, dtype=np.uint32).reshape(5, 9), 2)
    with pytest.raises(Corrupt, match="the-shard"):
        decode_end(data[footer.data_bytes :][:length], "the-shard")


@pytest.mark.parametrize("samples", [np.array([[1, 2, 70_000]]), np.array([[1, 2]]), np.array([1, 2, 3])])
def test_a_shard_takes_only_samples_that_fit(samples: np.ndarray) -> None:
    with pytest.raises(Invalid):
        ShardWriter(io.BytesIO(), token_bytes=2, tokens_per_sample=3).add(samples)


@given(data=st.data(), flip=st.integers(1, 255))
def test_any_changed_byte_of_a_manifest_is_noticed(data: st.DataObject, flip: int) -> None:
    """Noticed, or harmless: white space may change, and names of JSON escapes, but never what it says."""
    good = example_manifest()
    encoded = bytearray(good.encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= flip
    try:
        assert Manifest.decode(bytes(encoded), "m") == good
    except Fs3Error as error:
        assert "m" in str(error)


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": 6},
        {"shards": ()},
        {"shards": (ShardEntry(file="../x", samples=5, bytes=5 * 14 + 64, end_crc32c=0),)},
        {"shards": (ShardEntry(file="x", samples=5, bytes=5 * 14 + 63, end_crc32c=0),)},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    data = replace(example_manifest(), **change).encode()
    with pytest.raises(Corrupt, match="import again with --overwrite"):
        Manifest.decode(data, "m")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seq_len",), None),
        (("seq_len",), -4),
        (("token_bytes",), 2.0),
        (("generation",), True),
        (("num_samples",), "5"),
        (("fingerprint",), "\ud800"),
        (("tokenizer",), []),
        (("tokenizer", "file"), 7),
        (("source", "files"), {}),
        (("shards",), 5),
        (("shards", 0), None),
        (("shards", 0, "file"), 5),
        (("shards", 1, "samples"), "2"),
        (("shards", 1, "samples"), 1 << 63),
        (("shards", 1, "bytes"), None),
    ],
)
def test_a_manifest_of_other_types_is_damaged_whatever_its_checksum_says(
    path: tuple[str | int, ...], value: object
) -> None:
    body = json.loads(example_manifest().encode())
    del body["crc32c"]
    place = body
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    body["crc32c"] = crc(text.encode(errors="replace"))
    with pytest.raises(Corrupt, match=r"manifest m is damaged \(.*import again with --overwrite") as caught:
        Manifest.decode(json.dumps(body).encode(), "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"", Corrupt), (b"{", Corrupt), (b"\xff", Corrupt), (b"[]", Invalid), (b'{"format": "other"}', Invalid)],
)
def test_what_is_no_manifest_is_named(data: bytes, error: type[Fs3Error]) -> None:
    with pytest.raises(error, match=r"dir/manifest\.json"):
        Manifest.decode(data, "dir/manifest.json")


def test_a_manifest_of_a_newer_release_is_not_called_damaged() -> None:
    body = json.loads(example_manifest().encode()) | {"version": 2}
    with pytest.raises(Invalid, match="version 2"):
        Manifest.decode(json.dumps(body).encode(), "m")
