"""What `fs3 up` says that it waits for."""

from __future__ import annotations

import pytest

from fs3.cluster.folder import Shape
from fs3.cluster.readiness import what_is_missing
from fs3.ids import ChainId, NodeId, TargetId
from fs3.routing import Chain, LocalState, Node, NodeKind, Routing, Target, TargetState


def routing(up: set[int], serving: set[int]) -> Routing:
    """Nodes 1 to 3, each with the only target of the chain of its number, and a meta."""
    nodes = {
        NodeId(one): Node(node_id=NodeId(one), kind=NodeKind.STORAGE, endpoints=("h:1",), alive=one in up)
        for one in (1, 2, 3)
    }
    for one, kind in ((1001, NodeKind.META), (2001, NodeKind.MGMTD)):
        nodes[NodeId(one)] = Node(node_id=NodeId(one), kind=kind, endpoints=("h:2",), alive=True)
    targets = {
        TargetId(one): Target(
            target_id=TargetId(one),
            node_id=NodeId(one),
            disk=0,
            chain_id=ChainId(one),
            state=TargetState.SERVING if one in serving else TargetState.LASTSRV,
            local_state=LocalState.UPTODATE if one in serving else LocalState.OFFLINE,
        )
        for one in (1, 2, 3)
    }
    chains = {
        ChainId(one): Chain(chain_id=ChainId(one), version=1, targets=(TargetId(one),), replicas=1) for one in (1, 2, 3)
    }
    return Routing(cluster_id="c", version=1, nodes=nodes, targets=targets, chains=chains, ready=True)


@pytest.mark.parametrize(
    ("up", "serving", "said"),
    [
        ({1, 2, 3}, {1, 2, 3}, ""),
        ({1, 2, 3}, {1, 2}, "2 of 3 chains serve"),
        ({1, 2}, {1, 2}, "2 of 3 chains serve, and of the others' storage nodes 3 is not up"),
        ({1}, {1}, "1 of 3 chains serve, and of the others' storage nodes 2, 3 are not up"),
        ({1}, {1, 2}, "2 of 3 chains serve, and of the others' storage nodes 3 is not up"),  # 2 hides no chain
    ],
)
def test_nodes_that_chains_wait_for_are_named(up: set[int], serving: set[int], said: str) -> None:
    found = what_is_missing(routing(up, serving), Shape(nodes=2, replicas=1), running=("mgmtd", "meta", "storage-1"))
    assert found == said


@pytest.mark.parametrize(("alive", "there"), [([1], 0), ([1, 1 << 24 | 1], 1), ([1, 1 << 24 | 1, 2], 1)])
def test_a_storage_node_has_registered_with_its_last_worker(alive: list[int], there: int) -> None:
    nodes = {
        NodeId(one): Node(node_id=NodeId(one), kind=NodeKind.STORAGE, endpoints=("h:1",), workers=2) for one in alive
    }
    found = what_is_missing(Routing(nodes=nodes), Shape(nodes=2, replicas=1, workers=2), running=())
    assert found == f"{there} of 2 storage nodes have registered"
