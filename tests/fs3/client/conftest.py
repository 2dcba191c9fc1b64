"""A data-plane server for the client's tests: the frames of proto/data_plane.md over real sockets, chunks in a dict,
and faults that a test sets. It shares no code with fs3/storage, so a misreading on one side shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from fs3 import checksum
from fs3.client.meta import Publish, Written
from fs3.client.meta_files import Created
from fs3.errors import Exists, Fs3Error, NotFound, SessionEnded, StaleRouting
from fs3.ids import ChainId, ChainTableId, InodeId, NodeId, TargetId
from fs3.inode import Inode, InodeType
from fs3.layout import Layout
from fs3.pb import storage_pb2
from fs3.routing import Chain, ChainTable, Node, NodeKind, Routing, Target, TargetState
from fs3.transport.frame_core import HEADER_BYTES, Flag, Header, Kind, pack_header, pack_trailer, unpack_header
from fs3.transport.messages import (
    CHUNK_META,
    LIST_CHUNKS,
    LISTED,
    META_ABSENT,
    RANGE,
    RESULT,
    UPDATE,
    Op,
    UpdateFlag,
    records,
)

TABLE = 1
_TESTS = os.getpid()


@dataclass
class ChunkData:
    data: bytes
    version: int = 1


@dataclass
class Shared:
    """What all replicas of a cluster hold (a write is applied to all of them at once) and what they were asked."""

    chunks: dict[tuple[int, int, int], ChunkData] = field(default_factory=dict)
    seen: dict[tuple[int, int], tuple[int, bytes]] = field(default_factory=dict)  # (client, channel) -> (seq, result)
    applied: Counter[tuple[int, int]] = field(default_factory=Counter)
    ended: set[int] = field(default_factory=set)  # clients whose sessions are over
    retries: list[bool] = field(default_factory=list)  # of every update that came, whether it was marked as one
    lock: threading.Lock = field(default_factory=threading.Lock)


class ChunkServer:
    """One storage node. Faults: `read_status[chain]`, `frame_status`, `corrupt` (a bit flipped in every body),
    `die_in_reply` (closes inside the next bodies), `spoil` (changes the results of every READ), `trailer` (its own, for
    every READ), `halt` (an event that comes in the middle of the replies to READs), `stray` (comes after every
    listing), `lose_ack` (applies writes and closes without an answer); as long as `goes_on` is not set it is as after a
    SIGSTOP; each answer takes it `slow_s`. Before each WRITE frame it calls `on_write`."""

    def __init__(self, shared: Shared, chain_versions: dict[int, int]) -> None:
        self.shared = shared
        self.chain_versions = chain_versions
        self.read_status: dict[int, int] = {}
        self.frame_status: list[int] = []
        self.corrupt = False
        self.die_in_reply = 0
        self.spoil: Callable[[np.ndarray], None] = lambda results: None
        self.trailer = (0, 0)
        self.stray = b""
        self.lose_ack = 0
        self.slow_s = 0.0
        self.on_write: Callable[[], None] = lambda: None
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.halt: threading.Event | None = None
        self.halted = threading.Event()
        self.asked: list[Header] = []
        self.reported: list[tuple[int, int, int]] = []  # (chain, hi, lo) of REPORT frames
        self.limits = (4_096, 64 << 20)
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """As a SIGKILL looks from outside."""
        self.goes_on.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(sock)
            threading.Thread(target=self._talk, args=(sock,), daemon=True).start()

    def _talk(self, sock: socket.socket) -> None:
        try:
            with sock:
                while True:
                    header = unpack_header(_exactly(sock, HEADER_BYTES))
                    self.goes_on.wait()
                    if self.slow_s:
                        threading.Event().wait(self.slow_s)
                    head, body = _exactly(sock, header.head_bytes), _exactly(sock, header.body_bytes)
                    if not self._answer(sock, header, head, body):
                        return
        except (EOFError, OSError):
            return

    def _answer(self, sock: socket.socket, header: Header, head: bytes, body: bytes) -> bool:
        if header.kind == Kind.ACK:
            return True
        if header.kind == Kind.HELLO:
            reply = storage_pb2.HelloReply(protocol=1, max_ranges=self.limits[0], max_body_bytes=self.limits[1])
            sock.sendall(_frame(header, reply.SerializeToString(), b""))
            return True
        if header.kind == Kind.REPORT:
            said = records(head, RANGE, header.count)
            self.reported += [(int(one["chain"]), int(one["hi"]), int(one["lo"])) for one in said]
            sock.sendall(_frame(header, np.zeros(header.count, dtype=RESULT).tobytes(), b""))
            return True
        self.asked.append(header)
        if header.kind in (Kind.INSPECT, Kind.SCRUB):
            answer = self._inspect(header, head) if header.kind == Kind.INSPECT else self._scrub()
            sock.sendall(_frame(header, answer, b""))
            return True
        if self.frame_status:
            status = self.frame_status.pop(0)
            sock.sendall(_frame(header, b"told so", b"", status=status))
            return True
        if header.kind == Kind.WRITE:
            self.on_write()
            answer = self._write(header, head, body)
            if self.lose_ack:
                self.lose_ack -= 1
                return False
            sock.sendall(_frame(header, answer, b""))
            return True
        answer, data = self._read(header, head) if header.kind == Kind.READ else self._query(header, head)
        if self.corrupt and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        raw = _frame(header, answer, data, flags=Flag.TRAILER | Flag.NEED_ACK | Flag.CHECKSUM, trailer=self.trailer)
        if self.die_in_reply:
            self.die_in_reply -= 1
            sock.sendall(raw[: len(raw) // 2])
            return False
        if self.halt is not None:
            sock.sendall(raw[: len(raw) // 2])
            self.halted.set()
            self.halt.wait()
            raw = raw[len(raw) // 2 :]
        sock.sendall(raw)
        return True

    def _status(self, chain: int, version: int) -> int:
        if self.chain_versions.get(chain) != version:
            return StaleRouting.code
        return self.read_status.get(chain, 0)

    def _read(self, header: Header, head: bytes) -> tuple[bytes, bytes]:
        results = np.zeros(header.count, dtype=RESULT)
        sums: list[int] = []
        body: list[bytes] = []
        for result, asked in zip(results, records(head, RANGE, header.count), strict=True):
            result["status"] = self._status(int(asked["chain"]), int(asked["chain_version"]))
            chunk = self.shared.chunks.get((int(asked["chain"]), int(asked["hi"]), int(asked["lo"])))
            if result["status"]:
                continue
            if chunk is None:
                result["status"] = NotFound.code
                continue
            offset = int(asked["offset"])
            part = chunk.data[offset : offset + int(asked["length"])]
            pieces = checksum.pieces(offset, len(part), len(chunk.data)) if part else []
            sums += [checksum.crc(chunk.data[a:b]) for a, b in pieces]
            body.append(part)
            result["n_sums"], result["length"] = len(pieces), len(part)
            result["chunk_length"], result["version"] = len(chunk.data), chunk.version
        self.spoil(results)
        return results.tobytes() + np.array(sums, dtype="<u4").tobytes(), b"".join(body)

    def _query(self, header: Header, head: bytes) -> tuple[bytes, bytes]:
        results = np.zeros(header.count, dtype=RESULT)
        body = b""
        for result, asked in zip(results, records(head, RANGE, header.count), strict=True):
            key = (int(asked["chain"]), int(asked["hi"]), int(asked["lo"]))
            if asked["offset"] == LIST_CHUNKS:
                found = sorted(k[2] for k in self.shared.chunks if k[:2] == key[:2] and k[2] >= key[2])
                listed = np.zeros(len(found), dtype=LISTED)
                listed["hi"], listed["lo"] = key[1], found
                result["length"] = len(found)
                body += listed.tobytes() + self.stray
                continue
            chunk = self.shared.chunks.get(key)
            result["status"] = self._status(key[0], int(asked["chain_version"])) or (0 if chunk else NotFound.code)
            if chunk:
                result["version"], result["chunk_length"] = chunk.version, len(chunk.data)
        return results.tobytes(), body

    def _inspect(self, header: Header, head: bytes) -> bytes:
        metas = np.zeros(header.count, dtype=CHUNK_META)
        for meta, asked in zip(metas, records(head, RANGE, header.count), strict=True):
            meta["hi"], meta["lo"] = asked["hi"], asked["lo"]
            chunk = self.shared.chunks.get((int(asked["chain"]), int(asked["hi"]), int(asked["lo"])))
            meta["flags"] = 0 if chunk else META_ABSENT
            meta["version"] = chunk.version if chunk else 0
        return metas.tobytes()

    def _scrub(self) -> bytes:
        idle = dict.fromkeys(("begun_ns", "ended_ns", "passes", "chunks", "of_chunks", "read_bytes", "damaged"), 0)
        targets = [{"target": chain, "chain": chain, "running": False, **idle} for chain in self.chain_versions]
        disk = {"disk": 0, "path": self.endpoint, "targets": targets, "damaged": [], "damaged_chunks": 0}
        return storage_pb2.StatsReply(json=json.dumps({"disks": [disk]})).SerializeToString()

    def _write(self, header: Header, head: bytes, body: bytes) -> bytes:
        updates = records(head, UPDATE, header.count)
        sums = np.frombuffer(head, dtype="<u4", offset=header.count * UPDATE.itemsize)
        results = np.zeros(header.count, dtype=RESULT)
        at = sum_at = 0
        for result, update in zip(results, updates, strict=True):
            data = body[at : at + int(update["length"])]
            fine = sums[sum_at : sum_at + int(update["n_sums"])]
            at, sum_at = at + len(data), sum_at + len(fine)
            assert (checksum.fine_sums(memoryview(data), int(update["offset"])) == fine).all()
            status = self._status(int(update["chain"]), int(update["chain_version"]))
            if status:
                result["status"] = status
                continue
            with self.shared.lock:
                self.shared.retries.append(bool(update["flags"] & UpdateFlag.RETRY))
                if int(update["client"]) in self.shared.ended:
                    result["status"] = SessionEnded.code
                    continue
                channel = (int(update["client"]), int(update["channel"]))
                seq, known = self.shared.seen.get(channel, (0, b""))
                if seq == int(update["seq"]):
                    for name in RESULT.names or ():
                        result[name] = np.frombuffer(known, dtype=RESULT)[0][name]
                    continue
                assert int(update["seq"]) > seq, "a channel went back in time"
                self._apply(update, data, result)
                self.shared.seen[channel] = (int(update["seq"]), result.tobytes())
        return results.tobytes()

    def _apply(self, update: np.void, data: bytes, result: np.void) -> None:
        key = (int(update["chain"]), int(update["hi"]), int(update["lo"]))
        old = self.shared.chunks.get(key)
        self.shared.applied[key[1:]] += 1
        if update["op"] == Op.REMOVE:
            result["status"] = 0 if self.shared.chunks.pop(key, None) else NotFound.code
            return
        if update["op"] == Op.PUT_IF_ABSENT and old is not None:
            result["chunk_length"] = len(old.data)
            return
        if update["op"] == Op.WRITE and old is not None:
            offset = int(update["offset"])
            base = old.data.ljust(offset, b"\0")
            data = base[:offset] + data + base[offset + len(data) :]
        self.shared.chunks[key] = ChunkData(data, old.version + 1 if old else 1)
        result["version"], result["chunk_length"] = self.shared.chunks[key].version, len(data)


def _exactly(sock: socket.socket, size: int) -> bytes:
    out = bytearray()
    while len(out) < size:
        got = sock.recv(min(size - len(out), 1 << 20))
        if not got:
            raise EOFError
        out += got
    return bytes(out)


def _frame(
    asked: Header, head: bytes, body: bytes, *, flags: int = 0, status: int = 0, trailer: tuple[int, int] = (0, 0)
) -> bytes:
    header = Header(asked.kind, asked.request_id, True, flags, asked.count, len(head), len(body), status=status)
    return pack_header(header, head) + head + body + (pack_trailer(*trailer) if flags & Flag.TRAILER else b"")


class Mgmtd:
    """Stands where MgmtdClient stands: a routing that a test changes, and what clients reported."""

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self.suspected: set[tuple[int, int]] = set()
        self.told = threading.Event()
        self.on_refresh: Callable[[], None] = lambda: None
        self.refreshed = 0
        self.sessions = 100
        self.session_deadline_s: float | None = None

    def session_id(self, deadline_s: float | None = None) -> int:
        self.session_deadline_s = deadline_s
        return self.sessions + (os.getpid() != _TESTS) * 1_000  # a forked child has another

    def session_lost(self, session_id: int) -> None:
        if session_id == self.sessions:
            self.sessions += 1

    def refresh(self, newer_than: int, timeout_s: float) -> Routing:
        self.refreshed += 1
        self.on_refresh()
        return self.routing

    def suspect(self, node_id: int, generation: int) -> None:
        self.suspected.add((node_id, generation))
        self.told.set()


@dataclass
class FakeCluster:
    shared: Shared
    servers: list[ChunkServer]
    mgmtd: Mgmtd

    def set_chain(self, chain: int, serving: list[int], *, tell_servers: bool = True) -> None:
        """Publish a new version of `chain`, served by these nodes, head first."""
        routing = self.mgmtd.routing
        old = routing.chains[ChainId(chain)]
        targets = dict(routing.targets)
        for target_id in old.targets:
            state = TargetState.SERVING if targets[target_id].node_id in serving else TargetState.OFFLINE
            targets[target_id] = replace(targets[target_id], state=state)
        rank = {node: place for place, node in enumerate(serving)}
        ids = sorted(old.targets, key=lambda one: rank.get(int(targets[one].node_id), len(rank)))
        chains = {**routing.chains, ChainId(chain): replace(old, version=old.version + 1, targets=tuple(ids))}
        self.mgmtd.routing = replace(routing, version=routing.version + 1, targets=targets, chains=chains)
        if tell_servers:
            for server in self.servers:
                server.chain_versions[chain] = old.version + 1


def make_cluster(nodes: int, chains: int) -> FakeCluster:
    """`nodes` servers; every chain has a replica on each, the heads going round."""
    shared = Shared()
    servers = [ChunkServer(shared, {chain: 1 for chain in range(1, chains + 1)}) for _ in range(nodes)]
    targets: dict[TargetId, Target] = {}
    table: dict[ChainId, Chain] = {}
    for chain in range(1, chains + 1):
        ids = []
        for place in range(nodes):
            node = (chain + place) % nodes + 1
            target_id = TargetId(chain * 100 + node)
            ids.append(target_id)
            targets[target_id] = Target(
                target_id=target_id,
                node_id=NodeId(node),
                disk=0,
                chain_id=ChainId(chain),
                state=TargetState.SERVING,
            )
        table[ChainId(chain)] = Chain(chain_id=ChainId(chain), version=1, targets=tuple(ids), replicas=nodes)
    routing = Routing(
        cluster_id="test",
        version=1,
        nodes={
            NodeId(at + 1): Node(
                node_id=NodeId(at + 1), kind=NodeKind.STORAGE, endpoints=(server.endpoint,), generation=5
            )
            for at, server in enumerate(servers)
        },
        targets=targets,
        chains=table,
        tables={
            (ChainTableId(TABLE), 1): ChainTable(
                table_id=ChainTableId(TABLE), version=1, replicas=nodes, chains=tuple(table)
            )
        },
        ready=True,
    )
    return FakeCluster(shared, servers, Mgmtd(routing))


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    made = make_cluster(3, 6)
    yield made
    for server in made.servers:
        with contextlib.suppress(OSError):
            server.stop()


class Meta:
    """Stands where MetaClient stands: one flat directory of files, all with `layout`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.files: dict[str, Inode] = {}
        self.unpublished: dict[int, Inode] = {}
        self.abandoned: list[int] = []
        self.renewed: list[int] = []
        self.lost: set[int] = set()  # whose sessions are over
        self.calls: Counter[str] = Counter()
        self.on_renew: Callable[[], None] = lambda: None
        self._next = 100

    def stat(self, paths: Sequence[str], *, access: int = 0, timeout_s: float | None = None) -> list[Inode | Fs3Error]:
        self.calls["stat"] += 1
        return [self.files.get(path) or NotFound(f"{path}: no such file") for path in paths]

    def create_files(self, paths: Sequence[str], *, layout: object = None) -> list[Inode]:
        self.calls["create"] += 1
        made = self._new(len(paths))
        self.unpublished.update((inode.inode_id, inode) for inode in made)
        return made

    def create_file(self, path: str, *, layout: object = None) -> Created:
        return Created(self.create_files([path], layout=layout)[0], 0.0)

    def _new(self, count: int) -> list[Inode]:
        made = []
        for _ in range(count):
            self._next += 1
            seeded = self.layout._replace(seed=self._next)
            made.append(Inode(inode_id=InodeId(self._next), type=InodeType.FILE, mode=0o644, nlink=0, layout=seeded))
        return made

    def publish_files(self, files: Sequence[Publish], *, together: bool = True, layout: object = None) -> list[Inode]:
        self.calls["publish"] += 1
        for file in files:
            if file.path in self.files and not file.replace:
                raise Exists(f"{file.path}: exists already")
        for file in files:
            (inode,) = self._new(1) if not file.inode_id else [self.unpublished.pop(file.inode_id)]
            self.files[file.path] = inode._replace(nlink=1, length=file.length)
        return [self.files[file.path] for file in files]

    def abandon(self, inode_ids: Sequence[int], *, timeout_s: float) -> None:
        self.abandoned += inode_ids
        for inode_id in inode_ids:
            del self.unpublished[inode_id]

    def collect(self) -> None:
        """End the sessions of all files that have no name."""
        self.lost |= self.unpublished.keys()

    def renew(self, files: Mapping[int, Written], *, timeout_s: float) -> list[int]:
        self.renewed += files
        self.on_renew()
        return [inode_id for inode_id in files if inode_id in self.lost]


@pytest.fixture
def meta() -> Meta:
    return Meta(Layout(chain_table=TABLE, chain_table_version=1, chunk_bytes=64 << 10, stripe=4))
