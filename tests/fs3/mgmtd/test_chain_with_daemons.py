"""Every state that a chain of 2 or 3 replicas and its daemons can reach, with both halves of the state table at work.

chain_core decides at mgmtd, target_core at each daemon. Between them is the worst luck that leases allow: daemons
crash, restart, lose touch and are counted out, a disk is replaced by an empty one, heartbeats and replies are lost,
routings come late or not, a late heartbeat arrives after a newer one, a new primary has heard nobody; and updates are
acknowledged wherever all who would take part agree on the chain's version. Who has every acknowledged update is tracked
beside it. What must hold, always:

    whoever answers reads has every acknowledged write, and so has whoever mgmtd lists as SERVING or LASTSRV
    somebody serves or one is LASTSRV, never both; at most one is SYNCING; the order is that of the states
    the version rises exactly when the chain changes
    once nothing is lost any more, all serve after a bounded number of heartbeats

States are kept up to the names of the targets and the sizes of the versions: targets are numbered by their place in the
chain, and of versions only their order counts. Not every walk has every kind of luck, or there were too many states;
the parameters say which.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import pytest

from fs3.ids import ChainId, TargetId
from fs3.mgmtd.chain_core import NOT_HEARD, ChainView, Member, Report, next_chain, presumed
from fs3.routing import LocalState, TargetState
from fs3.storage import target_core
from fs3.storage.target_core import Phase, Place, Stand

SERVING, LASTSRV, SYNCING, OFFLINE = TargetState.SERVING, TargetState.LASTSRV, TargetState.SYNCING, TargetState.OFFLINE
OFF_DUTY = (TargetState.OFFLINE, TargetState.WAITING, TargetState.LASTSRV)
NOW = 100  # the newest version; older ones are 99, 98, ...
Word = tuple[LocalState | None, int]  # of a target (None: nothing), and the version that it was said under
States = tuple[TargetState, ...]


class Replica(NamedTuple):
    """A target, its daemon, and what mgmtd knows of it."""

    # at mgmtd
    alive: bool = True
    heard: bool = True  # by this primary
    started: bool = True  # this run of the daemon has been heard
    report: Word = (LocalState.UPTODATE, NOW)
    # on its way
    late: Word | None = None  # a heartbeat of this run of the daemon
    # the daemon
    up: bool = True
    leased: bool = True
    phase: Phase = Phase.SERVING
    synced_at: int = 0
    view: int = NOW  # the version of the chain in its routing; 0: it has none
    ours: bool = True
    speaks: bool = True
    # the disk
    holds: bool = True  # was not replaced by an empty one
    complete: bool = True  # has every acknowledged write


class World(NamedTuple):
    """By target; `order` is the chain's, `past` the older chains that some daemon still sees, by version."""

    order: tuple[int, ...]
    states: States
    replicas: tuple[Replica, ...]
    past: tuple[tuple[int, States], ...] = ()

    def seen(self, version: int) -> States:
        return self.states if version == NOW else dict(self.past)[version]


@dataclass(frozen=True)
class Luck:
    """What can happen besides crashes, restarts, lost leases, heartbeats and writes."""

    late: bool = False  # a heartbeat that arrives after newer ones
    empty: bool = False  # disks that are replaced
    slow: bool = False  # daemons that report, and die, before their chunks are in order
    torn: bool = False  # replies lost, routings without a lease, new primaries
    prompt: bool = False  # the reverse: leases end by deaths only, which are known before anything else happens


SILENT: Word = (None, 0)
DOWN = {"up": False, "leased": False, "phase": Phase.HELD, "view": 0, "ours": False, "speaks": False}


def start(replicas: int) -> World:
    return World(tuple(range(replicas)), (SERVING,) * replicas, (Replica(),) * replicas)


def at(world: World, target: int, one: Replica) -> World:
    return world._replace(replicas=(*world.replicas[:target], one, *world.replicas[target + 1 :]))


# mgmtd


