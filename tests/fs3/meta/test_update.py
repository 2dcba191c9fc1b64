"""Files that have names and are written in place: one writer, lengths, names that go meanwhile, writers that die."""

from __future__ import annotations

from functools import partial

import pytest
from prometheus_client import CollectorRegistry

from fs3 import errors
from fs3.inode import inode_from_pb
from fs3.kv import keys
from fs3.kv.api import transact
from fs3.meta.fsck import fsck
from fs3.meta.gc import Collector, expire_session
from fs3.meta.inode import known_length
from fs3.meta.ops import update
from fs3.pb import meta_pb2

US, OTHERS = 7, 8


def opening(ns, *paths: str, client: int = US) -> meta_pb2.OpenForWritingRequest:
    return meta_pb2.OpenForWritingRequest(id=ns.request_id(client), paths=paths)


async def open_for_writing(ns, *paths: str, client: int = US):
    reply = await ns.change(update.open_for_writing, opening(ns, *paths, client=client))
    return [inode_from_pb(one) for one in reply.inodes]


async def sync(ns, inode_id: int, client: int = US, **fields):
    file = meta_pb2.FileSync(inode_id=inode_id, **fields)
    request = meta_pb2.SyncFilesRequest(id=ns.request_id(client), files=[file])
    (made,) = (await ns.change(update.sync_files, request)).inodes
    return inode_from_pb(made)


async def hint(ns, inode_id: int, length: int, epoch: int = 0, client: int = US) -> list[int]:
    request = meta_pb2.RenewSessionsRequest(client_id=client, inode_ids=[inode_id], lengths=[length], epochs=[epoch])
    return list((await ns.change(update.renew_sessions, request)).lost)


async def sound(ns) -> None:
    findings = [str(one) for one in (await fsck(ns.kv)).findings()]
    assert [one for one in findings if "given out" not in one] == [], "the ids of this namespace are not counted"


def test_one_writer_at_a_time_and_lengths_as_they_are_told(drive) -> None:
    async def body(ns) -> None:
        await ns.write("/f", length=10)
        (opened,) = await open_for_writing(ns, "/f")
        assert opened.length == 10 and opened.rewritten
        for client in (US, OTHERS):
            with pytest.raises(errors.InUse, match="/f: is being written"):
                await open_for_writing(ns, "/f", client=client)
        with pytest.raises(errors.PermissionDenied):
            await sync(ns, opened.inode_id, client=OTHERS, length=99)
        (before,) = await ns.stat("/f")
        told = await sync(ns, opened.inode_id, length=25, written=True)
        (now,) = await ns.stat("/f")
        assert told == now and now.length == 25
        assert now.version > before.version and now.mtime_ns > before.mtime_ns and now.ctime_ns > before.ctime_ns
        same = await sync(ns, opened.inode_id, length=25)
        assert same == now, "nothing changed, and no time did"
        await sync(ns, opened.inode_id, length=5, written=True, close=True)
        assert (await ns.stat("/f"))[0].length == 5 and await ns.count(keys.SESSION) == 0
        with pytest.raises(errors.NotFound, match="session"):
            await sync(ns, opened.inode_id, length=6)
        assert len(await open_for_writing(ns, "/f", client=OTHERS)) == 1
        await sound(ns)

    drive(body)


