"""Every operation of the namespace, one after the other: results, errors, layouts, what is left in the store."""

from __future__ import annotations

import dataclasses

import pytest

from fs3 import errors
from fs3.ids import ROOT_INODE
from fs3.inode import InodeType
from fs3.kv import keys
from fs3.layout import Durability
from fs3.meta.ops import stat
from fs3.meta.path import MAX_SYMLINKS
from fs3.pb import meta_pb2

# Fixtures: `drive` runs a coroutine function on a fresh namespace, on each engine.


def test_root_has_the_highest_replica_count_and_is_there_once(drive) -> None:
    async def body(ns) -> None:
        await ns.make_root()
        (root,) = await ns.stat("/")
        assert (root.inode_id, root.type, root.parent) == (ROOT_INODE, InodeType.DIRECTORY, ROOT_INODE)
        assert (root.layout.chain_table, root.layout.chain_table_version) == (3, 1)
        with pytest.raises(errors.Exists):
            await ns.mkdir("/")
        assert (await ns.mkdir("/", parents=True)).inode_id == ROOT_INODE
        for call in (ns.remove("/", recursive=True), ns.rename("/", "/a"), ns.rename("/", "/")):
            with pytest.raises(errors.Invalid, match="root"):
                await call

    drive(body)


def test_mkdir_with_and_without_parents(drive) -> None:
    async def body(ns) -> None:
        with pytest.raises(errors.NotFound, match="/a/b/c: the directory a in its path"):
            await ns.mkdir("/a/b/c")
        made = await ns.mkdir("/a/b/c/", parents=True)
        assert await ns.stat("/a/b/c") == [made]
        assert await ns.names("/") == ["a"] and await ns.names("/a/b") == ["c"]
        assert await ns.mkdir("/a/b/c", parents=True) == made
        with pytest.raises(errors.Exists):
            await ns.mkdir("/a/b")
        await ns.write("/a/f")
        for parents in (False, True):
            with pytest.raises(errors.Exists, match="is a file"):
                await ns.mkdir("/a/f", parents=parents)
            with pytest.raises(errors.NotADirectory, match="f is a file"):
                await ns.mkdir("/a/f/x", parents=parents)

    drive(body)


def test_layouts_are_inherited_chosen_and_checked(drive) -> None:
    async def body(ns) -> None:
        top = await ns.mkdir("/two", replicas=2, chunk_bytes=1 << 20, durability=1)
        assert (top.layout.chain_table, top.layout.chunk_bytes) == (2, 1 << 20)
        assert top.layout.durability is Durability.OS
        below = await ns.mkdir("/two/x/y", parents=True, stripe=3)
        assert below.layout == top.layout._replace(stripe=3)
        assert (await ns.stat("/two/x"))[0].layout == top.layout
        made = await ns.create("/two/x/y/f", "/two/x/y/g", replicas=1)
        assert [one.layout for one in made] == [below.layout._replace(chain_table=1, seed=one.inode_id) for one in made]
        with pytest.raises(errors.NotFound, match=r"no chain table with 5 replicas.*\[1, 2, 3\]"):
            await ns.mkdir("/five", replicas=5)
        with pytest.raises(errors.Invalid, match="chunk size 1000"):
            await ns.create("/two/h", chunk_bytes=1_000)
        with pytest.raises(errors.Exists, match="with another layout"):
            await ns.mkdir("/two", parents=True, replicas=1)
        assert await ns.mkdir("/two", parents=True, replicas=2) == (await ns.stat("/two"))[0]
        newer = dataclasses.replace(ns.routing.tables[2, 1], version=4)
        ns.routing = dataclasses.replace(ns.routing, tables={**ns.routing.tables, (2, 4): newer})
        (later,) = await ns.create("/two/later")
        assert (later.layout.chain_table, later.layout.chain_table_version) == (2, 4)
        assert (await ns.stat("/two"))[0].layout == top.layout

    drive(body)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("relative", "must be absolute"),
        ("", "must be absolute"),
        ("/a/../b", "not a name"),
        ("/./a", "not a name"),
        ("/a\0b", "NUL"),
        ("/" + "n" * 256, "256 bytes long, at most 255"),
        ("/" + "ü" * 128, "256 bytes long"),
        ("/d" * 65, "65 levels deep, at most 64"),
    ],
)
def test_bad_paths_are_refused_by_every_operation(drive, path: str, said: str) -> None:
    async def body(ns) -> None:
        for call in (
            ns.mkdir(path, parents=True),
            ns.create(path),
            ns.names(path),
            ns.remove(path),
            ns.rename(path, "/x"),
            ns.read(stat.usage_start, meta_pb2.UsageRequest(path=path)),
        ):
            with pytest.raises(errors.Invalid, match=said):
                await call
        await ns.write("/x")
        with pytest.raises(errors.Invalid, match=said):
            await ns.rename("/x", path)
        assert await ns.stat(path, "/x", "/y") == [2, (await ns.stat("/x"))[0], 3]

    drive(body)


