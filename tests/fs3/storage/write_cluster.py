"""A storage cluster in one process for tests of the write path: real engines and WritePaths, mgmtd's pure cores, and a
forward port that calls the other WritePath in the caller's thread.

A node is killed between two steps of the calling thread (`kill_at`): nothing that it does from then on has an effect or
is heard, as with SIGKILL. `restart` opens its folder again.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fs3 import checksum
from fs3.clock import deadline_after, lease_now_s
from fs3.errors import BY_CODE, Corrupt, Fs3Error, StaleRouting, Unavailable
from fs3.ids import ChainId, NodeId, TargetId
from fs3.mgmtd.chain_core import Report
from fs3.mgmtd.lease_core import LeaseTable
from fs3.mgmtd.routing_core import next_routing
from fs3.pb import mgmtd_pb2, storage_pb2
from fs3.routing import Chain, LocalState, Node, NodeKind, Routing, Target, TargetState
from fs3.sessions import SessionTable
from fs3.storage.engine import Engine
from fs3.storage.engine_api import EngineConfig
from fs3.storage.forward import Frame, Piece
from fs3.storage.write_path import WritePath
from fs3.transport.frame_core import Header, Kind
from fs3.transport.messages import AHEAD, UPDATE, Op, Records, UpdateFlag

SMALL = EngineConfig(file_bytes=64 << 20, group_bytes=1 << 20, index_chunks=256, write_buffer_bytes=1 << 20)
CHANGES = {
    "reserve",
    "fill",
    "seal",
    "stage",
    "commit",
    "stage_and_commit",
    "abort",
    "restage",
    "put_dedup",
    "put_state",
    "forget_tombstones",
    "forget_clients",
    "create_target",
    "mark_damaged",
    "repair",
}


class Died(BaseException):
    """The node whose code runs was killed: nothing of it goes on. Caught where another node, or a client, waits."""


class Steps:
    """Counts the steps of one thread; kills a node (or all of them) before the step with the chosen number."""

    def __init__(self) -> None:
        self.thread = 0
        self.count = 0
        self.kill_at = -1
        self.kill: Callable[[], None] = lambda: None

    def arm(self, kill_at: int, kill: Callable[[], None]) -> None:
        self.thread, self.count, self.kill_at, self.kill = threading.get_ident(), 0, kill_at, kill

    def disarm(self) -> None:
        self.kill_at, self.thread = -1, 0

    def step(self) -> None:
        if threading.get_ident() == self.thread:
            if self.count == self.kill_at:
                self.kill()
            self.count += 1

    def end_of(self, node: StorageNode) -> BaseException:
        """What ends the dead node's code: all of it in the counted thread, this call in its background threads."""
        return Died() if threading.get_ident() == self.thread else Unavailable(f"node {node.node_id} was killed")


class KillableEngine:
    """An engine whose changes have no effect once its node is dead; `refuse[name]` may raise instead."""

    def __init__(self, engine: Engine, node: StorageNode) -> None:
        self._engine = engine
        self._node = node
        self.refuse: dict[str, Callable[[Any], Any]] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._engine, name)
        if name not in CHANGES:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self._node.cluster.steps.step()
            if self._node.dead:
                raise self._node.cluster.steps.end_of(self._node)
            if name in self.refuse:
                instead = self.refuse[name](*args)
                if instead is not None:
                    return instead
            result = method(*args, **kwargs)
            self._node.cluster.steps.step()
            if self._node.dead:
                raise self._node.cluster.steps.end_of(self._node)
            return result

        return call


class StorageNode:
    """One storage daemon's write path, and its folder."""

    def __init__(self, cluster: Cluster, node_id: int, folder: Path) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.folder = folder
        self.generation = 0
        self.endpoint = f"node{node_id}:1"
        self.dead = True
        self.start()

    def start(self) -> None:
        assert self.dead
        self.generation += 1
        self.raw = Engine.open(self.folder, cluster_id="test", create=True, config=SMALL)
        self.engine = KillableEngine(self.raw, self)
        self.dead = False
        self.port = MemoryPort(self.cluster, self)
        self.write_path = WritePath(
            {0: self.engine},
            self.port,
            node_id=self.node_id,
            generation=self.generation,
            poke=self.cluster.poked(self, self.generation),
            suspect=self.cluster.suspect,
            may_write=lambda: True,
        )

    def close(self) -> None:
        """What the death of a process frees."""
        self.dead = True
        self.write_path.close()
        self.raw.close()


