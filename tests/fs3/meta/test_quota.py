"""Quotas: what is below a directory is counted exactly, whatever is done there; nothing comes in that does not fit."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from fs3 import errors
from fs3.cluster.etcd import LocalEtcd
from fs3.inode import Inode
from fs3.kv import keys
from fs3.kv.api import KVEngine, transact
from fs3.kv.etcd import EtcdKV
from fs3.kv.occ_core import encode_counter
from fs3.meta import dentry, gc_quota
from fs3.meta.access import SUPERUSER, Caller
from fs3.meta.fsck import fsck
from fs3.meta.gc import Collector
from fs3.meta.gc_quota import count_page, finish
from fs3.meta.ops import file, rename, update
from fs3.meta.ops.quota import set_quota
from fs3.pb import meta_pb2
from fs3.user import User

NOT_ROOT = Caller(User(1_000, (1_000,)), superuser=False)


class Nowhere:
    """Chunks of dead files are of no interest here."""

    async def remove_file(self, inode: Inode) -> None:
        assert not inode.quotas and not inode.quota


def collector(ns: Any) -> Collector:
    return Collector(ns.kv, Nowhere(), session_lease_s=1e9, delay_s=0.0, interval_s=1.0)


async def collected(ns: Any, gc: Collector | None = None) -> None:
    """Everything dead is gone, and every quota counted."""
    gc = gc or collector(ns)
    for now_s in range(1, 1_000):
        if not (await gc.round(float(now_s))).productive and not await ns.queued():
            return
    raise AssertionError("the collector does not come to an end")


async def sound(ns: Any) -> None:
    async def known_ids(txn: Any) -> None:
        txn.put(keys.NEXT_INODE, encode_counter(1 << 40))

    await transact(ns.kv, known_ids)
    found = (await fsck(ns.kv)).findings()
    assert not found, [str(one) for one in found]


def refused(kind: type[errors.Fs3Error], text: str) -> Any:
    return pytest.raises(kind, match=text)


def test_what_is_made_and_removed_below_a_directory_is_counted(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q")
        assert await ns.quotas("/q") == []
        made = await ns.set_quota("/q", max_bytes=1_000, max_inodes=10)
        assert (made.record.path, made.record.counting, made.bytes, made.inodes) == ("/q", False, 0, 0)
        await ns.write("/q/a", "/q/b", length=100)
        await ns.mkdir("/q/d/e", parents=True)
        await ns.symlink("/q/d/e/s", "elsewhere")
        await ns.make_empty("/q/d/empty")
        assert await ns.used("/q") == await ns.used("/q/d/e") == [(6, 209)]
        await ns.link("/q/a", "/q/d/again")
        assert await ns.used("/q") == [(6, 209)], "a further name is no further inode"
        await ns.write("/q/a", length=250)
        assert await ns.used("/q") == [(7, 459)], "the old file has a name, and is counted; the new one is, too"
        await ns.remove("/q/d/again")
        await ns.remove("/q/d/e/s")
        await ns.remove("/q/d/e")
        assert await ns.used("/q") == [(4, 350)]
        await ns.rename("/q/a", "/q/b")
        assert await ns.used("/q") == [(3, 250)]
        await ns.remove("/q/d", recursive=True)
        assert await ns.used("/q") == [(2, 250)], "what was in it counts until it is taken apart"
        await collected(ns)
        assert await ns.used("/q") == [(1, 250)]
        await sound(ns)

    drive(body)


def test_nothing_comes_in_beyond_the_limits_and_nothing_is_changed_by_trying(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q/d", parents=True)
        await ns.set_quota("/q", max_bytes=100, max_inodes=4)
        await collected(ns)
        await ns.write("/q/a", length=60)
        (b,) = await ns.create("/q/b")
        with refused(errors.QuotaExceeded, "the quota of /q allows 100 bytes: 60 are used, and it would take 101"):
            await ns.publish((b.inode_id, "/q/b"), length=41)
        await ns.publish((b.inode_id, "/q/b"), length=40)
        assert await ns.used("/q") == [(3, 100)]
        with refused(errors.QuotaExceeded, "bytes"):
            await ns.create("/q/c")
        await ns.create("/q/b")  # in place of another: whether it fits is seen when its length is known
        await ns.write("/q/b", length=0)
        await ns.mkdir("/q/d/e")
        for attempt in (
            ns.create("/q/c"),
            ns.make_empty("/q/c"),
            ns.mkdir("/q/d/f"),
            ns.symlink("/q/s", "x"),
        ):
            with refused(errors.QuotaExceeded, "the quota of /q allows 4 inodes: 4 are used, and it would take 5"):
                await attempt
        await ns.link("/q/a", "/q/d/a")
        await ns.mkdir("/other")
        await ns.write("/other/f")
        with refused(errors.QuotaExceeded, "inodes"):
            await ns.rename("/other/f", "/q/f")
        await ns.rename("/other/f", "/q/b")  # one goes, one comes
        assert await ns.used("/q") == [(4, 70)] and await ns.used("/other") == []
        with refused(errors.QuotaExceeded, "it would take 6"):
            await ns.mkdir("/q/x/y", parents=True)
        assert await ns.names("/q") == ["a", "b", "d"]
        await sound(ns)

    drive(body)


def test_limits_change_and_go(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q")
        await ns.set_quota("/q", max_inodes=2)
        await ns.make_empty("/q/a", "/q/b")
        with refused(errors.QuotaExceeded, "inodes"):
            await ns.make_empty("/q/c")
        number = (await ns.set_quota("/q", max_inodes=3, max_bytes=5)).number
        await ns.make_empty("/q/c")
        (now,) = await ns.quotas("/q")
        assert (now.number, now.record.max_inodes, now.record.max_bytes, now.inodes) == (number, 3, 5, 3)
        await ns.set_quota("/q", max_inodes=1)  # less than is used
        with refused(errors.QuotaExceeded, "3 are used"):
            await ns.make_empty("/q/d")
        await ns.remove("/q/c")
        assert not (await ns.set_quota("/q", max_inodes=0)).record.HasField("max_inodes")
        await ns.make_empty("/q/d")
        assert await ns.set_quota("/q", max_bytes=0) == meta_pb2.Quota()
        assert await ns.quotas("/q") == await ns.quotas() == []
        await ns.write("/q/e", length=50)
        await ns.rename("/q/e", "/e")
        await ns.rename("/e", "/q/e")
        assert await ns.count(keys.QUOTA) == await ns.count(keys.QUOTA_USE) == 0
        await sound(ns)
        again = await ns.set_quota("/q", max_bytes=1_000)
        assert again.number != number and again.record.counting
        await collected(ns)
        assert await ns.used("/q") == [(4, 50)]
        await sound(ns)

    drive(body)


def test_quotas_in_quotas_each_count(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/a/b/c", parents=True)
        await ns.set_quota("/a/b", max_bytes=50)
        await ns.set_quota("/a", max_bytes=100)
        await collected(ns)
        await ns.write("/a/b/c/f", length=30)
        await ns.write("/a/f", length=60)
        assert await ns.used("/a/b/c") == [(4, 90), (2, 30)]
        with refused(errors.QuotaExceeded, "the quota of /a allows 100"):
            await ns.write("/a/b/g", length=11)
        with refused(errors.QuotaExceeded, "the quota of /a/b allows 50"):
            await ns.rename("/a/f", "/a/b/f")
        await ns.rename("/a/b/c", "/a/c")
        assert await ns.used("/a/b") == [(4, 90), (0, 0)]
        await ns.rename("/a/b", "/b")
        assert await ns.used("/b") == [(0, 0)] and await ns.used("/a") == [(3, 90)]
        assert [(one.record.path, one.inodes) for one in await ns.quotas()] == [("/a/b", 0), ("/a", 3)]
        await sound(ns)

    drive(body)


def test_what_would_have_to_be_counted_anew_and_is_too_much_stays(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q")
        await ns.mkdir("/d/e", parents=True)
        await ns.write(*(f"/d/{n}" for n in range(14)))
        await ns.set_quota("/q", max_inodes=100)
        await ns.write("/d/e/last")  # 16 things, as many as one transaction is said to take
        await ns.rename("/d", "/q/d")
        assert await ns.used("/q") == [(17, 150)]
        await sound(ns)
        await ns.write("/q/d/e/another")
        with refused(errors.CrossQuota, "more than 16 things"):
            await ns.rename("/q/d", "/d")
        await ns.rename("/q/d", "/q/renamed")
        await ns.remove("/q/renamed/e/another")
        await ns.link("/q/renamed/1", "/q/one")
        for source in ("/q/renamed", "/q/one"):
            with refused(errors.CrossQuota, "names"):
                await ns.rename(source, "/away")
        with refused(errors.CrossQuota, "copy the file"):
            await ns.link("/q/one", "/one")
        await ns.rename("/q/one", "/q/renamed/one")
        await ns.remove("/q/renamed/e/last")
        await ns.rename("/q/renamed", "/away")  # with both names of what has two
        assert await ns.used("/q") == [(0, 0)] and await ns.used("/away") == []
        await sound(ns)

    drive(body)


def test_what_was_there_before_is_counted_while_things_go_on(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q/a/b", parents=True)
        await ns.mkdir("/q/z")
        await ns.write(*(f"/q/a/b/{n:03}" for n in range(100)))
        await ns.write(*(f"/q/z/{n:03}" for n in range(100)))
        await ns.link("/q/a/b/000", "/q/z/linked")
        await ns.link("/q/a/b/001", "/outside")
        gc = collector(ns)
        gc._quotas._limit = 7  # a few things at a time
        assert (await ns.set_quota("/q", max_bytes=10_000, max_inodes=500)).record.counting
        for step in range(40):
            await ns.make_empty(f"/q/a/b/new{step}")
            await ns.rename(f"/q/a/b/{step + 10:03}", f"/q/z/moved{step}")
            await ns.rename(f"/q/z/{step + 50:03}", f"/q/a/moved{step}")
            await ns.rename(f"/q/z/{step:03}", f"/away{step}")
            await ns.remove(f"/q/a/b/{step + 50:03}")
            if step % 10 == 0:
                gc._quotas._passes.clear()  # another collector goes on
            await gc.round(float(step))
            await sound(ns)
        await collected(ns, gc)
        (found,) = await ns.quotas("/q")
        assert not found.record.counting
        # 203 names of 200 files and 3 directories, 40 made, 80 gone; one is named outside, too, and counts
        assert (found.inodes, found.bytes) == (200 + 3 + 40 - 80, 10 * (200 - 80))
        await sound(ns)
        await ns.set_quota("/q", max_inodes=163)
        with refused(errors.QuotaExceeded, "inodes"):
            await ns.make_empty("/q/more")

    drive(body)


def test_what_moves_past_the_counting_is_counted(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q/a/deep", parents=True)
        await ns.mkdir("/q/z/moved/deep", parents=True)
        await ns.write(*(f"/q/z/moved/deep/{n}" for n in range(20)), "/q/z/moved/one")
        number = (await ns.set_quota("/q", max_inodes=2)).number  # less than is there, and no reason to refuse
        q, a, z = (one.inode_id for one in await ns.stat("/q", "/q/a", "/q/z"))
        for directory in (q, a):  # as the collector does, which then is interrupted
            await transact(ns.kv, partial(count_page, directory=directory, after=b"", limit=100))
        await ns.rename("/q/z/moved", "/q/a/moved")
        await ns.link("/q/a/moved/one", "/q/a/two")
        await ns.rename("/q/a/moved/deep/0", "/q/a/deep/0")
        await sound(ns)
        assert await ns.used("/q") == [(5, 20)]  # a, a/deep, z, and the two files that were met
        await transact(ns.kv, partial(count_page, directory=z, after=b"", limit=100))
        assert not await transact(ns.kv, partial(finish, number=number, rounds=0)), "it has to be looked through again"
        assert not await transact(ns.kv, partial(finish, number=number, rounds=0)), "and not by an old list"
        await collected(ns)
        assert await ns.used("/q") == [(3 + 2 + 21, 210)]
        await sound(ns)

    drive(body)


def test_files_written_in_place_are_counted_as_they_grow(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q")
        await ns.set_quota("/q", max_bytes=100)
        (one,) = await ns.write("/q/f", length=10)
        await ns.change(update.open_for_writing, meta_pb2.OpenForWritingRequest(id=ns.request_id(), paths=["/q/f"]))

        async def sync(length: int, **more: Any) -> None:
            file = meta_pb2.FileSync(inode_id=one.inode_id, length=length, written=True, **more)
            await ns.change(update.sync_files, meta_pb2.SyncFilesRequest(id=ns.request_id(), files=[file]))

        async def renew(length: int) -> None:
            request = meta_pb2.RenewSessionsRequest(client_id=7, inode_ids=[one.inode_id], lengths=[length], epochs=[0])
            assert not (await ns.change(update.renew_sessions, request)).lost

        await sync(60)
        assert await ns.used("/q") == [(1, 60)]
        with refused(errors.QuotaExceeded, "it would take 101"):
            await sync(101)
        await renew(101)
        assert await ns.used("/q") == [(1, 60)]
        await renew(90)
        assert await ns.used("/q") == [(1, 90)]
        await ns.rename("/q/f", "/f")
        assert await ns.used("/q") == [(0, 0)]
        await sync(1_000)
        with refused(errors.QuotaExceeded, "bytes"):
            await ns.rename("/f", "/q/f")
        await sync(80)
        await ns.rename("/f", "/q/f")
        await sound(ns)
        await ns.remove("/q/f")  # lives until its session ends, and counts no more
        assert await ns.used("/q") == [(0, 0)]
        await sync(5_000)
        await sync(5_000, close=True)
        assert await ns.used("/q") == [(0, 0)]
        await sound(ns)

    drive(body)


def test_what_lies_in_the_trash_counts_until_it_is_gone(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q/d", parents=True)
        await ns.set_quota("/q", max_inodes=30)
        await collected(ns)
        await ns.write(*(f"/q/d/{n}" for n in range(25)))
        thrown = await ns.trash("/q/d")
        assert await ns.used("/q") == [(26, 250)]
        await ns.write(f"/.trash/{thrown.name}/more")
        assert await ns.used("/q") == [(27, 260)]
        await sound(ns)
        with refused(errors.CrossQuota, "more than 16"):
            await ns.restore(thrown.name, "/elsewhere")
        assert await ns.restore(thrown.name) == "/q/d"
        await ns.trash("/q/d")
        await ns.empty_trash()
        await collected(ns)
        assert await ns.used("/q") == [(0, 0)]
        await sound(ns)

    drive(body)


def test_a_quota_goes_with_its_directory(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/a/q/d", parents=True)
        await ns.set_quota("/a/q", max_inodes=30)
        await ns.set_quota("/a", max_inodes=30)
        await ns.write("/a/q/d/f")
        await ns.remove("/a/q", recursive=True)
        assert [one.record.path for one in await ns.quotas()] == ["/a"]
        await sound(ns)
        await collected(ns)
        assert await ns.used("/a") == [(0, 0)]
        await ns.mkdir("/a/r")
        await ns.set_quota("/a/r", max_inodes=1)
        await ns.remove("/a/r")
        assert len(await ns.quotas()) == 1 and await ns.used("/a") == [(0, 0)]
        await sound(ns)

    drive(body)


def test_what_cannot_have_a_quota(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/d")
        await ns.write("/f", "/d/g")
        await ns.trash("/d/g")
        for path, kind, text in (
            ("/", errors.Invalid, "the root has no quota"),
            ("/.trash", errors.Invalid, "in the trash"),
            ("/f", errors.NotADirectory, "is a file"),
            ("/none", errors.NotFound, "no such file"),
        ):
            with refused(kind, text):
                await ns.set_quota(path, max_bytes=1)
        for limits, text in (
            ({}, "has no quota"),
            ({"max_bytes": 0}, "has no quota"),
            ({"max_inodes": 1 << 63}, "too large"),
        ):
            with refused(errors.Invalid, text):
                await ns.set_quota("/d", **limits)
        await ns.set_quota("/d", max_bytes=1)
        ns.caller = NOT_ROOT
        with refused(errors.NotPermitted, "superuser"):
            await ns.set_quota("/d", max_bytes=1)
        with refused(errors.NotPermitted, "superuser"):
            await ns.quotas()
        assert len(await ns.quotas("/d")) == 1

    drive(body)


def test_pages_of_all_quotas(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        for n in range(5):
            await ns.mkdir(f"/{n}")
            await ns.set_quota(f"/{n}", max_bytes=n + 1)
        first = await ns.quotas(limit=3)
        rest = await ns.quotas(limit=3, after=first[-1].number)
        assert [one.record.path for one in [*first, *rest]] == [f"/{n}" for n in range(5)]

    drive(body)


def test_the_trash_is_no_way_around_a_quota(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        for path in ("/q", "/home"):
            await ns.mkdir(path, mode=0o777)
        await ns.set_quota("/q", max_inodes=3, max_bytes=100)
        ns.caller = NOT_ROOT
        await ns.mkdir("/q/d")
        await ns.mkdir("/home/big")
        await ns.write(*(f"/home/big/{n}" for n in range(40)))
        thrown = await ns.trash("/q/d")
        entry = f"/.trash/{thrown.name}"
        with refused(errors.CrossQuota, "more than 16"):
            await ns.rename("/home/big", f"{entry}/big")
        with refused(errors.QuotaExceeded, "bytes"):
            await ns.write(f"{entry}/large", length=101)
        await ns.rename("/home/big/1", f"{entry}/one")
        assert await ns.used("/q") == [(2, 10)]
        for attempt in (
            ns.mkdir("/.trash/mine"),
            ns.write("/.trash/mine"),
            ns.symlink("/.trash/mine", "x"),
            ns.link("/home/big/2", "/.trash/mine"),
            ns.rename("/home/big", "/.trash/mine"),
            ns.rename("/home/big", entry),
        ):
            with refused(errors.NotPermitted, "only `fs3 rm --trash`"):
                await attempt
        await ns.restore(thrown.name)
        assert await ns.used("/q") == [(2, 10)]
        await ns.remove("/q/d/one")
        ns.caller = SUPERUSER
        await sound(ns)

    drive(body)


def test_limits_hold_at_once_wherever_something_is_made(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q/a/b", parents=True)
        await ns.set_quota("/q", max_inodes=2)
        await ns.make_empty("/q/a/b/1", "/q/a/b/2")
        with refused(errors.QuotaExceeded, "the quota of /q allows 2"):
            await ns.make_empty("/q/a/b/3")
        await sound(ns)
        await collected(ns)
        assert await ns.used("/q/a/b") == [(4, 0)]
        await sound(ns)

    drive(body)


def test_a_directory_that_moves_before_its_entries_are_counted_is_counted(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/a/c", parents=True)
        await ns.mkdir("/a/z/b", parents=True)
        await ns.write(*(f"/a/z/b/{n}" for n in range(20)))
        number = (await ns.set_quota("/a", max_inodes=100)).number
        a, c, z = (one.inode_id for one in await ns.stat("/a", "/a/c", "/a/z"))
        for directory in (a, z, a, c):  # a collector, and one that begins again after it
            await transact(ns.kv, partial(count_page, directory=directory, after=b"", limit=100))
        await ns.rename("/a/z/b", "/a/c/b")
        await transact(ns.kv, partial(count_page, directory=z, after=b"", limit=100))
        assert not await transact(ns.kv, partial(finish, number=number, rounds=0))
        await collected(ns)
        assert await ns.used("/a") == [(23, 200)]
        await sound(ns)

    drive(body)


def test_two_collectors_that_take_turns_miss_nothing(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/a/c", parents=True)
        await ns.mkdir("/a/z/b", parents=True)
        await ns.write(*(f"/a/z/b/{n}" for n in range(20)))
        await ns.set_quota("/a", max_inodes=100)
        one, other = collector(ns), collector(ns)
        for gc in (one, other):
            gc._quotas._limit = 4
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gc_quota, "_PAGES", 1)
            await one.round(1.0)
            await ns.rename("/a/z/b", "/a/c/b")
            for now_s in range(2, 60):
                await other.round(float(now_s))
                if not (await ns.quotas("/a"))[0].record.again:
                    break
            for now_s in range(60, 160):
                await one.round(float(now_s))
        await collected(ns, one)
        assert await ns.used("/a") == [(23, 200)]
        await sound(ns)

    drive(body)


def test_a_subtree_that_was_not_reached_takes_nothing_counted_out(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/a/c", parents=True)
        await ns.mkdir("/a/z/b", parents=True)
        await ns.write("/a/c/x")
        await ns.set_quota("/a", max_inodes=100)
        a, c = (one.inode_id for one in await ns.stat("/a", "/a/c"))
        for directory in (a, c):
            await transact(ns.kv, partial(count_page, directory=directory, after=b"", limit=100))
        await ns.rename("/a/c/x", "/a/z/b/x")
        await ns.mkdir("/p")
        await ns.set_quota("/p", max_inodes=100)
        await ns.rename("/a/z/b", "/p/b")
        await collected(ns)
        assert (await ns.used("/a"), await ns.used("/p")) == ([(2, 0)], [(2, 10)])
        (x,) = await ns.stat("/p/b/x")
        assert len(x.quotas) == 1
        await sound(ns)

    drive(body)


def test_what_was_thrown_away_uncounted_is_counted_when_it_is_back(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/a/before", parents=True)
        await ns.mkdir("/a/during")
        await ns.write(*(f"/a/{where}/{n}" for where in ("before", "during") for n in range(20)))
        before = await ns.trash("/a/before")
        number = (await ns.set_quota("/a", max_inodes=100)).number
        (a,) = await ns.stat("/a")
        await transact(ns.kv, partial(count_page, directory=a.inode_id, after=b"", limit=100))
        during = await ns.trash("/a/during")
        assert await transact(ns.kv, partial(finish, number=number, rounds=0))
        await sound(ns)
        assert await ns.used("/a") == [(1, 0)]  # the directory itself
        await ns.restore(during.name)
        await collected(ns)
        assert await ns.used("/a") == [(21, 200)]
        await ns.restore(before.name)  # more than can be counted anew at once
        await collected(ns)
        assert await ns.used("/a") == [(42, 400)]
        await sound(ns)

    drive(body)


def test_a_file_with_names_here_and_there_is_renamed_and_linked_where_it_is(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q")
        await ns.mkdir("/d")
        await ns.write("/q/x")
        await ns.link("/q/x", "/d/x")
        await ns.set_quota("/q", max_inodes=10)
        await collected(ns)
        await ns.rename("/d/x", "/d/y")
        await ns.link("/d/y", "/d/z")
        await ns.rename("/q/x", "/q/y")
        await ns.link("/q/y", "/q/z")
        assert await ns.used("/q") == [(1, 10)]
        for number in range(2):
            await ns.remove(f"/q/{'yz'[number]}")
        assert await ns.used("/q") == [(1, 10)], "until its last name goes"
        await ns.remove("/d/y")
        await ns.remove("/d/z")
        assert await ns.used("/q") == [(0, 0)]
        await sound(ns)

    drive(body)


def test_hints_of_length_count_once_and_each_for_itself(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q")
        await ns.mkdir("/free")
        await ns.set_quota("/q", max_bytes=100)
        f, g = (await ns.write("/q/f", "/free/g"))[:2]
        opening = meta_pb2.OpenForWritingRequest(id=ns.request_id(), paths=["/q/f", "/free/g"])
        await ns.change(update.open_for_writing, opening)

        async def renew(*lengths: tuple[int, int]) -> None:
            request = meta_pb2.RenewSessionsRequest(
                client_id=7,
                inode_ids=[number for number, _ in lengths],
                lengths=[length for _, length in lengths],
                epochs=[0] * len(lengths),
            )
            await ns.change(update.renew_sessions, request)

        await renew((f.inode_id, 60), (f.inode_id, 60), (f.inode_id, 60))
        assert await ns.used("/q") == [(1, 60)]
        await renew((f.inode_id, 101), (g.inode_id, 5_000))
        assert [one.length for one in await ns.stat("/q/f", "/free/g")] == [60, 5_000]
        await sound(ns)

    drive(body)


def test_counters_do_not_overflow(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q")
        await ns.set_quota("/q", max_inodes=10)
        (one,) = await ns.create("/q/1")
        with refused(errors.Invalid, "more than a file can have"):
            await ns.publish((one.inode_id, "/q/1"), length=1 << 63)
        with refused(errors.QuotaExceeded, "bytes"):
            await ns.publish((one.inode_id, "/q/1"), length=(1 << 63) - 1)
        await ns.publish((one.inode_id, "/q/1"), length=1 << 61)
        await ns.write("/q/2", length=1 << 61)
        with refused(errors.QuotaExceeded, "bytes"):
            await ns.write("/q/3", length=1 << 41)
        assert await ns.used("/q") == [(2, 1 << 62)]
        assert len(await ns.quotas()) == 1
        await sound(ns)

    drive(body)


def test_a_record_that_cannot_be_read_keeps_no_other_waiting(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        numbers = []
        for path in ("/a", "/b"):
            await ns.mkdir(f"{path}/d", parents=True)
            numbers.append((await ns.set_quota(path, max_inodes=10)).number)
        good = await ns.kv.begin().get(keys.quota(numbers[0]))

        async def put(txn: Any, value: bytes) -> None:
            txn.put(keys.quota(numbers[0]), value)

        await transact(ns.kv, partial(put, value=b"\x09nonsense"))
        await collected(ns)
        assert await ns.used("/b") == [(1, 0)]
        await transact(ns.kv, partial(put, value=good))
        await collected(ns)
        assert await ns.used("/a") == [(1, 0)]
        await sound(ns)

    drive(body)


def test_others_are_told_of_what_they_have_come_through(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/secret", mode=0o700)
        await ns.mkdir("/secret/q", mode=0o777)
        await ns.mkdir("/pub", mode=0o777)
        await ns.set_quota("/secret/q", max_inodes=2)
        await ns.write("/secret/q/f")
        await ns.rename("/secret/q", "/pub/q")
        assert [one.record.path for one in await ns.quotas()] == ["/secret/q"]
        ns.caller = NOT_ROOT
        assert [one.record.path for one in await ns.quotas("/pub/q/f")] == ["/pub/q"]
        await ns.make_empty("/pub/q/g")
        with refused(errors.QuotaExceeded, "the quota of /pub/q allows"):
            await ns.make_empty("/pub/q/h")

    drive(body)


def test_quotas_are_nested_only_so_deep(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        path = ""
        for depth in range(9):
            path += f"/{depth}"
            await ns.mkdir(path)
            if depth < 8:
                await ns.set_quota(path, max_inodes=100)
        with refused(errors.Invalid, "as deep as they go"):
            await ns.set_quota(path, max_inodes=100)
        await ns.set_quota("/0/1", max_inodes=50)

    drive(body)


async def both(ns: Any, first: tuple[Any, Any], second: tuple[Any, Any]) -> None:
    """Two calls on one snapshot, the second committed first. Raises: Conflict of the first."""
    txn = ns.kv.begin()
    await first[0](txn, first[1], ns.call())
    await ns.change(*second)
    await txn.commit()


def test_changes_far_from_a_limit_do_not_conflict_and_near_it_do(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q/a", parents=True)
        await ns.mkdir("/q/b")
        await ns.set_quota("/q", max_inodes=200)
        await collected(ns)
        names = iter(range(1_000))

        def making(where: str) -> tuple[Any, Any]:
            return file.publish_files, ns.publish_request((0, f"{where}/{next(names)}"), length=0)

        await both(ns, making("/q/a"), making("/q/b"))
        assert await ns.used("/q") == [(4, 0)]
        await ns.make_empty(*(f"/q/a/f{n}" for n in range(140)))
        with pytest.raises(errors.Conflict):
            await both(ns, making("/q/a"), making("/q/b"))
        await ns.remove("/q/a", recursive=True)
        await collected(ns)
        await ns.mkdir("/q/c/d", parents=True)
        moving = (rename.rename, meta_pb2.RenameRequest(id=ns.request_id(), source="/q/c", target="/c"))
        with pytest.raises(errors.Conflict):
            await both(ns, moving, making("/q/c/d"))
        await ns.write("/q/b/open")
        opening = meta_pb2.OpenForWritingRequest(id=ns.request_id(), paths=["/q/b/open"])
        (opened,) = (await ns.change(update.open_for_writing, opening)).inodes
        longer = meta_pb2.FileSync(inode_id=opened.inode_id, length=50, written=True)
        syncing = meta_pb2.SyncFilesRequest(id=ns.request_id(), files=[longer])
        clearing = meta_pb2.SetQuotaRequest(id=ns.request_id(), path="/q", max_inodes=0)
        with pytest.raises(errors.Conflict):
            await both(ns, (update.sync_files, syncing), (set_quota, clearing))
        await sound(ns)

    drive(body)


def test_fsck_finds_what_is_counted_wrongly(drive: Callable[..., None]) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/q/d", parents=True)
        q, d = await ns.stat("/q", "/q/d")
        number = (await ns.set_quota("/q", max_inodes=30)).number
        await collected(ns)
        await ns.write("/q/d/f")
        await sound(ns)
        good = dict(await ns.kv.begin().range(b"", b"\xff", limit=1_000))

        async def found(*changes: tuple[bytes, bytes | None]) -> list[str]:
            async def put(txn: Any) -> None:
                for key, value in changes:
                    txn.put(key, value) if value is not None else txn.delete(key)

            async def undo(txn: Any) -> None:
                for key, _ in changes:
                    txn.put(key, good[key]) if key in good else txn.delete(key)

            await transact(ns.kv, put)
            findings = [str(one) for one in (await fsck(ns.kv)).findings()]
            await transact(ns.kv, undo)
            await sound(ns)
            return findings

        of_bytes, of_inodes = keys.quota_use(number)
        assert await found((of_bytes, encode_counter(11))) == [
            f"inode {q.inode_id}: its quota counts 2 inodes of 11 bytes, and there are 2 of 10"
        ]
        assert await found((of_inodes, None)) == [
            f"inode {q.inode_id}: its quota counts 0 inodes of 10 bytes, and there are 2 of 10"
        ]
        gone = await found((keys.quota(number), None))
        assert gone == [
            "2 counters are of no quota",
            f"inode {q.inode_id}: has quota {number}, of which there is no record",
        ]
        plain = dentry.encode(dentry.of_inode(q))
        assert await found((keys.dentry(1, b"q"), plain)) == [
            f"inode {q.inode_id}: has one quota of its own, and entry 'q' of directory 1 says none"
        ]
        outside = dentry.encode(dentry.of_inode(d))
        moved = await found((keys.dentry(q.inode_id, b"d"), None), (keys.dentry(1, b"d"), outside))
        assert f"inode {d.inode_id}: is entry 'd' of directory 1; other quotas count what is in there" in moved
        assert await found((keys.quota(number), b"\x02")) != []

    drive(body)


class Chance:
    """Random operations on a small tree of few names."""

    FOLDERS = ("", "/a", "/b", "/a/c", "/a/d", "/b/e")

    def __init__(self, ns: Any, seed: int) -> None:
        self.ns, self.random = ns, random.Random(seed)
        self.gc = collector(ns)
        self.gc._quotas._limit = self.gc._at_once = 3
        self.now_s = 0.0
        self.writing: list[int] = []

    def somewhere(self) -> str:
        return f"{self.random.choice(self.FOLDERS)}/{self.random.choice('cdefgh')}"

    async def set_quota(self) -> None:
        choices = [{"max_bytes": most} for most in (0, 40, 400)] + [{"max_inodes": most} for most in (0, 4, 40)]
        await self.ns.set_quota(self.random.choice(self.FOLDERS[1:]), **self.random.choice(choices))

    async def open_one(self) -> None:
        request = meta_pb2.OpenForWritingRequest(id=self.ns.request_id(), paths=[self.somewhere()])
        self.writing.append((await self.ns.change(update.open_for_writing, request)).inodes[0].inode_id)

    async def sync_one(self) -> None:
        if self.writing:
            number, close = self.random.choice(self.writing), self.random.random() < 0.3
            one = meta_pb2.FileSync(inode_id=number, length=self.random.randrange(90), written=True, close=close)
            await self.ns.change(update.sync_files, meta_pb2.SyncFilesRequest(id=self.ns.request_id(), files=[one]))
            if close:
                self.writing.remove(number)

    async def restore(self) -> None:
        for one in await self.ns.trashed():
            await self.ns.restore(one.name, self.random.choice(["", self.somewhere()]))

    async def collect(self) -> None:
        self.now_s += 1
        await self.gc.round(self.now_s)

    def action(self) -> Any:
        ns, random_, somewhere = self.ns, self.random, self.somewhere
        return random_.choice(
            [
                lambda: ns.write(somewhere(), length=random_.randrange(60)),
                lambda: ns.make_empty(somewhere()),
                lambda: ns.mkdir(somewhere()),
                lambda: ns.symlink(somewhere(), "x" * random_.randrange(1, 9)),
                lambda: ns.link(somewhere(), somewhere()),
                lambda: ns.rename(somewhere(), somewhere()),
                lambda: ns.rename(somewhere(), somewhere()),
                lambda: ns.remove(somewhere(), recursive=random_.random() < 0.5),
                lambda: ns.trash(somewhere()),
                lambda: ns.empty_trash(limit=2),
                self.collect,
                self.restore,
                self.set_quota,
                self.open_one,
                self.sync_one,
            ]
        )()


def within(now: int, limit: int, before: int) -> bool:
    return now <= max(limit, before)


async def check_limits(ns: Any, before: dict[int, meta_pb2.Quota]) -> None:
    for one in await ns.quotas():
        was, limits = before.get(one.number), one.record
        if was is None or limits.counting or was.record.counting:
            continue
        assert not limits.HasField("max_bytes") or within(one.bytes, limits.max_bytes, was.bytes)
        assert not limits.HasField("max_inodes") or within(one.inodes, limits.max_inodes, was.inodes)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_done_is_counted(seed: int, namespace_in_memory: Callable[[], Any]) -> None:
    """After each random operation the counters are the sums, and no limit was passed by it."""
    refusals_of(seed, namespace_in_memory)


def test_the_random_operations_meet_full_quotas_and_borders(namespace_in_memory: Callable[[], Any]) -> None:
    seen = set.union(*(refusals_of(seed, namespace_in_memory) for seed in range(4)))
    assert {errors.QuotaExceeded, errors.CrossQuota} <= seen


def refusals_of(seed: int, namespace_in_memory: Callable[[], Any]) -> set[type]:
    """A history of 250 operations; the kinds of refusals in it."""
    seen: set[type] = set()

    async def main() -> None:
        ns = namespace_in_memory()
        await ns.make_root()
        chance = Chance(ns, seed)
        for path in chance.FOLDERS[1:]:
            await ns.mkdir(path)
        for _ in range(250):
            before = {one.number: one for one in await ns.quotas()}
            try:
                await chance.action()
            except errors.Fs3Error as error:
                seen.add(type(error))
            await sound(ns)
            await check_limits(ns, before)

    asyncio.run(main())
    return seen


def test_on_etcd_whatever_moves_fits_into_a_transaction(
    etcd: LocalEtcd, namespace_on: Callable[[KVEngine], Any]
) -> None:
    async def body() -> None:
        kv = EtcdKV(etcd.endpoints, f"test-{secrets.token_hex(4)}", grouping=keys.group)
        try:
            ns = namespace_on(kv)
            await ns.make_root()
            await ns.mkdir("/q")
            await ns.mkdir("/d")
            await ns.write(*(f"/d/{n}" for n in range(16)))
            await ns.set_quota("/q", max_inodes=40)
            await ns.rename("/d", "/q/d")
            assert await ns.used("/q") == [(17, 160)]
            await ns.set_quota("/q/d", max_inodes=50)
            await collected(ns)
            assert await ns.used("/q/d") == [(17, 160), (16, 160)]
            await ns.remove("/q/d", recursive=True)
            await collected(ns)
            assert await ns.used("/q") == [(0, 0)]
            await ns.mkdir("/home")
            for number in range(24):  # each goes with its quota
                await ns.mkdir(f"/home/{number}")
                await ns.set_quota(f"/home/{number}", max_inodes=10)
            await ns.remove("/home", recursive=True)
            await collected(ns)
            assert [one.record.path for one in await ns.quotas()] == ["/q"]
            await sound(ns)
        finally:
            await kv.close()

    asyncio.run(body())
