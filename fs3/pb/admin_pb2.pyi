from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Place(_message.Message):
    __slots__ = ("node_id", "disk", "target_id")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    disk: int
    target_id: int
    def __init__(self, node_id: _Optional[int] = ..., disk: _Optional[int] = ..., target_id: _Optional[int] = ...) -> None: ...

class PlaceRequest(_message.Message):
    __slots__ = ("place",)
    PLACE_FIELD_NUMBER: _ClassVar[int]
    place: Place
    def __init__(self, place: _Optional[_Union[Place, _Mapping]] = ...) -> None: ...

class ReplaceRequest(_message.Message):
    __slots__ = ("place", "elsewhere")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    place: Place
    elsewhere: bool
    def __init__(self, place: _Optional[_Union[Place, _Mapping]] = ..., elsewhere: _Optional[bool] = ...) -> None: ...

class CreateReplicaRequest(_message.Message):
    __slots__ = ("node_id", "disk", "chain_id")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    disk: int
    chain_id: int
    def __init__(self, node_id: _Optional[int] = ..., disk: _Optional[int] = ..., chain_id: _Optional[int] = ...) -> None: ...

class GrowRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BalanceRequest(_message.Message):
    __slots__ = ("most",)
    MOST_FIELD_NUMBER: _ClassVar[int]
    most: int
    def __init__(self, most: _Optional[int] = ...) -> None: ...

class UploadTableRequest(_message.Message):
    __slots__ = ("table_id", "replicas", "chains")
    TABLE_ID_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    table_id: int
    replicas: int
    chains: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, table_id: _Optional[int] = ..., replicas: _Optional[int] = ..., chains: _Optional[_Iterable[int]] = ...) -> None: ...

class RotateLastServingRequest(_message.Message):
    __slots__ = ("chain_id", "target_id")
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    chain_id: int
    target_id: int
    def __init__(self, chain_id: _Optional[int] = ..., target_id: _Optional[int] = ...) -> None: ...

class WaitsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AdminReply(_message.Message):
    __slots__ = ("lines", "routing_version")
    LINES_FIELD_NUMBER: _ClassVar[int]
    ROUTING_VERSION_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedScalarFieldContainer[str]
    routing_version: int
    def __init__(self, lines: _Optional[_Iterable[str]] = ..., routing_version: _Optional[int] = ...) -> None: ...

class WaitsReply(_message.Message):
    __slots__ = ("lines",)
    LINES_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lines: _Optional[_Iterable[str]] = ...) -> None: ...
