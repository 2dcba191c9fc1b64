from fs3.pb import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeInfo(_message.Message):
    __slots__ = ("node_id", "kind", "endpoints", "host", "generation", "alive", "version", "metrics", "unix_endpoints", "last_heartbeat_age_ms", "draining", "closed_disks", "workers")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    UNIX_ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    LAST_HEARTBEAT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    CLOSED_DISKS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    kind: _common_pb2.NodeKind
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    host: str
    generation: int
    alive: bool
    version: str
    metrics: str
    unix_endpoints: _containers.RepeatedScalarFieldContainer[str]
    last_heartbeat_age_ms: int
    draining: bool
    closed_disks: _containers.RepeatedScalarFieldContainer[int]
    workers: int
    def __init__(self, node_id: _Optional[int] = ..., kind: _Optional[_Union[_common_pb2.NodeKind, str]] = ..., endpoints: _Optional[_Iterable[str]] = ..., host: _Optional[str] = ..., generation: _Optional[int] = ..., alive: _Optional[bool] = ..., version: _Optional[str] = ..., metrics: _Optional[str] = ..., unix_endpoints: _Optional[_Iterable[str]] = ..., last_heartbeat_age_ms: _Optional[int] = ..., draining: _Optional[bool] = ..., closed_disks: _Optional[_Iterable[int]] = ..., workers: _Optional[int] = ...) -> None: ...

class TargetInfo(_message.Message):
    __slots__ = ("target_id", "node_id", "disk", "chain_id", "state", "local_state", "used_bytes", "chunks", "draining", "disabled", "accept_loss", "replaces", "complete_at", "damaged")
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STATE_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_LOSS_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_AT_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    target_id: int
    node_id: int
    disk: int
    chain_id: int
    state: _common_pb2.TargetState
    local_state: _common_pb2.LocalState
    used_bytes: int
    chunks: int
    draining: bool
    disabled: bool
    accept_loss: bool
    replaces: int
    complete_at: int
    damaged: bool
    def __init__(self, target_id: _Optional[int] = ..., node_id: _Optional[int] = ..., disk: _Optional[int] = ..., chain_id: _Optional[int] = ..., state: _Optional[_Union[_common_pb2.TargetState, str]] = ..., local_state: _Optional[_Union[_common_pb2.LocalState, str]] = ..., used_bytes: _Optional[int] = ..., chunks: _Optional[int] = ..., draining: _Optional[bool] = ..., disabled: _Optional[bool] = ..., accept_loss: _Optional[bool] = ..., replaces: _Optional[int] = ..., complete_at: _Optional[int] = ..., damaged: _Optional[bool] = ...) -> None: ...

class ChainInfo(_message.Message):
    __slots__ = ("chain_id", "version", "targets", "replicas", "joins_table")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    JOINS_TABLE_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    version: int
    targets: _containers.RepeatedScalarFieldContainer[int]
    replicas: int
    joins_table: int
    def __init__(self, chain_id: _Optional[int] = ..., version: _Optional[int] = ..., targets: _Optional[_Iterable[int]] = ..., replicas: _Optional[int] = ..., joins_table: _Optional[int] = ...) -> None: ...

class ChainTable(_message.Message):
    __slots__ = ("table_id", "version", "replicas", "chains")
    TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    table_id: int
    version: int
    replicas: int
    chains: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, table_id: _Optional[int] = ..., version: _Optional[int] = ..., replicas: _Optional[int] = ..., chains: _Optional[_Iterable[int]] = ...) -> None: ...

class DiskInfo(_message.Message):
    __slots__ = ("node_id", "disk", "path", "total_bytes", "free_bytes", "fullness", "damaged_chunks")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FULLNESS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    disk: int
    path: str
    total_bytes: int
    free_bytes: int
    fullness: int
    damaged_chunks: int
    def __init__(self, node_id: _Optional[int] = ..., disk: _Optional[int] = ..., path: _Optional[str] = ..., total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., fullness: _Optional[int] = ..., damaged_chunks: _Optional[int] = ...) -> None: ...

class Routing(_message.Message):
    __slots__ = ("cluster_id", "version", "nodes", "targets", "chains", "tables", "disks", "ready", "last_target_id")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    LAST_TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    version: int
    nodes: _containers.RepeatedCompositeFieldContainer[NodeInfo]
    targets: _containers.RepeatedCompositeFieldContainer[TargetInfo]
    chains: _containers.RepeatedCompositeFieldContainer[ChainInfo]
    tables: _containers.RepeatedCompositeFieldContainer[ChainTable]
    disks: _containers.RepeatedCompositeFieldContainer[DiskInfo]
    ready: bool
    last_target_id: int
    def __init__(self, cluster_id: _Optional[str] = ..., version: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[NodeInfo, _Mapping]]] = ..., targets: _Optional[_Iterable[_Union[TargetInfo, _Mapping]]] = ..., chains: _Optional[_Iterable[_Union[ChainInfo, _Mapping]]] = ..., tables: _Optional[_Iterable[_Union[ChainTable, _Mapping]]] = ..., disks: _Optional[_Iterable[_Union[DiskInfo, _Mapping]]] = ..., ready: _Optional[bool] = ..., last_target_id: _Optional[int] = ...) -> None: ...

