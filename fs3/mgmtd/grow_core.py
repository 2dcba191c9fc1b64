"""More chains and replicas, and chain tables, as pure edits of the routing; see admin_core.py."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from fs3.errors import Exists, Invalid
from fs3.ids import ChainId, ChainTableId, machine_of, node_name
from fs3.mgmtd.draft_core import Disks, Draft, Edit, free_slots
from fs3.mgmtd.named_core import check_chain, count_of, find_storage_nodes, where, with_disk
from fs3.mgmtd.placement_core import DiskSlot
from fs3.routing import NodeKind, Routing, Target, TargetState


def create_replica(routing: Routing, disks: Disks, *, node: int, disk: int, chain: int) -> Edit:
    """One more replica of a chain, on this disk; of the node's workers the one that has the fewest targets there.

    Raises:
        NotFound: no such node, disk or chain.
        Exists: the machine has a replica of the chain.
        Invalid: the node or disk is drained, or nobody serves the chain.
    """
    records = with_disk(find_storage_nodes(routing, node), disk, disks)
    check_chain(routing, chain)
    for target in routing.targets.values():
        if target.chain_id == chain and machine_of(target.node_id) == machine_of(node):
            there = f"node {node_name(target.node_id)} has target {target.target_id}"
            raise Exists(f"{there} of chain {chain}; choose another node")
    open_to = [record for record in records if not record.draining and disk not in record.closed_disks]
    if not open_to:
        raise Invalid(f"{where(node, disk, 0)} is drained; first: fs3 admin undrain URL --node {node_name(node)}")
    if not routing.serving(chain):
        raise Invalid(f"chain {chain} has no serving target that a new one could be copied from")
    draft = Draft(routing)
    load = Counter(target.node_id for target in routing.targets.values() if target.disk == disk)
    record = min(open_to, key=lambda record: (load[record.node_id], record.node_id))
    target_id = draft.add_member(ChainId(chain), DiskSlot(record.node_id, disk))
    draft.say(f"target {target_id} of chain {chain} is made on {where(record.node_id, disk, 0)}")
    return draft.done()


def upload_table(routing: Routing, *, table_id: int, replicas: int, chains: Sequence[int]) -> Edit:
    """Publish the next version of a chain table; earlier versions stay, for the files that use them.

    Raises: NotFound: a chain that is not there; Invalid: the table makes no sense.
    """
    if not 0 < table_id < 1 << 32:
        raise Invalid(f"table_id {table_id}: must be from 1 to {(1 << 32) - 1}")
    if not chains:
        raise Invalid(f"chain table {table_id} lists no chains")
    for number in chains:
        check_chain(routing, number)
        if routing.chain(number).replicas != replicas:
            raise Invalid(f"chain {number} has {routing.chain(number).replicas} replicas, the table says {replicas}")
    if len(set(chains)) < len(chains):
        twice = next(number for place, number in enumerate(chains) if number in chains[:place])
        raise Invalid(f"chain {twice} is listed twice")
    draft = Draft(routing)
    newest = draft.newest_table(ChainTableId(table_id))
    if newest is not None and newest.replicas != replicas:
        raise Invalid(
            f"chain table {table_id} is of {newest.replicas} replicas, not {replicas}; choose another table_id"
        )
    if newest is not None and newest.chains == tuple(chains):
        draft.say(f"chain table {table_id} version {newest.version} is the same; nothing was published")
        return draft.done()
    version = draft.publish_table(ChainTableId(table_id), replicas, [ChainId(number) for number in chains])
    draft.say(f"chain table {table_id} version {version} is published: {count_of(len(chains), 'chain')}")
    return draft.done()


def grow(routing: Routing, disks: Disks) -> Edit:
    """New chains for the disks that are in no chain yet; each table's next version lists them once they serve.

    A table gets as many new chains per new disk as it has per old one. They lie on new disks first, and on the least
    loaded others where the new nodes are fewer than the replicas.

    Raises: Invalid: no disk is new, or too few nodes are there.
    """
    used = {DiskSlot(target.node_id, target.disk) for target in routing.targets.values()}
    new = [slot for slot in _open_slots(routing, disks) if slot not in used]
    if not new:
        raise Invalid("every disk of every node that is alive and not drained has targets; nothing is to be grown")
    old = max(len(used), 1)
    draft = Draft(routing)
    for table_id in sorted({known for known, _ in routing.tables}):
        table = draft.newest_table(table_id)
        assert table is not None
        count = max(round(len(table.chains) / old), 1) * len(new)
        for _ in range(count):
            _add_chain(draft, disks, table_id, table.replicas, new)
        where_to = count_of(len(new), "new disk")
        draft.say(f"chain table {table_id}: {count_of(count, 'chain')} of {table.replicas} replicas on {where_to}")
    return draft.done()


def balance(routing: Routing, disks: Disks, *, most: int = 0) -> Edit:
    """Move targets from the disks that have the most to those that have the fewest, as drains of single targets.

    For nodes that came, or came back empty. Chains of each number of replicas are evened out by themselves, since data
    may lie on one of them only. At most `most` of them (0: as many as it takes), and none of a chain that
    lacks a replica or of which one moves already.

    Raises: Invalid: nothing is to be moved.
    """
    draft = Draft(routing)
    moved: set[ChainId] = set()
    for replicas in sorted({chain.replicas for chain in routing.chains.values()}, reverse=True):
        load: Counter[DiskSlot] = Counter(dict.fromkeys(_open_slots(routing, disks), 0))
        there: dict[DiskSlot, list[Target]] = defaultdict(list)
        for _, target in sorted(routing.targets.items()):
            slot = DiskSlot(target.node_id, target.disk)
            if routing.chain(target.chain_id).replicas == replicas and slot in load:
                load[slot] += not routing.is_draining(target)
                there[slot] += [target] if _may_move(routing, target) else []
        while (not most or len(moved) < most) and (move := _next_move(routing, load, there, moved)) is not None:
            target, to = move
            draft.mark(target.target_id, draining=True)
            moved.add(target.chain_id)
            load[DiskSlot(target.node_id, target.disk)] -= 1
            load[to] += 1
    if not moved:
        raise Invalid("every disk has as many targets as the others, as far as they can be moved; nothing was changed")
    draft.say(f"{count_of(len(moved), 'target')} to be moved to disks that have fewer")
    return draft.done()


def _may_move(routing: Routing, target: Target) -> bool:
    members = [routing.targets[target_id] for target_id in routing.chain(target.chain_id).targets]
    return all(member.state == TargetState.SERVING and not routing.is_draining(member) for member in members)


def _next_move(
    routing: Routing, load: Counter[DiskSlot], there: dict[DiskSlot, list[Target]], moved: set[ChainId]
) -> tuple[Target, DiskSlot] | None:
    """A target of the fullest disk that some disk with two fewer can take: then both are nearer to the others."""
    for source in sorted(load, key=lambda slot: (-load[slot], slot)):
        for to in sorted(load, key=lambda slot: (load[slot], slot)):
            if load[source] - load[to] < 2:
                break
            for target in there[source]:
                if target.chain_id not in moved and _can_take(routing, to, target):
                    return target, to
    return None


def _can_take(routing: Routing, to: DiskSlot, target: Target) -> bool:
    """Whether a replacement of `target` may go there: on no other replica's machine, and to another node than its."""
    others = [routing.targets[one] for one in routing.chain(target.chain_id).targets if one != target.target_id]
    return to.node_id != target.node_id and all(machine_of(one.node_id) != to.machine for one in others)


def _add_chain(
    draft: Draft, disks: Disks, table_id: ChainTableId, replicas: int, preferred: Sequence[DiskSlot]
) -> None:
    chain_id = draft.new_chain(replicas, table_id)
    for place in range(replicas):
        slots = free_slots(draft.view, disks, chain_id)
        if not slots:
            raise Invalid(f"chain table {table_id} has {replicas} replicas, and only {place} nodes have a disk for one")
        slot = next((slot for slot in slots if slot in preferred), slots[0])
        draft.add_member(chain_id, slot, accept_loss=place == 0)


def _open_slots(routing: Routing, disks: Disks) -> list[DiskSlot]:
    return sorted(
        DiskSlot(node.node_id, disk.disk)
        for node in routing.nodes.values()
        if node.kind == NodeKind.STORAGE and node.alive and not node.draining
        for disk in disks.get(node.node_id, ())
        if disk.disk not in node.closed_disks
    )
