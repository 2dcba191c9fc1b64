"""Datasets by URL: what was written is read, checked to the byte, and every damage or absence is named."""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from numpy.typing import NDArray

from fs3.errors import Corrupt, Fs3Error, Invalid, NotADirectory, NotFound
from fs3_loader import Dataset
from fs3_loader.formats.manifest import Manifest, SourceEntry
from fs3_loader.location import Location
from fs3_loader.tokenizing import DatasetTokenizer, TokenizerSpec, learn_bpe
from fs3_loader.writer import DatasetWriter, Destination

MakeDataset = Callable[..., tuple[Manifest, NDArray[np.uint32]]]


def change_byte(url: str, name: str, at: int) -> None:
    fs, root = fsspec.url_to_fs(url)
    data = bytearray(fs.cat_file(f"{root}/{name}"))
    data[at] ^= 1
    fs.pipe_file(f"{root}/{name}", bytes(data))


def test_reads_what_was_written(url: str, make_dataset: MakeDataset, tokenizer: DatasetTokenizer) -> None:
    manifest, samples = make_dataset(url, 30)
    assert [shard.samples for shard in manifest.shards] == [7, 7, 7, 7, 2]
    ds = Dataset.open(url)
    assert (len(ds), ds.seq_len, ds.vocab_size) == (30, 8, tokenizer.vocab_size)
    assert ds.fingerprint == manifest.fingerprint
    assert ds.tokenizer_json() == tokenizer.text
    ids = [*np.random.default_rng(1).permutation(30).tolist(), 3, 3, 0]
    read = ds.read(ids)
    assert read.dtype == torch.int64
    assert np.array_equal(read.numpy(), samples[ids])
    assert ds.read([]).shape == (0, 9)
    assert ds[29].tolist() == ds[-1].tolist() == samples[29].tolist()
    assert [sample.tolist() for sample in ds.__getitems__([4, 2])] == samples[[4, 2]].tolist()
    assert sum(1 for _ in ds) == 30


def test_reads_with_checksums_beside_when_they_are_too_many_to_keep(url: str, make_dataset: MakeDataset) -> None:
    _, samples = make_dataset(url, 30)
    ds = Dataset.open(url, checksum_cache_bytes=30 * 4 - 1)
    assert np.array_equal(ds.read_tokens(range(29, -1, -1)), samples[::-1])
    change_byte(url, "tokens-0000-00001.shard", 3 * 18 + 5)
    with pytest.raises(Corrupt, match=r"sample 10 \(number 3 of shard .*tokens-0000-00001.shard\)"):
        Dataset.open(url, checksum_cache_bytes=0).read_tokens(range(30))


def test_wide_vocabularies_are_stored_in_four_bytes(tmp_path: Path, make_dataset: MakeDataset) -> None:
    learned = learn_bpe(TokenizerSpec.parse("bpe:300"), iter(["abc"]))
    learned.tokenizer.add_tokens([f"<{i}>" for i in range(70_000)])
    wide = replace(learned, text=learned.tokenizer.to_str())
    destination = Destination(Location.parse(str(tmp_path / "wide")), overwrite=False)
    writer = DatasetWriter(destination, wide, seq_len=3, shard_bytes=100)
    samples = np.array([[1, 70_000, 2, 65_536], [65_535, 0, 1, 2]], dtype=np.uint32)
    writer.add(samples)
    writer.finish(SourceEntry(files=1, bytes=1, skipped_files=0, dropped_tokens=0), 7)
    ds = Dataset.open(str(tmp_path / "wide"))
    assert ds.manifest.token_bytes == 4
    assert ds.read([1, 0]).tolist() == samples[::-1].tolist()


@pytest.mark.parametrize("sample", [0, 6, 7, 29])
def test_a_changed_byte_of_a_sample_is_noticed_and_named(url: str, make_dataset: MakeDataset, sample: int) -> None:
    _, samples = make_dataset(url, 30)
    shard, number = divmod(sample, 7)
    change_byte(url, f"tokens-0000-{shard:05d}.shard", number * 18 + 11)
    ds = Dataset.open(url)
    good = [i for i in range(30) if i != sample]
    assert np.array_equal(ds.read_tokens(good), samples[good])
    with pytest.raises(Corrupt, match=rf"sample {sample} \(number {number} of shard .*tokens-0000-{shard:05d}.shard\)"):
        ds.read([5, sample, 12])


@pytest.mark.parametrize("from_end", [1, 30, 64, 70])
def test_a_changed_byte_at_the_end_of_a_shard_is_noticed_and_named(
    url: str, make_dataset: MakeDataset, from_end: int
) -> None:
    make_dataset(url, 30)
    change_byte(url, "tokens-0000-00002.shard", -from_end)
    ds = Dataset.open(url)
    ds.read([0, 29])
    with pytest.raises(Corrupt, match=r"tokens-0000-00002.shard.*import the dataset again"):
        ds.read([0, 15])


@pytest.mark.parametrize("checksum_cache_bytes", [30 * 4, 0])
def test_a_shard_in_place_of_another_is_noticed(url: str, make_dataset: MakeDataset, checksum_cache_bytes: int) -> None:
    make_dataset(url, 30)
    again = Dataset.open(url, checksum_cache_bytes=checksum_cache_bytes)
    again.read([8])
    again.close()
    fs, root = fsspec.url_to_fs(url)
    fs.pipe_file(f"{root}/tokens-0000-00001.shard", fs.cat_file(f"{root}/tokens-0000-00002.shard"))
    with pytest.raises(Corrupt, match=r"tokens-0000-00001.shard is not the one its manifest names"):
        Dataset.open(url, checksum_cache_bytes=checksum_cache_bytes).read([8])
    with pytest.raises(Corrupt, match=r"tokens-0000-00001.shard"):
        again.read([8])


