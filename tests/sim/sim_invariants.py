"""What must hold in every cluster at every moment, and what once it is quiet.

At every published routing  its version and every chain's only rise, and a chain that changed has a new one; at most
                            one SYNCING target a chain; the order SERVING, LASTSRV, SYNCING, WAITING, OFFLINE; somebody
                            holds the data; who is taken out of SERVING because it was not heard of serves no more
At every answer of a mgmtd  no other one may answer at that moment, if their clocks go at one rate
At every observer           the routing version only rises within one run of a process
At every commit of a chunk  its version only rises on a target that serves
At every forwarded update   no replica that serves misses what was before it, or has another one under its number
Once quiet (`at_rest`)      replicas are the same: content, versions, sums, tombstones, results of clients; nothing is
                            pending, locked, lent or waiting; every block is in use by exactly one record, or free
After a restart of all      (`after_restart`) every committed version is there, and every block in use or free
Over the whole history      every chunk's is linearizable (sim_linearize.py)

The first half listens to the simulator's events, at `Published.commit` and at `Election.deciding`; it costs little.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sim_history import Chunk, Operation
from sim_kernel import Event, Simulation, Violation
from sim_linearize import Verdict, check
from sim_workload import Workload

from fs3.client import identity
from fs3.errors import Conflict, Corrupt, NotPrimary
from fs3.ids import chunk_name
from fs3.mgmtd.election import Election
from fs3.mgmtd.primary import Primary
from fs3.routing import Routing, Target, TargetState
from fs3.storage import craq_core
from fs3.storage.allocator_core import Block
from fs3.storage.craq_core import Decision
from fs3.storage.engine_api import ChunkInfo
from fs3.storage.published import Published
from fs3.storage.target_core import Phase

_PAGE = 10_000
_SAME = ("hi", "lo", "version", "pending", "length", "crc")


class NotLinearizable(Violation):
    """No order of a chunk's operations explains what its clients saw."""

    def __init__(self, chunk: Chunk, chain: int, operations: list[Operation], verdict: Verdict) -> None:
        what = "no order explains what was seen"
        if not verdict.decided:
            what = f"the search for an order was given up after {verdict.nodes} nodes; longer: --search-nodes"
        super().__init__(f"{chunk_name(*chunk)} on chain {chain}: {what}\n{verdict.why}")
        self.chunk = chunk
        self.chain = chain
        self.operations = operations
        self.verdict = verdict


class WatchedChunk(Violation):
    """Something about one chunk on one target."""

    def __init__(self, chunk: Chunk, chain: int, text: str) -> None:
        super().__init__(text)
        self.chunk = chunk
        self.chain = chain


class ChainViolation(Violation):
    """Something about a chain."""

    def __init__(self, chain: int, text: str) -> None:
        super().__init__(text)
        self.chunk = None
        self.chain = chain


