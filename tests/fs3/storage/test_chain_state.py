"""A daemon's targets under mgmtd's decisions: the phase table, both halves of the state machine simulated together, the
gate that recovery waits at.

The simulation has mgmtd's own core, daemons that crash, restart, are cut off and come back in any order, and reports
that arrive late. Checked at every step: whoever serves has every write that was ever acknowledged or shown; afterwards,
with everybody up, all targets serve again within a few rounds and hold the same.
"""

from __future__ import annotations

import itertools
import random
import re
import threading
from dataclasses import dataclass, field, replace

import pytest

from fs3.clock import deadline_after
from fs3.errors import StaleRouting, Unavailable
from fs3.ids import ChainId, NodeId, TargetId
from fs3.mgmtd.chain_core import ChainView, Member, Report, next_chain
from fs3.pb import mgmtd_pb2
from fs3.routing import Chain, LocalState, Node, NodeKind, Routing, Target, TargetState
from fs3.storage import target_core
from fs3.storage.chain_state import ChainState, Duty
from fs3.storage.engine_api import TargetRecord
from fs3.storage.target_core import Phase, Place, Stand, next_stand, prepared, reported, synced

S = TargetState


def test_the_table_in_the_modules_text() -> None:
    rows = [
        line for line in (target_core.__doc__ or "").splitlines() if line.strip().split(" ")[0] in Phase.__members__
    ]
    checked = 0
    for cells in (re.split(r"\s{2,}", row.strip()) for row in rows):
        if len(cells) != 6:
            continue
        phase = Phase[cells[0]]
        publics: list[list[S | None]] = [[None], [S.SERVING], [S.LASTSRV], [S.SYNCING], [S.WAITING, S.OFFLINE]]
        for cell, states in zip(cells[1:], publics, strict=True):
            for state in states:
                place = Place(state, 5) if state else None
                after = next_stand(Stand(phase, 4), place, ours=True, holds=True).phase
                wanted = {"-": phase, "- or STALE": Phase.STALE}.get(cell) or Phase[cell]
                assert after is wanted, (phase, state)
                checked += 1
    assert checked == 9 * 6


@pytest.mark.parametrize("phase", list(Phase))
def test_a_target_that_holds_nothing_never_serves_as_the_last(phase: Phase) -> None:
    stand = next_stand(Stand(phase), Place(S.LASTSRV, 5), ours=True, holds=False)
    assert stand.phase in (Phase.REFUSED, Phase.BROKEN, Phase.COMPLETE, Phase.RECALLING)
    if phase not in (Phase.COMPLETE, Phase.RECALLING):
        assert reported(stand) is LocalState.OFFLINE


def test_a_held_target_says_nothing_until_the_routing_knows_of_this_run() -> None:
    for state in S:
        assert next_stand(Stand(Phase.HELD), Place(state, 5), ours=False, holds=True).phase is Phase.HELD
    assert reported(Stand(Phase.HELD)) is None


def test_recovery_counts_for_one_version_of_the_chain() -> None:
    stand = synced(Stand(Phase.STALE), 7)
    assert next_stand(stand, Place(S.SYNCING, 7), ours=True, holds=True) is stand
    assert next_stand(stand, Place(S.SYNCING, 8), ours=True, holds=True).phase is Phase.STALE
    assert next_stand(stand, Place(S.SERVING, 8), ours=True, holds=True).phase is Phase.SERVING
    assert synced(Stand(Phase.CLEARING), 7).phase is Phase.CLEARING


def test_a_target_that_steps_down_comes_back_only_through_mgmtd() -> None:
    aside = next_stand(Stand(Phase.SERVING), Place(S.SERVING, 5, steps_down=True), ours=True, holds=True)
    assert aside.phase is Phase.ASIDE and reported(aside) is LocalState.OFFLINE
    assert next_stand(aside, Place(S.SERVING, 5), ours=True, holds=True) is aside, "mgmtd may have been told already"
    assert next_stand(aside, Place(S.LASTSRV, 6), ours=True, holds=True).phase is Phase.RECALLING
    assert next_stand(aside, Place(S.OFFLINE, 6), ours=True, holds=True).phase is Phase.CLEARING


