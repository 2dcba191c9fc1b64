"""The RPCs of meta: each runs its operation in a transaction, counted and timed."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram

from fs3.clock import wall_now_ns
from fs3.errors import Fs3Error, Invalid, MaybeApplied, NotFound, TooLarge, Unavailable
from fs3.ids import ROOT_INODE, InodeId
from fs3.kv import keys
from fs3.kv.api import KVEngine, Transaction, transact
from fs3.meta import idempotency
from fs3.meta.access import Caller, caller_of
from fs3.meta.backup import Backups
from fs3.meta.call import Call
from fs3.meta.fsck import fsck
from fs3.meta.id_blocks import InodeIds
from fs3.meta.ops import attributes, directory, file, link, quota, remove, rename, stat, trash, update, xattr
from fs3.meta.sizes import check_files, most_keys, page_of
from fs3.pb import common_pb2, meta_pb2, meta_pb2_grpc
from fs3.routing import Routing
from fs3.transport import rpc
from fs3.transport.credentials import CALLER, Credentials

_USAGE_PAGE = 512
_MOST_FINDINGS = 1_000
_CREATED_KEYS = 2  # of each file: inode, session
_MADE_KEYS = 2  # inode, name
_OPENED_KEYS = 2  # inode, session
_SYNCED_KEYS = 2  # the same, or the place in the queue
_OF_EACH = ("inode_ids", "lengths", "epochs")  # fields that have one value for each inode
_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)

Q = TypeVar("Q")
R = TypeVar("R")
Inodes = TypeVar("Inodes", meta_pb2.AbandonFilesRequest, meta_pb2.RenewSessionsRequest)


class CallMetrics:
    """Calls, errors and latency of each operation."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.errors = Counter("fs3_meta_errors", "Calls that failed", ["op", "error"], registry=registry)
        self._calls = Counter("fs3_meta_calls", "Calls of an operation", ["op"], registry=registry)
        self._seconds = Histogram(
            "fs3_meta_call_seconds", "Time to answer a call", ["op"], buckets=_BUCKETS, registry=registry
        )
        self._of: dict[str, tuple[Counter, Histogram]] = {}  # to look them up by labels costs as much as a read

    def measured(self, op: str) -> _Measured:
        """Counts what happens inside of it as one call of `op`."""
        if op not in self._of:
            self._of[op] = self._calls.labels(op), self._seconds.labels(op)
        return _Measured(self, op, *self._of[op])


class _Measured:
    __slots__ = ("_begun", "_calls", "_metrics", "_op", "_seconds")

    def __init__(self, metrics: CallMetrics, op: str, calls: Counter, seconds: Histogram) -> None:
        self._metrics = metrics
        self._op = op
        self._calls = calls
        self._seconds = seconds

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Fs3Error):
            self._metrics.errors.labels(self._op, type(error).__name__).inc()
        self._calls.inc()
        self._seconds.observe(time.perf_counter() - self._begun)