class Invariants:
    """Of one run. Enter it while the simulation runs."""

    def __init__(self, sim: Simulation, cluster: Any, workload: Workload | None = None) -> None:
        self._sim = sim
        self._cluster = cluster
        self.workload = workload
        self._learned: dict[str, int] = {}
        self._published_version = 0
        self._clocks_agree = True  # of the mgmtds: no lease excludes two of them otherwise
        self._commit: Callable[..., None] | None = None
        self._deciding: Callable[..., Primary] | None = None
        self._replica_decides: Callable[..., Decision] | None = None
        sim.subscribe(self.hear, "routing", "learned", "fault", "start", "power_loss")

    def __enter__(self) -> Invariants:
        self._commit = commit = Published.commit

        def watched(published: Published, key: tuple[int, int, int], version: Any, batch: int) -> None:
            self._committing(published, key, version)
            commit(published, key, version, batch)

        Published.commit = watched  # type: ignore[method-assign]
        self._deciding = deciding = Election.deciding

        def alone(election: Election) -> Primary:
            primary = deciding(election)
            for mgmtd in self._cluster.mgmtds if self._clocks_agree else ():
                if mgmtd.alive and mgmtd.election is not None and mgmtd.election is not election:
                    with contextlib.suppress(NotPrimary):
                        other = deciding(mgmtd.election)
                        raise Violation(f"two mgmtds decide: epoch {primary.epoch} and {other.epoch}, {mgmtd.name}")
            return primary

        Election.deciding = alone  # type: ignore[method-assign]
        self._replica_decides = decides = craq_core.replica_decides

        def in_step(hi: int, lo: int, version: int, info: ChunkInfo, **others: Any) -> Decision:
            decision = decides(hi, lo, version, info, **others)
            if isinstance(decision.error, Conflict):  # its predecessor is told so, but has no way on
                raise Violation(f"a replica is out of step with its predecessor: {decision.error}")
            return decision

        craq_core.replica_decides = in_step
        return self

    def __exit__(self, *_: object) -> None:
        assert self._commit is not None and self._deciding is not None and self._replica_decides is not None
        Published.commit = self._commit  # type: ignore[method-assign]
        Election.deciding = self._deciding  # type: ignore[method-assign]
        craq_core.replica_decides = self._replica_decides

    # Events

    def hear(self, event: Event) -> None:
        """For `Simulation.subscribe`. Raises: Violation."""
        match event.kind:
            case "routing":
                self._routing(event.process, event.fields["before"], event.fields["after"])
            case "learned":
                version = event.fields["routing"]
                if version < self._learned.get(event.process, 0):
                    raise Violation(f"{event.process} went back to routing version {version}")
                self._learned[event.process] = version
            case "fault" if event.fields["what"] == "lease clock jumps" and event.process.startswith("mgmtd"):
                self._clocks_agree = False
            case "start":
                self._learned.pop(event.process, None)
            case "power_loss" if self.workload is not None:
                self.workload.power_lost(self._chains_of(event.process))

    def _chains_of(self, process: str) -> list[int]:
        """The chains that have a target on a storage daemon."""
        for storage in self._cluster.storages:
            if storage.process.name == process:
                return sorted(
                    target.chain_id
                    for target in self._cluster.routing.targets.values()
                    if target.node_id == storage.node_id
                )
        return []

    def _routing(self, process: str, before: Routing, after: Routing) -> None:
        if after.version <= self._published_version:
            raise Violation(f"{process} published routing {after.version} after {self._published_version}")
        self._published_version = after.version
        for chain in after.chains.values():
            states = [after.targets[target].state for target in chain.targets]
            said = f"chain {chain.chain_id} v{chain.version} is {[state.name for state in states]}"
            if states.count(TargetState.SYNCING) > 1:
                raise Violation(f"{said}: two are SYNCING")
            if states != sorted(states):
                raise Violation(f"{said}: not in order")
            if not any(state in (TargetState.SERVING, TargetState.LASTSRV) for state in states):
                raise Violation(f"{said}: nobody holds the data")
            earlier = before.chains.get(chain.chain_id)
            if earlier is None:
                continue
            was = [before.targets[target].state for target in earlier.targets]
            if chain.version < earlier.version:
                raise Violation(f"{said}: it was at v{earlier.version}")
            if chain.version == earlier.version and (was, earlier.targets) != (states, chain.targets):
                raise Violation(f"{said}: it has changed and kept its version")
        for target in after.targets.values():
            then = before.targets.get(target.target_id)
            if then is not None and then.state is TargetState.SERVING and target.state is not TargetState.SERVING:
                self._off_duty(then, target)

    def _off_duty(self, before: Target, after: Target) -> None:
        """mgmtd counts a target out, and others go on: its daemon must know by its own clock, or have said so itself.

        As LASTSRV it may not know yet: nobody else serves, so nothing can pass it by.
        """
        storage = self._storage_of(before)
        if storage is None or after.state is TargetState.LASTSRV:
            return
        daemon = storage.daemon
        stand = daemon.writes.state.stand(before.target_id)
        if stand.phase is Phase.SERVING and daemon._may_serve():
            raise ChainViolation(
                after.chain_id,
                f"target {before.target_id} goes {before.state.name} -> {after.state.name}, its daemon still serves",
            )

    def _storage_of(self, target: Target) -> Any:
        """The daemon of a target, if it is up."""
        for storage in self._cluster.storages:
            if storage.node_id == target.node_id and storage.alive and storage.daemon is not None:
                return storage
        return None

    def _committing(self, published: Published, key: tuple[int, int, int], version: Any) -> None:
        """A chunk's committed version is about to change on a target."""
        target = self._cluster.routing.targets.get(key[0])
        old = published.get(key)
        if target is None or not old.version or (version is not None and version.version > old.version):
            return
        storage = self._storage_of(target)
        if storage is None or all(engine._published is not published for engine in storage.daemon.engines):
            return
        if storage.daemon.writes.state.stand(key[0]).phase is not Phase.SERVING:
            return
        if version is None and old.file == 0:
            return  # a tombstone is forgotten
        new = "nothing" if version is None else f"version {version.version}"
        raise WatchedChunk(
            key[1:],
            target.chain_id,
            f"target {key[0]}, {chunk_name(*key[1:])}: {new} after version {old.version}, and the target serves",
        )

    # Over the whole history

    def histories(self) -> None:
        """Raises: NotLinearizable."""
        assert self.workload is not None
        for chunk, operations in self.workload.history.chunks().items():
            verdict = check(operations)
            if not verdict.ok:
                raise NotLinearizable(chunk, operations[0].chain, operations, verdict)

    # Once quiet

    def at_rest(self) -> None:
        """All chains serve, no client does anything. Raises: Violation."""
        for storage in self._cluster.storages:
            if storage.alive:
                self._daemon_rests(storage)
        for number, client in enumerate(self._cluster.clients):
            if client.alive:
                self._client_rests(number, client)
        for chain in self._cluster.routing.chains.values():
            self._replicas_agree(chain.chain_id, [self._cluster.routing.targets[target] for target in chain.targets])
        for storage in self._cluster.storages:
            for disk, engine in enumerate(storage.daemon.engines if storage.alive else ()):
                blocks_add_up(engine, f"node {storage.node_id}, disk {disk}")

    def _daemon_rests(self, storage: Any) -> None:
        name, daemon = f"storage {storage.node_id}", storage.daemon
        writes = daemon.writes
        if locked := writes.stats().locked_chunks:
            raise Violation(f"{name}: {locked} chunks are locked\n{self._sim.stuck()}")
        if not writes.idle():
            raise Violation(f"{name}: its upkeep does not end\n{self._sim.stuck()}")
        if writes.state._acting:
            raise Violation(f"{name}: somebody still acts on its targets: {writes.state._acting}")
        # A client's connection acknowledges its last reply with its next request. Daemons go on asking each other for
        # good bytes of what is damaged: a reply may be on its way.
        owed = sum(len(peer._unacked) + len(peer._outbox) for peer in storage.io.peers.values())
        for engine in daemon.engines:
            stats = engine.stats()
            if stats.pending or stats.holds + stats.pins > owed:
                left = f"{stats.pending} pending versions, {stats.holds} holds and {stats.pins} pins"
                raise Violation(f"{name}: an engine does not rest: {left}, for {owed} replies")
        service = daemon.service
        pools = [*service._hops, *service._ahead_hops, service._slow_reads, service._syncs]
        if waiting := sum(len(pool._waiting) for pool in pools):
            raise Violation(f"{name}: {waiting} requests wait for a thread")
        if busy := sum(len(pool._threads) - pool._idle for pool in pools):
            raise Violation(f"{name}: {busy} threads are busy with requests\n{self._sim.stuck()}")

    def _client_rests(self, number: int, client: Any) -> None:
        peers, known = client.storage._peers, identity._identities.get(client.mgmtd)
        if known is not None and known.channels._lent:
            raise Violation(f"client {number}: {known.channels._lent} update channels are lent")
        if any(peers._load.values()):
            raise Violation(f"client {number}: bytes are still owed: {peers._load}")

    def after_restart(self, *, power: bool) -> None:
        """End all storage daemons at once, `power` and all, and look at what their disks hold. Raises: Violation.

        Every committed chunk must be there, committed or, as its commit need not be synced in front of the tail,
        pending; one that is not synced by its contract may have lost its latest changes.
        """
        before = {storage.name: self._committed_chunks(storage) for storage in self._cluster.storages}
        for storage in self._cluster.storages:
            if power:
                storage.lose_power()
                storage.power_on()
            else:
                storage.kill("for a look at its disk")
            storage.start()
        left = list(self._cluster.storages)

        def looked_at() -> bool:
            # As soon as the disk is open: pending versions are dropped where others go on without them.
            while left and left[-1].daemon is not None:
                self._after_restart(left[-1], before[left[-1].name], power=power)
                left.pop()
            left.sort(key=lambda storage: storage.daemon is not None)
            return not left

        self._cluster.run_until(looked_at, within_s=60.0, what="that all daemons open their disks")

    def _after_restart(self, storage: Any, before: dict[tuple[int, int, int], int], *, power: bool) -> None:
        after, durable = self._committed_chunks(storage), self._durable()
        for key, version in before.items():
            if after.get(key, 0) != version and (not power or key[1:] in durable):
                now = f"version {after[key]}" if key in after else "nothing"
                raise WatchedChunk(
                    key[1:],
                    self._cluster.routing.targets[key[0]].chain_id,
                    f"target {key[0]}, {chunk_name(*key[1:])}: version {version} is {now} after a restart",
                )
        for disk, engine in enumerate(storage.daemon.engines):
            blocks_add_up(engine, f"node {storage.node_id}, disk {disk}, opened again")

    def _committed_chunks(self, storage: Any) -> dict[tuple[int, int, int], int]:
        """The newest version, pending or not, of each chunk on a daemon's disks."""
        found = {}
        for engine in storage.daemon.engines:
            for target_id in sorted(engine.targets()):
                if target_id in self._cluster.routing.targets:
                    for one in _all(engine.metas, target_id):
                        key = (target_id, int(one["hi"]), int(one["lo"]))
                        found[key] = max(int(one["version"]), int(one["pending"]))
        return found

    def _durable(self) -> set[Chunk]:
        return {place.chunk for place in self.workload.places if place.durable} if self.workload else set()

    def _channels_in_use(self) -> list[tuple[int, int]]:
        """The update channels that clients will use again, so that every answer on them was definite."""
        found: list[tuple[int, int]] = []
        sessions = self._cluster.primary.sessions.table
        for client in self._cluster.clients:
            known = identity._identities.get(client.mgmtd) if client.alive else None
            if known is not None and not sessions.ended(known.client_id):
                found += [(known.client_id, channel.channel) for channel in known.channels._free]
        return found

    def _replicas_agree(self, chain_id: int, targets: list[Target]) -> None:
        seen: list[tuple[Target, Any, Any, Any, Any]] = []
        for target in targets:
            storage = self._storage_of(target)
            if storage is None or target.state is not TargetState.SERVING:
                raise Violation(f"chain {chain_id}: target {target.target_id} is {target.state.name} at rest")
            engine = storage.daemon.engines[target.disk]
            metas, tombstones = (_all(page, target.target_id) for page in (engine.metas, engine.tombstones))
            results = {(one.client, one.channel): one.entry for one in engine.dedup_records(target.target_id)}
            seen.append((target, engine, metas, tombstones, results))
        for here, there in itertools.pairwise(seen):
            first, engine, metas, tombstones, results = here
            other, engine_there, metas_there, tombstones_there, results_there = there
            where = f"chain {chain_id}: targets {first.target_id} and {other.target_id} differ"
            _compare(chain_id, where, "chunk", metas, metas_there)
            # Removals are forgotten from the tail on, which may stop halfway.
            mine = {(one["hi"], one["lo"]) for one in tombstones_there}
            kept = [(one["hi"], one["lo"]) in mine for one in tombstones]
            _compare(chain_id, where, "tombstone", tombstones[np.array(kept, dtype=np.bool_)], tombstones_there)
            # What was lost may have left its result with a replica that was away, and has no other trace.
            if self.workload is None or chain_id not in self.workload.lossy_chains:
                _compare_results(chain_id, where, self._channels_in_use(), results, results_there)
            for hi, lo in zip(metas["hi"].tolist(), metas["lo"].tolist(), strict=True):
                self._same_bytes(chain_id, (first, engine), (other, engine_there), (hi, lo))

    def _same_bytes(self, chain_id: int, one: tuple[Target, Any], other: tuple[Target, Any], chunk: Chunk) -> None:
        try:
            mine, theirs = (engine.read_chunk(target.target_id, *chunk) for target, engine in (one, other))
        except Corrupt as error:
            if chunk not in self._durable():
                return  # a power loss took its bytes, and not its record
            raise WatchedChunk(chunk, chain_id, f"chain {chain_id}: at rest, {error}") from None
        if bytes(mine.data) != bytes(theirs.data) or (mine.fine != theirs.fine).any():
            raise WatchedChunk(
                chunk,
                chain_id,
                f"chain {chain_id}: targets {one[0].target_id} and {other[0].target_id} differ in the bytes of"
                f" {chunk_name(*chunk)}, version {mine.version}",
            )