@pytest.mark.parametrize("phase", list(Phase))
def test_a_target_whose_loss_is_accepted_serves_with_what_it_has(phase: Phase) -> None:
    place = Place(S.LASTSRV, 5, accept_loss=True)
    stand = next_stand(Stand(phase), place, ours=True, holds=False)
    assert stand.phase is {Phase.BROKEN: Phase.BROKEN, Phase.COMPLETE: Phase.COMPLETE}.get(phase, Phase.RECALLING)


@dataclass
class Daemon:
    """One target's daemon: its disk survives a crash, the rest does not."""

    target_id: TargetId
    log: list[int] = field(default_factory=list)  # committed writes, on disk
    pending: list[int] = field(default_factory=list)  # on disk
    up: bool = True
    cut_off: bool = False
    stand: Stand = field(default_factory=lambda: Stand(Phase.SERVING))
    chain: ChainView | None = None
    ours: bool = True

    def see(self, chain: ChainView, *, ours: bool) -> None:
        self.chain, self.ours = chain, self.ours or ours
        state = next(one.state for one in chain.members if one.target_id == self.target_id)
        self.stand = next_stand(self.stand, Place(state, chain.version), ours=self.ours, holds=True)

    def work(self) -> None:
        if self.stand.phase is Phase.RECALLING:
            self.log, self.pending = self.log + self.pending, []
        self.stand = prepared(self.stand)
        if self.chain is not None:
            self.see(self.chain, ours=False)

    def state(self) -> TargetState:
        assert self.chain is not None
        return next(one.state for one in self.chain.members if one.target_id == self.target_id)


