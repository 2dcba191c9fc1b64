"""What production modules promise each other in so many words, looked at from inside while a cluster runs.

A history shows a broken promise only where somebody reads the right chunk at the right moment. These show it at once:

An update is one version      (craq_core.py) one (client, channel, seq) is committed as one version of one chunk, on
                              whatever replicas and however often it was sent
Who has forgotten knows why   (session_fence.py) a target that serves, or was the last that did, and lacks the result
                              of an update which its chain has applied, has the update pending, or knows that the
                              client's session is over; also after a restart: its fence on disk says so
Stored, then shown            (engine.py) what readers see of a synced chunk is on stable storage, committed or pending,
                              record and bytes
Answers are given in time     (read_path.py, service.py) a read or a client's update is answered only while the daemon's
                              lease goes on: T/2 after the last heartbeat that was answered
Recovery leaves nothing out   (resync.py) a replica that serves from now on has every committed chunk and removal of the
                              one in front of it, and no others
Runs do not come back         (lease_core.py) a node's generation in the routing is never again one that another has
                              replaced, unless that other is gone itself
One daemon a node             (lease_core.py) a daemon gets a node's id only once the one before it serves no more
Marked damage is not sent     (repair.py) a range of a chunk that is marked gets no bytes
Damage is the last resort     (resync.py) recovery passes damaged bytes on only where nobody who serves has good ones
No damage by itself           bytes fail their sums only where a disk has failed, lost power or changed bytes

What a chain may have lost by contract (`Workload.lossy_chains`) is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim_history import Chunk
from sim_invariants import ChainViolation, WatchedChunk
from sim_kernel import Event, Simulation, Violation
from sim_workload import Workload

from fs3.ids import chunk_name
from fs3.routing import Routing, TargetState
from fs3.sessions import SessionTable
from fs3.storage import metadata, service
from fs3.storage.blocks import name_of
from fs3.storage.published import Published
from fs3.storage.read_path import ReadPath
from fs3.storage.resync import _Pass
from fs3.storage.session_fence import FENCE, SessionFence
from fs3.storage.target_core import Phase
from fs3.transport.frame_core import Kind

_PAGE = 10_000
_HOLDERS = (TargetState.SERVING, TargetState.LASTSRV)
_KEEPERS = (Phase.SERVING, Phase.ASIDE, Phase.RECALLING, Phase.COMPLETE)  # not one with another disk
_REPORT, _WRITE = int(Kind.REPORT), int(Kind.WRITE)
_UNPACK = {metadata.COMMITTED: metadata.unpack_version, metadata.PENDING: metadata.unpack_pending}
_KINDS = tuple(_UNPACK)


_NOTHING = (0, 0, 0, 0)


def _records(target_id: int, engine: Any) -> dict[Chunk, tuple[int, int, int, int]]:
    """Of every chunk and removal: version, pending version, length, sum of sums."""
    found = {}
    for page in (engine.tombstones, engine.metas):
        for one in page(target_id, b"", _PAGE):
            chunk = (int(one["hi"]), int(one["lo"]))
            found[chunk] = tuple(int(one[name]) for name in ("version", "pending", "length", "crc"))
    return found  # type: ignore[return-value]


class Promises:
    """Of one run. Enter it while the simulation runs, inside of `Invariants`."""

    def __init__(self, sim: Simulation, cluster: Any) -> None:
        self.workload: Workload | None = None
        self._cluster = cluster
        self.applied: dict[tuple[int, int, int], tuple[Chunk, int]] = {}  # client, channel, seq
        self._last: dict[int, dict[tuple[int, int], tuple[int, Chunk]]] = {}  # chain -> client, channel -> seq, chunk
        self._over: dict[int, int] = {}  # client -> the first table of sessions in which its own is over
        self._generation: dict[int, int] = {}
        self._replaced: set[tuple[int, int]] = set()
        self._disks_are_well = True
        self._commit: Callable[..., None] | None = None
        self._reply: Callable[..., Any] | None = None
        self._read: Callable[..., Any] | None = None
        self._plain_reply: Callable[..., Any] | None = None
        self._content: Callable[..., Any] | None = None
        self._adopt: Callable[..., bool] | None = None
        self._sim = sim
        sim.subscribe(self.hear, "routing", "disk", "frame")

    def __enter__(self) -> Promises:
        self._commit = commit = Published.commit
        self._reply = reply = ReadPath._reply

        def watched(published: Published, key: tuple[int, int, int], version: Any, batch: int) -> None:
            if version is not None and version.client:
                self._one_version(key, version)
            if version is not None and not version.flags & metadata.FLAG_OS:
                self._is_stored(published, key, version)
            commit(published, key, version, batch)

        def honest(path: ReadPath, header: Any, ranges: Any, results: Any, *rest: Any, **more: Any) -> Any:
            self._not_damaged(path, ranges, results)
            return reply(path, header, ranges, results, *rest, **more)

        self._read = read = ReadPath.read
        self._plain_reply = plain_reply = service.plain_reply

        def read_in_time(path: ReadPath, *what: Any, **more: Any) -> Any:
            answer = read(path, *what, **more)
            self._in_time("a read")
            return answer

        def written_in_time(header: Any, *what: Any, **more: Any) -> Any:
            if header.kind == _WRITE and not header.hop:
                self._in_time("an update")
            return plain_reply(header, *what, **more)

        self._content = content = _Pass._content

        def passed_on(recovery: _Pass, chunk: Chunk, deadline_s: float) -> Any:
            found = content(recovery, chunk, deadline_s)
            if found[2] is not None:
                self._is_last_resort(recovery, chunk)
            return found

        self._adopt = adopt = SessionFence.adopt

        def heard(fence: SessionFence, table: SessionTable) -> bool:
            self._ended(table)
            return adopt(fence, table)

        SessionFence.adopt = heard  # type: ignore[method-assign]
        _Pass._content = passed_on  # type: ignore[method-assign]
        ReadPath.read = read_in_time  # type: ignore[method-assign]
        service.plain_reply = written_in_time
        Published.commit = watched  # type: ignore[method-assign]
        ReadPath._reply = honest  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._commit is not None and self._reply is not None
        assert self._read is not None and self._plain_reply is not None and self._content is not None
        assert self._adopt is not None
        SessionFence.adopt = self._adopt  # type: ignore[method-assign]
        _Pass._content = self._content  # type: ignore[method-assign]
        ReadPath.read = self._read  # type: ignore[method-assign]
        service.plain_reply = self._plain_reply
        Published.commit = self._commit  # type: ignore[method-assign]
        ReadPath._reply = self._reply  # type: ignore[method-assign]

    def hear(self, event: Event) -> None:
        """For `Simulation.subscribe`. Raises: Violation."""
        match event.kind:
            case "routing":
                self._runs(event.fields["after"])
                self._recovered(event.fields["before"], event.fields["after"])
                self.results_are_known(event.fields["after"])
            case "disk":
                self._disks_are_well = self._disks_are_well and event.fields["what"] in ("full", "replaced")
            case "frame" if event.fields["kind"] == _REPORT and self._disks_are_well:
                raise Violation(f"{event.fields['sender']} was sent bytes that fail their sums by {event.process}")

    # One update, one version

    def _one_version(self, key: tuple[int, int, int], version: Any) -> None:
        target = self._cluster.routing.targets.get(key[0])
        if target is None or self._is_lossy(target.chain_id):
            return
        identity = (version.client, version.channel, version.seq)
        now = (key[1:], version.version)
        was = self.applied.setdefault(identity, now)
        if was != now:
            said = "client {}, channel {}, number {}".format(*identity)
            raise WatchedChunk(
                key[1:],
                target.chain_id,
                f"the update of {said} is version {was[1]} of {chunk_name(*was[0])}, and on target {key[0]}"
                f" version {now[1]} of {chunk_name(*now[0])}",
            )
        last = self._last.setdefault(target.chain_id, {})
        if last.get(identity[:2], (-1, now[0]))[0] < version.seq:
            last[identity[:2]] = version.seq, now[0]

    @staticmethod
    def _speaks(storage: Any, routing: Routing) -> bool:
        """Whether a daemon is up, and the one that its node is at present."""
        node = routing.nodes.get(storage.node_id)
        if not storage.alive or storage.daemon is None or node is None:
            return False
        return bool(node.generation == storage.daemon.generation)

    def _is_lossy(self, chain_id: int) -> bool:
        return self.workload is None or chain_id in self.workload.lossy_chains

    # Who has forgotten knows why

    def results_are_known(self, routing: Routing) -> None:
        """Raises: ChainViolation."""
        for storage in self._cluster.storages:
            if not self._speaks(storage, routing):
                continue
            for engine in storage.daemon.engines:
                for target_id in engine.targets():
                    target = routing.targets.get(target_id)
                    if target is not None and target.state in _HOLDERS and not self._is_lossy(target.chain_id):
                        self._knows(storage, engine, target)

    def _knows(self, storage: Any, engine: Any, target: Any) -> None:
        if storage.daemon.writes.state.stand(target.target_id).phase not in _KEEPERS:
            return
        table = storage.daemon.writes._sessions._table
        fence = int.from_bytes(engine.get_state(target.target_id, FENCE) or b"", "little")
        if fence > table.version:
            return  # it is not sure of anybody
        for (client, channel), (seq, chunk) in self._last.get(target.chain_id, {}).items():
            entry = engine.dedup(target.target_id, client, channel)
            if entry is not None and entry.seq >= seq:
                continue
            pending = engine._published.pending.get((target.target_id, *chunk))
            if pending is not None and (pending.client, pending.channel) == (client, channel):
                continue
            ended = table.ended(client)
            if ended and fence >= self._over[client]:
                continue
            why = f", and after a restart not that the session is over: its fence is {fence}" if ended else ""
            raise ChainViolation(
                target.chain_id,
                f"target {target.target_id} of node {storage.node_id}, {target.state.name}, does not know update {seq}"
                f" of client {client}, channel {channel}, which its chain has applied to {chunk_name(*chunk)}{why}",
            )

    def _ended(self, table: SessionTable) -> None:
        """A daemon hears of a table: results are forgotten by no other."""
        for client in range(1, table.last_id + 1):
            if table.ended(client):
                self._over[client] = min(self._over.get(client, table.version), table.version)

    # Recovery leaves nothing out

    def _recovered(self, before: Routing, after: Routing) -> None:
        for target in after.targets.values():
            then = before.targets.get(target.target_id)
            if then is None or then.state != TargetState.SYNCING or target.state != TargetState.SERVING:
                continue
            writable = [one.target_id for one in before.writable(target.chain_id)]
            place = writable.index(target.target_id)
            front, here = (self._engine_of(after.targets[one]) for one in writable[place - 1 : place + 1])
            if place and front is not None and here is not None and not self._is_lossy(target.chain_id):
                self._has_all(target.chain_id, (writable[place - 1], front), (target.target_id, here))

    def _engine_of(self, target: Any) -> Any:
        """Of a target whose daemon has it in order, and may speak for it."""
        for storage in [*self._cluster.storages, *self._cluster.twins]:
            if storage.node_id == target.node_id and self._speaks(storage, self._cluster.routing):
                phase = storage.daemon.writes.state.stand(target.target_id).phase
                return storage.daemon.engines[target.disk] if phase in (Phase.SERVING, Phase.COMPLETE) else None
        return None

    def _has_all(self, chain_id: int, front: tuple[int, Any], here: tuple[int, Any]) -> None:
        theirs, mine = _records(*front), _records(*here)
        for chunk in sorted({*theirs, *mine}):
            a, b = theirs.get(chunk, _NOTHING), mine.get(chunk, _NOTHING)
            if a[1]:
                continue  # the update that is pending in front brings it, or has brought it
            if b[0] < a[0] or (b[0] == a[0] and b[2:] != a[2:]) or (b[0] and not a[0]):
                raise WatchedChunk(
                    chunk,
                    chain_id,
                    f"target {here[0]} is in sync, but has {chunk_name(*chunk)} at version {b[0]}, {b[2]} bytes,"
                    f" sum {b[3]};"
                    f" target {front[0]} in front of it at {a[0]}, {a[2]} bytes, sum {a[3]}",
                )

    # Stored, then shown

    def _is_stored(self, published: Published, key: tuple[int, int, int], version: Any) -> None:
        disk = self._disk_of(published)
        if disk is None:
            return
        what = f"target {key[0]} shows version {version.version} of {chunk_name(*key[1:])}"
        records = [(kind, disk.store.durable(metadata.chunk_key(kind, *key))) for kind in _KINDS]
        unpacked = [_UNPACK[kind](raw).version for kind, raw in records if raw is not None]
        if version.version not in unpacked:
            raise WatchedChunk(key[1:], 0, f"{what}, whose record a power loss would undo")
        if version.file >= 0:
            position = published._files[version.file].position(version.slot)
            if disk.files[name_of(version.file)].is_unsynced(position, version.length):
                raise WatchedChunk(key[1:], 0, f"{what}, whose bytes a power loss would undo")

    def _disk_of(self, published: Published) -> Any:
        for storage in self._cluster.storages:
            for disk, engine in zip(storage.disks, storage.daemon.engines if storage.daemon else (), strict=False):
                if engine._published is published:
                    return disk
        return None

    # Runs do not come back

    def _runs(self, routing: Routing) -> None:
        for node in routing.nodes.values():
            before = self._generation.get(node.node_id, node.generation)
            if node.generation != before:
                self._replaced.add((node.node_id, before))
                two = any(twin.node_id == node.node_id for twin in self._cluster.twins)  # then the first may come back
                back = (node.node_id, node.generation) in self._replaced
                if back and not two and self._is_up(node.node_id, before):
                    raise Violation(f"node {node.node_id} is back to a run that another has replaced")
                self._is_gone(node.node_id, before)
            self._generation[node.node_id] = node.generation

    def _is_up(self, node_id: int, generation: int) -> bool:
        """False of a storage daemon that is gone: a late heartbeat then costs the next one the time of a lease."""
        storage = next((one for one in self._cluster.storages if one.node_id == node_id), None)
        return storage is None or (storage.daemon is not None and storage.daemon.generation == generation)

    def _is_gone(self, node_id: int, generation: int) -> None:
        """Another daemon has taken a node's id: the one before it must not serve any more."""
        for storage in [*self._cluster.storages, *self._cluster.twins]:
            daemon = storage.daemon if storage.alive else None
            mine = daemon is not None and (storage.node_id, daemon.generation) == (node_id, generation)
            if mine and daemon._may_serve():
                raise Violation(f"another daemon took node id {node_id} from {storage.name}, which serves")

    # Answers are given in time

    def _in_time(self, what: str) -> None:
        thread = self._sim.current
        for storage in self._cluster.storages if thread is not None else ():
            mine = storage.alive and storage.process is thread.process
            if mine and storage.daemon is not None and not storage.daemon._in_time():
                raise Violation(f"{storage.name} answers {what}, though its lease is over")

    # Marked damage is not sent

    def _is_last_resort(self, recovery: _Pass, chunk: Chunk) -> None:
        role = recovery._role
        version = recovery._engine.info(role.target_id, *chunk).version
        for other in self._cluster.routing.serving(role.chain_id):
            if other.target_id == role.target_id:
                continue
            engine = self._engine_of(other)
            if engine is None or (other.target_id, *chunk) in engine.damaged():
                continue
            info = engine.info(other.target_id, *chunk)
            if info.found and info.version == version:
                raise WatchedChunk(
                    chunk,
                    role.chain_id,
                    f"target {role.target_id} passes damaged bytes of {chunk_name(*chunk)} on, and target"
                    f" {other.target_id} has them",
                )

    def _not_damaged(self, path: ReadPath, ranges: Any, results: Any) -> None:
        marked = {key for engine in path._engines for key in engine.damaged()}
        table = path._serving.reads
        for row in range(len(ranges)) if marked else ():
            chain = int(ranges["chain"][row])
            if not results["length"][row] or chain >= len(table.target):
                continue  # no bytes; or it has stopped to serve just now
            key = (int(table.target[chain]), int(ranges["hi"][row]), int(ranges["lo"][row]))
            if key in marked:
                raise Violation(f"target {key[0]} sends {chunk_name(*key[1:])}, which it knows to be damaged")
