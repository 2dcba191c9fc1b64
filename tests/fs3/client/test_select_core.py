"""Replica choice: only what may answer is asked, load and chains are spread, and few or many ranges agree on both."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fs3.client.select_core import FEW, NONE, choose, choose_one, replica_table, unserved
from fs3.errors import StaleRouting
from fs3.ids import TargetId
from fs3.routing import Routing, TargetState


def pick(candidates: np.ndarray, usable: np.ndarray, load: list[int], *, length: int = 1 << 20, rotation: int = 0,
         groups: np.ndarray | None = None, slack: int = 0) -> np.ndarray:  # fmt: skip
    return choose(
        candidates,
        usable,
        np.full(len(candidates), length, dtype=np.int64),
        np.array(load, dtype=np.int64),
        slack=slack,
        rotation=rotation,
        groups=groups if groups is not None else np.zeros(len(candidates), dtype=np.int64),
    )


@pytest.mark.parametrize("count", [FEW // 2, FEW * 8])
@pytest.mark.parametrize("rotation", [0, 1, 5])
def test_equal_replicas_share_equally_however_a_chain_orders_them(count: int, rotation: int) -> None:
    orders = np.array([[0, 1, 2], [2, 0, 1], [1, 2, 0]])  # the order against which going round by range fails
    groups = np.arange(count) % 3
    candidates = orders[groups]
    columns = pick(candidates, np.ones_like(candidates, dtype=bool), [0, 0, 0], rotation=rotation, groups=groups)
    got = np.bincount(candidates[np.arange(count), columns], minlength=3)
    assert got.max() - got.min() <= 1 if count <= FEW else got.max() - got.min() <= 3


@pytest.mark.parametrize("count", [5, FEW * 3])
def test_what_is_not_usable_is_never_asked(count: int) -> None:
    rng = np.random.default_rng(count)
    candidates = rng.integers(0, 4, (count, 3))
    usable = rng.random((count, 3)) < 0.4
    for length in (64, 1 << 20):
        for slack in (0, 100):
            groups = rng.integers(0, 7, count)
            columns = pick(
                candidates, usable, [0, 10, 20, 0], groups=groups, slack=slack, length=length, rotation=slack
            )
            for row, column in enumerate(columns.tolist()):
                assert (column == NONE) == (not usable[row].any())
                assert column == NONE or usable[row, column]


@pytest.mark.parametrize("count", [4, FEW * 2])
def test_an_endpoint_that_owes_much_is_left_alone(count: int) -> None:
    candidates = np.tile([0, 1, 2], (count, 1))
    columns = pick(candidates, np.ones((count, 3), dtype=bool), [1 << 30, 0, 0], slack=1 << 20)
    assert 0 not in columns.tolist() and {1, 2} == set(columns.tolist())
    for rotation in range(9):
        columns = pick(candidates, np.ones((count, 3), dtype=bool), [1 << 30, 0, 0], length=64, rotation=rotation)
        assert 0 not in columns.tolist()


@pytest.mark.parametrize("count", [1, 10, 256])
def test_few_bytes_come_from_few_endpoints_and_not_always_the_same(count: int) -> None:
    rng = np.random.default_rng(count)
    candidates = np.tile([0, 1, 2], (count, 1))
    usable = np.ones((count, 3), dtype=bool)
    asked = [pick(candidates, usable, [0, 0, 0], length=4_096, rotation=int(rng.integers(1 << 16))) for _ in range(300)]
    assert all(len(set(columns.tolist())) == 1 for columns in asked)
    share = np.bincount([int(columns[0]) for columns in asked], minlength=3)
    assert share.min() >= 70, "three equal replicas of 300 turns"
    # Over many nodes: everyone is asked for something they have, and fewer are asked than there are ranges.
    candidates = np.array([rng.choice(40, 3, replace=False) for _ in range(count)])
    columns = pick(candidates, usable, [0] * 40, length=64, rotation=5)
    endpoints = candidates[np.arange(count), columns]
    assert len(set(endpoints.tolist())) <= min(count, 40)
    assert count < 256 or len(set(endpoints.tolist())) < 36


def test_few_large_ranges_even_out_a_difference_in_load() -> None:
    candidates = np.tile([0, 1], (6, 1))
    columns = pick(candidates, np.ones((6, 2), dtype=bool), [4 << 20, 0], length=1 << 20)
    assert np.bincount(columns).tolist() == [1, 5]


def test_the_table_lists_serving_targets_head_first_and_knows_its_chains(cluster) -> None:  # type: ignore[no-untyped-def]
    cluster.set_chain(2, [3, 1])
    routing: Routing = cluster.mgmtd.routing
    endpoints = {int(n.node_id): n.endpoints[0] for n in routing.nodes.values()}
    table = replica_table(routing)
    rows = table.rows(np.array([2, 1, 2], dtype=np.uint32))
    assert table.chains[rows].tolist() == [2, 1, 2]
    assert table.chain_version[rows].tolist() == [2, 1, 2]
    row = int(rows[0])
    assert [table.endpoints[at] for at in table.endpoint[row, :2]] == [endpoints[3], endpoints[1]]
    assert table.endpoint[row, 2] == NONE and table.serving[row] == 2
    assert table.target[row].tolist() == [203, 201, NONE]
    assert all(routing.targets[t].state == TargetState.SERVING for t in table.target[row, :2])
    assert [node.endpoints[0] for node in table.nodes] == list(table.endpoints)
    with pytest.raises(StaleRouting, match="chain 77"):
        table.rows(np.array([1, 77], dtype=np.uint32))
    with pytest.raises(StaleRouting, match="no chains"):
        replica_table(Routing()).rows(np.array([1], dtype=np.uint32))


def test_who_must_come_back_is_named(cluster) -> None:  # type: ignore[no-untyped-def]
    cluster.set_chain(2, [3, 1])
    routing: Routing = cluster.mgmtd.routing
    assert unserved(routing, 2) == "chain 2 has no serving target that answers"
    last = dataclasses.replace(routing.targets[TargetId(203)], state=TargetState.LASTSRV)
    routing = dataclasses.replace(routing, targets={**routing.targets, last.target_id: last})
    assert "target 203 on node 3 was the last that served, and must come back" in unserved(routing, 2)
    assert unserved(routing, 99) == "chain 99 has no serving target that answers"


def test_a_single_range_goes_where_a_batch_of_it_would() -> None:
    rng = np.random.default_rng(9)
    for _ in range(2_000):
        endpoints = rng.permutation(6)[: rng.integers(1, 5)]
        load = rng.choice([0, 0, 1_000, 5_000, 1 << 24], 6).tolist()
        length, rotation = int(rng.choice([1, 1 << 20, 4 << 20])), int(rng.integers(1 << 16))
        usable = np.ones((1, len(endpoints)), dtype=np.bool_)
        column = pick(endpoints[None, :], usable, load, length=length, rotation=rotation, slack=4_000)
        owed = [load[one] for one in endpoints]
        assert choose_one(endpoints.tolist(), length, owed, slack=4_000, rotation=rotation) == endpoints[column[0]]