class World:
    """One chain, mgmtd, daemons, and writes with numbers."""

    def __init__(self, seed: int, targets: int) -> None:
        self.rng = random.Random(seed)
        self.note = f"seed {seed}, {targets} targets"
        ids = [TargetId(number) for number in range(1, targets + 1)]
        self.chain = ChainView(ChainId(1), 1, tuple(Member(target, S.SERVING) for target in ids))
        self.daemons = {target: Daemon(target) for target in ids}
        for daemon in self.daemons.values():
            daemon.see(self.chain, ours=True)
        self.known: dict[TargetId, Report] = {}
        self.shown: set[int] = set()  # committed somewhere, so perhaps acknowledged, perhaps read
        self.number = 0

    def heard(self, daemon: Daemon) -> None:
        """A heartbeat with what the daemon says now; the routing comes back with it."""
        if daemon.up and not daemon.cut_off:
            state = reported(daemon.stand)
            assert daemon.chain is not None
            if state is None:
                self.known.pop(daemon.target_id, None)
            else:
                self.known[daemon.target_id] = Report(state, daemon.chain.version)
            self.decide()
            daemon.see(self.chain, ours=True)

    def lost(self, daemon: Daemon) -> None:
        self.known.pop(daemon.target_id, None)
        self.decide()

    def decide(self) -> None:
        for _ in range(8):
            step = next_chain(self.chain, self.known)
            if step.chain == self.chain:
                return
            self.chain = step.chain
        raise AssertionError(f"{self.note}: the chain does not rest")

    def write(self) -> None:
        """One write under the head's view; each replica forwards under its own, and asks for the same version."""
        if any(one.pending for one in self.daemons.values() if one.state() == S.SERVING):
            self.settle()
            return
        self.number += 1
        route = [one for one in self.chain.members if one.state in (S.SERVING, S.SYNCING)]
        seen: list[Daemon] = []
        for member in route:
            daemon = self.daemons[member.target_id]
            duty = daemon.stand.phase is Phase.SERVING or member.state == S.SYNCING
            if not daemon.up or not duty or daemon.chain != self.chain or self.rng.random() < 0.1:
                break
            if member.state == S.SERVING:
                daemon.pending = [self.number]
            seen.append(daemon)
        else:
            for daemon in reversed(seen):
                if self.rng.random() < 0.1:
                    break  # those in front keep it pending
                if daemon.state() == S.SERVING:
                    daemon.log, daemon.pending = [*daemon.log, self.number], []
                    self.shown.add(self.number)
                else:
                    daemon.log = list(self.writes(seen[0]))
            return
        # Cut short: whoever staged it keeps it pending, until it is finished or dropped by what the chain becomes.

    def writes(self, head: Daemon) -> list[int]:
        return [*head.log, *head.pending]

    def settle(self) -> None:
        """What serving replicas do with leftover pending versions, once all of the chain is reachable."""
        route = [self.daemons[one.target_id] for one in self.chain.members if one.state in (S.SERVING, S.SYNCING)]
        if route and all(one.up and one.chain == self.chain for one in route):
            if any(one.state() == S.SERVING and one.stand.phase is not Phase.SERVING for one in route):
                return
            head = route[0]
            done = self.writes(head)
            for one in route:
                one.log, one.pending = list(done), []

    def sync(self) -> None:
        """Recovery by the last serving replica, if both see the present chain."""
        for before, member in itertools.pairwise(self.chain.members):
            if member.state == S.SYNCING and before.state == S.SERVING:
                source, there = self.daemons[before.target_id], self.daemons[member.target_id]
                fits = source.up and there.up and source.chain == self.chain == there.chain
                if fits and source.stand.phase is Phase.SERVING and there.stand.phase is Phase.STALE:
                    self.settle()
                    there.log, there.pending = list(self.writes(source)), []  # recovery replaces whatever is pending
                    there.stand = synced(there.stand, self.chain.version)

    def check(self) -> None:
        for member in self.chain.members:
            daemon = self.daemons[member.target_id]
            if daemon.up and daemon.chain == self.chain and daemon.stand.phase is Phase.SERVING:
                have = set(daemon.log) | set(daemon.pending)
                assert self.shown <= have, f"{self.note}: target {member.target_id} lacks {self.shown - have}"

    def act(self) -> None:
        daemon = self.rng.choice(list(self.daemons.values()))
        match self.rng.randrange(9):
            case 0:
                daemon.up = False
            case 1 if not daemon.up:
                daemon.up, daemon.stand, daemon.ours = True, Stand(Phase.HELD), False
                self.lost(daemon)
            case 2:
                daemon.cut_off = not daemon.cut_off
            case 3 if not daemon.up or daemon.cut_off:
                # The lease has run out: a daemon that was cut off has stopped serving before.
                if daemon.stand.phase is Phase.SERVING and daemon.up:
                    daemon.cut_off = True
                self.lost(daemon)
            case 4:
                self.sync()
            case 5:
                daemon.work()
            case 6 | 7:
                self.write()
            case _:
                self.heard(daemon)

    def heal(self) -> int:
        """Rounds until all serve, with everybody up."""
        for daemon in self.daemons.values():
            if not daemon.up:
                daemon.up, daemon.stand, daemon.ours = True, Stand(Phase.HELD), False
                self.lost(daemon)
            daemon.cut_off = False
        for rounds in range(40):
            if all(member.state == S.SERVING for member in self.chain.members) and all(
                daemon.stand.phase is Phase.SERVING for daemon in self.daemons.values()
            ):
                return rounds
            for daemon in self.daemons.values():
                self.heard(daemon)
                daemon.work()
                self.check()
            self.sync()
            self.check()
        raise AssertionError(f"{self.note}: {self.chain} and {[d.stand for d in self.daemons.values()]}")


