"""Batches of tokens for training: shuffled exactly, sharded over ranks, read ahead, resumable anywhere.

    with Loader(ds, global_batch=64, dp_rank=rank, dp_size=world, seed=7) as loader:
        for batch in loader:                 # for ever, epoch after epoch
            loss = model(batch.tokens, batch.labels)
            state = loader.state_dict()      # resumes after this batch, on any number of ranks

A thread plans and reads ahead. It reads several batches in one request, as many as `request_samples` allow, because a
request costs more than the samples in it; conversion to int64 is one pass of numpy over the stored tokens, straight
into the arrays that the tensors view. These are fresh for each request: a batch may be kept as long as one likes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Fs3Error, Invalid
from fs3_loader.dataset import Dataset
from fs3_loader.plan_core import Cursor, Plan, Tail, whole
from fs3_loader.prefetch import Prefetcher

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One rank's part of a global batch. `labels` are `tokens` one place on; B = global_batch / dp_size."""

    tokens: torch.Tensor
    """int64 [B, seq], contiguous."""
    labels: torch.Tensor
    """int64 [B, seq], contiguous."""
    sample_ids: NDArray[np.int64]
    """int64 [B]: which samples these are."""
    index: int
    """The number of this global batch, from 0, resumes included."""
    epoch: int
    """The epoch in which the global batch begins."""


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """What a loader has done since it was made."""

    batches: int
    samples: int
    wait_s: float
    """Seconds that the consumer stood waiting for batches."""


class Loader:
    """An endless iterator of `Batch`. The reading thread starts at the first `next`, and ends with `close`.

    One consumer thread at a time. After a fork the child reads with a thread of its own from where it stood.
    """

    def __init__(
        self,
        ds: Dataset,
        *,
        global_batch: int,
        dp_rank: int = 0,
        dp_size: int = 1,
        seed: int = 0,
        prefetch: int = 4,
        tail: Tail = "carry",
        request_samples: int = 256,
    ) -> None:
        """`prefetch`: batches kept ready at least; `request_samples`: samples that one read may name.

        `tail` says what becomes of the samples at the end of an epoch that fill no batch: "carry" puts them in a batch
        with the first of the next epoch, "drop" leaves them out.

        Raises: Invalid if the ranks do not divide the batch or a number is out of range or not whole.
        """
        prefetch, request_samples = whole("prefetch", prefetch), whole("request_samples", request_samples)
        if prefetch < 1 or request_samples < 1:
            raise Invalid(f"prefetch {prefetch} and request_samples {request_samples} must be at least 1")
        self._plan = Plan(
            fingerprint=ds.fingerprint,
            num_samples=len(ds),
            global_batch=global_batch,
            seed=seed,
            dp_rank=dp_rank,
            dp_size=dp_size,
            tail=tail,
        )
        self._group = max(1, request_samples // self._plan.local_batch)
        self._low_water = max(prefetch, self._group)
        self._fetch = _Fetch(ds, self._plan, self._group)
        self._cursor = Cursor()
        self._prefetcher: Prefetcher[tuple[Batch, Cursor], Cursor] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._closed = False
        self._stats = LoaderStats(0, 0, 0.0)

    @property
    def plan(self) -> Plan:
        """The order: `plan.when(sample_ids, epoch)` says when samples come."""
        return self._plan

    @property
    def epoch(self) -> int:
        """The epoch in which the next batch begins."""
        return self._plan.starts(self._cursor, 0)[0].epoch

    def stats(self) -> LoaderStats:
        """Counts since the loader was made."""
        return self._stats

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises: what reading it raised (Corrupt names sample and shard). The next call tries the same batch again.
        """
        if self._closed:
            raise Invalid("this loader is closed; make a new one")
        prefetcher, done = self._prefetcher, self._stats
        try:
            if prefetcher is None or not prefetcher.goes_on:
                prefetcher = self._start()
            (batch, after), waited = prefetcher.take()
            stats = LoaderStats(done.batches + 1, done.samples + len(batch.sample_ids), done.wait_s + waited)
        except BaseException:
            self._halt()
            raise
        # Last, and without a call: whoever is interrupted before it has not got the batch, and reads it again.
        self._stats, self._cursor = stats, after
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The state after the last batch taken, whatever was read ahead: small, JSON-able, equal on every rank."""
        return self._plan.state(self._cursor)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch at which `state` was taken, on whatever ranks that was.

        Raises: Invalid if the state is of another dataset, seed, tail or version, or damaged; nothing changes then.
        """
        cursor = self._plan.resume(state)
        self._halt()
        self._cursor = cursor

    def seek(self, batch: int) -> None:
        """Go to global batch `batch`, counted from the beginning with this loader's global batch throughout."""
        cursor = self._plan.cursor_at(batch)
        self._halt()
        self._cursor = cursor

    def close(self) -> None:
        """End the thread and give back the dataset's open files. Closing twice is fine; the state stays readable.

        A `next` that waits meanwhile, in another thread or where a signal's handler came between, ends with Invalid.
        """
        self._closed = True
        self._halt()
        self._fetch.dataset.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> Prefetcher[tuple[Batch, Cursor], Cursor]:
        self._halt()  # an interruption may have left it half done
        prefetcher = Prefetcher(self._fetch, self._cursor, low_water=self._low_water)
        self._prefetcher = prefetcher
        # Ends the thread when the loader is dropped unclosed, and at exit before the interpreter goes away under it.
        self._finalizer = weakref.finalize(self, prefetcher.abandon)
        prefetcher.start()
        return prefetcher

    def _halt(self) -> None:
        prefetcher, finalizer = self._prefetcher, self._finalizer
        if prefetcher is not None:
            prefetcher.stop()
            self._prefetcher = None
        if finalizer is not None:
            finalizer.detach()
            self._finalizer = None


class _Fetch:
    """Reads the next batches from a cursor: what the prefetcher calls. Holds the dataset, and not the loader."""

    def __init__(self, dataset: Dataset, plan: Plan, group: int) -> None:
        # Its own reader, so that the caller may read the dataset from another thread meanwhile.
        self.dataset = dataset.twin()
        self._plan = plan
        self._group = group

    def __call__(self, cursor: Cursor) -> tuple[list[tuple[Batch, Cursor]], Cursor]:
        try:
            return self._read(cursor, self._group)
        except Fs3Error:
            if self._group == 1:
                raise
            # One of several batches failed: those before it are good, and the error belongs to that one alone.
            return self._read(cursor, 1)

    def _read(self, cursor: Cursor, count: int) -> tuple[list[tuple[Batch, Cursor]], Cursor]:
        import torch

        plan = self._plan
        starts = plan.starts(cursor, count)
        ids, after = plan.batches(cursor, count)
        stored = self.dataset.read_tokens(ids.reshape(-1)).reshape(count, plan.local_batch, -1)
        tokens = np.empty((count, plan.local_batch, self.dataset.seq_len), dtype=np.int64)
        labels = np.empty_like(tokens)
        tokens[...] = stored[:, :, :-1]
        labels[...] = stored[:, :, 1:]
        batches = [
            Batch(torch.from_numpy(tokens[i]), torch.from_numpy(labels[i]), ids[i], starts[i].batches, starts[i].epoch)
            for i in range(count)
        ]
        return list(zip(batches, after, strict=True)), after[-1]