class MemoryPort:
    """The forward port, by function call.

    The next `delay` frames of updates are taken by the network: the sender hears of nobody, and `late` has what
    delivers each of them. While `hold_sync`, no recovery ends. The next `unheard` questions for a chunk's bytes come to
    somebody who has not heard of the newest chain yet. `lose` tells which pieces that go ahead never arrive, though
    they were sent; `body_bytes` counts what went with updates.
    """

    def __init__(self, cluster: Cluster, node: StorageNode) -> None:
        self.cluster = cluster
        self.node = node
        self.closed = False
        self.delay = 0
        self.late: list[Callable[[], Records]] = []
        self.hold_sync = False
        self.unheard = 0
        self.lose: Callable[[Piece], bool] = lambda piece: False
        self.body_bytes = 0

    def forward(self, frames: Sequence[Frame], *, deadline_s: float) -> list[Records | Fs3Error]:
        return [self._one(frame, deadline_s) for frame in frames]

    def _one(self, frame: Frame, until_s: float) -> Records | Fs3Error:
        deadline_s = until_s
        self.body_bytes += sum(len(part) for part in frame.body)

        def update(there: StorageNode) -> Records:
            sums = np.concatenate([np.empty(0, dtype=np.uint32), *frame.sums])
            header = Header(Kind.WRITE, 1, deadline_ms=int(max(deadline_s - lease_now_s(), 0) * 1000))
            return there.write_path.update(
                header, frame.records.copy(), sums, memoryview(b"".join(frame.body)), frame.hop, deadline_s=deadline_s
            )

        if self.delay:
            self.delay -= 1
            there = next(node for node in self.cluster.nodes.values() if node.endpoint == frame.endpoint)
            deadline_s = deadline_after(20.0)
            self.late.append(lambda: update(there))
            return Unavailable(f"{frame.endpoint} did not answer")
        try:
            answer: Records = self._call(frame.endpoint, update)
        except Fs3Error as error:
            return error
        return answer

    def send_ahead(self, endpoint: str, piece: Piece, *, deadline_s: float) -> bool:
        try:
            self._call(endpoint, lambda there: self.lose(piece) or arrive(there, piece))
        except Fs3Error:
            return False
        return True

    def sync_list(
        self, endpoint: str, request: storage_pb2.SyncListRequest, *, deadline_s: float
    ) -> tuple[storage_pb2.SyncListReply, Records]:
        reply: tuple[storage_pb2.SyncListReply, Records] = self._call(
            endpoint, lambda there: there.write_path.sync_list(request)
        )
        return reply

    def sync_done(self, endpoint: str, request: storage_pb2.SyncDoneRequest, *, deadline_s: float) -> None:
        if self.hold_sync:
            raise StaleRouting("held by the test")
        self._call(endpoint, lambda there: there.write_path.sync_done(request))

    def read_chunk(
        self, endpoint: str, asked: Records, length: int, *, deadline_s: float
    ) -> tuple[int, memoryview, Any]:
        hi, lo, chain, version = asked[["hi", "lo", "chain", "chain_version"]][0].tolist()

        if self.unheard:
            self.unheard -= 1
            raise StaleRouting("not yet")

        def read(there: StorageNode) -> tuple[int, memoryview, Any]:
            target_id = there.write_path.serving(chain, version)
            if (target_id, hi, lo) in there.raw.damaged():
                raise Corrupt(f"target {target_id} knows that it is damaged")
            found = there.raw.read_chunk(target_id, hi, lo)
            return found.version, found.data, found.fine

        answer: tuple[int, memoryview, Any] = self._call(endpoint, read)
        return answer

    def cut_off(self, endpoint: str) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def _call(self, endpoint: str, call: Callable[[StorageNode], Any]) -> Any:
        self.cluster.steps.step()
        there = next(node for node in self.cluster.nodes.values() if node.endpoint == endpoint)
        if self.node.dead:
            raise self.cluster.steps.end_of(self.node)
        if self.closed or there.dead:
            raise Unavailable(f"{endpoint} is not there")
        try:
            answer = call(there)
        except Fs3Error as error:
            answer = error
        except Died:
            assert there.dead
        self.cluster.steps.step()
        if self.node.dead:
            raise self.cluster.steps.end_of(self.node)
        if there.dead:
            raise Unavailable(f"{endpoint} broke off")
        if isinstance(answer, Fs3Error):
            raise answer
        return answer


