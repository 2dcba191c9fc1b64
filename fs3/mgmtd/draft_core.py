"""A routing being changed: members come and go, flags are set, and every chain that changes gets a new version.

Edits of an operator (admin_core.py) and what follows from them (intent_core.py) are made of these few moves, so that
the rules hold in one place: a target id is given out once, a chain's order is that of its targets' states, and its
version rises by one however much of it an edit changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fs3.ids import ChainId, ChainTableId, NodeId, TargetId, machine_of
from fs3.mgmtd.placement_core import DiskSlot
from fs3.routing import Chain, ChainTable, Disk, Node, NodeKind, Routing, Target, TargetState

Edit = tuple[Routing, tuple[str, ...]]  # the next routing, and a line for everything that was done
Disks = Mapping[NodeId, Sequence[Disk]]  # of each node, as it last reported them

_FULL = 0.96  # of a disk in use: it gets no new replicas (3FS warns there)


class Draft:
    """Changes of `base`. `view` is what it has become so far: a routing that changes with the draft."""

    def __init__(self, base: Routing) -> None:
        self.notes: list[str] = []
        self._base = base
        self._nodes = dict(base.nodes)
        self._targets = dict(base.targets)
        self._chains = dict(base.chains)
        self._tables = dict(base.tables)
        self._last_target_id = base.last_target_id
        self.view = replace(base, nodes=self._nodes, targets=self._targets, chains=self._chains, tables=self._tables)

    def done(self) -> tuple[Routing, tuple[str, ...]]:
        """The changed routing, one version on (`base` itself if nothing changed), and the notes."""
        base, view = self._base, self.view
        pairs: tuple[tuple[Any, Any], ...] = (
            (base.nodes, view.nodes),
            (base.targets, view.targets),
            (base.chains, view.chains),
            (base.tables, view.tables),
        )
        if all(before == after for before, after in pairs):
            return base, tuple(self.notes)
        return replace(view, version=base.version + 1, last_target_id=self._last_target_id), tuple(self.notes)

    def say(self, note: str) -> None:
        self.notes.append(note)

    def members(self, chain_id: ChainId) -> list[Target]:
        """In chain order."""
        return [self._targets[target_id] for target_id in self._chains[chain_id].targets]

    def add_member(
        self, chain_id: ChainId, slot: DiskSlot, *, replaces: TargetId | None = None, accept_loss: bool = False
    ) -> TargetId:
        """A new, empty replica: OFFLINE until its daemon has made it, then brought up to date like any that returns.

        With `accept_loss` it is the one that the chain waits for, and serves as it is.
        """
        assert slot.node_id in self._nodes, slot
        for member in self.members(chain_id):
            assert machine_of(member.node_id) != slot.machine or (
                member.target_id == replaces and member.node_id != slot.node_id
            ), (chain_id, slot)
        self._last_target_id += 1
        target = Target(
            target_id=TargetId(self._last_target_id),
            node_id=slot.node_id,
            disk=slot.disk,
            chain_id=chain_id,
            state=TargetState.LASTSRV if accept_loss else TargetState.OFFLINE,
            replaces=replaces,
            accept_loss=accept_loss,
        )
        self._targets[target.target_id] = target
        self._arrange(chain_id, (*self._chains[chain_id].targets, target.target_id))
        return target.target_id

    def drop_member(self, target_id: TargetId) -> None:
        """Take a replica out of its chain for good; its daemon deletes it once it hears of that."""
        target = self._targets[target_id]
        assert target.state != TargetState.SERVING, f"target {target_id} serves"
        self._arrange(
            target.chain_id, tuple(other for other in self._chains[target.chain_id].targets if other != target_id)
        )
        del self._targets[target_id]

    def set_states(self, chain_id: ChainId, states: Mapping[TargetId, TargetState]) -> None:
        for target_id, state in states.items():
            self._targets[target_id] = replace(self._targets[target_id], state=state)
        self._arrange(chain_id, self._chains[chain_id].targets)

    def mark(self, target_id: TargetId, **flags: bool) -> None:
        """Set what an operator wants of a target; the chain stays as it is."""
        self._targets[target_id] = replace(self._targets[target_id], **flags)  # type: ignore[arg-type]

    def set_node(self, node: Node) -> None:
        self._nodes[node.node_id] = node

    def drop_node(self, node_id: NodeId) -> None:
        assert all(target.node_id != node_id for target in self._targets.values()), node_id
        del self._nodes[node_id]

    def new_chain(self, replicas: int, joins_table: ChainTableId) -> ChainId:
        """A chain without members."""
        chain_id = ChainId(max(self._chains, default=0) + 1)
        self._chains[chain_id] = Chain(
            chain_id=chain_id, version=1, targets=(), replicas=replicas, joins_table=joins_table
        )
        return chain_id

    def publish_table(self, table_id: ChainTableId, replicas: int, chains: Sequence[ChainId]) -> int:
        """Add the next version of a table; the chains it lists wait for it no longer."""
        version = max((number for known, number in self._tables if known == table_id), default=0) + 1
        self._tables[table_id, version] = ChainTable(
            table_id=table_id, version=version, replicas=replicas, chains=tuple(chains)
        )
        for chain_id in chains:
            if self._chains[chain_id].joins_table == table_id:
                self._chains[chain_id] = replace(self._chains[chain_id], joins_table=None)
        return version

    def newest_table(self, table_id: ChainTableId) -> ChainTable | None:
        versions = [table for (known, _), table in self._tables.items() if known == table_id]
        return max(versions, key=lambda table: table.version, default=None)

    def _arrange(self, chain_id: ChainId, order: Sequence[TargetId]) -> None:
        """The chain with these members, in the order of their states, at most one version above the base's."""
        chain = self._chains[chain_id]
        before = self._base.chains.get(chain_id)
        self._chains[chain_id] = replace(
            chain,
            version=before.version + 1 if before is not None else 1,
            targets=tuple(sorted(order, key=lambda target_id: self._targets[target_id].state)),
        )