def settled(world: World) -> World:
    """mgmtd decides, as routing_core does: step until the chain rests."""
    for _ in range(8):
        known = tuple(known_of(one, world.states[target]) for target, one in enumerate(world.replicas))
        order, states = stepped_chain(world.order, world.states, known)
        if (order, states) == (world.order, world.states):
            return world
        past = tuple((version - 1, was) for version, was in ((NOW, world.states), *world.past))
        world = World(order, states, tuple(map(older, world.replicas)), past)
        check_chain(world)
    raise AssertionError(f"the chain does not come to rest: {world}")


@cache
def stepped_chain(order: tuple[int, ...], states: States, known: tuple[Report, ...]) -> tuple[tuple[int, ...], States]:
    members = tuple(Member(TargetId(target), states[target]) for target in order)
    reports = {TargetId(target): report for target, report in enumerate(known)}
    after = next_chain(ChainView(ChainId(1), NOW, members), reports).chain
    assert (after.version == NOW + 1) == (after.members != members), (members, after)
    state = {member.target_id: member.state for member in after.members}
    return tuple(int(member.target_id) for member in after.members), tuple(state[key] for key in sorted(state))


@cache
def known_of(one: Replica, state: TargetState) -> Report:
    if not one.alive:
        return NOT_HEARD
    if not one.heard:
        return Report(presumed(state), NOW)
    return NOT_HEARD if one.report[0] is None else Report(one.report[0], one.report[1])


@cache
def older(one: Replica) -> Replica:
    """The same, once the chain's version has risen by one."""
    return one._replace(
        report=(one.report[0], max(one.report[1] - 1, 0)),
        late=one.late and (one.late[0], max(one.late[1] - 1, 0)),
        view=max(one.view - 1, 0),
        synced_at=max(one.synced_at - 1, 0),
    )


def heard(world: World, target: int) -> World:
    """A heartbeat arrives at mgmtd, with which it decides; a new run of a daemon counts as having been away."""
    one = world.replicas[target]
    if one.started:
        return believed(world, target, said(one))
    world = settled(at(world, target, one._replace(report=SILENT, alive=True, heard=True)))
    return at(world, target, world.replicas[target]._replace(started=True))


def believed(world: World, target: int, word: Word) -> World:
    """As Primary._take_reports: saying nothing of a target counts only under the newest routing."""
    one = world.replicas[target]
    if word[0] is None and word[1] != NOW:
        known = one.heard and one.alive and one.report[0] is not None
        word = one.report if known else (presumed(world.states[target]), 0)
    return settled(at(world, target, one._replace(report=word, alive=True, heard=True)))


# Daemons


@cache
def said(one: Replica) -> Word:
    """What the daemon's heartbeat says of the target."""
    state = target_core.reported(Stand(one.phase, one.synced_at))
    if one.view == 0 or not one.ours:
        return SILENT
    if state is None or not one.speaks:
        return None, one.view
    return (LocalState.OFFLINE if state == LocalState.UPTODATE and not one.holds else state), one.view


@cache
def acted(one: Replica, state: TargetState) -> Replica:
    """The daemon acts on its routing, in which the target is in `state`."""
    stand = Stand(one.phase, one.synced_at)
    stand = target_core.next_stand(stand, Place(state, one.view), ours=one.ours, holds=one.holds)
    return one._replace(phase=stand.phase, synced_at=stand.synced_at)


@cache
def adopted(one: Replica, state: TargetState) -> Replica:
    """The daemon gets the newest routing, in which the target is in `state`."""
    if one.view == NOW and one.ours == one.started:
        return one
    speaks = one.speaks or (one.started and state in OFF_DUTY)
    return acted(one._replace(view=NOW, ours=one.started, speaks=speaks), state)


@cache
def prepared(one: Replica, state: TargetState) -> Replica:
    """RECALLING or CLEARING is done, if that is what the target is in."""
    stand = target_core.prepared(Stand(one.phase, one.synced_at))
    return acted(one._replace(phase=stand.phase, synced_at=stand.synced_at), state)


@cache
def serves(one: Replica, state: TargetState) -> bool:
    """Whether the daemon takes part in updates, as a serving target."""
    return one.phase is Phase.SERVING and state == SERVING


@cache
def takes(one: Replica, state: TargetState) -> bool:
    """Whether the daemon takes whole chunks, being synced."""
    return one.phase in (Phase.STALE, Phase.COMPLETE) and state == SYNCING


