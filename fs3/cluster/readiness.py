"""Whether a cluster is ready, from what mgmtd has heard, and what it still waits for, in words."""

from __future__ import annotations

from collections.abc import Collection

from fs3.cluster.folder import Shape
from fs3.cluster.stopping import kind_of
from fs3.ids import node_name
from fs3.mgmtd.placement_core import complete_nodes
from fs3.routing import LocalState, NodeKind, Routing, TargetState


def what_is_missing(routing: Routing, shape: Shape, *, running: Collection[str], recovered: bool = False) -> str:
    """What keeps the cluster from being ready, or "" (a daemon counts once this mgmtd has heard it).

    `running` are the names of the daemons that were started.
    """
    if not routing.ready:
        there = len(complete_nodes(routing.nodes.values()))
        return f"{there} of {shape.nodes} storage nodes have registered"
    down = [
        chain
        for chain in routing.chains
        if all(target.local_state == LocalState.OFFLINE for target in routing.serving(chain))
    ]
    if down:
        return f"{len(routing.chains) - len(down)} of {len(routing.chains)} chains serve" + _who_is_away(routing, down)
    up = sum(target.state == TargetState.SERVING for target in routing.targets.values())
    if recovered and up < len(routing.targets):
        return f"{up} of {len(routing.targets)} targets serve"
    for kind, there in (("meta", NodeKind.META), ("mgmtd", NodeKind.MGMTD)):
        wanted = sum(kind_of(name) == kind for name in running)
        alive = sum(node.kind == there and node.alive for node in routing.nodes.values())
        if alive < max(wanted, 1):
            return f"{alive} of {wanted} {kind}s have registered" if wanted > 1 else f"{kind} has not registered"
    return ""


def _who_is_away(routing: Routing, chains: Collection[int]) -> str:
    """The storage nodes that some of `chains` may wait for; a node added by hand is not started by `fs3 up`."""
    nodes = {target.node_id for target in routing.targets.values() if target.chain_id in chains}
    away = sorted(node_id for node_id in nodes if node_id not in routing.nodes or not routing.nodes[node_id].alive)
    if not away:
        return ""
    names = ", ".join(map(node_name, away))
    return f", and of the others' storage nodes {names} {'is' if len(away) == 1 else 'are'} not up"
