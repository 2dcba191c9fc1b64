from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Hello(_message.Message):
    __slots__ = ("protocol", "cluster_id", "secret", "client_id", "features", "role", "node_id", "user")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    cluster_id: str
    secret: str
    client_id: int
    features: int
    role: str
    node_id: int
    user: str
    def __init__(self, protocol: _Optional[int] = ..., cluster_id: _Optional[str] = ..., secret: _Optional[str] = ..., client_id: _Optional[int] = ..., features: _Optional[int] = ..., role: _Optional[str] = ..., node_id: _Optional[int] = ..., user: _Optional[str] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("protocol", "node_id", "generation", "features", "max_ranges", "max_body_bytes")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    MAX_RANGES_FIELD_NUMBER: _ClassVar[int]
    MAX_BODY_BYTES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    node_id: int
    generation: int
    features: int
    max_ranges: int
    max_body_bytes: int
    def __init__(self, protocol: _Optional[int] = ..., node_id: _Optional[int] = ..., generation: _Optional[int] = ..., features: _Optional[int] = ..., max_ranges: _Optional[int] = ..., max_body_bytes: _Optional[int] = ...) -> None: ...

class SyncListRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "after", "limit")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    after: bytes
    limit: int
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., after: _Optional[bytes] = ..., limit: _Optional[int] = ...) -> None: ...

class SyncListReply(_message.Message):
    __slots__ = ("more",)
    MORE_FIELD_NUMBER: _ClassVar[int]
    more: bool
    def __init__(self, more: _Optional[bool] = ...) -> None: ...

class SyncDoneRequest(_message.Message):
    __slots__ = ("chain_id", "chain_version", "sessions")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    chain_version: int
    sessions: int
    def __init__(self, chain_id: _Optional[int] = ..., chain_version: _Optional[int] = ..., sessions: _Optional[int] = ...) -> None: ...

class StatsReply(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...
