"""Symlinks and hard links: how they are made, refused, renamed, removed, measured and collected."""

from __future__ import annotations

import pytest

from fs3 import errors
from fs3.inode import InodeType
from fs3.kv import keys
from fs3.meta.gc import Collector
from fs3.meta.ops import stat
from fs3.pb import meta_pb2

# Fixtures: `drive` runs a coroutine function on a fresh namespace, on each engine.


def test_a_symlink_keeps_its_target_as_it_was_written(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d")
        made = await ns.symlink("/d/s", "../ü/./nothing//x/")
        assert (made.type, made.mode, made.nlink) == (InodeType.SYMLINK, 0o777, 1)
        assert (made.symlink, made.length) == ("../ü/./nothing//x/", 19)
        assert await ns.stat("/d/s", nofollow=True) == [made] and await ns.stat("/d/s") == [3]
        assert (await ns.stat("/d"))[0].mtime_ns == made.mtime_ns
        await ns.write("/f")
        for path, expected in (
            ("/d/s", errors.Exists),
            ("/d", errors.Exists),
            ("/", errors.Exists),
            ("/nothing/s", errors.NotFound),
            ("/f/s", errors.NotADirectory),
        ):
            with pytest.raises(expected):
                await ns.symlink(path, "t")
        for target in ("", "t" * 4_096, "d/" + "n" * 256, "a\0b"):
            with pytest.raises(errors.Invalid):
                await ns.symlink("/bad", target)
        assert await ns.names("/") == ["d", "f"]

    drive(body)


def test_a_symlink_is_a_taken_name_for_mkdir_and_no_directory_for_rmdir(drive) -> None:
    async def body(ns) -> None:
        made = await ns.mkdir("/d")
        await ns.symlink("/to-d", "d")
        await ns.symlink("/dangling", "new")
        for path in ("/to-d", "/dangling"):
            with pytest.raises(errors.Exists, match="is a symlink"):
                await ns.mkdir(path)
            with pytest.raises(errors.NotADirectory):
                await ns.remove(path, must_be=2)
        assert await ns.mkdir("/to-d", parents=True) == made
        await ns.remove("/to-d", must_be=1)
        assert await ns.names("/") == ["d", "dangling"] and await ns.queued() == set()

    drive(body)


def test_every_name_of_a_file_is_equal_and_the_last_one_ends_it(drive) -> None:
    async def body(ns) -> None:
        (f,) = await ns.write("/f", length=7)
        await ns.mkdir("/d")
        linked = await ns.link("/f", "/d/g")
        assert (linked.inode_id, linked.nlink, linked.length) == (f.inode_id, 2, 7)
        assert linked.ctime_ns > f.ctime_ns and linked.mtime_ns == f.mtime_ns
        assert await ns.stat("/f", "/d/g") == [linked, linked]
        await ns.remove("/f")
        assert [one.nlink for one in await ns.stat("/d/g")] == [1] and await ns.queued() == set()
        await ns.link("/d/g", "/f")
        await ns.write("/f")
        assert (await ns.stat("/d/g"))[0].nlink == 1, "a new file took one name, the other keeps the old one"
        await ns.remove("/d", recursive=True)
        await collect(ns)
        assert f.inode_id in await ns.queued()

    drive(body)


def test_links_are_refused_as_linux_refuses_them(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d")
        await ns.write("/f")
        await ns.symlink("/s", "nothing")
        for source, target, expected in (
            ("/d", "/x", errors.NotPermitted),
            ("/d", "/f", errors.Exists),
            ("/", "/x", errors.NotPermitted),
            ("/f", "/", errors.Exists),
            ("/f", "/s", errors.Exists),
            ("/nothing", "/x", errors.NotFound),
            ("/f", "/nothing/x", errors.NotFound),
            ("/f", "/f/x", errors.NotADirectory),
        ):
            with pytest.raises(expected):
                await ns.link(source, target)
        assert (await ns.link("/s", "/s2")).symlink == "nothing", "a symlink itself, not what it names"
        await ns.remove("/s")
        assert (await ns.stat("/s2", nofollow=True))[0].nlink == 1
        await ns.remove("/s2")
        assert await ns.count(keys.INODE) == 3 and await ns.queued() == set()

    drive(body)


def test_a_rename_between_two_names_of_one_file_does_nothing(drive) -> None:
    async def body(ns) -> None:
        await ns.write("/f")
        linked = await ns.link("/f", "/g")
        assert await ns.rename("/f", "/g") == linked
        assert await ns.names("/") == ["f", "g"] and await ns.stat("/f") == [linked]
        with pytest.raises(errors.Exists):
            await ns.rename("/f", "/g", no_replace=True)
        moved = await ns.rename("/f", "/h")
        assert moved.nlink == 2 and await ns.names("/") == ["g", "h"]
        (other,) = await ns.write("/other")
        await ns.rename("/other", "/g")
        assert [one.nlink for one in await ns.stat("/h", "/g")] == [1, 1]
        assert (await ns.stat("/g"))[0].inode_id == other.inode_id and await ns.queued() == set()

    drive(body)


def test_realpath_leads_through_directories_only(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d/e", parents=True)
        await ns.write("/d/ü")
        await ns.symlink("/s", "d/e")
        await ns.symlink("/d/e/up", "..")
        await ns.symlink("/d/e/root", "../../..")
        await ns.symlink("/d/abs", "/d/e/up/ü")
        await ns.symlink("/dangling", "d/new")
        for path, expected in (
            ("/", "/"),
            ("/d", "/d"),
            ("/s", "/d/e"),
            ("/s/up", "/d"),
            ("/s/up/ü", "/d/ü"),
            ("/s/root", "/"),
            ("/s/root/s/root/d", "/d"),
            ("/d/abs", "/d/ü"),
            ("/dangling", "/d/new"),
            ("/s/missing", "/d/e/missing"),
        ):
            assert await ns.realpath(path) == expected
        for path, error in (("/no/x", errors.NotFound), ("/d/abs/x", errors.NotADirectory)):
            with pytest.raises(error):
                await ns.realpath(path)

    drive(body)


def test_usage_counts_a_file_with_several_names_once(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d/e", parents=True)
        await ns.write("/d/a", "/out", length=100)
        for target in ("/d/b", "/d/e/c"):
            await ns.link("/d/a", target)
        await ns.link("/out", "/d/e/out")
        await ns.symlink("/d/s", "a")
        for limit in (1, 3, 100):
            usage = await ns.read(stat.usage_start, meta_pb2.UsageRequest(path="/d"))
            while usage.pending:
                usage = await stat.usage_step(ns.kv.begin(), usage, limit)
            assert (usage.files, usage.directories, usage.size) == (3, 2, 201)

    drive(body)


def test_a_removed_subtree_leaves_the_names_outside_it(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d")
        inside, shared = await ns.write("/d/inside", "/d/shared")
        await ns.link("/d/inside", "/d/twin")
        await ns.link("/d/shared", "/kept")
        await ns.symlink("/d/s", "inside")
        await ns.remove("/d", recursive=True)
        await collect(ns)
        assert await ns.queued() == {inside.inode_id}
        assert [(one.inode_id, one.nlink) for one in await ns.stat("/kept")] == [(shared.inode_id, 1)]
        assert await ns.count(keys.INODE) == 2 and await ns.count(keys.DENTRY) == 1

    drive(body)


async def collect(ns) -> None:
    """Take removed subtrees apart; the files in them stay queued."""

    class Never:
        async def remove_file(self, inode: object) -> None:
            raise errors.Unavailable("no storage in this test")

    collector = Collector(ns.kv, Never(), session_lease_s=1e9, delay_s=1e9, interval_s=1.0)
    while (await collector.round(0.0)).productive:
        pass