@pytest.mark.parametrize("targets", [1, 2, 3, 4])
def test_both_state_machines_together(targets: int) -> None:
    for seed in range(150):
        world = World(seed, targets)
        for _ in range(120):
            world.act()
            world.check()
        rounds = world.heal()
        assert rounds <= 6 * targets + 4, f"{world.note}: {rounds} rounds"
        world.settle()
        for daemon in world.daemons.values():
            assert world.shown <= set(daemon.log), world.note
            assert daemon.log == world.daemons[TargetId(1)].log, world.note


def test_all_stopped_and_started_again_serve_quickly() -> None:
    world = World(0, 3)
    world.write()
    for daemon in world.daemons.values():
        daemon.up = False
    assert world.heal() <= 9
    assert [daemon.log for daemon in world.daemons.values()] == [[1]] * 3


class FewTargets:
    """As much of an engine as ChainState asks for."""

    counters = None

    def __init__(self, targets: dict[int, int]) -> None:
        self._targets = {target: TargetRecord(target, chain) for target, chain in targets.items()}
        self.states: dict[tuple[int, bytes], bytes] = {}
        self.marked: dict[tuple[int, int, int], int] = {}

    def targets(self) -> dict[int, TargetRecord]:
        return self._targets

    def create_target(self, target_id: int, chain_id: int) -> None:
        self._targets[target_id] = TargetRecord(target_id, chain_id)

    def get_state(self, target_id: int, key: bytes) -> bytes | None:
        return self.states.get((target_id, key))

    def put_state(self, target_id: int, key: bytes, value: bytes) -> None:
        self.states[target_id, key] = value

    def failure(self) -> None:
        return None

    def damaged(self) -> dict[tuple[int, int, int], int]:
        return self.marked

    def target_usage(self, _target_id: int) -> tuple[int, int]:
        return 0, 0


def routing(version: int, states: dict[int, S], *, chain_version: int, generation: int = 1) -> Routing:
    """Chain 1 with target n on node n."""
    order = sorted(states, key=lambda target: states[target])
    return Routing(
        version=version,
        nodes={
            NodeId(n): Node(
                node_id=NodeId(n), kind=NodeKind.STORAGE, endpoints=(f"n{n}:1",), generation=generation if n == 1 else 1
            )
            for n in states.keys() | {1}
        },
        targets={
            TargetId(n): Target(target_id=TargetId(n), node_id=NodeId(n), disk=0, chain_id=ChainId(1), state=state)
            for n, state in states.items()
        },
        chains={
            ChainId(1): Chain(
                chain_id=ChainId(1), version=chain_version, targets=tuple(TargetId(n) for n in order), replicas=3
            )
        },
        ready=True,
    )


@dataclass
class Asked:
    """What a ChainState wanted done."""

    work: list[tuple[str, int]] = field(default_factory=list)
    pokes: int = 0

    def ask(self, kind: str, number: int) -> None:
        self.work.append((kind, number))

    def poke(self) -> None:
        self.pokes += 1


def new_state(engine: FewTargets, generation: int = 1) -> tuple[ChainState, Asked]:
    asked = Asked()
    state = ChainState({0: engine}, node_id=1, generation=generation, poke=asked.poke, ask=asked.ask)  # type: ignore[dict-item]
    return state, asked


def serving_state(engine: FewTargets | None = None) -> tuple[ChainState, Asked]:
    state, asked = new_state(engine or FewTargets({}))
    state.on_routing(routing(1, {}, chain_version=0))
    state.create(mgmtd_pb2.CreateTarget(target_id=1, chain_id=1, disk=0))
    state.on_routing(routing(2, {2: S.SERVING}, chain_version=1))
    state.claim(1)
    state.on_routing(routing(3, {1: S.SERVING, 2: S.SERVING, 3: S.SYNCING}, chain_version=4))
    return state, asked