def test_all_are_opened_or_none(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d")
        await ns.write("/d/a", "/d/b")
        await ns.symlink("/link", "d/a")
        for path, kind in (("/d", errors.IsADirectory), ("/d/x", errors.NotFound), ("/d/a/x", errors.NotADirectory)):
            with pytest.raises(kind):
                await open_for_writing(ns, "/d/a", path)
        assert await ns.count(keys.SESSION) == 0
        with pytest.raises(errors.InUse):
            await open_for_writing(ns, "/d/a", "/link")
        through, other = await open_for_writing(ns, "/link", "/d/b")
        assert through.inode_id == (await ns.stat("/d/a"))[0].inode_id != other.inode_id
        with pytest.raises(errors.Invalid, match="twice"):
            file = meta_pb2.FileSync(inode_id=other.inode_id)
            await ns.change(update.sync_files, meta_pb2.SyncFilesRequest(id=ns.request_id(), files=[file, file]))
        with pytest.raises(errors.Invalid, match="more than a file can have"):
            await sync(ns, other.inode_id, length=1 << 63)
        (unpublished,) = await ns.create("/new")
        with pytest.raises(errors.Invalid, match="never published"):
            await sync(ns, unpublished.inode_id, length=1)
        with pytest.raises(errors.Invalid, match="published before"):
            await ns.publish((other.inode_id, "/second"))
        assert await ns.names("/") == ["d", "link"]
        await sound(ns)

    drive(body)


def test_a_repeated_request_gets_the_answer_of_the_first(drive) -> None:
    async def body(ns) -> None:
        await ns.write("/f")
        request = opening(ns, "/f")
        first = await ns.change(update.open_for_writing, request)
        assert await ns.change(update.open_for_writing, request) == first, "not InUse by itself"
        file = meta_pb2.FileSync(inode_id=first.inodes[0].inode_id, length=3, written=True, close=True)
        closing = meta_pb2.SyncFilesRequest(id=ns.request_id(), files=[file])
        told = await ns.change(update.sync_files, closing)
        assert await ns.change(update.sync_files, closing) == told, "not that the session is over"

    drive(body)


def test_renewals_let_a_file_grow_and_never_undo_what_was_told_later(drive) -> None:
    async def body(ns) -> None:
        await ns.write("/f", length=10)
        (opened,) = await open_for_writing(ns, "/f")
        number = opened.inode_id
        for told, expected in ((0, 10), (30, 30), (20, 30)):
            assert await hint(ns, number, told) == []
            assert (await ns.stat("/f"))[0].length == expected
        assert await hint(ns, number, 99, client=OTHERS) == [number] and await hint(ns, 12_345, 1) == [12_345]
        await sync(ns, number, length=5, written=True, epoch=1)
        await hint(ns, number, 30)
        assert (await ns.stat("/f"))[0].length == 5, "that renewal was under way when the file was made shorter"
        await hint(ns, number, 8, epoch=1)
        assert (await ns.stat("/f"))[0].length == 8
        (new,) = await ns.create("/new")
        assert await hint(ns, new.inode_id, 4) == []
        assert (await ns.publish((new.inode_id, "/new"), length=2))[0].length == 2
        with pytest.raises(errors.Invalid, match="must agree"):
            bad = meta_pb2.RenewSessionsRequest(client_id=US, inode_ids=[number], lengths=[1, 2], epochs=[0, 0])
            await ns.change(update.renew_sessions, bad)

    drive(body)


@pytest.mark.parametrize("how", ["remove", "replace", "rename over", "remove the tree"])
@pytest.mark.parametrize("ending", ["close", "abandon", "expire"])
def test_a_file_that_is_written_outlives_its_name_until_its_session_ends(drive, how: str, ending: str) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d")
        await ns.write("/d/f")
        (opened,) = await open_for_writing(ns, "/d/f")
        number = opened.inode_id
        collector = Collector(
            ns.kv,
            Remembering(),
            session_lease_s=1e9,
            delay_s=0.0,
            interval_s=1.0,
            registry=CollectorRegistry(),
        )
        if how == "remove":
            await ns.remove("/d/f")
        elif how == "replace":
            await ns.write("/d/f")
        elif how == "rename over":
            await ns.write("/g")
            await ns.rename("/g", "/d/f")
        else:
            await ns.remove("/d", recursive=True)
        for now_s in (1.0, 2.0, 3.0):
            await collector.round(now_s)
        assert number not in await ns.queued() and await ns.count(keys.SESSION) == 1
        await sound(ns)
        assert (await sync(ns, number, length=77, written=True)).nlink == 0
        if ending == "close":
            await sync(ns, number, close=True)
        elif ending == "abandon":
            await ns.abandon(number)
        else:
            seen = await ns.kv.begin().get(keys.session(number))
            assert await transact(ns.kv, partial(expire_session, inode_id=number, seen=seen))
        assert await ns.queued() == {number} and await ns.count(keys.SESSION) == 0
        await sound(ns)

    drive(body)


@pytest.mark.parametrize("ending", ["abandon", "expire"])
def test_a_writer_that_dies_leaves_the_file_as_long_as_it_was_last_told(drive, ending: str) -> None:
    async def body(ns) -> None:
        await ns.write("/f", length=10)
        (opened,) = await open_for_writing(ns, "/f")
        await sync(ns, opened.inode_id, length=40, written=True)
        if ending == "abandon":
            await ns.abandon(opened.inode_id)
        else:
            seen = await ns.kv.begin().get(keys.session(opened.inode_id))
            assert await transact(ns.kv, partial(expire_session, inode_id=opened.inode_id, seen=seen))
        (left,) = await ns.stat("/f")
        assert left.length == 40 and await ns.queued() == set() and known_length(left) is None
        await sound(ns)
        await ns.remove("/f")
        assert await ns.queued() == {opened.inode_id}
        await sound(ns)

    drive(body)


class Remembering:
    """A remover that must not be asked: no file here dies before the test says so."""

    async def remove_file(self, inode) -> None:
        assert not inode.rewritten, "its session has not ended"
