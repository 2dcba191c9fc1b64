"""The state table of a replication chain, as one pure function from what is known to the next chain.

A target's public state is mgmtd's decision, its local state the daemon's report; a daemon that is not heard of, or does
not speak for the target, counts as OFFLINE. "Holder" below is a target that has every acknowledged write.

    local     public now                  others        public next
    uptodate  serving, syncing, lastsrv   any           serving
    uptodate  waiting, offline            any           waiting     (it must say ONLINE to be synced)
    online    serving, lastsrv            any           serving
    online    syncing, waiting            one serves    syncing     (one per chain, the others wait)
    online    syncing, waiting            none serves   waiting
    online    offline                     any           waiting
    offline   serving                     none serves   lastsrv     (the first of them; the others offline)
    offline   serving                     one serves    offline
    offline   lastsrv                     any           lastsrv
    offline   syncing, waiting, offline   any           offline

A report counts for the chain version that the daemon acted on: it brings a target back from OFFLINE, ends its sync, or
takes it out of SERVING only when it was made for the current one. (A late heartbeat from before it served would else
let the others go on without it, while it answers reads.) The next order is SERVING, LASTSRV, SYNCING, WAITING, OFFLINE,
each group as it stood; the version rises with every change. Source: 3FS, design notes ("Failure detection", "Data
recovery") and mgmtd's chain update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fs3.ids import ChainId, TargetId
from fs3.routing import LocalState, TargetState


@dataclass(frozen=True, slots=True)
class Member:
    """One replica of a chain and its public state."""

    target_id: TargetId
    state: TargetState


@dataclass(frozen=True, slots=True)
class ChainView:
    """A chain as this module sees it: its version and its members in chain order."""

    chain_id: ChainId
    version: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of a target: its daemon's word, the chain version the daemon acted on when it said so, and whether
    it knows of damaged chunks (None: not heard)."""

    state: LocalState
    chain_version: int = 0
    damaged: bool | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """One target's change of state, and why."""

    target_id: TargetId
    before: TargetState
    after: TargetState
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """The next chain; equal to the one before when nothing moved and the order holds."""

    chain: ChainView
    moves: tuple[Move, ...]


NEVER = -1  # the chain version of what no daemon has said
NOT_HEARD = Report(LocalState.OFFLINE, NEVER)
_PRESUMED = {
    TargetState.SERVING: LocalState.UPTODATE,
    TargetState.LASTSRV: LocalState.OFFLINE,
    TargetState.SYNCING: LocalState.ONLINE,
    TargetState.WAITING: LocalState.UPTODATE,
    TargetState.OFFLINE: LocalState.OFFLINE,
}


def presumed(state: TargetState) -> LocalState:
    """What a mgmtd that has just started assumes of a target until its daemon was heard: whatever changes nothing."""
    return _PRESUMED[state]


def next_chain(chain: ChainView, reports: Mapping[TargetId, Report]) -> Step:
    """One step of the table for every member of `chain`; a target that `reports` lacks counts as OFFLINE.

    Holders are settled first, because the others depend on whether anybody serves.
    """
    local = {member.target_id: _local(member, chain, reports) for member in chain.members}
    settled = _holders(chain, local)
    somebody_serves = any(state == TargetState.SERVING for state, _ in settled.values())
    syncing: TargetId | None = None
    candidates = sorted(
        (member for member in chain.members if member.target_id not in settled),
        key=lambda member: member.state != TargetState.SYNCING,  # who is being synced keeps the one place
    )
    for member in candidates:
        state, reason = _other(member.state, local[member.target_id], somebody_serves, syncing)
        if state == TargetState.SYNCING:
            syncing = member.target_id
        settled[member.target_id] = state, reason
    return _step(chain, settled)


def _local(member: Member, chain: ChainView, reports: Mapping[TargetId, Report]) -> LocalState:
    """What the report says of this version of the chain; one made for an older version may be of another time."""
    report = reports.get(member.target_id, NOT_HEARD)
    if report.chain_version < chain.version:
        if member.state == TargetState.OFFLINE:
            return LocalState.OFFLINE  # the daemon has not seen itself OFFLINE, and may believe that it serves
        if member.state == TargetState.SYNCING and report.state == LocalState.UPTODATE:
            return LocalState.ONLINE  # up to date then, not since it is being synced
        if member.state == TargetState.SERVING and report.chain_version != NEVER:
            return LocalState.UPTODATE  # it cannot know yet that it serves, nor have stopped
    return report.state


def _holders(chain: ChainView, local: Mapping[TargetId, LocalState]) -> dict[TargetId, tuple[TargetState, str]]:
    """The members that serve next, and those that served last and are gone."""
    settled: dict[TargetId, tuple[TargetState, str]] = {}
    gone: list[Member] = []
    for member in chain.members:
        up = local[member.target_id] != LocalState.OFFLINE
        if member.state == TargetState.SERVING:
            if up:
                settled[member.target_id] = TargetState.SERVING, "serves"
            else:
                gone.append(member)
        elif member.state == TargetState.LASTSRV:
            settled[member.target_id] = (
                (TargetState.SERVING, "the last that served is back") if up else (TargetState.LASTSRV, "still away")
            )
        elif member.state == TargetState.SYNCING and local[member.target_id] == LocalState.UPTODATE:
            settled[member.target_id] = TargetState.SERVING, "sync done"
    somebody_serves = any(state == TargetState.SERVING for state, _ in settled.values())
    for member in gone:
        if somebody_serves or any(state == TargetState.LASTSRV for state, _ in settled.values()):
            settled[member.target_id] = TargetState.OFFLINE, "not heard of, others hold the data"
        else:
            settled[member.target_id] = TargetState.LASTSRV, "not heard of, nobody else serves"
    return settled


def _other(
    now: TargetState, local: LocalState, somebody_serves: bool, syncing: TargetId | None
) -> tuple[TargetState, str]:
    """The next state of a member that holds no complete data."""
    if local == LocalState.OFFLINE:
        return TargetState.OFFLINE, "not heard of"
    if now == TargetState.OFFLINE:
        return TargetState.WAITING, "back"
    if local == LocalState.UPTODATE:
        return TargetState.WAITING, "has not asked to be synced"
    if not somebody_serves:
        return TargetState.WAITING, "nobody serves whom it could follow"
    if syncing is not None:
        return TargetState.WAITING, f"target {syncing} is synced first"
    return TargetState.SYNCING, "follows a serving target"


def _step(chain: ChainView, settled: Mapping[TargetId, tuple[TargetState, str]]) -> Step:
    members = tuple(
        sorted(
            (Member(member.target_id, settled[member.target_id][0]) for member in chain.members),
            key=lambda member: member.state,
        )
    )
    if members == chain.members:
        return Step(chain, ())
    moves = tuple(
        Move(member.target_id, member.state, *settled[member.target_id])
        for member in chain.members
        if settled[member.target_id][0] != member.state
    )
    return Step(ChainView(chain.chain_id, chain.version + 1, members), moves)
