"""What follows, at every decision, from what an operator has asked for; recorded in the routing, so that it outlives
the mgmtd that was asked.

    a target shall leave (itself, its disk or its node is drained)
        its chain lacks a replica without it     a new one on another node joins, and is brought up to date
        the chain serves with all its replicas   it stops serving (its daemon sees `Routing.stepping_down`), and is
                                                 then taken out; its daemon deletes it
        one of those has damaged chunks          it stays, or is waited for: it may have the only good copies
    it shall stay after all, and its replacement   that shall leave
    is on another worker of its machine
    a target accepts loss, and serves            the mark goes
    new chains wait to join a table              once all of them serve, the table's next version lists them

Nothing here takes a serving target away: that is the state table's business (chain_core.py), once the daemon has said
that it stopped. Source: 3FS design notes; the order (first the new replica, then the old one) is ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fs3.ids import ChainId, ChainTableId, machine_of, node_name
from fs3.mgmtd.draft_core import Disks, Draft, Edit, free_slots
from fs3.mgmtd.named_core import some, where
from fs3.mgmtd.placement_core import DiskSlot
from fs3.routing import Routing, Target, TargetState

_AWAY = (TargetState.WAITING, TargetState.OFFLINE)


def advance(routing: Routing, disks: Disks) -> Edit:
    """The routing with the next steps taken (the same object if there are none), and a line for each."""
    beside = [target for target in routing.targets.values() if _is_beside(routing, target)]
    emptied = {node.node_id for node in routing.nodes.values() if node.draining or node.closed_disks}
    leaving = {
        target.chain_id
        for target in routing.targets.values()
        if target.draining or (target.node_id in emptied and routing.is_draining(target))
    } | {target.chain_id for target in beside}
    accepted = [
        target for target in routing.targets.values() if target.accept_loss and target.state == TargetState.SERVING
    ]
    joining = [chain for chain in routing.chains.values() if chain.joins_table is not None]
    if not (leaving or accepted or joining):
        return routing, ()
    draft = Draft(routing)
    for target in accepted:
        draft.mark(target.target_id, accept_loss=False)
    for target in beside:
        draft.mark(target.target_id, draining=True)
    for chain_id in sorted(leaving):
        _replace_leaving(draft, disks, chain_id)
    _publish_joining(draft)
    return draft.done()


def _is_beside(routing: Routing, target: Target) -> bool:
    """Whether it was made on the same machine as the one it was to replace, and now both are to stay."""
    known = routing.targets.get(target.replaces) if target.replaces is not None else None
    return (
        known is not None
        and machine_of(known.node_id) == machine_of(target.node_id)
        and not routing.is_draining(known)
        and not routing.is_draining(target)
    )


class Wait(NamedTuple):
    """Why the draining of a chain's target does not go on; `no_room`: no node could take a replacement."""

    chain_id: ChainId
    reason: str
    no_room: bool = False


def waits(routing: Routing, disks: Disks) -> list[Wait]:
    """The chains in which draining waits for somebody to do something."""
    found = []
    for chain_id in sorted(routing.chains):
        members = [routing.targets[target_id] for target_id in routing.chain(chain_id).targets]
        leaving = [member for member in members if routing.is_draining(member)]
        staying = [member for member in members if not routing.is_draining(member)]
        if not leaving or routing.spares_others(chain_id):
            continue
        if not routing.serving(chain_id):
            found.append(Wait(chain_id, f"chain {chain_id} has no serving target to copy from"))
        elif routing.is_full(chain_id):
            found += [Wait(chain_id, reason) for reason in _damage(routing, chain_id, leaving)]
        elif len(staying) < routing.chain(chain_id).replicas:
            if _find_slot(routing, disks, leaving[0]) is None:
                reason = f"no other node has a disk for a replica of chain {chain_id}; add a node"
                found.append(Wait(chain_id, reason, no_room=True))
        else:
            away = [member for member in staying if member.state == TargetState.OFFLINE]
            found += [
                Wait(chain_id, f"chain {chain_id} waits for target {one.target_id} on node {node_name(one.node_id)}")
                for one in away
            ]
    return found


def _damage(routing: Routing, chain_id: ChainId, leaving: Sequence[Target]) -> Iterator[str]:
    """Who is kept for the sake of chunks that those who stay have lost, and what to do if it is away."""
    damaged = some([target.target_id for target in routing.staying(chain_id) if target.damaged])
    for member in leaving:
        if member.state == TargetState.SERVING:
            yield (
                f"chain {chain_id} keeps target {member.target_id} until the damaged chunks of target {damaged} are"
                f" repaired, written anew or removed; see: fs3 admin damaged URL"
            )
        else:
            yield (
                f"chain {chain_id} waits for target {member.target_id} on node {node_name(member.node_id)}, which may"
                f" have good copies of damaged chunks of target {damaged}; start that node, or give these chunks up:"
                f" fs3 admin remove URL --target {member.target_id}"
            )


def _replace_leaving(draft: Draft, disks: Disks, chain_id: ChainId) -> None:
    view = draft.view
    members = draft.members(chain_id)
    leaving = [member for member in members if view.is_draining(member)]
    if view.spares_others(chain_id):
        for member in leaving:
            if member.state != TargetState.SERVING:
                draft.drop_member(member.target_id)
                draft.say(f"chain {chain_id}: target {member.target_id} leaves node {node_name(member.node_id)}")
        return
    if not view.serving(chain_id):
        return  # nobody to copy from
    replaced = {member.replaces for member in members if not view.is_draining(member)}
    missing = view.chain(chain_id).replicas - (len(members) - len(leaving))
    for member in [member for member in leaving if member.target_id not in replaced][: max(missing, 0)]:
        slot = _find_slot(view, disks, member)
        if slot is None:
            continue
        if slot.node_id == member.node_id:
            draft.drop_member(member.target_id)
        target_id = draft.add_member(chain_id, slot, replaces=member.target_id)
        draft.say(
            f"chain {chain_id}: target {target_id} on {where(slot.node_id, slot.disk, 0)} takes the place of"
            f" target {member.target_id} on node {node_name(member.node_id)}"
        )


def _find_slot(routing: Routing, disks: Disks, leaving: Target) -> DiskSlot | None:
    """Where the replacement of `leaving` goes: on another machine, or to another worker of its own; on another disk of
    its own node only if it is away anyway, since two replicas of a chain are never on one node."""
    slots = free_slots(routing, disks, leaving.chain_id, leaving=leaving)
    if slots:
        return slots[0]
    if leaving.state not in _AWAY:
        return None
    without = Draft(routing)
    without.drop_member(leaving.target_id)
    own = DiskSlot(leaving.node_id, leaving.disk)
    return next((slot for slot in free_slots(without.view, disks, leaving.chain_id) if slot != own), None)


def _publish_joining(draft: Draft) -> None:
    waiting: dict[ChainTableId, list[ChainId]] = defaultdict(list)
    for chain in draft.view.chains.values():
        if chain.joins_table is not None:
            waiting[chain.joins_table].append(chain.chain_id)
    for table_id, chains in sorted(waiting.items()):
        if all(len(draft.view.serving(chain_id)) >= draft.view.chain(chain_id).replicas for chain_id in chains):
            before = draft.newest_table(table_id)
            listed = (*(before.chains if before is not None else ()), *sorted(chains))
            replicas = draft.view.chain(chains[0]).replicas
            version = draft.publish_table(table_id, replicas, listed)
            draft.say(f"chain table {table_id} version {version}: {len(chains)} new chains, {len(listed)} in all")
