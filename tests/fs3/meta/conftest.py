"""A namespace to drive: the operations as the service runs them, on each engine, without a server around them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fs3.ids import ChainId, ChainTableId, InodeId
from fs3.inode import Inode, inode_from_pb
from fs3.kv import keys
from fs3.kv.api import KVEngine, transact
from fs3.kv.memory import MemoryKV
from fs3.kv.sqlite import SqliteKV
from fs3.meta.access import SUPERUSER, Caller
from fs3.meta.call import Call
from fs3.meta.ops import attributes, directory, file, link, quota, remove, rename, stat, trash, update, xattr
from fs3.pb import common_pb2, meta_pb2
from fs3.routing import ChainTable, Routing

TABLES = [
    ChainTable(table_id=ChainTableId(replicas), version=1, replicas=replicas, chains=(ChainId(1), ChainId(2)))
    for replicas in (1, 2, 3)
]
ROUTING = Routing(
    cluster_id="test", version=1, tables={(table.table_id, table.version): table for table in TABLES}, ready=True
)


class Namespace:
    """Every method is one call of one client; `now_ns` rises by one with each."""

    def __init__(self, kv: KVEngine) -> None:
        self.kv = kv
        self.routing = ROUTING
        self.now_ns = 1_000
        self.caller: Caller = SUPERUSER
        self._ids = count(2)
        self._requests = count(1)

    def call(self) -> Call:
        return Call(self.now_ns, lambda: InodeId(next(self._ids)), self.routing, self.caller)

    def request_id(self, client: int = 7) -> meta_pb2.RequestId:
        return meta_pb2.RequestId(client_id=client, request_id=next(self._requests))

    async def change(self, op: Callable[..., Awaitable[Any]], request: Any) -> Any:
        self.now_ns += 1
        return await transact(self.kv, lambda txn: op(txn, request, self.call()))

    async def read(self, op: Callable[..., Awaitable[Any]], request: Any) -> Any:
        return await op(self.kv.begin(), request, self.caller)

    async def make_root(self) -> None:
        await transact(self.kv, lambda txn: directory.make_root(txn, self.call()))

    async def mkdir(self, path: str, parents: bool = False, mode: int = 0, **choice: int) -> Inode:
        request = meta_pb2.MkdirRequest(
            id=self.request_id(), path=path, parents=parents, mode=mode, layout=meta_pb2.LayoutChoice(**choice)
        )
        return inode_from_pb((await self.change(directory.mkdir, request)).inode)

    async def create(self, *paths: str, client: int = 7, mode: int = 0, **choice: int) -> list[Inode]:
        request = meta_pb2.CreateFilesRequest(
            id=self.request_id(client), paths=paths, mode=mode, layout=meta_pb2.LayoutChoice(**choice)
        )
        return [inode_from_pb(made) for made in (await self.change(file.create_files, request)).inodes]

    def publish_request(
        self, *files: tuple[int, str], client: int = 7, replace: bool = True, length: int = 10
    ) -> meta_pb2.PublishFilesRequest:
        wanted = [meta_pb2.PublishFile(inode_id=i, path=p, length=length, replace=replace) for i, p in files]
        return meta_pb2.PublishFilesRequest(id=self.request_id(client), files=wanted)

    async def publish(self, *files: tuple[int, str], **options: Any) -> list[Inode]:
        reply = await self.change(file.publish_files, self.publish_request(*files, **options))
        return [inode_from_pb(made) for made in reply.inodes]

    async def make_empty(self, *paths: str, replace: bool = True, **choice: int) -> list[Inode]:
        """Empty files, in one step."""
        request = self.publish_request(*((0, path) for path in paths), replace=replace, length=0)
        request.layout.CopyFrom(meta_pb2.LayoutChoice(**choice))
        return [inode_from_pb(made) for made in (await self.change(file.publish_files, request)).inodes]

    async def write(self, *paths: str, length: int = 10, mode: int = 0) -> list[Inode]:
        """Create and publish."""
        made = await self.create(*paths, mode=mode)
        return await self.publish(*((one.inode_id, path) for one, path in zip(made, paths, strict=True)), length=length)

    async def abandon(self, *inode_ids: int, client: int = 7) -> None:
        request = meta_pb2.AbandonFilesRequest(id=self.request_id(client), inode_ids=inode_ids)
        await self.change(file.abandon_files, request)

    async def renew(self, *inode_ids: int, client: int = 7) -> None:
        await self.change(update.renew_sessions, meta_pb2.RenewSessionsRequest(client_id=client, inode_ids=inode_ids))

    async def rename(self, source: str, target: str, no_replace: bool = False) -> Inode:
        request = meta_pb2.RenameRequest(id=self.request_id(), source=source, target=target, no_replace=no_replace)
        return inode_from_pb((await self.change(rename.rename, request)).inode)

    async def remove(self, path: str, recursive: bool = False, must_be: int = 0) -> None:
        request = meta_pb2.RemoveRequest(id=self.request_id(), path=path, recursive=recursive, must_be=must_be)
        assert await self.change(remove.remove, request) == common_pb2.Empty()

    async def set_quota(self, path: str, **limits: int) -> meta_pb2.Quota:
        """`max_bytes`, `max_inodes`; 0 does away with one."""
        request = meta_pb2.SetQuotaRequest(id=self.request_id(), path=path, **limits)
        return (await self.change(quota.set_quota, request)).quota

    async def quotas(self, path: str = "", **page: int) -> list[meta_pb2.Quota]:
        return list((await self.read(quota.quotas, meta_pb2.QuotasRequest(path=path, **page))).quotas)

    async def used(self, path: str) -> list[tuple[int, int]]:
        """Inodes and bytes by each quota of the directory, outermost first."""
        return [(one.inodes, one.bytes) for one in await self.quotas(path)]

    async def trash(self, path: str, keep_s: int = 0) -> meta_pb2.Trashed:
        request = meta_pb2.TrashRequest(id=self.request_id(), path=path, keep_s=keep_s)
        return (await self.change(trash.trash, request)).trashed

    async def restore(self, name: str, target: str = "") -> str:
        """Where it went."""
        request = meta_pb2.RestoreTrashRequest(id=self.request_id(), name=name, target=target)
        return (await self.change(trash.restore, request)).path

    async def trashed(self, page: int = 0) -> list[meta_pb2.Trashed]:
        found, after = [], ""
        while True:
            reply = await self.read(trash.list_page, meta_pb2.ListTrashRequest(after=after, limit=page))
            found += reply.trashed
            if not reply.more:
                return found
            after = reply.after

    async def empty_trash(self, limit: int = 100, **fields: Any) -> int:
        removed, after = 0, ""
        while True:
            request = meta_pb2.EmptyTrashRequest(id=self.request_id(), after=after, **fields)
            reply = await self.change(partial(trash.empty_page, limit=limit), request)
            removed += reply.removed
            if not reply.more:
                return removed
            after = reply.after

    async def stat(self, *paths: str, nofollow: bool = False, access: int = 0) -> list[Inode | int]:
        """The inode of each path, or its error's code."""
        reply = await self.read(stat.stat, meta_pb2.StatRequest(paths=paths, nofollow=nofollow, access=access))
        return [result.code or inode_from_pb(result.inode) for result in reply.results]

    async def realpath(self, path: str) -> str:
        return (await self.read(stat.realpath, meta_pb2.RealpathRequest(path=path))).path

    async def names(self, path: str, page: int = 0) -> list[str]:
        found, after = [], ""
        while True:
            request = meta_pb2.ListRequest(path=path, after=after, limit=page)
            reply = await self.read(stat.list_page, request)
            found += [entry.name for entry in reply.entries]
            if not reply.more:
                return found
            after = found[-1]

    async def symlink(self, path: str, target: str) -> Inode:
        request = meta_pb2.SymlinkRequest(id=self.request_id(), path=path, target=target)
        return inode_from_pb((await self.change(link.symlink, request)).inode)

    async def link(self, source: str, target: str) -> Inode:
        request = meta_pb2.LinkRequest(id=self.request_id(), source=source, target=target)
        return inode_from_pb((await self.change(link.link, request)).inode)

    async def set_attributes(self, path: str, **fields: Any) -> Inode:
        request = meta_pb2.SetAttrRequest(id=self.request_id(), path=path, **fields)
        return inode_from_pb((await self.change(attributes.set_attributes, request)).inode)

    async def set_xattr(self, path: str, name: str, value: bytes, **flags: bool) -> None:
        request = meta_pb2.SetXattrRequest(id=self.request_id(), path=path, name=name, value=value, **flags)
        await self.change(xattr.set_attribute, request)

    async def remove_xattr(self, path: str, name: str) -> None:
        request = meta_pb2.RemoveXattrRequest(id=self.request_id(), path=path, name=name)
        await self.change(xattr.remove_attribute, request)

    async def xattrs_named(self, path: str) -> list[str]:
        return list((await self.read(xattr.list_attributes, meta_pb2.ListXattrsRequest(path=path))).names)

    async def xattr(self, path: str, name: str) -> bytes:
        return (await self.read(xattr.get_attribute, meta_pb2.GetXattrRequest(path=path, name=name))).value

    async def xattrs(self, path: str, nofollow: bool = False) -> dict[str, bytes]:
        """All of them, name by name."""
        request = meta_pb2.ListXattrsRequest(path=path, nofollow=nofollow)
        found = {}
        for name in (await self.read(xattr.list_attributes, request)).names:
            one = meta_pb2.GetXattrRequest(path=path, nofollow=nofollow, name=name)
            found[name] = (await self.read(xattr.get_attribute, one)).value
        return found

    async def count(self, kind: bytes) -> int:
        """How many records of a kind the store holds."""
        return len(await self.kv.begin().range(*keys.whole(kind), limit=10_000))

    async def queued(self) -> set[int]:
        return {keys.inode_of(key) for key, _ in await self.kv.begin().range(*keys.whole(keys.GC_QUEUE), limit=10_000)}


Drive = Callable[[Callable[[Namespace], Awaitable[None]]], None]


@pytest.fixture(params=["memory", "sqlite"])
def drive(request: pytest.FixtureRequest, tmp_path: Path) -> Drive:
    """Runs a coroutine function on a fresh namespace with a root directory."""

    def run(body: Callable[[Namespace], Awaitable[None]]) -> None:
        async def main() -> None:
            kv = MemoryKV() if request.param == "memory" else SqliteKV(tmp_path / "meta.db")
            try:
                namespace = Namespace(kv)
                await namespace.make_root()
                await body(namespace)
            finally:
                await kv.close()

        asyncio.run(main())

    return run


@pytest.fixture(scope="session")
def namespace_in_memory() -> Callable[[], Namespace]:
    """For tests that drive many namespaces in one run; each still lacks its root."""
    return lambda: Namespace(MemoryKV())


@pytest.fixture(scope="session")
def namespace_on() -> Callable[[KVEngine], Namespace]:
    """The same on a store of the test's choice."""
    return Namespace