def test_a_missing_or_cut_shard_is_named(url: str, make_dataset: MakeDataset) -> None:
    make_dataset(url, 30)
    fs, root = fsspec.url_to_fs(url)
    fs.pipe_file(f"{root}/tokens-0000-00000.shard", fs.cat_file(f"{root}/tokens-0000-00000.shard")[:-9])
    fs.rm_file(f"{root}/tokens-0000-00003.shard")
    ds = Dataset.open(url)
    with pytest.raises(Corrupt, match=r"tokens-0000-00000.shard"):
        ds.read([1])
    with pytest.raises(NotFound, match=r"tokens-0000-00003.shard") as caught:
        ds.read([25])
    assert not url.startswith("fs3") or "import the dataset again" in str(caught.value)


def test_a_damaged_manifest_is_named_with_the_way_out(url: str, make_dataset: MakeDataset) -> None:
    make_dataset(url, 30)
    change_byte(url, "manifest.json", 200)
    with pytest.raises(Corrupt, match=r"manifest.json is damaged .* import again with --overwrite"):
        Dataset.open(url)


def test_another_tokenizer_is_noticed(url: str, make_dataset: MakeDataset) -> None:
    make_dataset(url, 30)
    change_byte(url, "tokenizer.json", 40)
    with pytest.raises(Corrupt, match=r"tokenizer.json is not the tokenizer of this dataset"):
        Dataset.open(url).tokenizer_json()


def test_what_is_no_dataset_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    for name, error, said in (
        ("nothing", NotFound, "no such dataset; make one with: fs3-dataset import"),
        ("folder", NotFound, r"no manifest.json"),
        ("file", NotADirectory, "is a file"),
    ):
        with pytest.raises(error, match=said) as caught:
            Dataset.open(str(tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "nosuch://host/x", "reference://x", "dir://x"])
def test_a_url_that_nobody_knows(url: str) -> None:
    with pytest.raises(Invalid, match=url or "an empty path") as caught:
        Dataset.open(url)
    assert "\n" not in str(caught.value)


def test_a_path_is_a_url(tmp_path: Path, make_dataset: MakeDataset) -> None:
    _, samples = make_dataset(str(tmp_path / "c"), 30)
    ds = Dataset.open(tmp_path / "c")
    assert ds.url == str(tmp_path / "c")
    assert np.array_equal(pickle.loads(pickle.dumps(ds)).read_tokens([3]), samples[[3]])


def test_ids_out_of_range(tmp_path: Path, make_dataset: MakeDataset) -> None:
    make_dataset(str(tmp_path / "c"), 30)
    ds = Dataset.open(str(tmp_path / "c"))
    for ids in ([30], [-1], [0, 99]):
        with pytest.raises(Invalid, match="between 0 and 29"):
            ds.read(ids)
    for ids in ([1.7], np.arange(30) < 3, ["1"], [1 << 70]):
        with pytest.raises(Invalid, match="must be whole numbers"):
            ds.read(ids)
    with pytest.raises(Invalid, match="between 0 and 29"):
        ds.read(np.array([1 << 63], dtype=np.uint64))
    assert ds.read(torch.tensor([3, 4])).tolist() == ds.read([np.int8(3), torch.tensor(4)]).tolist()
    for index in (30, -31):
        with pytest.raises(IndexError, match="which has 30"):
            ds[index]


def test_survives_pickling_closing_and_pytorchs_loader(tmp_path: Path, make_dataset: MakeDataset) -> None:
    _, samples = make_dataset(str(tmp_path / "c"), 30)
    ds = Dataset.open(str(tmp_path / "c"))
    ds.read([0])
    ds.close()
    assert np.array_equal(ds.read_tokens([4]), samples[[4]])
    copy = pickle.loads(pickle.dumps(ds))
    assert np.array_equal(copy.read_tokens([5]), samples[[5]])
    batches = list(torch.utils.data.DataLoader(ds, batch_size=10))
    assert np.array_equal(torch.cat(batches).numpy(), samples)


class OneProcess(MemoryFileSystem):
    """A filesystem whose connections do not survive a fork, as those of a network client."""

    protocol = "oneprocess"

    def __init__(self) -> None:
        super().__init__()
        self._made_in = os.getpid()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("oneprocess://"))

    def cat_ranges(self, *arguments: Any, **options: Any) -> Any:
        if os.getpid() != self._made_in:
            raise OSError(f"the connection belongs to process {self._made_in}")
        return super().cat_ranges(*arguments, **options)


def _read_in_child(ds: Dataset, queue: multiprocessing.queues.SimpleQueue[list[int]]) -> None:
    try:
        twin, ds = ds.twin(), pickle.loads(pickle.dumps(ds))
        assert np.array_equal(twin.read_tokens([8]), ds.read_tokens([8]))
        queue.put(ds.read_tokens([8])[0].tolist())
    except (Fs3Error, OSError):
        queue.put([])


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("scheme", ["", "oneprocess://"])
def test_reads_after_a_fork(tmp_path: Path, make_dataset: MakeDataset, scheme: str, used: bool) -> None:
    """The child makes its own connections and leaves those of its parent alone, whether or not it read before."""
    fsspec.register_implementation("oneprocess", OneProcess, clobber=True)
    url = f"{scheme}{tmp_path / 'corpus'}"
    _, samples = make_dataset(url, 30)
    ds = Dataset.open(url)
    if used:
        ds.read([8])
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_read_in_child, args=(ds, queue))
    child.start()
    assert queue.get() == samples[8].tolist()
    child.join()
    assert ds.read_tokens([9])[0].tolist() == samples[9].tolist()
