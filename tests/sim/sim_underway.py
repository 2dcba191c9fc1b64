"""What is promised of updates, recovery and repair while they are under way, looked at from inside.

Each of these is broken for an instant only, or shows in a history only if something else goes wrong just then; so they
are looked at where they are kept:

What waited too long is over  (replication.py) an update from a predecessor that got its chunk's lock when the chain
                              had changed is refused
Who acts says on what         (chain_state.py) an update is staged under the chain version that its worker says to act
                              on, which is what recovery waits for
Recovery holds the chunk      (resync.py) what it sends of a chunk is what the chunk is until the successor has it
Repair makes no version       (changes.py) a version that is given another block has the bytes there that its record
                              names
One change, applied once      (fs3/client/write_path.py) an update that is sent again under another session was not
                              applied under the one before, and will not be
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from sim_history import Chunk
from sim_invariants import WatchedChunk
from sim_kernel import Violation
from sim_promises import Promises

from fs3 import checksum
from fs3.client.write_path import WriteCall
from fs3.ids import chunk_name
from fs3.storage.craq_core import Decision
from fs3.storage.engine import Engine
from fs3.storage.published import Published
from fs3.storage.replication import Replication
from fs3.storage.resync import _Pass

_Identity = tuple[int, int, int]  # client, channel, seq
_Key = tuple[int, int, int]  # target, hi, lo


class UnderWay:
    """Of one run. Enter it while the simulation runs."""

    def __init__(self, cluster: Any, promises: Promises) -> None:
        self._cluster = cluster
        self._promises = promises
        self._names: defaultdict[tuple[WriteCall, int], list[_Identity]] = defaultdict(list)
        self._given: dict[tuple[Published, _Key], tuple[int, int]] = {}  # bytes of a repair: length, sum of sums
        self._kept: list[tuple[type, str, Any]] = []

    def __enter__(self) -> UnderWay:
        self._watch(Replication, "_decision", self._decided)
        self._watch(Engine, "stage", self._staged)
        self._watch(Engine, "stage_and_commit", self._staged)
        self._watch(_Pass, "_send_frame", self._recovered)
        self._watch(Engine, "repair", self._repaired)
        self._watch(Published, "moved", self._moved)
        self._watch(WriteCall, "_in_session", self._named)
        return self

    def __exit__(self, *_: object) -> None:
        while self._kept:
            owner, name, method = self._kept.pop()
            setattr(owner, name, method)

    def _watch(self, owner: type, name: str, watch: Callable[..., Any]) -> None:
        """Have `watch(method, self, ...)` be called instead of a method."""
        method = getattr(owner, name)
        self._kept.append((owner, name, method))
        setattr(owner, name, lambda *given, **more: watch(method, *given, **more))

    def at_rest(self) -> None:
        """Nothing is under way any more. Raises: Violation."""
        for names in self._names.values():
            if len(names) > 1:
                self._once(names)

    # Updates in a replica

    def _decided(self, decide: Callable[..., Decision], replication: Any, item: Any, *rest: Any) -> Decision:
        now = replication._state.role(item.role.chain_id)
        late = not item.from_client and (now is None or now.version != item.role.version)
        decision = decide(replication, item, *rest)
        if late and decision.error is None:
            raise WatchedChunk(
                item.key[1:],
                item.role.chain_id,
                f"target {item.key[0]} carries out an update of {chunk_name(*item.key[1:])} that was sent for version"
                f" {item.role.version} of the chain, which is at {now.version if now is not None else 'none'}",
            )
        return decision

    def _staged(self, stage: Callable[..., Any], engine: Engine, updates: Sequence[Any]) -> Any:
        for update in updates:
            state = self._state_of(engine)
            acting = state._acting if state is not None else ()
            said = {one.version for one in acting if one.target_id == update.target_id}
            if state is not None and update.chain_version not in said:
                raise WatchedChunk(
                    (update.hi, update.lo),
                    state._chain_of[update.target_id],
                    f"target {update.target_id} stages version {update.version} of {chunk_name(update.hi, update.lo)}"
                    f" for version {update.chain_version} of the chain; whoever is at work there says {sorted(said)}",
                )
        return stage(engine, updates)

    def _state_of(self, engine: Engine) -> Any:
        for storage in [*self._cluster.storages, *self._cluster.twins]:
            if storage.daemon is not None and engine in storage.daemon.engines:
                return storage.daemon.writes.state
        return None

    # Recovery and repair

    def _recovered(self, send: Callable[..., None], recovery: Any, chunks: Sequence[Chunk], *rest: Any) -> None:
        engine, role = recovery._engine, recovery._role
        before = [engine.info(role.target_id, *chunk) for chunk in chunks]
        send(recovery, chunks, *rest)
        for chunk, was in zip(chunks, before, strict=True):
            now = engine.info(role.target_id, *chunk)
            if was.pending or (now.version, now.pending) != (was.version, was.pending):
                raise WatchedChunk(
                    chunk,
                    role.chain_id,
                    f"target {role.target_id} sent {chunk_name(*chunk)} to the replica behind it while it was written:"
                    f" version {was.version}, pending {was.pending}, then {now.version}, pending {now.pending}",
                )

    def _repaired(
        self, repair: Callable[..., None], engine: Engine, target: int, hi: int, lo: int, version: int, *of: Any
    ) -> None:
        data, fine = of
        self._given[engine._published, (target, hi, lo)] = (
            len(data),
            checksum.crc(checksum.coarse_from_fine(fine, len(data)).tobytes()),
        )
        repair(engine, target, hi, lo, version, *of)

    def _moved(self, move: Callable[..., None], published: Published, key: _Key, version: Any, batch: int) -> None:
        given = self._given.pop((published, key))
        if given != (version.length, version.crc):
            raise WatchedChunk(
                key[1:],
                0,
                f"target {key[0]}: version {version.version} of {chunk_name(*key[1:])}, {version.length} bytes, sum"
                f" {version.crc}, is repaired with {given[0]} bytes, sum {given[1]}",
            )
        move(published, key, version, batch)

    # Clients

    def _named(self, run: Callable[..., None], call: WriteCall, identity: Any, channels: Any, todo: Any) -> None:
        for place, channel in zip(todo.tolist(), channels, strict=True):
            names = self._names[call, place]
            self._once(names, now=True)
            names.append((identity.client_id, channel.channel, channel.seq))
        run(call, identity, channels, todo)

    def _once(self, names: Sequence[_Identity], *, now: bool = False) -> None:
        """An update that has these names was applied under one of them at most; under none, if it gets another now."""
        applied = [(name, self._promises.applied[name]) for name in names if name in self._promises.applied]
        if len(applied) > (0 if now else 1):
            told = ", ".join(
                f"version {version} of {chunk_name(*chunk)} as client {name[0]}, channel {name[1]}, number {name[2]}"
                for name, (chunk, version) in applied
            )
            raise Violation(f"an update is sent again under another session, and was applied: {told}")