def test_names_at_the_limits_work(drive) -> None:
    async def body(ns) -> None:
        deep = "/d" * 63 + "/" + "n" * 255
        await ns.mkdir(deep, parents=True)
        assert (await ns.stat(deep))[0].is_directory
        await ns.write("/ü 日本\n")
        assert await ns.names("/") == ["d", "ü 日本\n"]

    drive(body)


def test_a_file_is_invisible_until_published_and_replaced_as_a_whole(drive) -> None:
    async def body(ns) -> None:
        (made,) = await ns.create("/f")
        assert (made.nlink, made.length, made.layout.seed) == (0, 0, made.inode_id)
        assert await ns.names("/") == [] and await ns.count(keys.SESSION) == 1
        (published,) = await ns.publish((made.inode_id, "/f"), length=123)
        assert (published.nlink, published.length, published.inode_id) == (1, 123, made.inode_id)
        assert published.version > made.version and published.mtime_ns > made.mtime_ns
        assert await ns.stat("/f") == [published] and await ns.count(keys.SESSION) == 0
        (second,) = await ns.create("/f")
        with pytest.raises(errors.Exists):
            await ns.publish((second.inode_id, "/f"), replace=False)
        assert await ns.stat("/f") == [published]
        await ns.publish((second.inode_id, "/f"))
        assert (await ns.stat("/f"))[0].inode_id == second.inode_id
        assert await ns.queued() == {made.inode_id} and await ns.count(keys.INODE) == 2

    drive(body)