def _all(page: Callable[[int, bytes, int], Any], target_id: int) -> Any:
    return page(target_id, b"", _PAGE).copy()


def _compare(chain_id: int, where: str, kind: str, mine: Any, theirs: Any) -> None:
    rows = [
        {(one["hi"], one["lo"]): tuple(one[name].item() for name in _SAME) for one in side} for side in (mine, theirs)
    ]
    if rows[0] == rows[1]:
        return
    for key in sorted({**rows[0], **rows[1]}):
        a, b = (side.get(key) for side in rows)
        if a != b:
            chunk = (int(key[0]), int(key[1]))
            told = [
                "absent"
                if one is None
                else ", ".join(f"{name} {value}" for name, value in zip(_SAME[2:], one[2:], strict=True))
                for one in (a, b)
            ]
            raise WatchedChunk(chunk, chain_id, f"{where} in {kind} {chunk_name(*chunk)}: {told[0]} / {told[1]}")


def _compare_results(
    chain_id: int, where: str, owners: list[tuple[int, int]], mine: dict[Any, Any], theirs: dict[Any, Any]
) -> None:
    for owner in owners:
        a, b = mine.get(owner), theirs.get(owner)
        if a != b:
            client, channel = owner
            raise ChainViolation(
                chain_id, f"{where} in the last result of client {client} channel {channel}: {a} / {b}"
            )