def synced(world: World, target: int) -> World | None:
    """A serving target of the same version says that recovery is done."""
    one = world.replicas[target]
    if one.view == 0 or one.phase is not Phase.STALE:
        return None
    states = world.seen(one.view)
    if states[target] != SYNCING:
        return None
    sources = [
        other
        for other, state in zip(world.replicas, states, strict=True)
        if other.view == one.view and serves(other, state)
    ]
    if not sources:
        return None
    stand = target_core.synced(Stand(one.phase), one.view)
    complete = all(source.complete for source in sources)
    done = one._replace(phase=stand.phase, synced_at=stand.synced_at, holds=True, complete=complete)
    return at(world, target, done)


def written(world: World) -> World:
    """Updates are acknowledged under every version of the chain under which they can be.

    Who has no part in one lacks it. No step depends on who lacks what, so that nothing is missed by writing always.
    """
    for version in (NOW, *(version for version, _ in world.past)):
        states = world.seen(version)
        parts = [
            one.view == version and (serves(one, state) or takes(one, state))
            for one, state in zip(world.replicas, states, strict=True)
            if state in (SERVING, SYNCING)
        ]
        if SERVING in states and all(parts):
            replicas = (
                one if state in (SERVING, SYNCING) else one._replace(complete=False)
                for one, state in zip(world.replicas, states, strict=True)
            )
            world = world._replace(replicas=tuple(replicas))
    return world


# Everything that can happen


def events(world: World, luck: Luck) -> Iterator[tuple[str, World]]:
    for target, one in enumerate(world.replicas):
        if one.up:
            for kind, after in of_a_daemon(world, target, one, luck):
                gone = after.replicas[target]
                if luck.prompt and gone.alive and not gone.leased:
                    after = settled(at(after, target, gone._replace(alive=False)))
                yield kind, after
        else:
            yield "a daemon restarts", at(world, target, one._replace(up=True, started=False, late=None))
            if luck.empty and one.holds and any(o.complete for t, o in enumerate(world.replicas) if t != target):
                yield "a disk is replaced", at(world, target, one._replace(holds=False, complete=False))
        if one.alive and not one.leased:
            yield "a daemon is counted out", settled(at(world, target, one._replace(alive=False)))
        if one.late is not None:
            yield "a late heartbeat", believed(at(world, target, one._replace(late=None)), target, one.late)
    gone = [one.alive and not one.leased for one in world.replicas]
    if sum(gone) > 1:
        alive = zip(world.replicas, gone, strict=True)
        replicas = tuple(one._replace(alive=one.alive and not out) for one, out in alive)
        yield "several are counted out", settled(world._replace(replicas=replicas))
    if luck.torn and any(one.heard and one.alive for one in world.replicas):
        replicas = tuple(one._replace(heard=False) for one in world.replicas)
        yield "a new primary", world._replace(replicas=replicas)


def of_a_daemon(world: World, target: int, one: Replica, luck: Luck) -> Iterator[tuple[str, World]]:
    yield "a daemon crashes", at(world, target, one._replace(**DOWN))
    if one.leased and not luck.prompt:
        yield "a daemon loses touch", at(world, target, one._replace(leased=False))
    after = heard(world, target)
    answered = adopted(after.replicas[target], after.states[target])._replace(leased=True)
    if luck.torn:
        yield "a reply is lost", after
        yield "a routing", at(world, target, adopted(one, world.states[target]))
    if luck.slow:
        if one.phase in (Phase.RECALLING, Phase.CLEARING):
            yield "chunks put in order", at(world, target, prepared(one, world.seen(one.view)[target]))
    else:
        answered = prepared(answered, after.states[target])
    yield "a heartbeat", at(after, target, answered)
    if (done := synced(world, target)) is not None:
        yield "a sync is done", done
    if luck.late and one.started and all(other.late is None for other in world.replicas):
        yield "a heartbeat is delayed", at(world, target, one._replace(late=said(one)))


# What must hold


def check_chain(world: World) -> None:
    states = [world.states[target] for target in world.order]
    assert states == sorted(states), world
    assert states.count(SYNCING) <= 1, world
    assert (SERVING in states) != (states.count(LASTSRV) == 1), world


