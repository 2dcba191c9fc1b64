"""The loader: the plan's batches as tensors, a state that counts what was taken, errors once, a clean end."""

from __future__ import annotations

import gc
import json
import multiprocessing
import multiprocessing.queues
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from numpy.typing import NDArray

from fs3.errors import Corrupt, Invalid
from fs3_loader import Batch, Dataset, Loader
from fs3_loader.formats.manifest import Manifest
from fs3_loader.location import Location
from fs3_loader.prefetch import Prefetcher
from fs3_loader.sampler_core import perm

MakeDataset = Callable[..., tuple[Manifest, NDArray[np.uint32]]]


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fs3-loader"]


def flat(parts: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


def take(loaders: Sequence[Loader], count: int = 1) -> list[int]:
    """The samples of `count` batches, rank by rank."""
    return flat(next(loader).sample_ids.tolist() for _ in range(count) for loader in loaders)


def stream(num_samples: int, seed: int, epochs: int) -> list[int]:
    return np.concatenate([perm(num_samples, seed, epoch, np.arange(num_samples)) for epoch in range(epochs)]).tolist()


def test_yields_the_planned_samples_as_tokens_and_labels(url: str, make_dataset: MakeDataset) -> None:
    _, samples = make_dataset(url, 30)
    with Loader(Dataset.open(url), global_batch=4, seed=5, request_samples=8) as loader:
        batches = list(islice(loader, 20))
    ids = [batch.sample_ids.tolist() for batch in batches]
    assert flat(ids) == stream(30, 5, 3)[:80]
    assert [batch.index for batch in batches] == list(range(20))
    assert [batch.epoch for batch in batches] == [4 * i // 30 for i in range(20)]
    for batch in batches:
        assert batch.tokens.shape == batch.labels.shape == (4, 8)
        assert batch.tokens.dtype == batch.labels.dtype == torch.int64
        assert batch.tokens.is_contiguous()
        assert batch.labels.is_contiguous()
        assert np.array_equal(batch.tokens.numpy(), samples[batch.sample_ids][:, :-1])
        assert np.array_equal(batch.labels.numpy(), samples[batch.sample_ids][:, 1:])


@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_ranks_share_each_batch(tmp_path: Path, make_dataset: MakeDataset, dp_size: int) -> None:
    make_dataset(str(tmp_path / "c"), 30)
    ds = Dataset.open(str(tmp_path / "c"))
    loaders = [Loader(ds, global_batch=8, dp_rank=rank, dp_size=dp_size, seed=1) for rank in range(dp_size)]
    read = [take(loaders) for _ in range(6)]
    states = {json.dumps(loader.state_dict()) for loader in loaders}
    for loader in loaders:
        loader.close()
    assert flat(read) == stream(30, 1, 2)[:48]
    assert len(states) == 1


def test_the_state_counts_what_was_taken_and_resumes_on_other_ranks(tmp_path: Path, make_dataset: MakeDataset) -> None:
    """Every batch of a run is the beginning of some resume; read-ahead is never counted."""
    make_dataset(str(tmp_path / "c"), 30)
    ds = Dataset.open(str(tmp_path / "c"))
    expected, read, state = stream(30, 2, 5), [], None
    for dp_size, count in ((1, 3), (4, 1), (2, 5), (4, 7), (1, 1)):
        loaders = [
            Loader(ds, global_batch=8, dp_rank=rank, dp_size=dp_size, seed=2, prefetch=6, request_samples=16)
            for rank in range(dp_size)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(json.loads(state))
        read += take(loaders, count)
        states = {json.dumps(loader.state_dict()) for loader in loaders}
        for loader in loaders:
            loader.close()
        assert len(states) == 1
        state = states.pop()
        assert len(state) <= 1024
    assert read == expected[: len(read)]


def test_a_running_loader_can_go_back_and_to_a_batch(tmp_path: Path, make_dataset: MakeDataset) -> None:
    make_dataset(str(tmp_path / "c"), 30)
    with Loader(Dataset.open(str(tmp_path / "c")), global_batch=7) as loader:
        before = loader.state_dict()
        first = [batch.sample_ids.tolist() for batch in islice(loader, 9)]
        loader.load_state_dict(before)
        assert [batch.sample_ids.tolist() for batch in islice(loader, 9)] == first
        loader.seek(6)
        assert next(loader).sample_ids.tolist() == first[6]
        assert loader.state_dict()["batches"] == 7
        assert loader.epoch == 1
        assert loader.stats().batches == 19
        assert len(loader_threads()) == 1


def test_a_refused_state_changes_nothing(tmp_path: Path, make_dataset: MakeDataset) -> None:
    make_dataset(str(tmp_path / "a"), 30, seed=0)
    make_dataset(str(tmp_path / "b"), 30, seed=1)
    with (
        Loader(Dataset.open(str(tmp_path / "a")), global_batch=5) as one,
        Loader(Dataset.open(str(tmp_path / "b")), global_batch=5) as other,
    ):
        next(one)
        state = other.state_dict()
        with pytest.raises(Invalid, match="belongs to dataset"):
            other.load_state_dict(one.state_dict())
        assert other.state_dict() == state


def test_a_bad_sample_is_raised_once_at_its_batch_and_again_when_tried_again(
    tmp_path: Path, make_dataset: MakeDataset
) -> None:
    make_dataset(str(tmp_path / "c"), 30)
    expected = stream(30, 0, 1)
    bad = expected[13]
    shard, number = divmod(bad, 7)
    path = tmp_path / "c" / f"tokens-0000-{shard:05d}.shard"
    good_bytes = path.read_bytes()
    data = bytearray(good_bytes)
    data[number * 18] ^= 255
    path.write_bytes(data)
    with Loader(Dataset.open(str(tmp_path / "c")), global_batch=4) as loader:
        assert take([loader], 3) == expected[:12]
        for _ in range(2):
            with pytest.raises(Corrupt, match=rf"sample {bad} \(number {number} of shard .*{path.name}\)"):
                next(loader)
            assert loader.state_dict()["batches"] == 3
            assert not loader_threads()
        path.write_bytes(good_bytes)
        assert next(loader).sample_ids.tolist() == expected[12:16]


def test_reading_ahead_is_bounded() -> None:
    """The thread fetches only while fewer than `low_water` items wait."""
    fetched: list[int] = []
    reached = threading.Semaphore(0)

    def fetch(cursor: int) -> tuple[list[int], int]:
        fetched.append(cursor)
        reached.release()
        return [cursor, cursor + 1, cursor + 2], cursor + 3

    prefetcher = Prefetcher(fetch, 0, low_water=4)
    prefetcher.start()
    for _ in range(2):
        reached.acquire()
    assert [prefetcher.take()[0] for _ in range(2)] == [0, 1]
    assert fetched == [0, 3]
    assert prefetcher.take()[0] == 2
    reached.acquire()
    prefetcher.stop()
    assert fetched == [0, 3, 6]


def test_an_error_comes_after_the_items_before_it() -> None:
    def fetch(cursor: int) -> tuple[list[int], int]:
        if cursor == 2:
            raise ValueError("the third")
        return [cursor], cursor + 1

    prefetcher = Prefetcher(fetch, 0, low_water=10)
    prefetcher.start()
    assert [prefetcher.take()[0] for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        prefetcher.take()
    prefetcher.stop()


def fetching_prefetcher() -> tuple[Prefetcher[int, int], threading.Event]:
    """One whose fetch is under way, until the event is set."""
    fetching, goes_on = threading.Event(), threading.Event()

    def fetch(cursor: int) -> tuple[list[int], int]:
        fetching.set()
        goes_on.wait()
        return [cursor], cursor + 1

    prefetcher = Prefetcher(fetch, 0, low_water=1)
    prefetcher.start()
    fetching.wait()
    return prefetcher, goes_on


def test_stopping_ends_the_wait_for_an_item() -> None:
    prefetcher, goes_on = fetching_prefetcher()
    raised: list[str] = []

    def consume() -> None:
        try:
            prefetcher.take()
        except Invalid as error:
            raised.append(str(error))

    consumer, stopper = threading.Thread(target=consume, daemon=True), threading.Thread(target=prefetcher.stop)
    consumer.start()
    stopper.start()
    consumer.join(30.0)  # for ever, if nobody told it
    goes_on.set()
    stopper.join()
    assert raised == ["the loader was closed, or moved, while its next batch was waited for"]


def test_stopping_waits_for_the_fetch_under_way_however_long_it_takes() -> None:
    """On a cluster that is gone it takes longer than anybody would guess."""
    prefetcher, goes_on = fetching_prefetcher()
    stopper = threading.Thread(target=prefetcher.stop)
    stopper.start()
    limits, pause = [], threading.Event()
    while not limits:
        pause.wait(0.01)
        frames = (frame for frame, _ in traceback.walk_stack(sys._current_frames()[stopper.ident or 0]))
        limits = [frame.f_locals["timeout"] for frame in frames if frame.f_code is threading.Thread.join.__code__]
    goes_on.set()
    stopper.join()
    assert limits == [None]


class Gated(MemoryFileSystem):
    """Samples are read when the gate is open."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.gate = threading.Event(), threading.Event()

    def cat_ranges(self, *arguments: Any, **options: Any) -> Any:
        if not self.gate.is_set():
            self.waiting.set()
            self.gate.wait()
        return super().cat_ranges(*arguments, **options)


def test_a_loader_that_was_interrupted_while_it_stopped_reads_on(make_dataset: MakeDataset) -> None:
    """Ctrl-C, and once more while the first waits for the read under way."""
    url = "memory://fs3-loader-gated/corpus"
    manifest, _ = make_dataset(url, 30)
    gated = Gated()
    gated.gate.set()
    loader = Loader(Dataset(Location(url, gated, "/fs3-loader-gated/corpus"), manifest), global_batch=4, prefetch=1)
    expected = next(loader).sample_ids.tolist()
    loader.seek(0)
    gated.gate.clear()
    main = threading.main_thread().ident or 0

    def interrupt_in(code: CodeType) -> None:
        pause = threading.Event()
        while all(frame.f_code is not code for frame, _ in traceback.walk_stack(sys._current_frames()[main])):
            pause.wait(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    def interrupt() -> None:
        gated.waiting.wait()
        interrupt_in(Prefetcher.take.__code__)
        interrupt_in(threading.Thread.join.__code__)
        gated.gate.set()

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        next(loader)
    other.join()
    assert next(loader).sample_ids.tolist() == expected
    loader.close()
    gated.rm("/fs3-loader-gated", recursive=True)


def next_or_ctrl_c(loader: Loader, at: int) -> tuple[Batch | None, int]:
    """`next`, with Ctrl-C as it enters the `at`-th function of Python that it calls; and how many it called.

    But for those of `Condition`, of which some leave its lock locked, or unlocked, if they are interrupted there.
    """
    calls = 0

    def trace(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += not frame.f_code.co_qualname.startswith("Condition.")
        if calls == at:
            raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        batch = next(loader)
    except KeyboardInterrupt:
        batch = None
    finally:
        sys.settrace(before)
    return batch, calls


def test_ctrl_c_loses_no_batch_wherever_it_comes_in_next(tmp_path: Path, make_dataset: MakeDataset) -> None:
    make_dataset(str(tmp_path / "c"), 30)
    taken: list[Batch] = []
    with Loader(Dataset.open(str(tmp_path / "c")), global_batch=4) as loader:
        for at in range(1, 1000):
            taken.append(next(loader))
            batch, calls = next_or_ctrl_c(loader, at)
            if batch is not None:
                taken.append(batch)
                break
        assert len(loader_threads()) == 1
    assert calls > 3
    ids = flat(batch.sample_ids.tolist() for batch in taken)
    assert ids == stream(30, 0, 9)[: len(ids)]
    assert [batch.index for batch in taken] == list(range(len(taken)))


def test_ctrl_c_leaves_no_thread_behind_wherever_it_comes_in_the_first_next(
    tmp_path: Path, make_dataset: MakeDataset
) -> None:
    """One that was about to begin still does, and ends."""
    make_dataset(str(tmp_path / "c"), 30)
    pause = threading.Event()
    with Loader(Dataset.open(str(tmp_path / "c")), global_batch=4) as loader:
        for at in range(1, 1000):
            loader.seek(0)
            batch, calls = next_or_ctrl_c(loader, at)
            if batch is not None:
                break
            for _ in range(3000):
                if not loader_threads():
                    break
                pause.wait(0.01)
            assert not loader_threads()
            assert next(loader).sample_ids.tolist() == stream(30, 0, 1)[:4]
    assert calls > 6
    assert batch is not None
    assert batch.sample_ids.tolist() == stream(30, 0, 1)[:4]


def test_closing_and_dropping_end_the_thread(tmp_path: Path, make_dataset: MakeDataset) -> None:
    make_dataset(str(tmp_path / "c"), 30)
    ds = Dataset.open(str(tmp_path / "c"))
    loader = Loader(ds, global_batch=4)
    assert not loader_threads()
    next(loader)
    assert len(loader_threads()) == 1
    loader.close()
    loader.close()
    assert not loader_threads()
    assert loader.state_dict()["batches"] == 1
    with pytest.raises(Invalid, match="closed"):
        next(loader)
    dropped = Loader(ds, global_batch=4)
    next(dropped)
    gone = weakref.ref(dropped)
    del dropped
    gc.collect()
    assert gone() is None
    assert not loader_threads()


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(0)", "del loader", "loader.close()"])
def test_a_process_ends_with_its_loader_open(tmp_path: Path, make_dataset: MakeDataset, ending: str) -> None:
    make_dataset(str(tmp_path / "c"), 30)
    script = (
        "from fs3_loader import Dataset, Loader\n"
        f"loader = Loader(Dataset.open({str(tmp_path / 'c')!r}), global_batch=4)\n"
        f"next(loader)\n{ending}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def _take_in_child(loader: Loader, queue: multiprocessing.queues.SimpleQueue[list[int]]) -> None:
    queue.put(next(loader).sample_ids.tolist())
    loader.close()


def test_a_forked_child_goes_on_by_itself(tmp_path: Path, make_dataset: MakeDataset) -> None:
    make_dataset(str(tmp_path / "c"), 30)
    expected = stream(30, 0, 1)
    with Loader(Dataset.open(str(tmp_path / "c")), global_batch=4) as loader:
        next(loader)
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_take_in_child, args=(loader, queue))
        child.start()
        assert queue.get() == expected[4:8]
        child.join()
        assert child.exitcode == 0
        assert next(loader).sample_ids.tolist() == expected[4:8]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"global_batch": 4, "prefetch": 0}, "prefetch 0"),
        ({"global_batch": 4, "request_samples": 1e3}, "request_samples must be a whole number, not 1000.0"),
        ({"global_batch": 8 / 2}, "global_batch must be a whole number, not 4.0"),
        ({"global_batch": 4, "dp_size": 3}, "dp_size 3"),
        ({"global_batch": 31, "tail": "drop"}, "leaves nothing"),
    ],
)
def test_refuses_numbers_that_make_no_loader(
    tmp_path: Path, make_dataset: MakeDataset, arguments: dict[str, object], said: str
) -> None:
    make_dataset(str(tmp_path / "c"), 30)
    with pytest.raises(Invalid, match=said):
        Loader(Dataset.open(str(tmp_path / "c")), **arguments)