def free_slots(routing: Routing, disks: Disks, chain_id: ChainId, *, leaving: Target | None = None) -> list[DiskSlot]:
    """Where a new replica of a chain may go, best first: on no machine that has one, no node or disk being emptied.

    For the replacement of a target that is `leaving` the other workers of its machine will do: the chain keeps all
    other replicas meanwhile.

    The disk with the fewest targets for its size comes first; of equals the one that shares the fewest chains with the
    chain's other replicas (whose loss it would bear), then the emptiest.
    """
    members = [routing.targets[target_id] for target_id in routing.chain(chain_id).targets]
    taken = {machine_of(member.node_id) for member in members if leaving is None or member != leaving}
    there: Counter[DiskSlot] = Counter(DiskSlot(target.node_id, target.disk) for target in routing.targets.values())
    shared = _acquaintances(routing, members)
    open_disks = [
        disk
        for node in routing.nodes.values()
        if node.kind == NodeKind.STORAGE and node.alive and not node.draining
        if machine_of(node.node_id) not in taken and (leaving is None or node.node_id != leaving.node_id)
        for disk in disks.get(node.node_id, ())
        if disk.disk not in node.closed_disks and disk.free_bytes >= disk.total_bytes * (1 - _FULL)
    ]
    largest = max((disk.total_bytes for disk in open_disks), default=0)

    def cost(disk: Disk) -> tuple[int, int, int, DiskSlot]:
        slot = DiskSlot(disk.node_id, disk.disk)
        load = (there[slot] + 1) * max(largest, 1) // max(disk.total_bytes, 1)
        return load, shared[slot], -disk.free_bytes, slot

    return [DiskSlot(disk.node_id, disk.disk) for disk in sorted(open_disks, key=cost)]


def _acquaintances(routing: Routing, members: Sequence[Target]) -> Counter[DiskSlot]:
    """How many chains each disk shares with the disks of `members`."""
    wanted = {DiskSlot(member.node_id, member.disk) for member in members}
    shared: Counter[DiskSlot] = Counter()
    for chain in routing.chains.values():
        slots = [
            DiskSlot(target.node_id, target.disk)
            for target in (routing.targets[target_id] for target_id in chain.targets)
        ]
        known = sum(slot in wanted for slot in slots)
        if known:
            shared.update({slot: known for slot in slots})
    return shared
