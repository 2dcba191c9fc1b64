"""This daemon's targets: what each may do under the newest routing, who is acting on which version of it, what mgmtd is
told of it.

A routing arrives on another thread than the updates run on. Whoever changes or copies a target's chunks says so
(`enter`, `renew`, `leave`) with the chain version that he acts on; recovery waits until nobody acts on an older one
(`drained`), since an update that began before the SYNCING replica joined the chain does not know that it must go there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from fs3.errors import Fs3Error, NotFound, StaleRouting, Unavailable
from fs3.ids import ChainId, NodeId, TargetId, node_name
from fs3.pb import common_pb2, mgmtd_pb2
from fs3.routing import LocalState, Routing, Target, TargetState
from fs3.runtime import SYSTEM, Runtime
from fs3.storage import target_core
from fs3.storage.engine_api import ChunkEngine
from fs3.storage.read_table import ReadTable
from fs3.storage.target_core import Phase, Place, Stand

_LOG = logging.getLogger("fs3.storage")
_GONE = Stand(Phase.BROKEN)
_HOLDS = b"holds"  # engine state: the chain version under which the target was last complete; 0 while in no chain
_BEFORE_VERSIONS = b"1"  # what was written there before it was a version
_ANY_VERSION = 1 << 32
_VERSION_BYTES = 4


class Duty(Enum):
    """What a target may do now."""

    NONE = "nothing"
    SERVE = "reads and writes"
    SYNC = "take whole chunks from its predecessor"


@dataclass(frozen=True, slots=True)
class Successor:
    """The next target that an update goes to."""

    target_id: int
    node_id: int
    generation: int
    endpoint: str
    syncing: bool


@dataclass(frozen=True, slots=True)
class Role:
    """The part of one of this daemon's targets in its chain, under one version of it."""

    chain_id: int
    version: int
    target_id: int
    duty: Duty
    position: int
    successor: Successor | None

    @property
    def head(self) -> bool:
        return self.duty is Duty.SERVE and self.position == 0


@dataclass(slots=True, eq=False)
class Acting:
    """Somebody who changes or copies chunks of a target, and the chain version he acts on."""

    chain_id: int
    target_id: int
    version: int