def test_an_empty_file_is_made_as_it_gets_its_name(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/one", replicas=1)
        made = await ns.make_empty("/f", "/one/f", "/one/g")
        assert await ns.stat("/f", "/one/f", "/one/g") == made and await ns.count(keys.SESSION) == 0
        assert [one.layout.chain_table for one in made] == [3, 1, 1]
        (slowly,) = await ns.write("/one/slowly", length=0)
        for one in made[1:]:
            times = dict.fromkeys(("atime_ns", "mtime_ns", "ctime_ns", "btime_ns"), 0)
            same = {"inode_id": slowly.inode_id, "layout": slowly.layout, **times}
            assert one._replace(**same) == slowly._replace(**times) and one.layout.seed == one.inode_id
            assert one.btime_ns == one.mtime_ns == one.ctime_ns
        with pytest.raises(errors.Exists):
            await ns.make_empty("/h", "/f", replace=False)
        (again,) = await ns.make_empty("/f", replicas=2, chunk_bytes=1 << 20)
        assert (again.layout.chain_table, again.layout.chunk_bytes) == (2, 1 << 20)
        assert await ns.queued() == {made[0].inode_id} and await ns.names("/") == ["f", "one"]
        (written,) = await ns.create("/w")
        with pytest.raises(errors.Invalid, match="/e: 5 bytes in a file that is only made now"):
            await ns.publish((written.inode_id, "/w"), (0, "/e"), length=5)
        for path, expected in (
            ("/one", errors.IsADirectory),
            ("/x/y", errors.NotFound),
            ("/f/y", errors.NotADirectory),
        ):
            with pytest.raises(expected):
                await ns.make_empty("/ok", path)
        with pytest.raises(errors.NotFound, match="replicas"):
            await ns.make_empty("/ok", replicas=7)
        both = await ns.publish((0, "/e"), (written.inode_id, "/w"), (0, "/d"), length=0)
        assert await ns.stat("/e", "/w", "/d") == both and both[1].inode_id == written.inode_id
        assert await ns.count(keys.SESSION) == 0 and await ns.names("/") == ["d", "e", "f", "one", "w"]

    drive(body)


def test_publish_is_all_or_none_and_checks_sessions(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d")
        a, b, c = (one.inode_id for one in await ns.create("/a", "/d/b", "/c"))
        cases = [
            (((a, "/a"), (b, "/d")), {}, errors.IsADirectory),
            (((a, "/a"), (b, "/nowhere/b")), {}, errors.NotFound),
            (((a, "/a"), (99, "/d/b")), {}, errors.NotFound),
            (((a, "/a"), (a, "/d/b")), {}, errors.NotFound),
            (((a, "/a"), (b, "/a")), {}, errors.Invalid),
            (((a, "/a"), (b, "/")), {}, errors.IsADirectory),
            (((a, "/a"), (b, "/d/b")), {"client": 8}, errors.PermissionDenied),
            ([(a, "/a")] * 513, {}, errors.Invalid),
        ]
        for files, options, expected in cases:
            with pytest.raises(expected):
                await ns.publish(*files, **options)
            assert await ns.names("/") == ["d"] and await ns.names("/d") == []
        await ns.publish((a, "/a"), (b, "/d/elsewhere"), (c, "/d/c"))
        assert await ns.names("/") == ["a", "d"] and await ns.names("/d") == ["c", "elsewhere"]
        with pytest.raises(errors.NotFound, match="session of inode"):
            await ns.publish((a, "/again"))

    drive(body)


def test_create_refuses_what_could_never_be_published(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d")
        await ns.write("/f")
        for path, expected in (("/d", errors.IsADirectory), ("/", errors.IsADirectory), ("/x/y", errors.NotFound)):
            with pytest.raises(expected):
                await ns.create("/ok", path)
        with pytest.raises(errors.NotADirectory):
            await ns.create("/f/y")
        assert await ns.count(keys.SESSION) == 0

    drive(body)


def test_abandoned_files_are_queued_once(drive) -> None:
    async def body(ns) -> None:
        made = [one.inode_id for one in await ns.create("/a", "/b")]
        with pytest.raises(errors.PermissionDenied):
            await ns.abandon(*made, client=8)
        await ns.abandon(*made, 77)
        await ns.abandon(*made)
        assert await ns.queued() == set(made)
        assert await ns.count(keys.SESSION) == 0 and await ns.count(keys.INODE) == 1
        with pytest.raises(errors.NotFound):
            await ns.publish((made[0], "/a"))

    drive(body)


def test_rename_follows_posix(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d/e", parents=True)
        await ns.mkdir("/empty")
        f, g, _ = await ns.write("/f", "/g", "/d/file")
        moved = await ns.rename("/f", "/d/f2")
        assert (moved.inode_id, moved.mtime_ns) == (f.inode_id, f.mtime_ns) and moved.ctime_ns > f.ctime_ns
        with pytest.raises(errors.Exists):
            await ns.rename("/d/f2", "/g", no_replace=True)
        await ns.rename("/d/f2", "/g")
        assert (await ns.stat("/g", "/d/f2"))[1] == 3 and await ns.queued() == {g.inode_id}
        same = await ns.rename("/g", "/g")
        assert same == (await ns.stat("/g"))[0] and same.inode_id == f.inode_id
        cases = [
            ("/nothing", "/x", errors.NotFound),
            ("/g", "/nowhere/x", errors.NotFound),
            ("/g", "/g/x", errors.NotADirectory),
            ("/g", "/empty", errors.IsADirectory),
            ("/d", "/g", errors.NotADirectory),
            ("/empty", "/d", errors.NotEmpty),
            ("/d/e", "/d", errors.NotEmpty),
            ("/d/file", "/d", errors.NotEmpty),
            ("/d", "/d/x", errors.Invalid),
            ("/d", "/d/e/x", errors.Invalid),
            ("/g", "/", errors.Invalid),
        ]
        for source, target, expected in cases:
            with pytest.raises(expected):
                await ns.rename(source, target)
        moved = await ns.rename("/d", "/empty")
        assert moved.parent == ROOT_INODE and await ns.names("/") == ["empty", "g"]
        inside = await ns.rename("/empty/e", "/e")
        assert inside.parent == ROOT_INODE
        back = await ns.rename("/e", "/empty/e")
        assert back.parent == moved.inode_id and await ns.names("/empty") == ["e", "file"]
        assert await ns.count(keys.INODE) == 5

    drive(body)


def test_remove_files_directories_and_subtrees(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d/e", parents=True)
        f, g = await ns.write("/f", "/d/e/g")
        cases = [
            ("/nothing", {}, errors.NotFound),
            ("/d", {}, errors.NotEmpty),
            ("/d", {"must_be": 1, "recursive": True}, errors.IsADirectory),
            ("/f", {"must_be": 2}, errors.NotADirectory),
            ("/f", {"must_be": 3}, errors.Invalid),
        ]
        for path, options, expected in cases:
            with pytest.raises(expected):
                await ns.remove(path, **options)
        await ns.remove("/f", must_be=1)
        assert await ns.queued() == {f.inode_id}
        (top,) = await ns.stat("/d")
        await ns.remove("/d", recursive=True)
        assert await ns.names("/") == [] and await ns.stat("/d/e/g") == [3]
        assert await ns.queued() == {f.inode_id, top.inode_id}, "one record for a subtree of any size"
        await ns.mkdir("/d")
        await ns.remove("/d", must_be=2)
        assert (await ns.stat("/d")) == [3] and g.inode_id not in await ns.queued()

    drive(body)


def test_directories_know_when_they_changed(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d")
        before = (await ns.stat("/d"))[0].mtime_ns
        await ns.write("/d/f")
        written = (await ns.stat("/d"))[0].mtime_ns
        await ns.rename("/d/f", "/f")
        moved = (await ns.stat("/d"))[0].mtime_ns
        assert before < written < moved == (await ns.stat("/"))[0].mtime_ns

    drive(body)


def test_listing_pages_with_attributes(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d/sub", parents=True)
        names = sorted([f"f{index:03}" for index in range(95)] + ["ä", "Z"], key=str.encode)
        await ns.write(*(f"/d/{name}" for name in names))
        expected = sorted([*names, "sub"], key=str.encode)
        for page in (0, 1, 7, 98, 99, 1_000_000):
            assert await ns.names("/d", page) == expected
        reply = await ns.read(stat.list_page, meta_pb2.ListRequest(path="/d", after="Z", limit=1))
        assert reply.more and reply.entries[0].name == "f000" and reply.entries[0].inode.length == 10
        with pytest.raises(errors.NotADirectory):
            await ns.names("/d/Z")
        with pytest.raises(errors.NotFound):
            await ns.names("/nothing")

    drive(body)


def test_usage_counts_a_subtree_in_steps_of_any_size(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d/a/b", parents=True)
        await ns.mkdir("/d/c")
        await ns.write("/d/1", "/d/a/2", "/d/a/b/3", "/d/a/b/4", length=100)
        for limit in (1, 2, 3, 100):
            usage = await ns.read(stat.usage_start, meta_pb2.UsageRequest(path="/d"))
            while usage.pending:
                usage = await stat.usage_step(ns.kv.begin(), usage, limit)
            assert (usage.files, usage.directories, usage.size) == (4, 4, 400)
        usage = await ns.read(stat.usage_start, meta_pb2.UsageRequest(path="/d/1"))
        assert (usage.files, usage.directories, usage.size, usage.pending) == (1, 0, 100, ())

    drive(body)


def test_find_tells_the_living_the_dead_and_the_gone_apart(drive) -> None:
    async def body(ns) -> None:
        (named,) = await ns.write("/f")
        (unpublished,) = await ns.create("/later")
        (removed,) = await ns.write("/g")
        await ns.remove("/g")
        asked = [named.inode_id, unpublished.inode_id, removed.inode_id, 1 << 40]
        reply = await ns.read(stat.find, meta_pb2.FindRequest(inode_ids=asked))
        assert [(one.inode.inode_id, one.dead) for one in reply.found] == [
            (named.inode_id, False),
            (unpublished.inode_id, False),
            (0, True),
            (0, False),
        ]

    drive(body)


def test_symlinks_are_followed_within_their_limit(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d/e", parents=True)
        (f,) = await ns.write("/d/f")
        await ns.symlink("/abs", "/d")
        await ns.symlink("/d/up", "../d/./e/../f")
        await ns.symlink("/dangling", "d/new")
        await ns.symlink("/loop", "/loop")
        await ns.symlink("/beyond", "../../d/f")
        assert await ns.stat("/abs/f", "/d/up", "/abs/up", "/beyond") == [f] * 4
        assert [type(one) for one in await ns.stat("/loop", "/dangling")] == [int, int]
        assert await ns.stat("/loop", "/dangling/x", "/d/f/..") == [19, 3, 2]
        assert (await ns.stat("/abs", nofollow=True))[0].type is InodeType.SYMLINK
        for number in range(MAX_SYMLINKS):
            await ns.symlink(f"/chain{number}", f"/chain{number + 1}" if number < MAX_SYMLINKS - 1 else "/d/f")
        await ns.symlink("/chain", "/chain0")
        assert await ns.stat("/chain0", "/chain") == [f, 19]
        (new,) = await ns.write("/dangling")
        assert await ns.stat("/d/new") == [new]
        (replaced,) = await ns.write("/d/up")
        assert await ns.stat("/d/f") == [replaced] and await ns.queued() == {f.inode_id}
        await ns.symlink("/out", "gone/../x")
        with pytest.raises(errors.NotFound, match="leads through a symlink"):
            await ns.mkdir("/out", parents=True)
        await ns.remove("/abs")
        assert await ns.stat("/abs", "/d/f") == [3, replaced]
        await ns.rename("/loop", "/loop2")
        assert (await ns.stat("/loop2", nofollow=True))[0].symlink == "/loop"

    drive(body)
