"""Datasets and loaders that read through the host's I/O process: the same samples, whatever dies or forks."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fs3.errors import Invalid
from fs3_loader import Dataset, Loader
from tests.conftest import io_processes
from tests.loader.conftest import MakeDataset

SAMPLES = 300


@pytest.fixture
def samples(corpus: str, make_dataset: MakeDataset) -> NDArray[np.uint32]:
    return make_dataset(corpus, SAMPLES, shard_samples=50)[1]


@pytest.fixture
def corpus(cluster_url: str, home: str, runtime_directory: Path) -> str:
    return f"{cluster_url}{home}/corpus"


@pytest.mark.parametrize("checksum_cache_bytes", [1 << 20, 0])
def test_samples_are_those_that_were_written(
    corpus: str, samples: NDArray[np.uint32], checksum_cache_bytes: int
) -> None:
    ds = Dataset.open(corpus, usrbio=True, checksum_cache_bytes=checksum_cache_bytes)
    ids = np.random.default_rng(1).permutation(SAMPLES)
    assert np.array_equal(ds.read_tokens(ids), samples[ids])
    copy = pickle.loads(pickle.dumps(ds))
    assert np.array_equal(copy.read_tokens([5]), samples[[5]])
    copy.close()
    ds.close()
    assert np.array_equal(ds.read_tokens([4]), samples[[4]])
    ds.close()


def test_the_loader_goes_on_when_the_io_process_dies(
    corpus: str, samples: NDArray[np.uint32], runtime_directory: Path
) -> None:
    options = {"global_batch": 16, "seed": 3, "request_samples": 32}
    with Loader(Dataset.open(corpus), **options) as plain, Loader(Dataset.open(corpus, usrbio=True), **options) as ours:
        for step in range(60):
            expected, found = next(plain), next(ours)
            assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.labels, expected.labels)
            if step % 20 == 10:
                for pid in io_processes(runtime_directory):
                    os.kill(pid, signal.SIGKILL)


def _in_child(ds: Dataset, queue: multiprocessing.SimpleQueue[list[int]]) -> None:
    queue.put(ds.read_tokens([8])[0].tolist())
    ds.close()


def test_a_forked_child_has_rings_of_its_own(corpus: str, samples: NDArray[np.uint32]) -> None:
    ds = Dataset.open(corpus, usrbio=True)
    ds.read_tokens([1])
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(ds, queue))
    child.start()
    assert queue.get() == samples[8].tolist()
    child.join()
    assert child.exitcode == 0 and ds.read_tokens([9])[0].tolist() == samples[9].tolist()
    batches = list(torch.utils.data.DataLoader(ds, batch_size=50, num_workers=2))
    assert np.array_equal(torch.cat(batches).numpy(), samples)
    ds.close()


def test_only_fs3_has_it(tmp_path: Path, make_dataset: MakeDataset) -> None:
    make_dataset(str(tmp_path / "corpus"), 3)
    with pytest.raises(Invalid, match="reads from fs3:// URLs only"):
        Dataset.open(str(tmp_path / "corpus"), usrbio=True)