class ClusterInfo(_message.Message):
    __slots__ = ("cluster_id", "protocol", "lease_ms", "version", "wants_secret", "primary", "session_ms")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WANTS_SECRET_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    SESSION_MS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    protocol: int
    lease_ms: int
    version: str
    wants_secret: bool
    primary: str
    session_ms: int
    def __init__(self, cluster_id: _Optional[str] = ..., protocol: _Optional[int] = ..., lease_ms: _Optional[int] = ..., version: _Optional[str] = ..., wants_secret: _Optional[bool] = ..., primary: _Optional[str] = ..., session_ms: _Optional[int] = ...) -> None: ...

class PrimaryClaim(_message.Message):
    __slots__ = ("node_id", "generation", "address", "epoch", "beat")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    generation: int
    address: str
    epoch: int
    beat: int
    def __init__(self, node_id: _Optional[int] = ..., generation: _Optional[int] = ..., address: _Optional[str] = ..., epoch: _Optional[int] = ..., beat: _Optional[int] = ...) -> None: ...

class ClientSession(_message.Message):
    __slots__ = ("session_id", "host", "pid")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    host: str
    pid: int
    def __init__(self, session_id: _Optional[int] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class SessionTable(_message.Message):
    __slots__ = ("version", "last_id", "live")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LAST_ID_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    version: int
    last_id: int
    live: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, version: _Optional[int] = ..., last_id: _Optional[int] = ..., live: _Optional[_Iterable[int]] = ...) -> None: ...

class LocalTarget(_message.Message):
    __slots__ = ("target_id", "state", "chain_version", "used_bytes", "chunks", "damaged")
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    target_id: int
    state: _common_pb2.LocalState
    chain_version: int
    used_bytes: int
    chunks: int
    damaged: bool
    def __init__(self, target_id: _Optional[int] = ..., state: _Optional[_Union[_common_pb2.LocalState, str]] = ..., chain_version: _Optional[int] = ..., used_bytes: _Optional[int] = ..., chunks: _Optional[int] = ..., damaged: _Optional[bool] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("node", "targets", "disks", "known_routing", "known_sessions")
    NODE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_ROUTING_FIELD_NUMBER: _ClassVar[int]
    KNOWN_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    node: NodeInfo
    targets: _containers.RepeatedCompositeFieldContainer[LocalTarget]
    disks: _containers.RepeatedCompositeFieldContainer[DiskInfo]
    known_routing: int
    known_sessions: int
    def __init__(self, node: _Optional[_Union[NodeInfo, _Mapping]] = ..., targets: _Optional[_Iterable[_Union[LocalTarget, _Mapping]]] = ..., disks: _Optional[_Iterable[_Union[DiskInfo, _Mapping]]] = ..., known_routing: _Optional[int] = ..., known_sessions: _Optional[int] = ...) -> None: ...

class CreateTarget(_message.Message):
    __slots__ = ("target_id", "chain_id", "disk")
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    target_id: int
    chain_id: int
    disk: int
    def __init__(self, target_id: _Optional[int] = ..., chain_id: _Optional[int] = ..., disk: _Optional[int] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("lease_ms", "routing", "create", "drop", "sessions", "epoch")
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    CREATE_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    lease_ms: int
    routing: Routing
    create: _containers.RepeatedCompositeFieldContainer[CreateTarget]
    drop: _containers.RepeatedScalarFieldContainer[int]
    sessions: SessionTable
    epoch: int
    def __init__(self, lease_ms: _Optional[int] = ..., routing: _Optional[_Union[Routing, _Mapping]] = ..., create: _Optional[_Iterable[_Union[CreateTarget, _Mapping]]] = ..., drop: _Optional[_Iterable[int]] = ..., sessions: _Optional[_Union[SessionTable, _Mapping]] = ..., epoch: _Optional[int] = ...) -> None: ...

class GetRoutingRequest(_message.Message):
    __slots__ = ("known_version", "wait_ms")
    KNOWN_VERSION_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    known_version: int
    wait_ms: int
    def __init__(self, known_version: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class GetRoutingReply(_message.Message):
    __slots__ = ("routing", "epoch")
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    routing: Routing
    epoch: int
    def __init__(self, routing: _Optional[_Union[Routing, _Mapping]] = ..., epoch: _Optional[int] = ...) -> None: ...

class GoodbyeRequest(_message.Message):
    __slots__ = ("node_id", "generation")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    generation: int
    def __init__(self, node_id: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class SuspectRequest(_message.Message):
    __slots__ = ("node_id", "generation")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    generation: int
    def __init__(self, node_id: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("host", "pid")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    host: str
    pid: int
    def __init__(self, host: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class OpenSessionReply(_message.Message):
    __slots__ = ("session_id", "session_ms")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_MS_FIELD_NUMBER: _ClassVar[int]
    session_id: int
    session_ms: int
    def __init__(self, session_id: _Optional[int] = ..., session_ms: _Optional[int] = ...) -> None: ...

class RenewSessionRequest(_message.Message):
    __slots__ = ("session_ids",)
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class RenewSessionReply(_message.Message):
    __slots__ = ("ended",)
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ended: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ended: _Optional[_Iterable[int]] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_ids",)
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_ids: _Optional[_Iterable[int]] = ...) -> None: ...
