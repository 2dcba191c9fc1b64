"""Finding what an operator names, and how it is spoken of; who names what is not there is told what is."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from fs3.errors import NotFound
from fs3.ids import ChainId, NodeId, TargetId
from fs3.mgmtd.draft_core import Disks
from fs3.routing import Node, NodeKind, Routing, Target


def find_node(routing: Routing, node: int, known: Collection[int]) -> Node:
    """One of the nodes `known`. Raises: NotFound."""
    record = routing.nodes.get(NodeId(node))
    if record is None or node not in known:
        raise NotFound(f"no node {node}; there are {some(known)}")
    return record


def find_storage_node(routing: Routing, node: int) -> Node:
    """Raises: NotFound."""
    storage = [one.node_id for one in routing.nodes.values() if one.kind == NodeKind.STORAGE]
    if NodeId(node) in routing.nodes and node not in storage:
        kind = NodeKind(routing.nodes[NodeId(node)].kind).name.lower()
        raise NotFound(f"node {node} is a {kind} daemon; storage nodes are {some(storage)}")
    return find_node(routing, node, storage)


def find_target(routing: Routing, target: int) -> Target:
    """Raises: NotFound."""
    found = routing.targets.get(TargetId(target))
    if found is None:
        raise NotFound(f"no target {target}; there are {some(routing.targets)}")
    return found


def check_chain(routing: Routing, chain: int) -> None:
    """Raises: NotFound."""
    if ChainId(chain) not in routing.chains:
        raise NotFound(f"no chain {chain}; there are {some(routing.chains)}")


def check_disk(record: Node, disk: int, disks: Disks, targets: Iterable[Target] = ()) -> None:
    """Whether the node has reported the disk, or `targets` are on it. Raises: NotFound."""
    known = {one.disk for one in disks.get(record.node_id, ())}
    known |= {target.disk for target in targets if target.node_id == record.node_id} | set(record.closed_disks)
    if disk not in known:
        raise NotFound(f"node {record.node_id} has no disk {disk}; it has {some(known) or 'reported none yet'}")


def where(node: int, disk: int | None, target: int) -> str:
    """What an operator named: a target, or a node, or one of its disks."""
    if target:
        return f"target {target}"
    return f"node {node}" if disk is None else f"node {node} disk {disk}"


def count_of(count: int, noun: str) -> str:
    """`3 targets`, `1 target`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def some(numbers: Collection[int]) -> str:
    """Numbers in order, as ranges where they follow one another: `1-4, 7`."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