class MetaService(meta_pb2_grpc.MetaServicer):
    """Implements proto/fs3/pb/meta.proto on a store; method names are those of the protocol."""

    def __init__(
        self,
        kv: KVEngine,
        credentials: Credentials,
        registry: CollectorRegistry,
        *,
        session_lease_s: float = 60.0,
        wall_ns: Callable[[], int] = wall_now_ns,
        check_permissions: bool = True,
    ) -> None:
        """Without `check_permissions` everybody may do everything; what they make is theirs all the same."""
        self._check_permissions = check_permissions
        self._owner_uid = os.geteuid()
        self._wall_ns = wall_ns
        self._session_lease_s = session_lease_s
        self.credentials = credentials
        self._kv = kv
        self._ids = InodeIds(kv)
        self._metrics = CallMetrics(registry)
        self._routing = Routing()
        self._joined = self._rooted = False
        self._backups = Backups()

    def adopt(self, routing: Routing) -> None:
        """Use `routing` from now on, and refuse callers of other clusters."""
        self._routing = routing
        if routing.cluster_id and not self.credentials.cluster_id:
            self.credentials = dataclasses.replace(self.credentials, cluster_id=routing.cluster_id)

    async def join(self) -> None:
        """Make sure that the store holds the names of this cluster; a new one does from now on.

        Raises:
            Invalid: it holds another cluster's, whose chunks the collector would look for here.
            Unavailable: mgmtd has not told yet which cluster this is.
        """
        cluster = self._routing.cluster_id
        if self._joined:
            return
        if not cluster:
            raise Unavailable("this meta daemon has not heard from mgmtd yet")

        async def body(txn: Transaction) -> str:
            if await txn.get(keys.RESTORING) is not None:
                raise Invalid(
                    "a backup is being put into the metadata store, or its restore was interrupted; let"
                    " `fs3 admin restore` finish, or run it again"
                )
            found = await txn.get(keys.CLUSTER)
            if found is None:
                txn.put(keys.CLUSTER, cluster.encode())
            return cluster if found is None else found.decode()

        theirs = await transact(self._kv, body)
        if theirs != cluster:
            raise Invalid(
                f"the metadata store holds the names of cluster {theirs}, and mgmtd is of cluster {cluster}; "
                "correct data_dir, kv or mgmtd in this daemon's file"
            )
        self._joined = True

    @rpc.handler
    async def Stat(self, request: meta_pb2.StatRequest) -> meta_pb2.StatReply:  # noqa: N802
        return await self._read("stat", stat.stat, request)

    @rpc.handler
    async def List(self, request: meta_pb2.ListRequest) -> meta_pb2.ListReply:  # noqa: N802
        return await self._read("list", stat.list_page, request)

    @rpc.handler
    async def Realpath(self, request: meta_pb2.RealpathRequest) -> meta_pb2.RealpathReply:  # noqa: N802
        return await self._read("realpath", stat.realpath, request)

    @rpc.handler
    async def Find(self, request: meta_pb2.FindRequest) -> meta_pb2.FindReply:  # noqa: N802
        return await self._read("find", stat.find, request)

    @rpc.handler
    async def Usage(self, request: meta_pb2.UsageRequest) -> meta_pb2.UsageReply:  # noqa: N802
        with self._metrics.measured("usage"):
            await self._ready()
            caller = self._caller()
            usage = await stat.usage_start(self._kv.begin(), request, caller)
            while usage.pending:
                usage = await stat.usage_step(self._kv.begin(), usage, _USAGE_PAGE, caller)
            return meta_pb2.UsageReply(files=usage.files, directories=usage.directories, bytes=usage.size)

    @rpc.handler
    async def Fsck(self, request: meta_pb2.FsckRequest) -> meta_pb2.FsckReply:  # noqa: N802
        with self._metrics.measured("fsck"):
            self._caller().require_superuser("fsck reads all names")
            await self._ready()
            found = await fsck(self._kv)
            findings = await asyncio.to_thread(found.findings)
            lines = [str(one) for one in findings[:_MOST_FINDINGS]]
            return meta_pb2.FsckReply(inodes=found.inodes, dead=found.dead, wrong=len(findings), findings=lines)

    @rpc.handler
    async def Backup(self, request: meta_pb2.BackupRequest) -> meta_pb2.BackupReply:  # noqa: N802
        with self._metrics.measured("backup"):
            self._caller().require_superuser("a backup holds all names")
            await self._ready()
            if request.token:
                data = await asyncio.to_thread(self._backups.piece, request.token, request.offset)
                return meta_pb2.BackupReply(token=request.token, data=data)
            token, size = await self._backups.begin(self._kv, self._routing.cluster_id, self._wall_ns())
            return meta_pb2.BackupReply(token=token, total_bytes=size)

    @rpc.handler
    async def Mkdir(self, request: meta_pb2.MkdirRequest) -> meta_pb2.InodeReply:  # noqa: N802
        return await self._change("mkdir", directory.mkdir, request, directory.ids_needed(request))

    @rpc.handler
    async def CreateFiles(self, request: meta_pb2.CreateFilesRequest) -> meta_pb2.CreateFilesReply:  # noqa: N802
        file.check_batch(len(request.paths))
        check_files(self._kv.limits, len(request.paths), _CREATED_KEYS)
        reply = await self._change("create_files", file.create_files, request, len(request.paths))
        reply.most_keys = most_keys(self._kv.limits)
        return reply

    @rpc.handler
    async def PublishFiles(self, request: meta_pb2.PublishFilesRequest) -> meta_pb2.PublishFilesReply:  # noqa: N802
        file.check_batch(len(request.files))
        made = file.ids_needed(request)
        check_files(self._kv.limits, len(request.files) - made, file.PUBLISHED_KEYS)
        check_files(self._kv.limits, made, _MADE_KEYS)
        return await self._change("publish_files", file.publish_files, request, made)

    @rpc.handler
    async def AbandonFiles(self, request: meta_pb2.AbandonFilesRequest) -> common_pb2.Empty:  # noqa: N802
        for part in self._parts(request):
            await self._change("abandon_files", file.abandon_files, part)
        return common_pb2.Empty()

    @rpc.handler
    async def RenewSessions(self, request: meta_pb2.RenewSessionsRequest) -> meta_pb2.RenewSessionsReply:  # noqa: N802
        reply = meta_pb2.RenewSessionsReply()
        for part in self._parts(request):
            reply.lost.extend((await self._change("renew_sessions", update.renew_sessions, part)).lost)
        return reply

    @rpc.handler
    async def OpenForWriting(  # noqa: N802
        self, request: meta_pb2.OpenForWritingRequest
    ) -> meta_pb2.OpenForWritingReply:
        check_files(self._kv.limits, len(request.paths), _OPENED_KEYS)
        reply = await self._change("open_for_writing", update.open_for_writing, request)
        reply.lease_ms = int(self._session_lease_s * 1_000)
        return reply

    @rpc.handler
    async def SyncFiles(self, request: meta_pb2.SyncFilesRequest) -> meta_pb2.SyncFilesReply:  # noqa: N802
        check_files(self._kv.limits, len(request.files), _SYNCED_KEYS)
        return await self._change("sync_files", update.sync_files, request)

    @rpc.handler
    async def Symlink(self, request: meta_pb2.SymlinkRequest) -> meta_pb2.InodeReply:  # noqa: N802
        return await self._change("symlink", link.symlink, request, 1)

    @rpc.handler
    async def Link(self, request: meta_pb2.LinkRequest) -> meta_pb2.InodeReply:  # noqa: N802
        return await self._change("link", link.link, request)

    @rpc.handler
    async def SetAttr(self, request: meta_pb2.SetAttrRequest) -> meta_pb2.InodeReply:  # noqa: N802
        return await self._change("set_attr", attributes.set_attributes, request)

    @rpc.handler
    async def GetXattr(self, request: meta_pb2.GetXattrRequest) -> meta_pb2.GetXattrReply:  # noqa: N802
        return await self._read("get_xattr", xattr.get_attribute, request)

    @rpc.handler
    async def ListXattrs(self, request: meta_pb2.ListXattrsRequest) -> meta_pb2.ListXattrsReply:  # noqa: N802
        return await self._read("list_xattrs", xattr.list_attributes, request)

    @rpc.handler
    async def SetXattr(self, request: meta_pb2.SetXattrRequest) -> common_pb2.Empty:  # noqa: N802
        return await self._change("set_xattr", xattr.set_attribute, request)

    @rpc.handler
    async def RemoveXattr(self, request: meta_pb2.RemoveXattrRequest) -> common_pb2.Empty:  # noqa: N802
        return await self._change("remove_xattr", xattr.remove_attribute, request)

    @rpc.handler
    async def Rename(self, request: meta_pb2.RenameRequest) -> meta_pb2.InodeReply:  # noqa: N802
        return await self._change("rename", rename.rename, request)

    @rpc.handler
    async def Remove(self, request: meta_pb2.RemoveRequest) -> common_pb2.Empty:  # noqa: N802
        return await self._change("remove", remove.remove, request)

    @rpc.handler
    async def Trash(self, request: meta_pb2.TrashRequest) -> meta_pb2.TrashReply:  # noqa: N802
        return await self._change("trash", trash.trash, request, trash.IDS_NEEDED)

    @rpc.handler
    async def ListTrash(self, request: meta_pb2.ListTrashRequest) -> meta_pb2.ListTrashReply:  # noqa: N802
        return await self._read("list_trash", trash.list_page, request)

    @rpc.handler
    async def RestoreTrash(self, request: meta_pb2.RestoreTrashRequest) -> meta_pb2.RestoreTrashReply:  # noqa: N802
        return await self._change("restore_trash", trash.restore, request)

    @rpc.handler
    async def SetQuota(self, request: meta_pb2.SetQuotaRequest) -> meta_pb2.SetQuotaReply:  # noqa: N802
        return await self._change("set_quota", quota.set_quota, request, 1)

    @rpc.handler
    async def Quotas(self, request: meta_pb2.QuotasRequest) -> meta_pb2.QuotasReply:  # noqa: N802
        return await self._read("quotas", quota.quotas, request)

    @rpc.handler
    async def EmptyTrash(self, request: meta_pb2.EmptyTrashRequest) -> meta_pb2.EmptyTrashReply:  # noqa: N802
        limit = page_of(self._kv.limits, trash.KEYS_OF_AN_ENTRY)
        while True:
            try:
                return await self._change("empty_trash", partial(trash.empty_page, limit=limit), request)
            except TooLarge:
                if limit == 1:
                    raise
                limit //= 2

    def _parts(self, request: Inodes) -> Iterator[Inodes]:
        """A request that need not be carried out at once, in as many as a transaction of the store takes."""
        page = page_of(self._kv.limits)
        for at in range(0, len(request.inode_ids), page):
            part = type(request)()
            part.CopyFrom(request)
            for name in _OF_EACH:
                if name in part.DESCRIPTOR.fields_by_name:
                    some = getattr(request, name)[at : at + page]
                    del getattr(part, name)[:]
                    getattr(part, name).extend(some)
            yield part

    async def _ready(self) -> None:
        """The root directory exists, or is made now. Raises: Unavailable before the cluster has chain tables."""
        if self._rooted:
            return
        try:
            await self.join()
        except Invalid as error:
            raise Unavailable(str(error)) from None  # another meta daemon can answer; this one is about to end
        if await self._kv.begin().get(keys.inode(ROOT_INODE)) is None:
            if not self._routing.ready:
                raise Unavailable("the cluster has no chain tables yet; wait until its storage daemons have joined")
            call = Call(self._wall_ns(), _no_ids, self._routing)
            await transact(self._kv, lambda txn: directory.make_root(txn, call))
        self._rooted = True

    def _caller(self) -> Caller:
        caller = caller_of(CALLER.get(), self._owner_uid)
        return caller if self._check_permissions else dataclasses.replace(caller, superuser=True)

    async def _read(self, op: str, body: Callable[[Transaction, Q, Caller], Awaitable[R]], request: Q) -> R:
        """One snapshot, no commit: nothing was changed, and nothing needs to be still true."""
        with self._metrics.measured(op):
            await self._ready()
            return await body(self._kv.begin(), request, self._caller())

    async def _change(
        self, op: str, body: Callable[[Transaction, Q, Call], Awaitable[R]], request: Q, ids: int = 0
    ) -> R:
        """Run `body` until it commits; if the outcome is unknown, once more, for it is idempotent."""

        async def attempt(txn: Transaction) -> R:
            fresh = iter(await self._ids.take(ids)) if ids else iter(())
            return await body(txn, request, Call(now_ns, fresh.__next__, self._routing, caller, at_once))

        with self._metrics.measured(op):
            await self._ready()
            now_ns, caller, at_once = self._wall_ns(), self._caller(), page_of(self._kv.limits)
            try:
                try:
                    return await transact(self._kv, attempt)
                except MaybeApplied:
                    return await transact(self._kv, attempt)
            except Fs3Error as error:
                if _is_retry(request) and idempotency.lasting(error) and not await self._refuse(request, error):
                    return await transact(self._kv, attempt)  # a copy was quicker: its answer
                raise

    async def _refuse(self, request: Any, error: Fs3Error) -> bool:
        """Have all copies of a request refused; False if one of them has had an answer meanwhile."""
        return await transact(self._kv, lambda txn: idempotency.record_refusal(txn, request.id, error))


def _is_retry(request: Any) -> bool:
    return hasattr(request, "id") and request.id.retry


def _no_ids() -> InodeId:
    raise NotFound("this operation makes no inodes")
