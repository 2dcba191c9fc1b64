"""The next routing of the whole cluster, as one pure function from what was published and what has been heard since.

mgmtd runs it at every heartbeat that says something new and whenever a lease runs out, commits the result, and only
then shows it: routing in memory is always what was committed, and a decision that could not be committed is simply made
again. A daemon whose generation changed counts as having been away in between, whatever it reports: what its targets
missed must be recovered first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fs3.ids import ChainId, NodeId, TargetId, node_name
from fs3.mgmtd.chain_core import NOT_HEARD, ChainView, Member, Report, next_chain, presumed
from fs3.mgmtd.draft_core import Disks
from fs3.mgmtd.intent_core import advance
from fs3.mgmtd.lease_core import LeaseTable
from fs3.mgmtd.placement_core import Plan
from fs3.routing import Chain, LocalState, Node, NodeKind, Routing, Target, TargetState, revised

_MAX_STEPS = 8
_NO_DISKS: Disks = {}


@dataclass(frozen=True, slots=True)
class Decision:
    """The next routing (the same object if nothing changed) and a line for each transition."""

    routing: Routing
    notes: tuple[str, ...]


def next_routing(
    routing: Routing,
    announced: Mapping[NodeId, Node],
    leases: LeaseTable,
    reports: Mapping[TargetId, Report],
    disks: Disks = _NO_DISKS,
) -> Decision:
    """What the published `routing` becomes.

    `announced` has the newest record of every node heard of, `reports` the newest report of every target whose daemon
    speaks for it, `disks` where an operator's wishes may put new targets.
    """
    notes: list[str] = []
    nodes = _next_nodes(routing, announced, leases, notes)
    targets = {target_id: _as_heard(target, reports) for target_id, target in routing.targets.items()}
    chains = dict(routing.chains)
    for chain_id in routing.chains:
        _settle(chain_id, chains, targets, routing, leases, reports, notes)
    changed = routing
    if nodes != routing.nodes or targets != routing.targets or chains != routing.chains:
        changed = replace(routing, version=routing.version + 1, nodes=nodes, targets=targets, chains=chains)
    advanced, said = advance(changed, disks)
    if advanced is routing:
        return Decision(routing, ())
    return Decision(replace(advanced, version=routing.version + 1), (*notes, *said))


def check_edit(before: Routing, after: Routing) -> None:
    """Assert that an edit of the routing left nothing dangling, and raised the version of every chain it changed."""
    for target in after.targets.values():
        assert target.node_id in after.nodes, f"target {target.target_id} is on a node that is not there"
        assert target.target_id in after.chains[target.chain_id].targets, f"target {target.target_id} is in no chain"
    for chain_id, chain in after.chains.items():
        states = [after.targets[target_id].state for target_id in chain.targets]
        assert states == sorted(states), f"chain {chain_id} is out of order"
        earlier = before.chains.get(chain_id)
        if earlier is not None and earlier.version == chain.version:
            was = [before.targets[target_id].state for target_id in earlier.targets]
            assert (earlier, was) == (chain, states), f"chain {chain_id} was changed and kept its version"
        assert earlier is None or earlier.version <= chain.version, f"chain {chain_id} goes back"
    for key, table in after.tables.items():
        assert all(chain_id in after.chains for chain_id in table.chains), f"chain table {key} names no chain"
        assert before.tables.get(key, table) == table, f"chain table {key} was changed, and never may be"


def publish(routing: Routing, plan: Plan) -> Routing:
    """The routing once every target of `plan` exists: its chains serve, its tables can be used."""
    assert not routing.ready and not routing.targets
    targets = {target.target_id: target for target in plan.targets}
    return replace(
        routing,
        version=routing.version + 1,
        targets=targets,
        chains={chain.chain_id: chain for chain in plan.chains},
        tables={(table.table_id, table.version): table for table in plan.tables},
        ready=True,
        last_target_id=max(targets, default=0),
    )


def plan_is_created(plan: Plan, leases: LeaseTable, reports: Mapping[TargetId, Report]) -> bool:
    """Whether the daemons of all targets are alive and have created them."""
    return all(
        leases.alive(target.node_id) and reports.get(target.target_id, NOT_HEARD).state == LocalState.UPTODATE
        for target in plan.targets
    )


def _next_nodes(
    routing: Routing, announced: Mapping[NodeId, Node], leases: LeaseTable, notes: list[str]
) -> dict[NodeId, Node]:
    nodes = dict(routing.nodes)
    for node_id in {**routing.nodes, **announced}:
        before = routing.nodes.get(node_id)
        record = announced.get(node_id, before)
        assert record is not None
        after = revised(record, alive=leases.alive(node_id), last_heartbeat_age_ms=0)
        if before is not None:  # what an operator said of the node; its daemon does not know
            after = revised(after, draining=before.draining, closed_disks=before.closed_disks)
        if after == before:
            continue
        nodes[node_id] = after
        kind = NodeKind(after.kind).name.lower()
        where, name = ", ".join(after.endpoints), node_name(node_id)
        if before is None:
            notes.append(f"node {name}: a {kind} daemon joins at {where}")
        elif before.generation != after.generation:
            notes.append(f"node {name}: the {kind} daemon was started again, at {where}")
        elif before.alive != after.alive:
            notes.append(f"node {name}: the {kind} daemon is {'heard again' if after.alive else 'offline'}")
    return nodes


def _as_heard(target: Target, reports: Mapping[TargetId, Report]) -> Target:
    """The target with what its daemon last said of its chunks; that it died, or said nothing lately, mends none."""
    damaged = reports.get(target.target_id, NOT_HEARD).damaged
    return target if damaged is None else revised(target, damaged=damaged)


def _settle(
    chain_id: ChainId,
    chains: dict[ChainId, Chain],
    targets: dict[TargetId, Target],
    routing: Routing,
    leases: LeaseTable,
    reports: Mapping[TargetId, Report],
    notes: list[str],
) -> None:
    """Step one chain until it rests (a target that is back goes OFFLINE -> WAITING -> SYNCING)."""
    for _ in range(_MAX_STEPS):
        chain = chains[chain_id]
        members = tuple(Member(target_id, targets[target_id].state) for target_id in chain.targets)
        known = {
            member.target_id: _report_of(targets[member.target_id], chain.version, routing, leases, reports)
            for member in members
        }
        step = next_chain(ChainView(chain_id, chain.version, members), known)
        if step.chain.version == chain.version:
            return
        for member in step.chain.members:
            targets[member.target_id] = _moved(targets[member.target_id], member.state, chain.version)
        order = tuple(member.target_id for member in step.chain.members)
        chains[chain_id] = replace(chain, version=step.chain.version, targets=order)
        moved = "; ".join(
            f"target {move.target_id} {move.before.name}->{move.after.name}, {move.reason}" for move in step.moves
        )
        notes.append(f"chain {chain_id} v{chain.version}->{step.chain.version}: {moved or 'reordered'}")
    raise AssertionError(f"chain {chain_id} does not come to rest: {notes[-_MAX_STEPS:]}")


def _moved(target: Target, state: TargetState, chain_version: int) -> Target:
    """The target in its next state; `chain_version` is the one that its daemon acted on."""
    recovered = target.state == TargetState.SYNCING or (target.state == TargetState.LASTSRV and target.accept_loss)
    complete_at = chain_version if recovered and state == TargetState.SERVING else target.complete_at
    return revised(target, state=state, complete_at=complete_at)


def _report_of(
    target: Target, chain_version: int, routing: Routing, leases: LeaseTable, reports: Mapping[TargetId, Report]
) -> Report:
    """What is known of a target, whose daemon may be away, just restarted, or not yet heard by this mgmtd."""
    node_id, state = target.node_id, target.state
    if not leases.alive(node_id) or leases.generation(node_id) != routing.nodes[node_id].generation:
        return NOT_HEARD
    if not leases.was_heard(node_id):
        return Report(presumed(state))
    report = reports.get(target.target_id, NOT_HEARD)
    if target.disabled and state not in (TargetState.SERVING, TargetState.LASTSRV):
        return NOT_HEARD  # out of service until an operator says otherwise; one that serves stops first
    if target.accept_loss and state == TargetState.LASTSRV:
        # Its word from before it was chosen does not count: it must have put its chunks in order.
        current = report.chain_version >= chain_version and report.state == LocalState.UPTODATE
        return report if current else NOT_HEARD
    return report
