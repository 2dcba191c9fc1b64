"""Small datasets for the loader's tests, made through the production writer and importer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from fs3_loader.formats.manifest import Manifest, SourceEntry
from fs3_loader.location import Location
from fs3_loader.tokenizing import DatasetTokenizer, TokenizerSpec, learn_bpe
from fs3_loader.writer import DatasetWriter, Destination

# The same examples on every run, and no limit on how long one may take on a busy machine.
settings.register_profile("loader", derandomize=True, deadline=None)
settings.load_profile("loader")

MakeDataset = Callable[..., tuple[Manifest, NDArray[np.uint32]]]


@pytest.fixture(scope="session")
def tokenizer() -> DatasetTokenizer:
    return learn_bpe(TokenizerSpec.parse("bpe:300"), iter(["the cat sat on the mat, the rat ran at the cat\n" * 20]))


@pytest.fixture
def make_dataset(tokenizer: DatasetTokenizer) -> MakeDataset:
    """`make_dataset(url, num_samples, seq_len=..., shard_samples=...)`: the manifest, and the samples it wrote."""

    def make(
        url: str, num_samples: int, *, seq_len: int = 8, shard_samples: int = 7, seed: int = 0, overwrite: bool = False
    ) -> tuple[Manifest, NDArray[np.uint32]]:
        samples = np.random.default_rng(seed).integers(
            0, tokenizer.vocab_size, (num_samples, seq_len + 1), dtype=np.uint32
        )
        destination = Destination(Location.parse(url), overwrite=overwrite)
        writer = DatasetWriter(destination, tokenizer, seq_len=seq_len, shard_bytes=shard_samples * (seq_len + 1) * 2)
        writer.add(samples)
        source = SourceEntry(files=1, bytes=num_samples, skipped_files=0, dropped_tokens=0)
        return writer.finish(source, num_samples * seq_len + 1), samples

    return make


@pytest.fixture(params=["local", "memory", "fs3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder that does not exist yet: local, in a dict, and on a cluster of three storage nodes."""
    if request.param == "local":
        yield str(tmp_path / "corpus")
        return
    if request.param == "fs3":
        yield f"{request.getfixturevalue('cluster_url')}{request.getfixturevalue('home')}/corpus"
        return
    memory = fsspec.filesystem("memory")
    yield "memory://fs3-loader-tests/corpus"
    if memory.exists("/fs3-loader-tests"):
        memory.rm("/fs3-loader-tests", recursive=True)
