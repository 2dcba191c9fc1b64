"""A request that arrives twice applies once and is answered alike, also when both copies run at the same time."""

from __future__ import annotations

import asyncio

import pytest

from fs3 import errors
from fs3.kv import keys
from fs3.kv.api import transact
from fs3.meta import idempotency
from fs3.meta.ops import attributes, directory, file, link, remove, rename, xattr
from fs3.pb import meta_pb2


def requests(ns, inode_id: int):
    yield directory.mkdir, meta_pb2.MkdirRequest(id=ns.request_id(), path="/new")
    yield file.create_files, meta_pb2.CreateFilesRequest(id=ns.request_id(), paths=["/x", "/y"])
    yield file.publish_files, ns.publish_request((inode_id, "/f"), replace=False)
    yield file.publish_files, ns.publish_request((0, "/e"), replace=False, length=0)
    yield link.link, meta_pb2.LinkRequest(id=ns.request_id(), source="/f", target="/new/link")
    yield link.symlink, meta_pb2.SymlinkRequest(id=ns.request_id(), path="/new/symlink", target="link")
    yield attributes.set_attributes, meta_pb2.SetAttrRequest(id=ns.request_id(), path="/f", mode=0o600)
    yield xattr.set_attribute, meta_pb2.SetXattrRequest(id=ns.request_id(), path="/f", name="user.a", create=True)
    yield xattr.remove_attribute, meta_pb2.RemoveXattrRequest(id=ns.request_id(), path="/f", name="user.a")
    yield rename.rename, meta_pb2.RenameRequest(id=ns.request_id(), source="/f", target="/g", no_replace=True)
    yield remove.remove, meta_pb2.RemoveRequest(id=ns.request_id(), path="/g")


def test_every_change_is_answered_again_as_before(drive) -> None:
    async def body(ns) -> None:
        (made,) = await ns.create("/f")
        for op, request in requests(ns, made.inode_id):
            first = await ns.change(op, request)
            records = await ns.count(keys.INODE), await ns.count(keys.SESSION), await ns.count(keys.GC_QUEUE)
            assert await ns.change(op, request) == first
            assert records == (await ns.count(keys.INODE), await ns.count(keys.SESSION), await ns.count(keys.GC_QUEUE))

    drive(body)


def test_copies_that_run_together_apply_once(drive) -> None:
    async def body(ns) -> None:
        (made,) = await ns.create("/f")
        for op, request in requests(ns, made.inode_id):
            first, *others = await asyncio.gather(*(ns.change(op, request) for _ in range(5)))
            assert all(other == first for other in others)
        assert await ns.names("/") == ["e", "new"] and await ns.queued() == set()
        assert await ns.names("/new") == ["link", "symlink"] and (await ns.stat("/new/symlink"))[0].nlink == 1
        await ns.remove("/new/link")
        assert await ns.queued() == {made.inode_id}
        assert await ns.count(keys.SESSION) == 2

    drive(body)


def test_failures_are_not_recorded_and_ids_belong_to_one_client_and_kind(drive) -> None:
    async def body(ns) -> None:
        request = meta_pb2.RemoveRequest(id=ns.request_id(), path="/f")
        with pytest.raises(errors.NotFound):
            await ns.change(remove.remove, request)
        await ns.write("/f")
        await ns.change(remove.remove, request)
        await ns.write("/f")
        await ns.change(remove.remove, request)
        assert await ns.names("/") == ["f"]
        request.id.client_id = 8
        await ns.change(remove.remove, request)
        assert await ns.names("/") == []
        with pytest.raises(errors.Invalid, match="already used for a different request"):
            await ns.change(directory.mkdir, meta_pb2.MkdirRequest(id=request.id, path="/d"))
        with pytest.raises(errors.Invalid, match="no request id"):
            await ns.change(directory.mkdir, meta_pb2.MkdirRequest(path="/d"))

    drive(body)


def test_answers_outlive_one_period_and_not_two(drive) -> None:
    async def body(ns) -> None:
        request = meta_pb2.MkdirRequest(id=ns.request_id(), path="/d")
        answer = await ns.change(directory.mkdir, request)
        await transact(ns.kv, lambda txn: idempotency.start_period(txn, 0))
        await transact(ns.kv, lambda txn: idempotency.start_period(txn, 0))
        assert await transact(ns.kv, lambda txn: idempotency.forget(txn, 1)) is False
        assert await ns.change(directory.mkdir, request) == answer
        await transact(ns.kv, lambda txn: idempotency.start_period(txn, 1))
        assert await transact(ns.kv, lambda txn: idempotency.forget(txn, 1)) is True
        assert await transact(ns.kv, lambda txn: idempotency.forget(txn, 1)) is False
        with pytest.raises(errors.Exists):
            await ns.change(directory.mkdir, request)

    drive(body)
