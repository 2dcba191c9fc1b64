"""Finding what an operator names, and how it is spoken of; who names what is not there is told what is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from fs3.errors import NotFound
from fs3.ids import ChainId, NodeId, TargetId, machine_of, node_name, worker_of
from fs3.mgmtd.draft_core import Disks
from fs3.routing import Node, NodeKind, Routing, Target


def find_nodes(routing: Routing, node: int, known: Iterable[int]) -> list[Node]:
    """The one of the nodes `known`, or all its workers if that is what `node` names. Raises: NotFound."""
    ids = sorted(known)
    found = [routing.nodes[NodeId(one)] for one in ids if is_named(one, node)]
    if found:
        return found
    workers = [worker_of(one) for one in ids if machine_of(one) == machine_of(node)]
    if workers:
        raise NotFound(f"node {machine_of(node)} has no worker {worker_of(node)}; it has {some(workers)}")
    raise NotFound(f"no node {node_name(node)}; there are {some({machine_of(one) for one in ids})}")


def find_storage_nodes(routing: Routing, node: int) -> list[Node]:
    """As `find_nodes`. Raises: NotFound."""
    storage = {one.node_id for one in routing.nodes.values() if one.kind == NodeKind.STORAGE}
    if NodeId(node) in routing.nodes and node not in storage:
        kind = NodeKind(routing.nodes[NodeId(node)].kind).name.lower()
        there = some({machine_of(one) for one in storage})
        raise NotFound(f"node {node} is a {kind} daemon; storage nodes are {there}")
    return find_nodes(routing, node, storage)


def is_named(node_id: int, node: int) -> bool:
    """Whether an operator who says `node` means this one: a node's own id stands for all its workers."""
    return node_id == node or machine_of(node_id) == node


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


def with_disk(records: Sequence[Node], disk: int, disks: Disks, targets: Collection[Target] = ()) -> list[Node]:
    """Those of a node's workers that have reported the disk, or on which `targets` are on it. Raises: NotFound."""
    known: dict[NodeId, set[int]] = {}
    for record in records:
        there = {target.disk for target in targets if target.node_id == record.node_id}
        known[record.node_id] = there | {one.disk for one in disks.get(record.node_id, ())} | set(record.closed_disks)
    found = [record for record in records if disk in known[record.node_id]]
    if not found:
        has = some(set().union(*known.values())) or "reported none yet"
        raise NotFound(f"node {node_name(records[0].node_id)} has no disk {disk}; it has {has}")
    return found


def where(node: int, disk: int | None, target: int) -> str:
    """What an operator named: a target, or a node, or one of its disks."""
    if target:
        return f"target {target}"
    return f"node {node_name(node)}" if disk is None else f"node {node_name(node)} disk {disk}"


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