def check(world: World) -> None:
    for one, state in zip(world.replicas, world.states, strict=True):
        if state in (SERVING, LASTSRV):
            assert one.complete or not one.holds, f"{state.name} and lacks an acknowledged write: {one}"
        if one.up and one.leased and one.phase is Phase.SERVING:
            assert one.complete, f"answers reads and lacks an acknowledged write: {one}"


def heals(world: World, known: set[World]) -> bool:
    """Whether all serve after a few heartbeats of everybody, without faults; `known` are those that do."""
    path = []
    for _ in range(6 * len(world.states)):
        if all(serves(one, state) for one, state in zip(world.replicas, world.states, strict=True)) or world in known:
            known.update(path)
            return True
        path.append(world)
        for target, one in enumerate(world.replicas):
            one = one._replace(late=None, up=True, started=one.started and one.up)
            world = heard(at(world, target, one), target)
            one = adopted(world.replicas[target], world.states[target])._replace(leased=True)
            world = at(world, target, prepared(one, world.states[target]))
            world = synced(world, target) or world
        world = normal(world)
    last = [one for one, state in zip(world.replicas, world.states, strict=True) if state == LASTSRV]
    return any(not one.holds for one in last)  # its disk is gone, and what it alone had: for an operator to accept


# The walk


@cache
def normal_replica(one: Replica, view: int) -> Replica:
    """Forgets what no rule looks at any more."""
    current = one.phase is Phase.COMPLETE and one.view != 0 and one.synced_at == one.view
    known = one.alive and one.heard
    report, late = one.report, one.late
    if report[1] < NOW:
        report = report[0], 0
    if late is not None and late[1] < NOW:
        late = late[0], 0
    return one._replace(
        heard=one.heard or not one.alive,
        report=report if known else SILENT,
        late=late,
        view=view,
        synced_at=view if current else 0,
    )


def normal(world: World) -> World:
    """See the module."""
    views = sorted({one.view for one in world.replicas if 0 < one.view < NOW}, reverse=True)
    rank = {version: NOW - 1 - place for place, version in enumerate(views)} | {NOW: NOW, 0: 0}
    order = world.order
    past = tuple(
        (rank[version], tuple(states[target] for target in order)) for version, states in world.past if version in rank
    )
    replicas = tuple(normal_replica(world.replicas[target], rank[world.replicas[target].view]) for target in order)
    return World(tuple(range(len(order))), tuple(world.states[target] for target in order), replicas, past)


WALKS = [
    (1, Luck(late=True, empty=True, slow=True, torn=True)),
    (2, Luck(slow=True, torn=True)),
    (2, Luck(late=True, slow=True)),
    (2, Luck(empty=True)),
    (3, Luck(prompt=True)),
]


@pytest.mark.parametrize(("replicas", "luck"), WALKS)
def test_every_reachable_state(replicas: int, luck: Luck) -> None:
    first = normal(start(replicas))
    came_from: dict[World, tuple[World, str] | None] = {first: None}
    frontier, seen = deque([first]), Counter[str]()
    healing: set[World] = set()
    while frontier:
        world = frontier.popleft()
        try:
            check(world)
            for kind, after in events(world, luck):
                seen[kind] += 1
                after = normal(written(after))
                if after not in came_from:
                    came_from[after] = world, kind
                    frontier.append(after)
            assert heals(world, healing), "it never heals"
        except AssertionError as error:
            raise AssertionError("\n".join([*story(came_from, world), str(error)])) from None
    print(f"{replicas} replicas, {luck}: {len(came_from)} states, {sum(seen.values())} steps: {dict(seen)}")
    assert {"a heartbeat", "a daemon restarts"} <= seen.keys()
    assert replicas == 1 or {"a sync is done"} <= seen.keys()


def story(came_from: dict[World, tuple[World, str] | None], world: World) -> list[str]:
    """How the walk came to a state, first step first."""
    lines = [str(world)]
    while (step := came_from[world]) is not None:
        world, kind = step
        lines += [f"-- {kind}", str(world)]
    return lines[::-1]
