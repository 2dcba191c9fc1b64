"""Who serves what: nodes, targets, chains and chain tables, as one immutable value with one version.

mgmtd publishes it, daemons and clients hold the newest they have seen. Names and states are 3FS's.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, TypeVar

from fs3.errors import Invalid, NotFound
from fs3.ids import ChainId, ChainTableId, NodeId, TargetId
from fs3.pb import common_pb2, mgmtd_pb2

K = TypeVar("K", bound=IntEnum)
R = TypeVar("R", "Node", "Target", "Disk")


class TargetState(IntEnum):
    """The public state of a target; mgmtd alone decides it. Numbers order the targets within a chain."""

    SERVING = 1
    LASTSRV = 2
    SYNCING = 3
    WAITING = 4
    OFFLINE = 5


class LocalState(IntEnum):
    """What a daemon reports of its own target; OFFLINE also stands for a daemon that is not heard of."""

    UPTODATE = 1
    ONLINE = 2
    OFFLINE = 3


class NodeKind(IntEnum):
    """What a daemon does."""

    STORAGE = 1
    META = 2
    MGMTD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One daemon, reached at `endpoints`, each "host:port".

    A storage daemon with several `workers` is as many nodes (fs3/ids.py). An operator moves the targets away from a
    `draining` node, or from its `closed_disks`; neither gets new ones.
    """

    node_id: NodeId
    kind: NodeKind
    endpoints: tuple[str, ...]
    host: str = ""
    generation: int = 0
    alive: bool = True
    version: str = ""
    metrics: str = ""
    unix_endpoints: tuple[str, ...] = ()
    last_heartbeat_age_ms: int = 0
    draining: bool = False
    closed_disks: tuple[int, ...] = ()
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One replica's place: a share of a disk that belongs to one chain.

    What an operator wants of it: `draining` (another one takes its place, then it goes), `disabled` (out of service
    until he says otherwise), `accept_loss` (serve with whatever the disk holds, since nobody holds more). `replaces`
    names the draining target for which this one was made.

    `damaged`: its daemon knows of damaged chunks, and has found no good copy yet; a target that is away may have one.

    `complete_at` is the chain version under which it last became complete, by recovery or because a loss was accepted;
    0 if it always was. Its disk keeps the same number: one with a lower number was not there then.
    """

    target_id: TargetId
    node_id: NodeId
    disk: int
    chain_id: ChainId
    state: TargetState
    local_state: LocalState = LocalState.OFFLINE
    used_bytes: int = 0
    chunks: int = 0
    draining: bool = False
    disabled: bool = False
    accept_loss: bool = False
    replaces: TargetId | None = None
    complete_at: int = 0
    damaged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A replication chain: `targets` in chain order, head first, those that serve before those that do not.

    `joins_table`: the table whose next version will list this new chain, once it serves; then None.
    """

    chain_id: ChainId
    version: int
    targets: tuple[TargetId, ...]
    replicas: int
    joins_table: ChainTableId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainTable:
    """A list of chains over which files are striped; a published version never changes."""

    table_id: ChainTableId
    version: int
    replicas: int
    chains: tuple[ChainId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Space of one disk of one node, as last reported."""

    node_id: NodeId
    disk: int
    path: str
    total_bytes: int
    free_bytes: int
    fullness: int = 0  # 1: nearly full, 2: takes no new chunks, 3: takes no writes
    damaged_chunks: int = 0  # known to be, and not repaired yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Everything above, consistent at `version`. Target ids up to `last_target_id` were given out, none twice."""

    cluster_id: str = ""
    version: int = 0
    nodes: Mapping[NodeId, Node] = field(default_factory=dict)
    targets: Mapping[TargetId, Target] = field(default_factory=dict)
    chains: Mapping[ChainId, Chain] = field(default_factory=dict)
    tables: Mapping[tuple[ChainTableId, int], ChainTable] = field(default_factory=dict)
    disks: tuple[Disk, ...] = ()
    ready: bool = False
    last_target_id: int = 0

    def chain(self, chain_id: int) -> Chain:
        """Raises: NotFound."""
        chain = self.chains.get(ChainId(chain_id))
        if chain is None:
            raise NotFound(f"chain {chain_id} is not in routing version {self.version}")
        return chain

    def table(self, table_id: int, version: int) -> ChainTable:
        """Raises: NotFound."""
        table = self.tables.get((ChainTableId(table_id), version))
        if table is None:
            raise NotFound(f"chain table {table_id} version {version} is not in routing version {self.version}")
        return table

    def table_for_replicas(self, replicas: int) -> ChainTable:
        """The newest table with `replicas` copies. Raises: NotFound, which lists what there is."""
        matching = [table for table in self.tables.values() if table.replicas == replicas]
        if not matching:
            known = sorted({table.replicas for table in self.tables.values()})
            raise NotFound(f"no chain table with {replicas} replicas; this cluster has tables for {known} replicas")
        return max(matching, key=lambda table: (table.version, -table.table_id))

    def targets_in(self, chain_id: int, *states: TargetState) -> list[Target]:
        """The targets of a chain that are in one of `states`, in chain order."""
        return [
            target
            for target in (self.targets[target_id] for target_id in self.chain(chain_id).targets)
            if target.state in states
        ]

    def serving(self, chain_id: int) -> list[Target]:
        """The targets that answer reads, head first, tail last."""
        return self.targets_in(chain_id, TargetState.SERVING)

    def writable(self, chain_id: int) -> list[Target]:
        """The targets a write goes through: the serving ones, then the syncing one."""
        return self.targets_in(chain_id, TargetState.SERVING, TargetState.SYNCING)

    def is_draining(self, target: Target) -> bool:
        """Whether an operator wants another target in this one's place."""
        node = self.nodes[target.node_id]
        return target.draining or node.draining or target.disk in node.closed_disks

    def staying(self, chain_id: int) -> list[Target]:
        """The targets that serve, and that no operator wants out."""
        return [target for target in self.serving(chain_id) if not target.disabled and not self.is_draining(target)]

    def is_full(self, chain_id: int) -> bool:
        """Whether a chain serves with all its replicas, not counting those that shall leave or are out of service."""
        return len(self.staying(chain_id)) >= self.chain(chain_id).replicas

    def spares_others(self, chain_id: int) -> bool:
        """Whether a chain is full, and nobody has to be asked for chunks that those who stay have lost."""
        return self.is_full(chain_id) and not any(target.damaged for target in self.staying(chain_id))

    def stepping_down(self, chain_id: int) -> frozenset[TargetId]:
        """The serving targets that shall stop, because an operator wants them out and the chain can spare them.

        A draining target goes when the chain needs nothing of it; a disabled one when another serves.
        """
        serving = self.serving(chain_id)
        if self.spares_others(chain_id):
            staying = self.staying(chain_id)
            return frozenset(target.target_id for target in serving if target not in staying)
        disabled = [target for target in serving if target.disabled]
        if len(disabled) == len(serving):
            disabled = disabled[1:]
        return frozenset(target.target_id for target in disabled)

    def mgmtds(self) -> tuple[str, ...]:
        """The addresses of the known mgmtds, those that are alive first; an address of any interface is none."""
        known = [node for node in self.nodes.values() if node.kind == NodeKind.MGMTD]
        known.sort(key=lambda node: (not node.alive, node.node_id))
        return tuple(
            endpoint
            for node in known
            for endpoint in node.endpoints
            if not endpoint.startswith(("0.0.0.0:", "[::]:", ":::"))
        )

    def endpoint(self, target: Target) -> str:
        """The "host:port" of the daemon that holds `target`."""
        return self.nodes[target.node_id].endpoints[0]


def revised(record: R, **fields: Any) -> R:
    """`record` with these fields; itself where it has them already, as most have."""
    for name, value in fields.items():
        if getattr(record, name) != value:
            return replace(record, **fields)
    return record


def node_to_pb(node: Node) -> mgmtd_pb2.NodeInfo:
    return mgmtd_pb2.NodeInfo(
        node_id=node.node_id,
        kind=common_pb2.NodeKind.ValueType(node.kind),
        endpoints=node.endpoints,
        host=node.host,
        generation=node.generation,
        alive=node.alive,
        version=node.version,
        metrics=node.metrics,
        unix_endpoints=node.unix_endpoints,
        last_heartbeat_age_ms=node.last_heartbeat_age_ms,
        draining=node.draining,
        closed_disks=node.closed_disks,
        workers=node.workers if node.workers > 1 else 0,
    )


def local_state_from_pb(number: int) -> LocalState:
    """What a daemon says of its own target; 0 is OFFLINE. Raises: Invalid."""
    return _known(_LOCAL_STATES, number or LocalState.OFFLINE)


_STATES = {int(state): state for state in TargetState}
_LOCAL_STATES = {int(state): state for state in LocalState}
_KINDS = {int(kind): kind for kind in NodeKind}


def _known(members: Mapping[int, K], number: int) -> K:
    member = members.get(number)
    if member is None:
        kind = type(next(iter(members.values()))).__name__
        raise Invalid(f"{kind} {number} is unknown here; is its sender newer than this software?")
    return member


# Most records of a routing are those of the one before, and a daemon says the same of itself at every heartbeat: a
# value is made once for each message.
_VALUES_KEPT = 1 << 14


def node_from_pb(message: mgmtd_pb2.NodeInfo) -> Node:
    return _node(message.SerializeToString())


@functools.lru_cache(_VALUES_KEPT)
def _node(raw: bytes) -> Node:
    message = mgmtd_pb2.NodeInfo.FromString(raw)
    return Node(
        node_id=NodeId(message.node_id),
        kind=_known(_KINDS, message.kind),
        endpoints=tuple(message.endpoints),
        host=message.host,
        generation=message.generation,
        alive=message.alive,
        version=message.version,
        metrics=message.metrics,
        unix_endpoints=tuple(message.unix_endpoints),
        last_heartbeat_age_ms=message.last_heartbeat_age_ms,
        draining=message.draining,
        closed_disks=tuple(message.closed_disks),
        workers=message.workers or 1,
    )


def routing_to_pb(routing: Routing) -> mgmtd_pb2.Routing:
    """The wire form of `routing`."""
    return mgmtd_pb2.Routing(
        cluster_id=routing.cluster_id,
        version=routing.version,
        nodes=[node_to_pb(node) for node in routing.nodes.values()],
        targets=[
            mgmtd_pb2.TargetInfo(
                target_id=target.target_id,
                node_id=target.node_id,
                disk=target.disk,
                chain_id=target.chain_id,
                state=common_pb2.TargetState.ValueType(target.state),
                local_state=common_pb2.LocalState.ValueType(target.local_state),
                used_bytes=target.used_bytes,
                chunks=target.chunks,
                draining=target.draining,
                disabled=target.disabled,
                accept_loss=target.accept_loss,
                replaces=target.replaces or 0,
                complete_at=target.complete_at,
                damaged=target.damaged,
            )
            for target in routing.targets.values()
        ],
        chains=[
            mgmtd_pb2.ChainInfo(
                chain_id=chain.chain_id,
                version=chain.version,
                targets=chain.targets,
                replicas=chain.replicas,
                joins_table=chain.joins_table or 0,
            )
            for chain in routing.chains.values()
        ],
        tables=[
            mgmtd_pb2.ChainTable(
                table_id=table.table_id, version=table.version, replicas=table.replicas, chains=table.chains
            )
            for table in routing.tables.values()
        ],
        disks=[disk_to_pb(disk) for disk in routing.disks],
        ready=routing.ready,
        last_target_id=routing.last_target_id,
    )


def disk_to_pb(disk: Disk) -> mgmtd_pb2.DiskInfo:
    return mgmtd_pb2.DiskInfo(
        node_id=disk.node_id,
        disk=disk.disk,
        path=disk.path,
        total_bytes=disk.total_bytes,
        free_bytes=disk.free_bytes,
        fullness=disk.fullness,
        damaged_chunks=disk.damaged_chunks,
    )


def disk_from_pb(message: mgmtd_pb2.DiskInfo) -> Disk:
    return Disk(
        node_id=NodeId(message.node_id),
        disk=message.disk,
        path=message.path,
        total_bytes=message.total_bytes,
        free_bytes=message.free_bytes,
        fullness=message.fullness,
        damaged_chunks=message.damaged_chunks,
    )


@functools.lru_cache(_VALUES_KEPT)
def _target(raw: bytes) -> Target:
    message = mgmtd_pb2.TargetInfo.FromString(raw)
    return Target(
        target_id=TargetId(message.target_id),
        node_id=NodeId(message.node_id),
        disk=message.disk,
        chain_id=ChainId(message.chain_id),
        state=_known(_STATES, message.state),
        local_state=_known(_LOCAL_STATES, message.local_state),
        used_bytes=message.used_bytes,
        chunks=message.chunks,
        draining=message.draining,
        disabled=message.disabled,
        accept_loss=message.accept_loss,
        replaces=TargetId(message.replaces) if message.replaces else None,
        complete_at=message.complete_at,
        damaged=message.damaged,
    )


@functools.lru_cache(_VALUES_KEPT)
def _chain(raw: bytes) -> Chain:
    message = mgmtd_pb2.ChainInfo.FromString(raw)
    return Chain(
        chain_id=ChainId(message.chain_id),
        version=message.version,
        targets=tuple(TargetId(target_id) for target_id in message.targets),
        replicas=message.replicas,
        joins_table=ChainTableId(message.joins_table) if message.joins_table else None,
    )


def routing_from_pb(message: mgmtd_pb2.Routing) -> Routing:
    """The value that a `Routing` message carries."""
    return Routing(
        cluster_id=message.cluster_id,
        version=message.version,
        nodes={NodeId(node.node_id): node_from_pb(node) for node in message.nodes},
        targets={TargetId(target.target_id): _target(target.SerializeToString()) for target in message.targets},
        chains={ChainId(chain.chain_id): _chain(chain.SerializeToString()) for chain in message.chains},
        tables={
            (ChainTableId(table.table_id), table.version): ChainTable(
                table_id=ChainTableId(table.table_id),
                version=table.version,
                replicas=table.replicas,
                chains=tuple(ChainId(chain_id) for chain_id in table.chains),
            )
            for table in message.tables
        },
        disks=tuple(disk_from_pb(disk) for disk in message.disks),
        ready=message.ready,
        last_target_id=message.last_target_id,
    )