def test_a_new_target_serves_once_it_is_published_and_knows_its_place() -> None:
    state, asked = serving_state()
    role = state.role(1)
    assert role is not None and role.head and role.duty is Duty.SERVE and role.version == 4
    assert role.successor is not None and (role.successor.target_id, role.successor.syncing) == (2, False)
    assert state.serving(1, 4) == 1
    assert (state.reads.target[1], state.reads.version[1]) == (1, 4)
    assert ("settle", 1) in asked.work and asked.pokes
    said = state.local_targets()
    assert [(one.target_id, one.state, one.chain_version) for one in said] == [(1, LocalState.UPTODATE, 4)]


@pytest.mark.parametrize("target", [1, 5])
def test_damage_is_said_of_the_target_that_has_it(target: int) -> None:
    engine = FewTargets({})
    state, _ = serving_state(engine)
    engine.marked = {(target, 8, 9): 3}
    assert [(one.target_id, one.damaged) for one in state.local_targets()] == [(1, target == 1)]


def test_off_duty_stops_at_once_and_comes_back_through_recovery() -> None:
    state, asked = serving_state()
    gone = state.on_routing(routing(5, {2: S.SERVING, 3: S.SERVING, 1: S.OFFLINE}, chain_version=5))
    assert gone == set()
    with pytest.raises(Unavailable):
        state.serving(1, 5)
    with pytest.raises(Unavailable):
        state.enter(1, 5)
    assert state.reads.target[1] == 0
    assert [one.state for one in state.local_targets()] == [LocalState.OFFLINE]
    assert asked.work[-1] == ("prepare", 1)
    state.prepared(1, state.stand(1))
    assert [(one.state, one.chain_version) for one in state.local_targets()] == [(LocalState.ONLINE, 5)]
    state.on_routing(routing(6, {2: S.SERVING, 3: S.SERVING, 1: S.SYNCING}, chain_version=6))
    role, acting = state.enter(1, 6)
    assert role.duty is Duty.SYNC
    state.leave(acting)
    with pytest.raises(StaleRouting):
        state.sync_done(1, 5)
    state.sync_done(1, 6)
    assert [one.state for one in state.local_targets()] == [LocalState.UPTODATE]


def test_a_restarted_daemon_keeps_still_until_it_is_seen_off_duty() -> None:
    engine = FewTargets({1: 1})
    engine.put_state(1, b"holds", b"1")
    state, asked = new_state(engine, generation=2)
    state.on_routing(routing(7, {1: S.SERVING, 2: S.SERVING}, chain_version=4, generation=1))
    state.on_routing(routing(8, {1: S.SERVING, 2: S.SERVING}, chain_version=4, generation=2))
    assert state.local_targets() == []
    with pytest.raises(Unavailable):
        state.serving(1, 4)
    state.on_routing(routing(9, {1: S.LASTSRV, 2: S.OFFLINE}, chain_version=5, generation=2))
    assert asked.work == [("prepare", 1)]
    assert [one.state for one in state.local_targets()] == [LocalState.OFFLINE]


def test_a_refilled_disk_does_not_pose_as_the_last_that_served() -> None:
    engine = FewTargets({1: 1})
    state, _ = new_state(engine, generation=2)
    state.on_routing(routing(9, {1: S.LASTSRV, 2: S.OFFLINE}, chain_version=5, generation=2))
    assert state.stand(1).phase is Phase.REFUSED
    assert [one.state for one in state.local_targets()] == [LocalState.OFFLINE]


def test_who_acts_on_an_older_chain_is_waited_for() -> None:
    state, _ = serving_state()
    with pytest.raises(StaleRouting):
        state.enter(1, 3)
    _, old = state.enter(1, 4)
    state.on_routing(routing(6, {1: S.SERVING, 3: S.SYNCING, 2: S.OFFLINE}, chain_version=5))
    assert not state.drained(1, 5, deadline_after(0.0))
    assert state.drained(1, 4, deadline_after(0.0))
    drained: list[bool] = []
    waiter = threading.Thread(target=lambda: drained.append(state.drained(1, 5, deadline_after(20.0))))
    waiter.start()
    role = state.renew(old)
    waiter.join(20.0)
    assert drained == [True] and role.version == 5
    assert role.successor is not None and role.successor.syncing
    state.leave(old)