class ChainState:
    """Thread-safe. `ask(kind, number)` starts work: "claim", "prepare", "settle" of a target, "sync" of a chain."""

    def __init__(
        self,
        engines: Mapping[int, ChunkEngine],
        *,
        node_id: int,
        generation: int,
        poke: Callable[[], None],
        ask: Callable[[str, int], None],
        runtime: Runtime = SYSTEM,
    ) -> None:
        self._engines = engines
        self._node_id = node_id
        self._generation = generation
        self._poke = poke
        self._ask = ask
        self._runtime = runtime
        self._changed = runtime.condition()
        self._changes = 0
        self._routing = Routing()
        self._engine_of: dict[int, ChunkEngine] = {}
        self._chain_of: dict[int, int] = {}
        self._stands: dict[int, Stand] = {}
        self._holds: dict[int, int] = {}
        self._roles: dict[int, Role] = {}
        self._acting: set[Acting] = set()
        self.reads = ReadTable.empty()
        for engine in engines.values():
            for record in engine.targets().values():
                self._know(engine, record.target_id, record.chain_id)

    def _know(self, engine: ChunkEngine, target_id: int, chain_id: int) -> None:
        self._engine_of[target_id] = engine
        self._chain_of[target_id] = chain_id
        self._stands[target_id] = Stand(Phase.HELD)
        held = engine.get_state(target_id, _HOLDS)
        if held:
            self._holds[target_id] = _ANY_VERSION if held == _BEFORE_VERSIONS else int.from_bytes(held, "big")

    # What mgmtd says and hears

    def on_routing(self, routing: Routing) -> set[str]:
        """Act on a newer routing; the endpoints of processes that do not count any more. Does not block."""
        with self._changed:
            if routing.version <= self._routing.version:
                return set()
            before, self._routing = self._routing, routing
            self._update()
        alive = {endpoint for node in routing.nodes.values() if node.alive for endpoint in node.endpoints}
        known = {endpoint for node in before.nodes.values() for endpoint in node.endpoints}
        restarted = {
            endpoint
            for node_id, node in before.nodes.items()
            if (now := routing.nodes.get(node_id)) is not None and now.generation != node.generation
            for endpoint in node.endpoints
        }
        return (known - alive) | restarted

    def create(self, wanted: mgmtd_pb2.CreateTarget) -> None:
        """Make a target that mgmtd wants here, if it is not there yet. Blocks. Raises: Fs3Error."""
        engine = self._engines.get(wanted.disk)
        if engine is None:
            raise NotFound(f"target {wanted.target_id} is wanted on disk {wanted.disk}, which is not served here")
        with self._changed:
            if wanted.target_id in self._stands:
                return
        engine.create_target(wanted.target_id, wanted.chain_id)
        with self._changed:
            if wanted.target_id not in self._stands:
                self._know(engine, wanted.target_id, wanted.chain_id)
                self._update()
        self._poke()

    def has(self, target_id: int) -> bool:
        return target_id in self._stands

    def let_go(self, target_id: int) -> bool:
        """Know a target no longer that mgmtd wants deleted; False while this daemon's routing has it in a chain.

        A reader may still look for its engine, under a routing that he took before.
        """
        with self._changed:
            if TargetId(target_id) in self._routing.targets:
                return False
            self._stands.pop(target_id, None)
            self._holds.pop(target_id, None)
            return True

    def claim(self, target_id: int) -> None:
        """Note durably that a target is complete: in no chain, or as an operator said. Blocks. Raises: Fs3Error."""
        with self._changed:
            target = self._routing.targets.get(TargetId(target_id))
            if target is not None and not target.accept_loss:
                return
            version = 0 if target is None else self._routing.chain(target.chain_id).version
        self._note_complete(target_id, version)
        self._poke()

    def _note_complete(self, target_id: int, version: int) -> None:
        self.engine(target_id).put_state(target_id, _HOLDS, version.to_bytes(_VERSION_BYTES, "big"))
        with self._changed:
            self._holds[target_id] = version

    def local_targets(self) -> list[mgmtd_pb2.LocalTarget]:
        """What the next heartbeat says."""
        for engine in self._engines.values():
            if (failure := engine.failure()) is not None:  # whoever met it, or nobody: what was synced behind all backs
                self.broken(engine, failure)
        with self._changed:
            said = []
            for target_id, stand in self._stands.items():
                state = target_core.reported(stand)
                if state is None:
                    continue
                if stand.phase is Phase.COMPLETE and not self._is_noted(target_id):
                    state = LocalState.OFFLINE
                chain = self._routing.chains.get(ChainId(self._chain_of[target_id]))
                said.append((target_id, state, chain.version if chain is not None else 0))
        out = []
        damaged = {key[0] for engine in self._engines.values() for key in engine.damaged()}
        for target_id, state, version in said:
            used, chunks = self.engine(target_id).target_usage(target_id)
            out.append(
                mgmtd_pb2.LocalTarget(
                    target_id=target_id,
                    state=common_pb2.LocalState.ValueType(state),
                    chain_version=version,
                    used_bytes=used,
                    chunks=chunks,
                    damaged=target_id in damaged,
                )
            )
        return out

    # What a target may do

    def role(self, chain_id: int) -> Role | None:
        """The newest role in a chain; None if no target of it is here."""
        return self._roles.get(chain_id)

    def roles(self) -> list[Role]:
        return list(self._roles.values())

    def local(self) -> list[int]:
        """The targets that are here."""
        return list(self._engine_of)

    def others(self, target_id: int) -> tuple[int, int, list[tuple[int, str]]]:
        """(chain, its version, [(target, endpoint)] of the other targets that serve it); no endpoint, if a node is not
        there."""
        routing, chain_id = self._routing, ChainId(self._chain_of[target_id])
        chain = routing.chains.get(chain_id)
        if chain is None:
            return chain_id, 0, []
        places = []
        for one in routing.serving(chain_id):
            if one.target_id != target_id:
                node = routing.nodes.get(one.node_id)
                places.append((int(one.target_id), node.endpoints[0] if node is not None and node.alive else ""))
        return chain_id, chain.version, places

    def whole(self, chain_id: int) -> bool:
        """Whether every target of a chain serves, so that nobody who is away has what these lack."""
        routing = self._routing
        return all(
            routing.targets[one].state == TargetState.SERVING for one in routing.chain(ChainId(chain_id)).targets
        )

    def stand(self, target_id: int) -> Stand:
        """Where a target stands; one that is gone does nothing, as if its disk had failed."""
        return self._stands.get(target_id, _GONE)

    def engine(self, target_id: int) -> ChunkEngine:
        return self._engine_of[target_id]

    def enter(self, chain_id: int, chain_version: int) -> tuple[Role, Acting]:
        """Begin to act on a chain under the version that a request names; `leave` must follow.

        Raises: StaleRouting (another version than this daemon's), Unavailable (its target here may do nothing).
        """
        with self._changed:
            role = self._roles.get(chain_id)
            if role is None:
                raise StaleRouting(f"chain {chain_id} has no target on node {node_name(self._node_id)}")
            if role.version != chain_version:
                raise StaleRouting(f"chain {chain_id} is at version {role.version} here, not {chain_version}")
            if role.duty is Duty.NONE:
                stand = self._stands[role.target_id]
                raise Unavailable(f"target {role.target_id} of chain {chain_id} does not serve: {stand.phase.value}")
            acting = Acting(chain_id, role.target_id, role.version)
            self._acting.add(acting)
            return role, acting

    def renew(self, acting: Acting) -> Role:
        """The newest role, which `acting` acts on from now on. Raises: Unavailable, if it may do nothing."""
        with self._changed:
            role = self._roles.get(acting.chain_id)
            if role is None or role.duty is not Duty.SERVE:
                raise Unavailable(f"target {acting.target_id} no longer serves chain {acting.chain_id}")
            if role.version != acting.version:
                acting.version = role.version
                self._changed.notify_all()
            return role

    def leave(self, acting: Acting) -> None:
        with self._changed:
            self._acting.discard(acting)
            self._changed.notify_all()

    def drained(self, target_id: int, version: int, deadline_s: float) -> bool:
        """Wait until nobody acts on the target under a chain version below `version`; whether that came in time."""
        with self._changed:
            while any(one.target_id == target_id and one.version < version for one in self._acting):
                left_s = deadline_s - self._runtime.now_s()
                if left_s <= 0 or not self._changed.wait(left_s):
                    return False
            return True

    def changes(self) -> int:
        """Counts changes of roles, for `wait_changed`."""
        return self._changes

    def wait_changed(self, seen: int, timeout_s: float) -> None:
        """Wait for a change of roles after `changes()` said `seen`, at most `timeout_s`."""
        deadline_s = self._runtime.now_s() + timeout_s
        with self._changed:
            while self._changes == seen:
                left_s = deadline_s - self._runtime.now_s()
                if left_s <= 0 or not self._changed.wait(left_s):
                    return

    def serving(self, chain_id: int, chain_version: int) -> int:
        """The target that answers reads of a chain. Raises: StaleRouting, Unavailable."""
        role = self._roles.get(chain_id)
        if role is None or role.version != chain_version:
            raise StaleRouting(f"chain {chain_id} is not at version {chain_version} on node {node_name(self._node_id)}")
        if role.duty is not Duty.SERVE:
            raise Unavailable(f"target {role.target_id} of chain {chain_id} does not serve")
        return role.target_id

    # What this daemon has done

    def prepared(self, target_id: int, was: Stand) -> None:
        """The work that `was` asked for is done."""
        with self._changed:
            if self._stands.get(target_id) is was:
                self._stands[target_id] = target_core.prepared(was)
                self._update()
        self._poke()

    def sync_done(self, chain_id: int, chain_version: int) -> None:
        """Recovery of the target here is complete. Blocks. Raises: StaleRouting, Unavailable, Fs3Error."""
        role, acting = self.enter(chain_id, chain_version)
        try:
            if role.duty is not Duty.SYNC:
                raise Unavailable(f"target {role.target_id} is not SYNCING")
            if self._holds.get(role.target_id, -1) < chain_version:
                self._note_complete(role.target_id, chain_version)
            with self._changed:
                if self._roles.get(chain_id) is not role:
                    raise StaleRouting(f"chain {chain_id} has changed since version {chain_version}")
                self._stands[role.target_id] = target_core.synced(self._stands[role.target_id], chain_version)
        finally:
            self.leave(acting)
        self._poke()

    def step_aside(self, role: Role, why: str) -> None:
        """Leave a chain to its other serving targets, and come back through recovery; if `role` is still the newest."""
        with self._changed:
            if self._roles.get(role.chain_id) != role or role.successor is None or role.successor.syncing:
                return
            _LOG.error("target %d leaves chain %d to the others, to be synced: %s", role.target_id, role.chain_id, why)
            self._stands[role.target_id] = target_core.aside(self._stands[role.target_id])
            self._update()
        self._poke()

    def broken(self, engine: ChunkEngine, error: Fs3Error) -> None:
        """An engine takes no more changes: its targets do nothing until the daemon is restarted."""
        with self._changed:
            lost = [target_id for target_id in self._stands if self._engine_of[target_id] is engine]
            if all(self._stands[target_id].phase is Phase.BROKEN for target_id in lost):
                return
            _LOG.error("targets %s go offline: %s", lost, error)
            for target_id in lost:
                self._stands[target_id] = Stand(Phase.BROKEN)
            self._update()
        self._poke()

    # Inside: the condition is held

    def _update(self) -> None:
        routing = self._routing
        own = routing.nodes.get(NodeId(self._node_id))
        ours = own is not None and own.generation == self._generation
        roles: dict[int, Role] = {}
        for target_id in list(self._stands):
            target = routing.targets.get(TargetId(target_id))
            self._step(target_id, target, ours=ours)
            if target is not None and target.node_id == self._node_id:
                roles[target.chain_id] = self._role(target)
        before, self._roles = self._roles, roles
        self._changes += 1
        self._serve(self._read_table())
        self._changed.notify_all()
        for chain_id, role in roles.items():
            if before.get(chain_id) != role and role.duty is Duty.SERVE:
                self._ask("settle", role.target_id)
                if role.successor is not None and role.successor.syncing:
                    self._ask("sync", chain_id)

    def _serve(self, table: ReadTable) -> None:
        """Answer reads by another table; places that clients keep hold no more where it differs."""
        counters = [] if table.says_the_same(self.reads) else [one.counters for one in self._engines.values()]
        for one in counters:
            if one is not None:
                one.begin_serving()
        self.reads = table
        for one in counters:
            if one is not None:
                one.end_serving()

    def _step(self, target_id: int, target: Target | None, *, ours: bool) -> None:
        place = None
        if target is not None:
            place = Place(
                target.state,
                self._routing.chain(target.chain_id).version,
                steps_down=target.target_id in self._routing.stepping_down(target.chain_id),
                accept_loss=target.accept_loss,
            )
        before = self._stands[target_id]
        holds = target_id in self._holds and (target is None or self._holds[target_id] >= target.complete_at)
        stand = target_core.next_stand(before, place, ours=ours, holds=holds)
        if stand is not before:
            self._stands[target_id] = stand
            where = "in no chain" if place is None else f"{place.state.name} in chain version {place.chain_version}"
            level = logging.ERROR if stand.phase is Phase.REFUSED else logging.INFO
            _LOG.log(level, "target %d: %s -> %s, %s", target_id, before.phase.name, stand.phase.name, where)
            if stand.phase in (Phase.RECALLING, Phase.CLEARING):
                self._ask("prepare", target_id)
        if stand.phase is Phase.COMPLETE and not self._is_noted(target_id):
            self._ask("claim", target_id)

    def _is_noted(self, target_id: int) -> bool:
        """Whether the disk says of a target, which is complete, that it is."""
        held = self._holds.get(target_id, -1)
        target = self._routing.targets.get(TargetId(target_id))
        if target is not None and target.accept_loss:
            return held >= self._routing.chain(target.chain_id).version
        return held >= 0

    def _role(self, target: Target) -> Role:
        chain = self._routing.chain(target.chain_id)
        phase = self._stands[target.target_id].phase
        duty = Duty.NONE
        if target.state == TargetState.SERVING and phase is Phase.SERVING:
            duty = Duty.SERVE
        elif target.state == TargetState.SYNCING and phase in (Phase.STALE, Phase.COMPLETE):
            duty = Duty.SYNC
        position, successor = 0, None
        if duty is not Duty.NONE:
            writable = self._routing.writable(target.chain_id)
            position = next(place for place, one in enumerate(writable) if one.target_id == target.target_id)
            if duty is Duty.SERVE and position + 1 < len(writable):
                successor = self._successor(writable[position + 1])
        return Role(chain.chain_id, chain.version, target.target_id, duty, position, successor)

    def _successor(self, target: Target) -> Successor:
        node = self._routing.nodes[target.node_id]
        return Successor(
            target.target_id,
            node.node_id,
            node.generation,
            node.endpoints[0],
            target.state == TargetState.SYNCING,
        )

    def _read_table(self) -> ReadTable:
        table = ReadTable.empty(max(self._roles, default=0) + 1)
        for chain_id, role in self._roles.items():
            table.version[chain_id] = role.version
            if role.duty is Duty.SERVE:
                table.target[chain_id] = role.target_id
        return table
