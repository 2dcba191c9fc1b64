"""Chain tables: equal load, heads spread, replicas on distinct nodes, and a lost disk's load spread over the others."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from fs3.errors import Invalid
from fs3.ids import NodeId, machine_of, worker_node
from fs3.mgmtd.placement_core import DiskSlot, complete_nodes, place_chains, plan_tables
from fs3.routing import Node, NodeKind, TargetState


def disks(*per_node: int) -> list[DiskSlot]:
    return [DiskSlot(NodeId(node + 1), disk) for node, count in enumerate(per_node) for disk in range(count)]


def shared_by(workers: int, *per_node: int) -> list[DiskSlot]:
    """Every worker of a node has something of every disk of it."""
    return [
        DiskSlot(worker_node(slot.node_id, worker), slot.disk) for slot in disks(*per_node) for worker in range(workers)
    ]


def shared(chains: list[tuple[DiskSlot, ...]]) -> Counter[tuple[DiskSlot, DiskSlot]]:
    return Counter(pair for chain in chains for pair in itertools.permutations(chain, 2))


@pytest.mark.parametrize("per_node", [1, 2, 3])
@pytest.mark.parametrize("nodes", range(1, 13))
def test_even_clusters_are_balanced(nodes: int, per_node: int) -> None:
    slots = disks(*[per_node] * nodes)
    for replicas, per_disk in itertools.product(range(1, min(nodes, 5) + 1), (1, 2, 3)):
        chains = place_chains(slots, replicas, per_disk)
        assert len(chains) == per_disk * len(slots)
        for place in range(replicas):
            assert set(Counter(chain[place] for chain in chains).values()) == {per_disk}
        assert all(len({slot.node_id for slot in chain}) == replicas for chain in chains)
        together = shared(chains)
        counts = [together[a, b] for a, b in itertools.permutations(slots, 2) if a.node_id != b.node_id]
        if counts:
            mean = per_disk * replicas * (replicas - 1) / (len(slots) - per_node)
            assert max(counts) - min(counts) <= 2
            assert max(counts) <= mean + 2


def test_three_nodes_get_all_orders() -> None:
    chains = place_chains(disks(1, 1, 1), 3, 2)
    assert sorted(chains) == sorted(itertools.permutations(disks(1, 1, 1)))


@pytest.mark.parametrize("per_node", [(1, 2, 3), (2, 2, 1), (4, 4, 4, 2), (1, 1, 2, 3, 5)])
def test_uneven_clusters_are_as_even_as_nodes_allow(per_node: tuple[int, ...]) -> None:
    slots = disks(*per_node)
    for replicas in range(1, len(per_node) + 1):
        chains = place_chains(slots, replicas, 2)
        assert len(chains) == 2 * len(slots)
        assert all(len({slot.node_id for slot in chain}) == replicas for chain in chains)
        load = Counter(slot for chain in chains for slot in chain)
        for node in {slot.node_id for slot in slots}:
            mine = [load[slot] for slot in slots if slot.node_id == node]
            assert max(mine) - min(mine) <= 1, "the disks of one node are alike"
        if max(per_node) * replicas <= len(slots):
            assert max(load.values()) - min(load.values()) <= 1


@pytest.mark.parametrize("per_node", [(1, 1, 1), (2, 2), (1, 1, 1, 1, 1), (1, 2, 3), (2, 2, 1, 1)])
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_of_a_machine_never_share_a_chain(workers: int, per_node: tuple[int, ...]) -> None:
    slots = shared_by(workers, *per_node)
    for replicas in range(1, min(len(per_node), 3) + 1):
        chains = place_chains(slots, replicas, 2)
        assert len(chains) == 2 * len(slots)
        assert all(len({machine_of(slot.node_id) for slot in chain}) == replicas for chain in chains)
        if len(set(per_node)) == 1:
            for place in range(replicas):
                assert set(Counter(chain[place] for chain in chains).values()) == {2}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_reads_of_a_lost_machine_spread_over_the_workers_of_all_others(workers: int) -> None:
    slots = shared_by(workers, *[1] * 6)
    chains = place_chains(slots, 3, 2)
    for machine in range(1, 7):
        heirs = Counter(
            slot
            for chain in chains
            if any(slot.machine == machine for slot in chain)
            for slot in chain
            if slot.machine != machine
        )
        assert heirs.keys() == {slot for slot in slots if slot.machine != machine}
        assert max(heirs.values()) <= 2 * heirs.total() / len(heirs)


def node(node_id: int, *, workers: int = 1, alive: bool = True, kind: NodeKind = NodeKind.STORAGE) -> Node:
    return Node(node_id=NodeId(node_id), kind=kind, endpoints=("n:1",), alive=alive, workers=workers)


def test_a_node_is_complete_with_all_its_workers() -> None:
    first, second = worker_node(1, 0), worker_node(1, 1)
    assert complete_nodes([node(first, workers=2), node(2), node(3, kind=NodeKind.META)]).keys() == {2}
    assert complete_nodes([node(second, workers=2)]) == {}
    assert complete_nodes([node(first, workers=2), node(second, workers=2, alive=False)]) == {}
    both = [node(second, workers=2), node(first, workers=2)]
    assert complete_nodes(both) == {1: both[::-1]}
    assert complete_nodes([node(first), node(second, workers=2)]).keys() == {1}, "one that goes is no part of it"


def test_a_plan_is_consistent() -> None:
    plan = plan_tables(disks(1, 1, 1), 3, 2)
    assert [(table.table_id, table.version, table.replicas, len(table.chains)) for table in plan.tables] == [
        (1, 1, 1, 6),
        (2, 1, 2, 6),
        (3, 1, 3, 6),
    ]
    targets = {target.target_id: target for target in plan.targets}
    assert len(targets) == len(plan.targets) == 6 + 12 + 18
    for chain in plan.chains:
        assert chain.version == 1 and len(chain.targets) == chain.replicas
        assert all(targets[target].chain_id == chain.chain_id for target in chain.targets)
        assert all(targets[target].state == TargetState.SERVING for target in chain.targets)
    assert sorted(target for chain in plan.chains for target in chain.targets) == sorted(targets)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(Invalid, match="3 replicas need as many storage nodes with a disk each; there are 2"):
        plan_tables(disks(1, 4), 3, 2)
    with pytest.raises(Invalid, match="2 replicas need as many storage nodes with a disk each; there are 1"):
        plan_tables(shared_by(4, 1), 2, 2)
    with pytest.raises(Invalid, match="must be at least 1"):
        plan_tables(disks(1), 1, 0)