def test_processes_that_are_gone_or_started_again_are_named() -> None:
    state, _ = serving_state()
    before = routing(10, {1: S.SERVING, 2: S.SERVING}, chain_version=9)
    state.on_routing(before)
    assert state.on_routing(routing(11, {1: S.SERVING, 2: S.SERVING}, chain_version=9, generation=2)) == {"n1:1"}
    assert state.on_routing(routing(10, {1: S.SERVING}, chain_version=9)) == set(), "an older routing changes nothing"
    assert state.on_routing(routing(12, {1: S.SERVING}, chain_version=10, generation=2)) == {"n2:1"}


def synced_at(version: int) -> FewTargets:
    """The disk of a target that was new, and was recovered under this version of its chain."""
    engine = FewTargets({})
    state, _ = new_state(engine)
    state.on_routing(routing(1, {1: S.OFFLINE, 2: S.SERVING}, chain_version=1))
    state.create(mgmtd_pb2.CreateTarget(target_id=1, chain_id=1, disk=0))
    state.on_routing(routing(2, {1: S.WAITING, 2: S.SERVING}, chain_version=2))
    state.prepared(1, state.stand(1))
    state.on_routing(routing(3, {1: S.SYNCING, 2: S.SERVING}, chain_version=version))
    state.sync_done(1, version)
    return engine


@pytest.mark.parametrize(
    ("held", "complete_at", "phase"), [(4, 4, Phase.RECALLING), (4, 7, Phase.REFUSED), (7, 4, Phase.RECALLING)]
)
def test_an_older_disk_does_not_serve_as_the_last(held: int, complete_at: int, phase: Phase) -> None:
    """The right one was not mounted, another took its place for a while, and was in sync under version 7."""
    state, _ = new_state(synced_at(held), generation=2)
    state.on_routing(
        known_complete_at(complete_at, routing(9, {1: S.LASTSRV, 2: S.OFFLINE}, chain_version=9, generation=2))
    )
    assert state.stand(1).phase is phase


def test_a_disk_from_before_versions_were_noted_is_trusted() -> None:
    engine = synced_at(4)
    engine.put_state(1, b"holds", b"1")
    state, _ = new_state(engine, generation=2)
    state.on_routing(known_complete_at(7, routing(9, {1: S.LASTSRV, 2: S.OFFLINE}, chain_version=9, generation=2)))
    assert state.stand(1).phase is Phase.RECALLING


def test_an_accepted_loss_counts_as_complete_from_then_on() -> None:
    engine = synced_at(4)
    state, asked = new_state(engine, generation=2)
    accepted = known_complete_at(
        7, routing(9, {1: S.LASTSRV, 2: S.OFFLINE}, chain_version=9, generation=2), accept_loss=True
    )
    state.on_routing(accepted)
    state.prepared(1, state.stand(1))
    assert [target.state for target in state.local_targets()] == [LocalState.OFFLINE], "it is not noted yet"
    assert ("claim", 1) in asked.work
    state.claim(1)
    assert [target.state for target in state.local_targets()] == [LocalState.UPTODATE]
    again, _ = new_state(engine, generation=3)
    again.on_routing(known_complete_at(9, routing(9, {1: S.LASTSRV, 2: S.OFFLINE}, chain_version=10, generation=3)))
    assert again.stand(1).phase is Phase.RECALLING


def known_complete_at(version: int, routing: Routing, *, accept_loss: bool = False) -> Routing:
    """The routing, in which target 1 was last complete under this version of its chain."""
    target = replace(routing.targets[TargetId(1)], complete_at=version, accept_loss=accept_loss)
    return replace(routing, targets={**routing.targets, TargetId(1): target})