class Cluster:
    """Nodes 1..n, `chains` chains over `replicas` of them each, mgmtd's cores in the middle."""

    def __init__(self, folder: Path, *, nodes: int = 3, chains: int = 1, replicas: int = 3) -> None:
        self.steps = Steps()
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.leases = LeaseTable(1e9)
        self.reports: dict[TargetId, Report] = {}
        self.routing = Routing(version=1)
        self.nodes: dict[int, StorageNode] = {}
        for node_id in range(1, nodes + 1):
            self.nodes[node_id] = StorageNode(self, node_id, folder / f"node{node_id}")
        for node in self.nodes.values():
            self.heartbeat(node)
        self._make_chains(chains, replicas)

    def _make_chains(self, chains: int, replicas: int) -> None:
        targets, made = {}, {}
        for chain in range(1, chains + 1):
            members = [(chain - 1 + place) % len(self.nodes) + 1 for place in range(replicas)]
            ids = [TargetId(100 * chain + node) for node in members]
            for target_id, node in zip(ids, members, strict=True):
                wanted = mgmtd_pb2.CreateTarget(target_id=target_id, chain_id=chain, disk=0)
                self.nodes[node].write_path.on_create([wanted])
                targets[target_id] = Target(
                    target_id=target_id,
                    node_id=NodeId(node),
                    disk=0,
                    chain_id=ChainId(chain),
                    state=TargetState.SERVING,
                )
            made[ChainId(chain)] = Chain(chain_id=ChainId(chain), version=1, targets=tuple(ids), replicas=replicas)
        self.wait(lambda: all(self._reported(target_id) == LocalState.UPTODATE for target_id in targets), "creation")
        with self.lock:
            self.routing = Routing(
                version=self.routing.version + 1, nodes=self.routing.nodes, targets=targets, chains=made, ready=True
            )
            self._publish()
        self.wait_serving()

    def _reported(self, target_id: TargetId) -> LocalState | None:
        report = self.reports.get(target_id)
        return report.state if report else None

    # mgmtd

    def poked(self, node: StorageNode, generation: int) -> Callable[[], None]:
        def poke() -> None:
            if node.generation == generation and not node.dead and node.node_id in self.nodes:
                self.heartbeat(node)

        return poke

    def heartbeat(self, node: StorageNode) -> None:
        with self.lock:
            if node.dead:
                return
            self.leases.heard(NodeId(node.node_id), node.generation, 0.0)
            for said in node.write_path.local_targets():
                self.reports[TargetId(said.target_id)] = Report(LocalState(said.state), said.chain_version)
            self._decide()

    def suspect(self, node_id: int, generation: int) -> None:
        with self.lock:
            if self.nodes[node_id].dead and self.leases.refused(NodeId(node_id), generation):
                self._decide()

    def _decide(self) -> None:
        announced = {
            NodeId(node.node_id): Node(
                node_id=NodeId(node.node_id),
                kind=NodeKind.STORAGE,
                endpoints=(node.endpoint,),
                generation=node.generation,
            )
            for node in self.nodes.values()
        }
        decision = next_routing(self.routing, announced, self.leases, self.reports)
        if decision.routing is not self.routing:
            self.routing = decision.routing
            self._publish()

    def _publish(self) -> None:
        for node in self.nodes.values():
            if not node.dead:
                node.write_path.on_routing(self.routing)
        for node in self.nodes.values():
            if not node.dead:
                for said in node.write_path.local_targets():
                    self.reports[TargetId(said.target_id)] = Report(LocalState(said.state), said.chain_version)
        self.changed.notify_all()
        self._decide()

    # Faults

    def kill(self, *node_ids: int) -> None:
        """From now on nothing these nodes do has an effect; mgmtd notices when somebody misses them."""
        for node_id in node_ids:
            self.nodes[node_id].dead = True

    def notice(self) -> None:
        """mgmtd notices all deaths, at one moment."""
        with self.lock:
            for node in self.nodes.values():
                if node.dead:
                    self.leases.refused(NodeId(node.node_id), node.generation)
            self._decide()

    def restart(self, *node_ids: int, emptied: bool = False) -> None:
        """Close and open the folders of dead nodes, or empty ones in their place; mgmtd hears of them."""
        self.notice()
        for node_id in node_ids:
            node = self.nodes[node_id]
            node.close()
            if emptied:
                shutil.rmtree(node.folder)
            with self.lock:
                for target in self.routing.targets.values():
                    if target.node_id == node_id:
                        self.reports.pop(target.target_id, None)
            node.start()
            self.heartbeat(node)
            with self.lock:
                node.write_path.on_routing(self.routing)
            if emptied:
                node.write_path.on_create(
                    mgmtd_pb2.CreateTarget(target_id=target.target_id, chain_id=target.chain_id, disk=0)
                    for target in self.routing.targets.values()
                    if target.node_id == node_id
                )

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
        deadline_s = deadline_after(seconds)
        with self.changed:
            while not condition():
                left_s = deadline_s - lease_now_s()
                assert left_s > 0, f"no {what}: {self.describe()}"
                self.changed.wait(min(left_s, 0.005))

    def wait_serving(self) -> None:
        """Until every target serves and knows it, and no upkeep is left."""

        def settled() -> bool:
            return (
                all(target.state == TargetState.SERVING for target in self.routing.targets.values())
                and all(
                    self.nodes[target.node_id].write_path.serving(
                        target.chain_id, self.routing.chain(target.chain_id).version
                    )
                    for target in self.routing.targets.values()
                )
                and all(node.write_path.idle() for node in self.nodes.values())
            )

        self.wait(settled, "return to all-SERVING")

    def describe(self) -> str:
        states = {target.target_id: target.state.name for target in self.routing.targets.values()}
        stands = {
            target.target_id: self.nodes[target.node_id].write_path.state.stand(target.target_id).phase.name
            for target in self.routing.targets.values()
        }
        return f"routing {self.routing.version}, {states}, {stands}, reports {self.reports}"

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()

    # Housekeeping, as its chores do it, in the caller's thread

    def forget_removals(self, chain: int) -> list[str]:
        """The head of a chain has all its tombstones forgotten; what was answered to each: "" or the error's class."""
        head = self.serving(chain)[0]
        state = head.write_path.state
        now = state.role(chain)
        role, acting = state.enter(chain, now.version)
        try:
            removals = [
                ((int(one["hi"]), int(one["lo"])), int(one["version"]))
                for one in head.raw.tombstones(role.target_id, b"", 1 << 20)
            ]
            items = head.write_path._replication.forget(acting, role, removals, deadline_s=deadline_after(5.0))
        finally:
            state.leave(acting)
        return [type(item.error).__name__ if item.error else "" for item in items]

    def sessions(self, table: SessionTable, *node_ids: int, forget: bool = True) -> None:
        """These nodes hear of a table of sessions, and forget by it."""
        for node_id in node_ids or self.nodes:
            write_path = self.nodes[node_id].write_path
            write_path.on_sessions(table)
            if forget:
                write_path._sessions.forget(0)

    # What is there

    def serving(self, chain: int) -> list[StorageNode]:
        return [self.nodes[target.node_id] for target in self.routing.serving(chain)]

    def contents(self, node: StorageNode, chain: int) -> dict[tuple[int, int], tuple[int, bytes]]:
        """{(hi, lo): (version, bytes)}, read verified; tombstones have no bytes and a negative version."""
        target = next(
            one for one in self.routing.targets.values() if (one.node_id, one.chain_id) == (node.node_id, chain)
        )
        found = {}
        for meta in node.raw.metas(target.target_id, b"", 1 << 20):
            chunk = int(meta["hi"]), int(meta["lo"])
            assert not meta["pending"], f"{chunk} of target {target.target_id} is pending"
            data = node.raw.read_chunk(target.target_id, *chunk)
            found[chunk] = (data.version, bytes(data.data))
        for meta in node.raw.tombstones(target.target_id, b"", 1 << 20):
            found[int(meta["hi"]), int(meta["lo"])] = (-int(meta["version"]), b"")
        return found

    def check_replicas(self, note: str = "", *, tombstones: bool = True) -> None:
        """All SERVING replicas of every chain hold the same chunks, and remember the same results and, if it is asked,
        removals."""
        for chain in self.routing.chains:
            nodes = self.serving(chain)
            contents = [self.contents(node, chain) for node in nodes]
            if not tombstones:
                contents = [{key: one for key, one in found.items() if one[0] > 0} for found in contents]
            assert all(one == contents[0] for one in contents), f"{note}: replicas of chain {chain} differ: {contents}"
            results = []
            for node in nodes:
                target = next(t for t in self.routing.serving(chain) if t.node_id == node.node_id)
                results.append(sorted(node.raw.dedup_records(target.target_id)))
            assert all(one == results[0] for one in results), f"{note}: results of chain {chain} differ: {results}"


