"""What an operator may change, as pure edits of the routing: each checks, and returns the next routing with a line for
everything that it did.

An edit never takes a serving target away and never puts two replicas of a chain on one machine. Who names a node names
all its workers; one of them is named as "3.1". It states intentions and
adds empty replicas; the state table (chain_core.py) and intent_core.py do the rest, step by step, while the chains
serve. What cannot be undone is refused with the way out, unless the operator has said that he accepts the loss.
Source: 3FS's admin tool for the commands' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fs3.errors import Invalid, NotFound
from fs3.ids import ChainId, TargetId, machine_of, node_name
from fs3.mgmtd.draft_core import Disks, Draft, Edit, free_slots
from fs3.mgmtd.intent_core import Wait, waits
from fs3.mgmtd.named_core import (
    check_chain,
    count_of,
    find_nodes,
    find_storage_nodes,
    find_target,
    some,
    where,
    with_disk,
)
from fs3.mgmtd.placement_core import DiskSlot
from fs3.routing import Node, Routing, Target, TargetState

_AWAY = (TargetState.WAITING, TargetState.OFFLINE)


def drain(routing: Routing, disks: Disks, *, node: int = 0, disk: int | None = None, target: int = 0) -> Edit:
    """Have every target of a node, or of one of its disks, or one target replaced by another, and then taken away.

    Raises:
        NotFound: no such node, disk or target.
        Invalid: it is the last of its chain that holds data, or no other node has room for a replacement.
    """
    draft = Draft(routing)
    if target:
        member = find_target(routing, target)
        _check_not_last_away(routing, member)
        draft.mark(member.target_id, draining=True)
        leaving = [member]
    else:
        leaving = _mark_emptied(draft, disks, find_storage_nodes(routing, node), disk)
    _check_room([wait for wait in waits(draft.view, disks) if wait.no_room], leaving)
    lost = [member for member in leaving if member.state == TargetState.LASTSRV]
    moving = len(leaving) - len(lost)
    draft.say(f"{where(node, disk, target)} is drained: {count_of(moving, 'target')} to be replaced elsewhere")
    for member in lost:
        draft.say(f"{_last(member)}; it moves once it is back, or: {_rotation(member)}")
    return draft.done()


def undrain(routing: Routing, *, node: int = 0, disk: int | None = None, target: int = 0) -> Edit:
    """Cancel a drain: what has not left yet stays, and replacements that were made for it go.

    Raises: NotFound; Invalid: a target or disk of a node that is drained as a whole.
    """
    draft = Draft(routing)
    if target:
        staying = [find_target(routing, target)]
    else:
        records = find_storage_nodes(routing, node)
        if disk is not None:
            records = with_disk(records, disk, {}, list(routing.targets.values()))
        staying = _targets_on(routing, records, disk)
        for record in records:
            closed = tuple(number for number in record.closed_disks if disk is not None and number != disk)
            draft.set_node(replace(record, draining=record.draining and disk is not None, closed_disks=closed))
    for member in staying:
        draft.mark(member.target_id, draining=False)
        if draft.view.is_draining(draft.view.targets[member.target_id]):
            name = node_name(member.node_id)
            raise Invalid(f"node {name} is drained as a whole: fs3 admin undrain URL --node {name}")
    cancelled = 0
    for member in staying:
        if member.target_id not in draft.view.targets:
            continue  # it was made for another one of them, and is cancelled
        for other in draft.members(member.chain_id):
            left = [one for one in draft.members(member.chain_id) if not draft.view.is_draining(one)]
            spare = len(left) > draft.view.chain(member.chain_id).replicas
            if other.replaces == member.target_id and spare:
                cancelled += 1
                if other.state in (TargetState.SERVING, TargetState.LASTSRV):
                    draft.mark(other.target_id, draining=True)  # it leaves as any drained target that holds data
                else:
                    draft.drop_member(other.target_id)
    there = [draft.view.targets[one.target_id] for one in staying if one.target_id in draft.view.targets]
    stay = sum(not one.draining for one in there)
    draft.say(
        f"{where(node, disk, target)} is not drained any more; {count_of(cancelled, 'replacement')} cancelled,"
        f" {count_of(stay, 'target')} stay"
    )
    return draft.done()


def replace_targets(routing: Routing, *, node: int = 0, disk: int | None = None, target: int = 0) -> Edit:
    """Forget what a disk held and refill its targets, in place, from their chains' other replicas.

    For a disk that died and came back empty, or whose content shall not be used. Targets that serve, or are being
    refilled already, are left alone.

    Raises:
        NotFound: no such node, disk or target.
        Invalid: the one target serves, or is the last of its chain that holds data.
    """
    draft = Draft(routing)
    if target:
        asked = [find_target(routing, target)]
        if asked[0].state == TargetState.SERVING:
            raise Invalid(f"target {target} serves; to move it away: fs3 admin drain URL --target {target}")
        _check_not_last_away(routing, asked[0])
    else:
        records = find_storage_nodes(routing, node)
        assert disk is not None, "a disk of the node"
        asked = _on_disk(routing, records, disk)
        for record in records:
            draft.set_node(replace(record, closed_disks=tuple(one for one in record.closed_disks if one != disk)))
    done: dict[str, int] = {}
    for member in asked:
        verdict = _refill(draft, member)
        done[verdict] = done.get(verdict, 0) + 1
    for verdict, count in done.items():
        draft.say(f"{where(node, disk, target)}: {count_of(count, 'target')} {verdict}")
    for member in asked:
        if member.state == TargetState.LASTSRV:
            draft.say(f"{_last(member)} and is left; if its data is gone: {_rotation(member)}")
    return draft.done()


def replace_elsewhere(
    routing: Routing, disks: Disks, *, node: int = 0, disk: int | None = None, target: int = 0
) -> Edit:
    """As `drain`, for targets whose disk will not come back: they are copied from their chains' other replicas.

    Raises: as `drain`; Invalid also if the one target is the only one that serves its chain.
    """
    if target:
        member = find_target(routing, target)
        if [one.target_id for one in routing.serving(member.chain_id)] == [member.target_id]:
            raise Invalid(
                f"target {target} is the only one of chain {member.chain_id} that serves: nobody else has its data;"
                f" while it is readable: fs3 admin drain URL --target {target}; once it is lost: {_rotation(member)}"
            )
    return drain(routing, disks, node=node, disk=disk, target=target)


def remove_target(routing: Routing, target: int) -> Edit:
    """Take a target out of its chain for good, which must not need it. Raises: NotFound, Invalid."""
    member = find_target(routing, target)
    chain = routing.chain(member.chain_id)
    if member.state == TargetState.SERVING:
        raise Invalid(f"target {target} serves; it leaves by itself after: fs3 admin drain URL --target {target}")
    _check_not_last_away(routing, member)
    stand_in = member.replaces in chain.targets  # another is made for the one that it was to replace
    left = [one for one in chain.targets if one != member.target_id and not routing.is_draining(routing.targets[one])]
    if not stand_in and len(left) < chain.replicas:
        raise Invalid(
            f"chain {chain.chain_id} needs target {target}: without it {len(left)} of {chain.replicas} replicas are"
            f" left; to have another in its place: fs3 admin replace URL --target {target} --elsewhere"
        )
    draft = Draft(routing)
    draft.drop_member(member.target_id)
    draft.say(f"target {target} is out of chain {chain.chain_id}")
    return draft.done()


def remove_node(routing: Routing, node: int) -> Edit:
    """Forget a node that is gone and has no targets. Raises: NotFound, Invalid."""
    records, name = find_nodes(routing, node, routing.nodes), node_name(node)
    alive = [record for record in records if record.alive]
    if alive:
        raise Invalid(f"node {node_name(alive[0].node_id)} is alive and would register again; stop its daemon first")
    left = [target.target_id for target in _targets_on(routing, records)]
    if left:
        here = f"{count_of(len(left), 'target')} ({some(left)})"
        draining = all(record.draining for record in records)
        way = f"see: fs3 admin targets URL --node {name}" if draining else f"fs3 admin drain URL --node {name}"
        raise Invalid(f"node {name} still has {here}, which must leave it first; {way}")
    draft = Draft(routing)
    for record in records:
        draft.drop_node(record.node_id)
    draft.say(f"node {name} is removed")
    return draft.done()


def set_offline(routing: Routing, target: int) -> Edit:
    """Put a target out of service until `set_online`. Raises: NotFound; Invalid: nobody else serves its chain."""
    member = find_target(routing, target)
    _check_not_last_away(routing, member)
    stopping = routing.stepping_down(member.chain_id)
    others = [
        one
        for one in routing.serving(member.chain_id)
        if one.target_id != target and one.target_id not in stopping and not one.disabled
    ]
    if member.state == TargetState.SERVING and not others:
        raise Invalid(f"target {target} is the last one that serves chain {member.chain_id}; it stays in service")
    draft = Draft(routing)
    draft.mark(member.target_id, disabled=True)
    draft.say(f"target {target} of chain {member.chain_id} goes out of service until: fs3 admin online URL")
    return draft.done()


def set_online(routing: Routing, target: int) -> Edit:
    """End `set_offline`: the target is brought up to date and serves again. Raises: NotFound."""
    member = find_target(routing, target)
    draft = Draft(routing)
    draft.mark(member.target_id, disabled=False)
    draft.say(
        f"target {target} of chain {member.chain_id} may serve again"
        if member.disabled
        else f"target {target} was not out of service by an operator's wish; it is {member.state.name.lower()}"
    )
    return draft.done()


def rotate_last_serving(routing: Routing, disks: Disks, *, chain: int, to: int = 0) -> Edit:
    """Accept that the last one that served a chain is lost: target `to` serves with whatever its disk holds.

    What served last becomes OFFLINE, and is refilled from the new one should it come back. `to` may be that target
    itself, if its disk was replaced by an empty one. 0 is a fresh, empty replica, if the chain has no other; what
    served last then leaves the chain.

    Raises:
        NotFound: no such chain, or `to` is not of it.
        Invalid: the chain serves, or there is nobody to choose.
    """
    check_chain(routing, chain)
    if routing.serving(chain):
        raise Invalid(f"chain {chain} serves: nothing is lost, and nothing was changed")
    draft = Draft(routing)
    members = draft.members(ChainId(chain))
    chosen = _heir(draft, disks, members, chain, to)
    states = {
        member.target_id: TargetState.OFFLINE
        for member in members
        if member.state == TargetState.LASTSRV and member.target_id != chosen
    }
    draft.mark(chosen, accept_loss=True, disabled=False)
    draft.set_states(ChainId(chain), {**states, chosen: TargetState.LASTSRV})
    heir = draft.view.targets[chosen]
    at = f"node {node_name(heir.node_id)}"
    draft.say(f"chain {chain}: target {chosen} on {at} serves with what its disk holds, loss accepted")
    for target_id in states:
        draft.mark(target_id, draining=not to)
        what = "is to be refilled should it come back" if to else "leaves the chain"
        draft.say(f"chain {chain}: target {target_id}, which served last, {what}")
    if not routing.nodes[heir.node_id].alive:
        draft.say(f"chain {chain} serves as soon as {at} is back")
    return draft.done()


def _heir(draft: Draft, disks: Disks, members: Sequence[Target], chain: int, to: int) -> TargetId:
    if to:
        if all(member.target_id != to for member in members):
            raise NotFound(
                f"target {to} is not of chain {chain}, whose targets are {some([one.target_id for one in members])}"
            )
        return TargetId(to)
    others = [member for member in members if member.state != TargetState.LASTSRV]
    if others:
        choice = [f"{one.target_id} on node {node_name(one.node_id)} ({one.state.name.lower()})" for one in others]
        raise Invalid(f"chain {chain}: name with --to who shall serve: {', '.join(choice)}")
    slots = free_slots(draft.view, disks, ChainId(chain))
    if not slots:
        raise Invalid(f"chain {chain}: no other node has a disk for a new replica; name a target with --to")
    return draft.add_member(ChainId(chain), slots[0])


def _refill(draft: Draft, member: Target) -> str:
    """Make a target anew in its place, under another id, if it may be; what was done, in words."""
    if member.state in (TargetState.SERVING, TargetState.SYNCING):
        return {TargetState.SERVING: "serve already", TargetState.SYNCING: "being refilled already"}[member.state]
    if member.state == TargetState.LASTSRV or not draft.view.serving(member.chain_id):
        return "left: nobody else serves the chain"
    machine = machine_of(member.node_id)
    if any(machine_of(one.node_id) == machine for one in draft.members(member.chain_id) if one != member):
        return "left: another worker of the node has a replica too, and one of the two leaves"
    draft.drop_member(member.target_id)
    draft.add_member(member.chain_id, DiskSlot(member.node_id, member.disk))
    return "to be refilled from the other replicas"


def _mark_emptied(draft: Draft, disks: Disks, records: Sequence[Node], disk: int | None) -> list[Target]:
    """Mark the workers of a node, or one of their disks, as drained; the targets on it."""
    if disk is not None:
        records = with_disk(records, disk, disks, list(draft.view.targets.values()))
    for record in records:
        if disk is None:
            draft.set_node(replace(record, draining=True))
        else:
            draft.set_node(replace(record, closed_disks=tuple(sorted({*record.closed_disks, disk}))))
    return _targets_on(draft.view, records, disk)


def _targets_on(routing: Routing, records: Sequence[Node], disk: int | None = None) -> list[Target]:
    nodes = {record.node_id for record in records}
    return [
        target
        for target in routing.targets.values()
        if target.node_id in nodes and (disk is None or target.disk == disk)
    ]


def _check_not_last_away(routing: Routing, target: Target) -> None:
    if target.state == TargetState.LASTSRV:
        raise Invalid(
            f"{_last(target)}: bring its node {node_name(target.node_id)} back, or accept the loss: {_rotation(target)}"
        )
    if target.state in _AWAY and not routing.serving(target.chain_id):
        raise Invalid(
            f"chain {target.chain_id} has no serving target, and target {target.target_id} may hold the best copy left;"
            " bring the last one that served back first"
        )


def _on_disk(routing: Routing, records: Sequence[Node], disk: int) -> list[Target]:
    found = _targets_on(routing, records, disk)
    if not found:
        known = {one.disk for one in _targets_on(routing, records)}
        raise NotFound(
            f"node {node_name(records[0].node_id)} has no targets on disk {disk};"
            + (f" it has some on {some(known)}" if known else " it has none at all")
        )
    return found


def _last(target: Target) -> str:
    return f"target {target.target_id} was the last one that served chain {target.chain_id}"


def _rotation(target: Target) -> str:
    return f"fs3 admin rotate-lastsrv URL --chain {target.chain_id}"


def _check_room(stuck: Sequence[Wait], leaving: Sequence[Target]) -> None:
    chains = {target.chain_id for target in leaving}
    reasons = [wait.reason for wait in stuck if wait.chain_id in chains]
    if reasons:
        more = f" (and so for {count_of(len(reasons) - 1, 'more chain')})" if len(reasons) > 1 else ""
        raise Invalid(f"{reasons[0]}{more}; to stop single targets without replacement: fs3 admin offline URL")
