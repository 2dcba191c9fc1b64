"""What `--wait` waits for: it ends when it is done, and with a reason when somebody else has cancelled it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fs3.cli.admin_left import to_move, to_refill, to_serve, to_stop
from fs3.errors import Conflict, NotFound
from fs3.ids import ChainId, NodeId, TargetId
from fs3.routing import Chain, Node, NodeKind, Routing, Target, TargetState


def routing(**changes: Any) -> Routing:
    """One chain with target 1 on node 1, which has these `changes`, and target 2 on node 2, which serves."""
    nodes = {NodeId(one): Node(node_id=NodeId(one), kind=NodeKind.STORAGE, endpoints=()) for one in (1, 2)}
    targets = {
        TargetId(one): Target(
            target_id=TargetId(one), node_id=NodeId(one), disk=0, chain_id=ChainId(1), state=TargetState.SERVING
        )
        for one in (1, 2)
    }
    targets[TargetId(1)] = replace(targets[TargetId(1)], **changes)
    chain = Chain(chain_id=ChainId(1), version=1, targets=tuple(targets), replicas=2)
    return Routing(cluster_id="c", version=1, nodes=nodes, targets=targets, chains={chain.chain_id: chain})


def without_target_1() -> Routing:
    whole = routing()
    return replace(whole, targets={TargetId(2): whole.targets[TargetId(2)]})


def test_a_drained_target_is_waited_for_until_it_leaves_or_stays() -> None:
    leaving = [TargetId(1)]
    assert to_move(routing(draining=True), leaving) == 1
    assert to_move(without_target_1(), leaving) == 0
    drained_node = replace(routing().nodes[NodeId(1)], draining=True)
    assert to_move(replace(routing(), nodes={**routing().nodes, NodeId(1): drained_node}), leaving) == 1
    with pytest.raises(Conflict, match="targets 1 are not drained any more"):
        to_move(routing(), leaving)


def test_a_target_is_not_refilled_because_nobody_serves_its_chain_any_more() -> None:
    slots = [(ChainId(1), NodeId(1))]
    syncing = routing(state=TargetState.SYNCING)
    assert to_refill(syncing, slots) == 1
    last = replace(syncing.targets[TargetId(2)], state=TargetState.LASTSRV)
    waiting = routing(state=TargetState.WAITING)
    assert to_refill(replace(waiting, targets={**waiting.targets, TargetId(2): last}), slots) == 1
    assert to_refill(routing(), slots) == 0


def test_a_target_that_leaves_its_chain_has_stopped() -> None:
    assert to_stop(routing(disabled=True), 1) == 1
    assert to_stop(routing(disabled=True, state=TargetState.OFFLINE), 1) == 0
    assert to_stop(without_target_1(), 1) == 0
    with pytest.raises(Conflict, match="somebody has put it back"):
        to_stop(routing(), 1)


def test_a_target_that_leaves_its_chain_never_serves() -> None:
    assert to_serve(routing(state=TargetState.SYNCING), 1) == 1
    assert to_serve(routing(), 1) == 0
    with pytest.raises(NotFound, match="target 1 has left its chain"):
        to_serve(without_target_1(), 1)
    with pytest.raises(Conflict, match="somebody has put it offline again"):
        to_serve(routing(disabled=True, state=TargetState.OFFLINE), 1)