class Client:
    """Writes as a client does: to the head, again under the same (channel, seq) until the answer is definite."""

    def __init__(self, cluster: Cluster, client_id: int) -> None:
        self.cluster = cluster
        self.client_id = client_id
        self.seq = 0

    def write(
        self,
        chain: int,
        chunk: tuple[int, int],
        op: Op,
        data: bytes = b"",
        offset: int = 0,
        *,
        seq: int | None = None,
        seconds: float = 30.0,
        attempt_s: float = 5.0,
        flags: UpdateFlag = UpdateFlag.NONE,
        piece_bytes: int = 0,
    ) -> tuple[int, int]:
        """(version, chunk length). With `piece_bytes` the bytes go ahead of the first attempt. Raises: Fs3Error."""
        if seq is None:
            self.seq += 1
            seq = self.seq
        give_up_s = deadline_after(seconds)
        while True:
            try:
                pieces, piece_bytes = piece_bytes, 0
                return self.attempt(
                    chain, chunk, op, data, offset, seq=seq, attempt_s=attempt_s, flags=flags, piece_bytes=pieces
                )
            except Fs3Error as error:
                if not error.retryable or lease_now_s() > give_up_s:
                    raise
            with self.cluster.changed:
                self.cluster.changed.wait(0.002)

    def attempt(
        self,
        chain: int,
        chunk: tuple[int, int],
        op: Op,
        data: bytes,
        offset: int,
        *,
        seq: int,
        attempt_s: float,
        flags: UpdateFlag = UpdateFlag.NONE,
        piece_bytes: int = 0,
    ) -> tuple[int, int]:
        routing = self.cluster.routing
        serving = routing.serving(chain)
        if not serving:
            raise Unavailable("no head")
        head = self.cluster.nodes[serving[0].node_id]
        if head.dead:
            self.cluster.suspect(head.node_id, head.generation)
            raise Unavailable("the head is dead")
        records, sums = update_record(
            chain, routing.chain(chain).version, chunk, op, data, offset, client=self.client_id, seq=seq, flags=flags
        )
        header, body = Header(Kind.WRITE, 1), data
        with contextlib.suppress(Died):
            if piece_bytes:
                for piece in pieces_of(records, sums, data, piece_bytes):
                    arrive(head, piece)
                records["flags"] |= np.uint16(UpdateFlag.AHEAD)
                body = b""
            results = head.write_path.update(
                header, records, sums, memoryview(body), 0, deadline_s=deadline_after(attempt_s)
            )
        self.cluster.steps.step()
        if head.dead:
            raise Unavailable("the head broke off")
        status = int(results["status"][0])
        if status:
            raise BY_CODE[status]("as the head says")
        return int(results["version"][0]), int(results["chunk_length"][0])


