"""Chain tables: equal load, heads spread, replicas on distinct nodes, and a lost disk's load spread over the others."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from fs3.errors import Invalid
from fs3.ids import NodeId
from fs3.mgmtd.placement_core import DiskSlot, place_chains, plan_tables
from fs3.routing import TargetState


def disks(*per_node: int) -> list[DiskSlot]:
    return [DiskSlot(NodeId(node + 1), disk) for node, count in enumerate(per_node) for disk in range(count)]


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
    with pytest.raises(Invalid, match="must be at least 1"):
        plan_tables(disks(1), 1, 0)
