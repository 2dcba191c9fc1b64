from fs3.pb import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InodeType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INODE_TYPE_UNKNOWN: _ClassVar[InodeType]
    FILE: _ClassVar[InodeType]
    DIRECTORY: _ClassVar[InodeType]
    SYMLINK: _ClassVar[InodeType]
INODE_TYPE_UNKNOWN: InodeType
FILE: InodeType
DIRECTORY: InodeType
SYMLINK: InodeType

class Inode(_message.Message):
    __slots__ = ("inode_id", "type", "mode", "uid", "gid", "nlink", "length", "atime_ns", "mtime_ns", "ctime_ns", "layout", "parent", "symlink", "version", "btime_ns", "xattr_bytes", "rewritten", "quota", "quotas", "lost_name")
    INODE_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    NLINK_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CTIME_NS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SYMLINK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BTIME_NS_FIELD_NUMBER: _ClassVar[int]
    XATTR_BYTES_FIELD_NUMBER: _ClassVar[int]
    REWRITTEN_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    LOST_NAME_FIELD_NUMBER: _ClassVar[int]
    inode_id: int
    type: InodeType
    mode: int
    uid: int
    gid: int
    nlink: int
    length: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    layout: _common_pb2.Layout
    parent: int
    symlink: str
    version: int
    btime_ns: int
    xattr_bytes: int
    rewritten: bool
    quota: int
    quotas: _containers.RepeatedScalarFieldContainer[int]
    lost_name: bool
    def __init__(self, inode_id: _Optional[int] = ..., type: _Optional[_Union[InodeType, str]] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., nlink: _Optional[int] = ..., length: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., ctime_ns: _Optional[int] = ..., layout: _Optional[_Union[_common_pb2.Layout, _Mapping]] = ..., parent: _Optional[int] = ..., symlink: _Optional[str] = ..., version: _Optional[int] = ..., btime_ns: _Optional[int] = ..., xattr_bytes: _Optional[int] = ..., rewritten: _Optional[bool] = ..., quota: _Optional[int] = ..., quotas: _Optional[_Iterable[int]] = ..., lost_name: _Optional[bool] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("name", "inode")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    name: str
    inode: Inode
    def __init__(self, name: _Optional[str] = ..., inode: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class RequestId(_message.Message):
    __slots__ = ("client_id", "request_id", "retry")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    client_id: int
    request_id: int
    retry: bool
    def __init__(self, client_id: _Optional[int] = ..., request_id: _Optional[int] = ..., retry: _Optional[bool] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class StatRequest(_message.Message):
    __slots__ = ("paths", "nofollow", "access")
    PATHS_FIELD_NUMBER: _ClassVar[int]
    NOFOLLOW_FIELD_NUMBER: _ClassVar[int]
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    paths: _containers.RepeatedScalarFieldContainer[str]
    nofollow: bool
    access: int
    def __init__(self, paths: _Optional[_Iterable[str]] = ..., nofollow: _Optional[bool] = ..., access: _Optional[int] = ...) -> None: ...

class StatResult(_message.Message):
    __slots__ = ("inode", "code", "message")
    INODE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    inode: Inode
    code: int
    message: str
    def __init__(self, inode: _Optional[_Union[Inode, _Mapping]] = ..., code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class StatReply(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[StatResult]
    def __init__(self, results: _Optional[_Iterable[_Union[StatResult, _Mapping]]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("path", "after", "limit", "validator")
    PATH_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    VALIDATOR_FIELD_NUMBER: _ClassVar[int]
    path: str
    after: str
    limit: int
    validator: bytes
    def __init__(self, path: _Optional[str] = ..., after: _Optional[str] = ..., limit: _Optional[int] = ..., validator: _Optional[bytes] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("entries", "more", "validator", "same")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    VALIDATOR_FIELD_NUMBER: _ClassVar[int]
    SAME_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    more: bool
    validator: bytes
    same: bool
    def __init__(self, entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., more: _Optional[bool] = ..., validator: _Optional[bytes] = ..., same: _Optional[bool] = ...) -> None: ...

class LayoutChoice(_message.Message):
    __slots__ = ("replicas", "chunk_bytes", "stripe", "durability")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    replicas: int
    chunk_bytes: int
    stripe: int
    durability: _common_pb2.Durability
    def __init__(self, replicas: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., stripe: _Optional[int] = ..., durability: _Optional[_Union[_common_pb2.Durability, str]] = ...) -> None: ...

class MkdirRequest(_message.Message):
    __slots__ = ("id", "path", "parents", "mode", "layout")
    ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    path: str
    parents: bool
    mode: int
    layout: LayoutChoice
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., path: _Optional[str] = ..., parents: _Optional[bool] = ..., mode: _Optional[int] = ..., layout: _Optional[_Union[LayoutChoice, _Mapping]] = ...) -> None: ...

class InodeReply(_message.Message):
    __slots__ = ("inode",)
    INODE_FIELD_NUMBER: _ClassVar[int]
    inode: Inode
    def __init__(self, inode: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class CreateFilesRequest(_message.Message):
    __slots__ = ("id", "paths", "layout", "mode")
    ID_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    paths: _containers.RepeatedScalarFieldContainer[str]
    layout: LayoutChoice
    mode: int
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., paths: _Optional[_Iterable[str]] = ..., layout: _Optional[_Union[LayoutChoice, _Mapping]] = ..., mode: _Optional[int] = ...) -> None: ...

class CreateFilesReply(_message.Message):
    __slots__ = ("inodes", "keys", "most_keys")
    INODES_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    MOST_KEYS_FIELD_NUMBER: _ClassVar[int]
    inodes: _containers.RepeatedCompositeFieldContainer[Inode]
    keys: _containers.RepeatedScalarFieldContainer[int]
    most_keys: int
    def __init__(self, inodes: _Optional[_Iterable[_Union[Inode, _Mapping]]] = ..., keys: _Optional[_Iterable[int]] = ..., most_keys: _Optional[int] = ...) -> None: ...

class PublishFile(_message.Message):
    __slots__ = ("inode_id", "path", "length", "replace")
    INODE_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    inode_id: int
    path: str
    length: int
    replace: bool
    def __init__(self, inode_id: _Optional[int] = ..., path: _Optional[str] = ..., length: _Optional[int] = ..., replace: _Optional[bool] = ...) -> None: ...

class PublishFilesRequest(_message.Message):
    __slots__ = ("id", "files", "layout", "mode")
    ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    files: _containers.RepeatedCompositeFieldContainer[PublishFile]
    layout: LayoutChoice
    mode: int
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., files: _Optional[_Iterable[_Union[PublishFile, _Mapping]]] = ..., layout: _Optional[_Union[LayoutChoice, _Mapping]] = ..., mode: _Optional[int] = ...) -> None: ...

class PublishFilesReply(_message.Message):
    __slots__ = ("inodes",)
    INODES_FIELD_NUMBER: _ClassVar[int]
    inodes: _containers.RepeatedCompositeFieldContainer[Inode]
    def __init__(self, inodes: _Optional[_Iterable[_Union[Inode, _Mapping]]] = ...) -> None: ...

class AbandonFilesRequest(_message.Message):
    __slots__ = ("id", "inode_ids")
    ID_FIELD_NUMBER: _ClassVar[int]
    INODE_IDS_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    inode_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., inode_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class RenewSessionsRequest(_message.Message):
    __slots__ = ("client_id", "inode_ids", "lengths", "epochs")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    INODE_IDS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    client_id: int
    inode_ids: _containers.RepeatedScalarFieldContainer[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    epochs: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, client_id: _Optional[int] = ..., inode_ids: _Optional[_Iterable[int]] = ..., lengths: _Optional[_Iterable[int]] = ..., epochs: _Optional[_Iterable[int]] = ...) -> None: ...

class RenewSessionsReply(_message.Message):
    __slots__ = ("lost",)
    LOST_FIELD_NUMBER: _ClassVar[int]
    lost: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, lost: _Optional[_Iterable[int]] = ...) -> None: ...

class OpenForWritingRequest(_message.Message):
    __slots__ = ("id", "paths", "access")
    ID_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    paths: _containers.RepeatedScalarFieldContainer[str]
    access: int
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., paths: _Optional[_Iterable[str]] = ..., access: _Optional[int] = ...) -> None: ...

class OpenForWritingReply(_message.Message):
    __slots__ = ("inodes", "lease_ms")
    INODES_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    inodes: _containers.RepeatedCompositeFieldContainer[Inode]
    lease_ms: int
    def __init__(self, inodes: _Optional[_Iterable[_Union[Inode, _Mapping]]] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class FileSync(_message.Message):
    __slots__ = ("inode_id", "length", "written", "close", "epoch")
    INODE_ID_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    inode_id: int
    length: int
    written: bool
    close: bool
    epoch: int
    def __init__(self, inode_id: _Optional[int] = ..., length: _Optional[int] = ..., written: _Optional[bool] = ..., close: _Optional[bool] = ..., epoch: _Optional[int] = ...) -> None: ...

class SyncFilesRequest(_message.Message):
    __slots__ = ("id", "files")
    ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    files: _containers.RepeatedCompositeFieldContainer[FileSync]
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., files: _Optional[_Iterable[_Union[FileSync, _Mapping]]] = ...) -> None: ...

class SyncFilesReply(_message.Message):
    __slots__ = ("inodes",)
    INODES_FIELD_NUMBER: _ClassVar[int]
    inodes: _containers.RepeatedCompositeFieldContainer[Inode]
    def __init__(self, inodes: _Optional[_Iterable[_Union[Inode, _Mapping]]] = ...) -> None: ...

class SymlinkRequest(_message.Message):
    __slots__ = ("id", "path", "target")
    ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    path: str
    target: str
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., path: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...

class LinkRequest(_message.Message):
    __slots__ = ("id", "source", "target")
    ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    source: str
    target: str
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., source: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...

class SetAttrRequest(_message.Message):
    __slots__ = ("id", "path", "nofollow", "mode", "uid", "gid", "atime_ns", "mtime_ns", "atime_now", "mtime_now")
    ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    NOFOLLOW_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    ATIME_NS_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    ATIME_NOW_FIELD_NUMBER: _ClassVar[int]
    MTIME_NOW_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    path: str
    nofollow: bool
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    atime_now: bool
    mtime_now: bool
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., path: _Optional[str] = ..., nofollow: _Optional[bool] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., atime_ns: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., atime_now: _Optional[bool] = ..., mtime_now: _Optional[bool] = ...) -> None: ...

class GetXattrRequest(_message.Message):
    __slots__ = ("path", "nofollow", "name")
    PATH_FIELD_NUMBER: _ClassVar[int]
    NOFOLLOW_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    path: str
    nofollow: bool
    name: str
    def __init__(self, path: _Optional[str] = ..., nofollow: _Optional[bool] = ..., name: _Optional[str] = ...) -> None: ...

class GetXattrReply(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    def __init__(self, value: _Optional[bytes] = ...) -> None: ...

class ListXattrsRequest(_message.Message):
    __slots__ = ("path", "nofollow")
    PATH_FIELD_NUMBER: _ClassVar[int]
    NOFOLLOW_FIELD_NUMBER: _ClassVar[int]
    path: str
    nofollow: bool
    def __init__(self, path: _Optional[str] = ..., nofollow: _Optional[bool] = ...) -> None: ...

class ListXattrsReply(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class SetXattrRequest(_message.Message):
    __slots__ = ("id", "path", "nofollow", "name", "value", "create", "replace")
    ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    NOFOLLOW_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    CREATE_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    path: str
    nofollow: bool
    name: str
    value: bytes
    create: bool
    replace: bool
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., path: _Optional[str] = ..., nofollow: _Optional[bool] = ..., name: _Optional[str] = ..., value: _Optional[bytes] = ..., create: _Optional[bool] = ..., replace: _Optional[bool] = ...) -> None: ...

class RemoveXattrRequest(_message.Message):
    __slots__ = ("id", "path", "nofollow", "name")
    ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    NOFOLLOW_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    path: str
    nofollow: bool
    name: str
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., path: _Optional[str] = ..., nofollow: _Optional[bool] = ..., name: _Optional[str] = ...) -> None: ...

class RenameRequest(_message.Message):
    __slots__ = ("id", "source", "target", "no_replace")
    ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NO_REPLACE_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    source: str
    target: str
    no_replace: bool
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., source: _Optional[str] = ..., target: _Optional[str] = ..., no_replace: _Optional[bool] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("id", "path", "recursive", "must_be")
    ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RECURSIVE_FIELD_NUMBER: _ClassVar[int]
    MUST_BE_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    path: str
    recursive: bool
    must_be: InodeType
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., path: _Optional[str] = ..., recursive: _Optional[bool] = ..., must_be: _Optional[_Union[InodeType, str]] = ...) -> None: ...

class UsageRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class UsageReply(_message.Message):
    __slots__ = ("files", "directories", "bytes")
    FILES_FIELD_NUMBER: _ClassVar[int]
    DIRECTORIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    files: int
    directories: int
    bytes: int
    def __init__(self, files: _Optional[int] = ..., directories: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class RealpathRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class RealpathReply(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class FindRequest(_message.Message):
    __slots__ = ("inode_ids",)
    INODE_IDS_FIELD_NUMBER: _ClassVar[int]
    inode_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, inode_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class FoundInode(_message.Message):
    __slots__ = ("inode", "dead")
    INODE_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    inode: Inode
    dead: bool
    def __init__(self, inode: _Optional[_Union[Inode, _Mapping]] = ..., dead: _Optional[bool] = ...) -> None: ...

class FindReply(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: _containers.RepeatedCompositeFieldContainer[FoundInode]
    def __init__(self, found: _Optional[_Iterable[_Union[FoundInode, _Mapping]]] = ...) -> None: ...

class FsckRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FsckReply(_message.Message):
    __slots__ = ("inodes", "dead", "wrong", "findings")
    INODES_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    WRONG_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    inodes: int
    dead: int
    wrong: int
    findings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, inodes: _Optional[int] = ..., dead: _Optional[int] = ..., wrong: _Optional[int] = ..., findings: _Optional[_Iterable[str]] = ...) -> None: ...

class BackupRequest(_message.Message):
    __slots__ = ("token", "offset")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    token: int
    offset: int
    def __init__(self, token: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class BackupReply(_message.Message):
    __slots__ = ("token", "total_bytes", "data")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    token: int
    total_bytes: int
    data: bytes
    def __init__(self, token: _Optional[int] = ..., total_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class TrashRecord(_message.Message):
    __slots__ = ("path", "removed_ns", "client_id", "uid", "uncounted")
    PATH_FIELD_NUMBER: _ClassVar[int]
    REMOVED_NS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    UNCOUNTED_FIELD_NUMBER: _ClassVar[int]
    path: str
    removed_ns: int
    client_id: int
    uid: int
    uncounted: bool
    def __init__(self, path: _Optional[str] = ..., removed_ns: _Optional[int] = ..., client_id: _Optional[int] = ..., uid: _Optional[int] = ..., uncounted: _Optional[bool] = ...) -> None: ...

class TrashRequest(_message.Message):
    __slots__ = ("id", "path", "keep_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    KEEP_S_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    path: str
    keep_s: int
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., path: _Optional[str] = ..., keep_s: _Optional[int] = ...) -> None: ...

class Trashed(_message.Message):
    __slots__ = ("name", "record", "expires_ns", "inode")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_NS_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    name: str
    record: TrashRecord
    expires_ns: int
    inode: Inode
    def __init__(self, name: _Optional[str] = ..., record: _Optional[_Union[TrashRecord, _Mapping]] = ..., expires_ns: _Optional[int] = ..., inode: _Optional[_Union[Inode, _Mapping]] = ...) -> None: ...

class TrashReply(_message.Message):
    __slots__ = ("trashed",)
    TRASHED_FIELD_NUMBER: _ClassVar[int]
    trashed: Trashed
    def __init__(self, trashed: _Optional[_Union[Trashed, _Mapping]] = ...) -> None: ...

class ListTrashRequest(_message.Message):
    __slots__ = ("after", "limit")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    after: str
    limit: int
    def __init__(self, after: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ListTrashReply(_message.Message):
    __slots__ = ("trashed", "after", "more")
    TRASHED_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    trashed: _containers.RepeatedCompositeFieldContainer[Trashed]
    after: str
    more: bool
    def __init__(self, trashed: _Optional[_Iterable[_Union[Trashed, _Mapping]]] = ..., after: _Optional[str] = ..., more: _Optional[bool] = ...) -> None: ...

class RestoreTrashRequest(_message.Message):
    __slots__ = ("id", "name", "target")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    name: str
    target: str
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., name: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...

class RestoreTrashReply(_message.Message):
    __slots__ = ("inode", "path")
    INODE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    inode: Inode
    path: str
    def __init__(self, inode: _Optional[_Union[Inode, _Mapping]] = ..., path: _Optional[str] = ...) -> None: ...

class EmptyTrashRequest(_message.Message):
    __slots__ = ("id", "name", "removed_before_ns", "after")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REMOVED_BEFORE_NS_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    name: str
    removed_before_ns: int
    after: str
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., name: _Optional[str] = ..., removed_before_ns: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class EmptyTrashReply(_message.Message):
    __slots__ = ("removed", "after", "more")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    removed: int
    after: str
    more: bool
    def __init__(self, removed: _Optional[int] = ..., after: _Optional[str] = ..., more: _Optional[bool] = ...) -> None: ...

class QuotaRecord(_message.Message):
    __slots__ = ("directory", "path", "max_bytes", "max_inodes", "counting", "again", "rounds")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_INODES_FIELD_NUMBER: _ClassVar[int]
    COUNTING_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    directory: int
    path: str
    max_bytes: int
    max_inodes: int
    counting: bool
    again: bool
    rounds: int
    def __init__(self, directory: _Optional[int] = ..., path: _Optional[str] = ..., max_bytes: _Optional[int] = ..., max_inodes: _Optional[int] = ..., counting: _Optional[bool] = ..., again: _Optional[bool] = ..., rounds: _Optional[int] = ...) -> None: ...

class Quota(_message.Message):
    __slots__ = ("number", "record", "bytes", "inodes")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    INODES_FIELD_NUMBER: _ClassVar[int]
    number: int
    record: QuotaRecord
    bytes: int
    inodes: int
    def __init__(self, number: _Optional[int] = ..., record: _Optional[_Union[QuotaRecord, _Mapping]] = ..., bytes: _Optional[int] = ..., inodes: _Optional[int] = ...) -> None: ...

class SetQuotaRequest(_message.Message):
    __slots__ = ("id", "path", "max_bytes", "max_inodes")
    ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_INODES_FIELD_NUMBER: _ClassVar[int]
    id: RequestId
    path: str
    max_bytes: int
    max_inodes: int
    def __init__(self, id: _Optional[_Union[RequestId, _Mapping]] = ..., path: _Optional[str] = ..., max_bytes: _Optional[int] = ..., max_inodes: _Optional[int] = ...) -> None: ...

class SetQuotaReply(_message.Message):
    __slots__ = ("quota",)
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    quota: Quota
    def __init__(self, quota: _Optional[_Union[Quota, _Mapping]] = ...) -> None: ...

class QuotasRequest(_message.Message):
    __slots__ = ("path", "after", "limit")
    PATH_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    path: str
    after: int
    limit: int
    def __init__(self, path: _Optional[str] = ..., after: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class QuotasReply(_message.Message):
    __slots__ = ("quotas", "more")
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    quotas: _containers.RepeatedCompositeFieldContainer[Quota]
    more: bool
    def __init__(self, quotas: _Optional[_Iterable[_Union[Quota, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...