def blocks_add_up(engine: Any, where: str) -> None:
    """Every slot that the allocator has given out is named by exactly one record, or waits in quarantine to be free.

    Raises: Violation.
    """
    named = Counter(_named(engine))
    space = engine._space
    quarantine = space._quarantine
    retired = [physical for _, _, physical in quarantine._retired] + sorted(quarantine._awaiting_unpin)
    named.update(_block_of(engine, physical) for physical in retired)
    shared = sorted(block for block, count in named.items() if count > 1)
    if shared:
        raise Violation(f"{where}: {shared[0]} belongs to two")
    given = set(_given_out(space._allocator))
    if leaked := sorted(given - named.keys()):
        raise Violation(f"{where}: {len(leaked)} blocks are leaked, {leaked[0]} first")
    if lost := sorted(named.keys() - given):
        raise Violation(f"{where}: {len(lost)} blocks are in use and count as free, {lost[0]} first")


def _named(engine: Any) -> Iterator[Block]:
    """The blocks that committed and pending versions name."""
    files = engine._files
    for target_id in sorted(engine.targets()):
        page = _all(engine.metas, target_id)
        found = engine.lookup(np.full(len(page), target_id, dtype=np.uint32), page["hi"], page["lo"])
        for file, position in zip(found.file.tolist(), found.position.tolist(), strict=True):
            if file >= 0:
                yield Block(file, files[file].slot(position))
    for version in engine._published.pending.values():
        if version.file >= 0:
            yield Block(version.file, version.slot)


def _block_of(engine: Any, physical: int) -> Block:
    file = physical >> 44
    return Block(file, engine._files[file].slot((physical & (1 << 44) - 1) << 12))


def _given_out(allocator: Any) -> Iterator[Block]:
    for file, space in sorted(allocator._spaces.items()):
        for group, mask in enumerate(space.free):
            begin = group * space.group_slots
            for slot in range(min(space.group_slots, space.slots - begin)):
                if not mask >> slot & 1:
                    yield Block(file, begin + slot)