def arrive(there: StorageNode, piece: Piece) -> None:
    """A piece that goes ahead of its update comes to a node."""
    ahead = there.write_path.ahead
    try:
        arrival = ahead.expect(piece.record)
    except Fs3Error:
        return
    ahead.arrive(arrival, piece, deadline_s=deadline_after(5.0))


def pieces_of(records: Records, sums: Any, data: bytes, piece_bytes: int) -> list[Piece]:
    """The bytes of the update with UPDATE record [1] as they go ahead of it."""
    made = []
    for begin in range(0, len(data), piece_bytes):
        part = memoryview(data)[begin : begin + piece_bytes]
        record = np.zeros(1, dtype=AHEAD)
        for name in ("hi", "lo", "chain", "chain_version", "client", "channel", "seq", "flags"):
            record[name] = records[name]
        record["offset"], record["length"], record["chunk_length"] = begin, len(part), len(data)
        first = begin // checksum.FINE_BYTES
        made.append(Piece(record, sums[first : first + -(-len(part) // checksum.FINE_BYTES)], part, 0))
    return made


def update_record(
    chain: int,
    chain_version: int,
    chunk: tuple[int, int],
    op: Op,
    data: bytes = b"",
    offset: int = 0,
    *,
    client: int = 0,
    channel: int = 1,
    seq: int = 0,
    version: int = 0,
    flags: UpdateFlag = UpdateFlag.NONE,
) -> tuple[Records, Any]:
    """An UPDATE record [1] and its sums."""
    sums = checksum.fine_sums(memoryview(data), offset)
    records = np.zeros(1, dtype=UPDATE)
    records["hi"], records["lo"] = chunk
    records["offset"], records["length"], records["n_sums"] = offset, len(data), len(sums)
    records["chain"], records["chain_version"], records["chunk_bytes"] = chain, chain_version, 1 << 20
    records["client"], records["channel"], records["seq"] = client, channel, seq
    records["op"], records["flags"], records["version"] = op, flags, version
    return records, sums
