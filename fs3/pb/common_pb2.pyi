from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Durability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SYNC: _ClassVar[Durability]
    OS: _ClassVar[Durability]

class TargetState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TARGET_STATE_UNKNOWN: _ClassVar[TargetState]
    SERVING: _ClassVar[TargetState]
    LASTSRV: _ClassVar[TargetState]
    SYNCING: _ClassVar[TargetState]
    WAITING: _ClassVar[TargetState]
    OFFLINE: _ClassVar[TargetState]

class LocalState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOCAL_STATE_UNKNOWN: _ClassVar[LocalState]
    UPTODATE: _ClassVar[LocalState]
    ONLINE: _ClassVar[LocalState]
    LOCAL_OFFLINE: _ClassVar[LocalState]

class NodeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_KIND_UNKNOWN: _ClassVar[NodeKind]
    STORAGE: _ClassVar[NodeKind]
    META: _ClassVar[NodeKind]
    MGMTD: _ClassVar[NodeKind]
SYNC: Durability
OS: Durability
TARGET_STATE_UNKNOWN: TargetState
SERVING: TargetState
LASTSRV: TargetState
SYNCING: TargetState
WAITING: TargetState
OFFLINE: TargetState
LOCAL_STATE_UNKNOWN: LocalState
UPTODATE: LocalState
ONLINE: LocalState
LOCAL_OFFLINE: LocalState
NODE_KIND_UNKNOWN: NodeKind
STORAGE: NodeKind
META: NodeKind
MGMTD: NodeKind

class Layout(_message.Message):
    __slots__ = ("chain_table", "chain_table_version", "chunk_bytes", "stripe", "seed", "durability")
    CHAIN_TABLE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_TABLE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    chain_table: int
    chain_table_version: int
    chunk_bytes: int
    stripe: int
    seed: int
    durability: Durability
    def __init__(self, chain_table: _Optional[int] = ..., chain_table_version: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., stripe: _Optional[int] = ..., seed: _Optional[int] = ..., durability: _Optional[_Union[Durability, str]] = ...) -> None: ...

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
