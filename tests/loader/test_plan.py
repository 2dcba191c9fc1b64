"""Batches: the stream cut exactly once, whatever the ranks; the state resumes anywhere, and only its own."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs3.errors import Invalid
from fs3_loader.plan_core import MAX_EPOCH, STATE_MAX_BYTES, Cursor, Plan, Tail
from fs3_loader.sampler_core import perm

FINGERPRINT = "sha256:" + "ab" * 32


def make_plan(num_samples: int, global_batch: int, *, seed: int = 3, tail: Tail = "carry") -> Plan:
    return Plan(fingerprint=FINGERPRINT, num_samples=num_samples, global_batch=global_batch, seed=seed, tail=tail)


def run_on_all_ranks(plan: Plan, dp_size: int, cursor: Cursor, count: int) -> tuple[list[int], Cursor]:
    """The samples of `count` global batches, as the ranks together read them, and the cursor they agree on after."""
    ranks = [replace(plan, dp_rank=rank, dp_size=dp_size) for rank in range(dp_size)]
    parts = [rank.batches(cursor, count) for rank in ranks]
    assert all(part[1] == parts[0][1] for part in parts)
    states = {json.dumps(rank.state(part[1][-1])) for rank, part in zip(ranks, parts, strict=True)}
    assert len(states) == 1
    state = states.pop()
    assert len(state) <= STATE_MAX_BYTES
    return np.concatenate([part[0] for part in parts], axis=1).reshape(-1).tolist(), plan.resume(json.loads(state))


runs = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=6)


@given(num_samples=st.integers(1, 60), runs=runs, seed=st.integers(0, 99))
def test_carry_repeats_and_misses_nothing_across_resumes_on_other_ranks_and_batches(
    num_samples: int, runs: list[tuple[int, int, int]], seed: int
) -> None:
    """Each run has (dp_size, samples a rank, batches) of its own; end to end they read every epoch's order in full."""
    cursor, read = Cursor(), []
    for dp_size, local, count in runs:
        plan = make_plan(num_samples, dp_size * local, seed=seed)
        ids, cursor = run_on_all_ranks(plan, dp_size, cursor, count)
        read += ids
    epochs = -(-len(read) // num_samples)
    stream = np.concatenate([perm(num_samples, seed, epoch, np.arange(num_samples)) for epoch in range(epochs)])
    assert read == stream[: len(read)].tolist()
    assert cursor.batches == sum(count for _, _, count in runs)


@given(num_samples=st.integers(4, 60), dp_sizes=st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=5))
def test_drop_leaves_out_the_rest_of_each_epoch_and_nothing_else(num_samples: int, dp_sizes: list[int]) -> None:
    plan = make_plan(num_samples, 4, tail="drop")
    per_epoch = num_samples // 4
    cursor, read = Cursor(), []
    for dp_size in dp_sizes:
        ids, cursor = run_on_all_ranks(plan, dp_size, cursor, 3)
        read += ids
    epochs = -(-len(read) // (per_epoch * 4))
    stream = np.concatenate([perm(num_samples, 3, epoch, np.arange(per_epoch * 4)) for epoch in range(epochs)])
    assert read == stream[: len(read)].tolist()


@given(
    num_samples=st.integers(8, 50),
    local=st.integers(1, 4),
    batch=st.integers(0, 40),
    tail=st.sampled_from(["carry", "drop"]),
)
def test_a_batch_is_found_by_its_number(num_samples: int, local: int, batch: int, tail: Tail) -> None:
    plan = replace(make_plan(num_samples, 2 * local, tail=tail), dp_rank=1, dp_size=2)
    from_start, cursors = plan.batches(Cursor(), batch + 1)
    found, after = plan.batches(plan.cursor_at(batch), 1)
    assert found[0].tolist() == from_start[batch].tolist()
    assert after[0] == cursors[batch]


@pytest.mark.parametrize("tail", ["carry", "drop"])
def test_the_last_epoch_has_batches_and_beyond_it_there_are_none(tail: Tail) -> None:
    plan = make_plan(12, 4, tail=tail)
    last = plan.cursor_at(3 * MAX_EPOCH + 2)
    assert last.epoch == MAX_EPOCH
    assert plan.resume(plan.state(last)) == last
    ids, _ = plan.batches(last, 2)
    assert ids[0].tolist() == perm(12, 3, MAX_EPOCH, np.arange(8, 12)).tolist()
    with pytest.raises(Invalid, match=r"is in epoch \d+, and the last is 2\^62"):
        plan.cursor_at(3 * MAX_EPOCH + 3)


def test_numbers_of_numpy_are_numbers() -> None:
    """Their state is JSON, is taken back, and does not overflow."""
    plan = make_plan(12, 4)
    fields = {"num_samples": 12, "global_batch": 4, "seed": 3, "dp_rank": 0, "dp_size": 1}
    theirs = replace(plan, **{name: np.int16(value) for name, value in fields.items()})
    assert theirs.cursor_at(np.int16(20_000)) == plan.cursor_at(20_000)
    _, (after,) = theirs.batches(theirs.cursor_at(np.int16(20_000)), 1)
    assert theirs.resume(json.loads(json.dumps(theirs.state(after)))) == plan.cursor_at(20_001)
    assert json.dumps(theirs.state(after)) == json.dumps(plan.state(after))
    with pytest.raises(Invalid, match=r"batch must be a whole number, not 1\.5"):
        plan.cursor_at(1.5)  # type: ignore[arg-type]


def test_the_end_of_an_epoch_is_the_beginning_of_the_next() -> None:
    plan = make_plan(12, 4)
    _, cursors = plan.batches(Cursor(), 3)
    assert cursors[-1] == Cursor(epoch=1, position=0, batches=3)


def test_when_says_where_in_the_epoch_a_sample_comes() -> None:
    plan = make_plan(20, 5)
    ids, _ = plan.batches(Cursor(), 4)
    assert plan.when(ids.reshape(-1), 0).tolist() == list(range(20))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "sha256:" + "cd" * 32}, "belongs to dataset"),
        ({"samples": 11}, "belongs to dataset"),
        ({"seed": 4}, "seed=4 to resume"),
        ({"tail": "drop"}, "tail='drop' to resume"),
        ({"version": 2}, "version 2"),
        ({"order": 9}, "order 9"),
        ({"position": -1}, "position is -1"),
        ({"position": 13}, "position 13 of 12"),
        ({"epoch": None}, "epoch is None"),
        ({"epoch": 1 << 63}, r"epoch 9223372036854775808, and the last is 2\^62"),
        ({"batches": True}, "batches is True"),
    ],
)
def test_refuses_a_state_that_is_not_its_own(change: dict[str, object], said: str) -> None:
    plan = make_plan(12, 4)
    state = plan.state(Cursor(1, 4, 4))
    assert plan.resume(state) == Cursor(1, 4, 4)
    with pytest.raises(Invalid, match=said):
        plan.resume(state | change)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dp_size": 3}, "no multiple of dp_size 3"),
        ({"dp_rank": 2, "dp_size": 2}, "dp_rank 2"),
        ({"global_batch": 0}, "at least 1"),
        ({"tail": "pad"}, "'pad' is not known"),
        ({"tail": "drop", "global_batch": 16}, "leaves nothing"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"global_batch": 16 / 4}, "global_batch must be a whole number, not 4.0"),
        ({"dp_size": "2"}, "dp_size must be a whole number, not '2'"),
    ],
)
def test_refuses_numbers_that_make_no_plan(fields: dict[str, object], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        replace(make_plan(12, 4), **fields)
