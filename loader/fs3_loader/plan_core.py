"""Which samples make which batch, on which rank, and the small state that resumes it anywhere.

All epochs laid end to end are one stream of positions: position p is place p mod N of epoch p div N. Global batch t is
the positions [tG, (t+1)G); rank r of D takes the r-th of its D equal parts. So the samples of a batch do not depend on
the number of ranks, workers or micro-batches, and a job that resumes on other ranks, or with another global batch,
repeats nothing and misses nothing:

    tail "carry"   ... | epoch 0: N positions | epoch 1: N positions | ...     a batch may span epochs; none is lost
    tail "drop"    ... | floor(N / G) batches | floor(N / G) batches | ...     the rest of each epoch is left out

The state is the place in that stream and what the place means (dataset fingerprint, seed, tail, versions). It is the
same on every rank, and its layout is frozen (docs/formats.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from operator import index
from typing import Any, Literal, SupportsIndex, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fs3.errors import Invalid
from fs3_loader.sampler_core import ORDER_VERSION, Permutation

STATE_VERSION = 1
STATE_MAX_BYTES = 1024
MAX_EPOCH = 1 << 62  # and the epochs of a batch fit 64 bits

Tail = Literal["carry", "drop"]

_STATE_TYPES: dict[str, type] = {
    "version": int,
    "order": int,
    "dataset": str,
    "samples": int,
    "seed": int,
    "tail": str,
    "epoch": int,
    "position": int,
    "batches": int,
}


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next batch begins: a place in [0, N] of an epoch; `batches` counts those already taken."""

    epoch: int = 0
    position: int = 0
    batches: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The order of one dataset under one seed, cut into global batches.

    Raises: Invalid if a field is out of range or the ranks do not divide the batch.
    """

    fingerprint: str
    num_samples: int
    global_batch: int
    seed: int = 0
    dp_rank: int = 0
    dp_size: int = 1
    tail: Tail = "carry"

    def __post_init__(self) -> None:
        for name in ("num_samples", "global_batch", "seed", "dp_rank", "dp_size"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        if self.global_batch < 1 or self.dp_size < 1:
            raise Invalid(f"global_batch {self.global_batch} and dp_size {self.dp_size} must be at least 1")
        if self.global_batch % self.dp_size:
            raise Invalid(f"global_batch {self.global_batch} is no multiple of dp_size {self.dp_size}; make it one")
        if not 0 <= self.dp_rank < self.dp_size:
            raise Invalid(f"dp_rank {self.dp_rank} must be between 0 and dp_size - 1 = {self.dp_size - 1}")
        if self.tail not in get_args(Tail):
            raise Invalid(f"tail {self.tail!r} is not known; it is one of {', '.join(get_args(Tail))}")
        if self.tail == "drop" and self.global_batch > self.num_samples:
            raise Invalid(
                f"global_batch {self.global_batch} is more than the {self.num_samples} samples of an epoch, of which "
                "tail 'drop' leaves nothing; use tail 'carry' or a smaller batch"
            )
        Permutation(self.num_samples, self.seed, 0)

    @property
    def local_batch(self) -> int:
        """Samples of a batch on one rank."""
        return self.global_batch // self.dp_size

    def starts(self, cursor: Cursor, count: int) -> list[Cursor]:
        """Where each of the next `count` batches begins, and the cursor after the last: count + 1 of them."""
        size = self.num_samples
        epoch, position = cursor.epoch, cursor.position
        result = []
        for i in range(count + 1):
            if self.tail == "carry":
                epoch, position = epoch + position // size, position % size
            elif position + self.global_batch > size:
                epoch, position = epoch + 1, 0
            result.append(Cursor(epoch, position, cursor.batches + i))
            position += self.global_batch
        return result

    def batches(self, cursor: Cursor, count: int) -> tuple[NDArray[np.int64], list[Cursor]]:
        """This rank's sample ids of the next `count` batches, int64 [count, local_batch], and the cursor after each."""
        starts = self.starts(cursor, count)
        first = np.array([start.position for start in starts[:count]], dtype=np.int64).reshape(count, 1)
        mine = np.arange(self.local_batch, dtype=np.int64) + self.dp_rank * self.local_batch
        epochs, places = np.divmod(first + mine, self.num_samples)
        epochs += np.array([start.epoch for start in starts[:count]], dtype=np.int64).reshape(count, 1)
        ids = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            ids[chosen] = Permutation(self.num_samples, self.seed, epoch).at(places[chosen])
        return ids, starts[1:]

    def when(self, sample_ids: ArrayLike, epoch: int) -> NDArray[np.int64]:
        """The places of samples in an epoch, the inverse of the order. With tail "drop" the last ones never come."""
        return Permutation(self.num_samples, self.seed, epoch).when(sample_ids)

    def cursor_at(self, batch: int) -> Cursor:
        """The cursor before global batch `batch` of a run that began at the beginning with this global batch.

        Raises: Invalid if `batch` is no whole number, negative or beyond all epochs.
        """
        batch = whole("batch", batch)
        if batch < 0:
            raise Invalid(f"a batch number cannot be negative: {batch}")
        if self.tail == "carry":
            epoch, position = divmod(batch * self.global_batch, self.num_samples)
        else:
            epoch, rest = divmod(batch, self.num_samples // self.global_batch)
            position = rest * self.global_batch
        if epoch > MAX_EPOCH:
            raise Invalid(f"batch {batch} is in epoch {epoch}, and the last is 2^62")
        return Cursor(epoch, position, batch)

    def state(self, cursor: Cursor) -> dict[str, Any]:
        """The JSON-able state of `cursor`, equal on every rank, at most 1 KiB as text."""
        return {
            "version": STATE_VERSION,
            "order": ORDER_VERSION,
            "dataset": self.fingerprint,
            "samples": self.num_samples,
            "seed": self.seed,
            "tail": self.tail,
            "epoch": cursor.epoch,
            "position": cursor.position,
            "batches": cursor.batches,
        }

    def resume(self, state: dict[str, Any]) -> Cursor:
        """The cursor that `state` holds; ranks and global batch may differ from those it was taken with.

        Raises: Invalid if the state is malformed, of another version or dataset, or of another seed or tail.
        """
        _check_state(state)
        if state["dataset"] != self.fingerprint or state["samples"] != self.num_samples:
            raise Invalid(
                f"the loader state belongs to dataset {state['dataset']} ({state['samples']} samples), and this is "
                f"{self.fingerprint} ({self.num_samples} samples); open the dataset it was taken on, or start afresh"
            )
        for name, own in (("seed", self.seed), ("tail", self.tail)):
            if state[name] != own:
                raise Invalid(
                    f"the loader state was taken with {name} {state[name]!r} and this loader has {own!r}; "
                    f"give the loader {name}={state[name]!r} to resume, or start afresh"
                )
        return Cursor(state["epoch"], state["position"], state["batches"])


def whole(name: str, value: SupportsIndex) -> int:
    """`value`, a whole number of Python's or of numpy's, as Python's: so that a state is JSON. Raises: Invalid."""
    try:
        return int(index(value))
    except TypeError:
        raise Invalid(f"{name} must be a whole number, not {value!r}") from None


def _check_state(state: dict[str, Any]) -> None:
    if not isinstance(state, dict):
        raise Invalid(f"a loader state is a dict as state_dict() gives it, not {type(state).__name__}")
    for name, supported in (("version", STATE_VERSION), ("order", ORDER_VERSION)):
        if state.get(name) != supported:
            raise Invalid(
                f"the loader state has {name} {state.get(name)!r} and this fs3_loader reads {supported}; "
                "resume with the release that wrote it"
            )
    for name, kind in _STATE_TYPES.items():
        value = state.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise Invalid(f"the loader state is damaged: {name} is {value!r}; take it from an older checkpoint")
    if state["position"] > state["samples"]:
        raise Invalid(
            f"the loader state is damaged: position {state['position']} of {state['samples']} samples; "
            "take it from an older checkpoint"
        )
    if state["epoch"] > MAX_EPOCH:
        raise Invalid(
            f"the loader state is damaged: epoch {state['epoch']}, and the last is 2^62; "
            "take it from an older checkpoint"
        )
    if len(json.dumps(state)) > STATE_MAX_BYTES:
        raise Invalid(
            f"the loader state is damaged: more than {STATE_MAX_BYTES} bytes; take it from an older checkpoint"
        )
