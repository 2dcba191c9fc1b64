"""What operations depend on, pair by pair: two run on one snapshot, one commits, and the other must or must not lose.

A pair that would break the tree if both went through has to conflict; a pair that touches different names must not.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from functools import partial

import pytest

from fs3 import errors
from fs3.ids import ROOT_INODE
from fs3.kv import keys
from fs3.meta import trashed
from fs3.meta.gc import Collector
from fs3.meta.ops import attributes, directory, file, link, quota, remove, rename, stat, trash, update, xattr
from fs3.pb import meta_pb2


def mkdir(path: str):
    return lambda ns: (directory.mkdir, meta_pb2.MkdirRequest(id=ns.request_id(), path=path))


def rmdir(path: str, recursive: bool = False):
    return lambda ns: (
        remove.remove,
        meta_pb2.RemoveRequest(id=ns.request_id(), path=path, recursive=recursive),
    )


def move(source: str, target: str):
    return lambda ns: (rename.rename, meta_pb2.RenameRequest(id=ns.request_id(), source=source, target=target))


def publish(number: int, path: str, replace: bool = True):
    return lambda ns: (file.publish_files, ns.publish_request((ns.made[number], path), replace=replace))


def publish_empty(path: str, replace: bool = True):
    return lambda ns: (file.publish_files, ns.publish_request((0, path), replace=replace, length=0))


def symlink(path: str, target: str = "nowhere"):
    return lambda ns: (link.symlink, meta_pb2.SymlinkRequest(id=ns.request_id(), path=path, target=target))


def hardlink(source: str, target: str):
    return lambda ns: (link.link, meta_pb2.LinkRequest(id=ns.request_id(), source=source, target=target))


def chmod(path: str, mode: int = 0o700):
    return lambda ns: (
        attributes.set_attributes,
        meta_pb2.SetAttrRequest(id=ns.request_id(), path=path, mode=mode),
    )


def limit(path: str):
    return lambda ns: (quota.set_quota, meta_pb2.SetQuotaRequest(id=ns.request_id(), path=path, max_inodes=100))


def set_times(path: str, mtime_ns: int = 5):
    return lambda ns: (
        attributes.set_attributes,
        meta_pb2.SetAttrRequest(id=ns.request_id(), path=path, mtime_ns=mtime_ns),
    )


def set_xattr(path: str, name: str = "user.a", value: bytes = b"v"):
    return lambda ns: (
        xattr.set_attribute,
        meta_pb2.SetXattrRequest(id=ns.request_id(), path=path, name=name, value=value),
    )


def throw(path: str):
    return lambda ns: (trash.trash, meta_pb2.TrashRequest(id=ns.request_id(), path=path))


def restore(target: str = ""):
    return lambda ns: (
        trash.restore,
        meta_pb2.RestoreTrashRequest(id=ns.request_id(), name=ns.thrown, target=target),
    )


def empty(named: bool = False):
    return lambda ns: (
        partial(trash.empty_page, limit=10),
        meta_pb2.EmptyTrashRequest(id=ns.request_id(), name=ns.thrown if named else ""),
    )


def by_hand(op):
    """An operation on the entry of the trash, as on any other name."""
    return lambda ns: op(f"/.trash/{ns.thrown}")(ns)


def create(path: str):
    return lambda ns: (file.create_files, meta_pb2.CreateFilesRequest(id=ns.request_id(), paths=[path]))


def open_for_writing(*paths: str):
    return lambda ns: (update.open_for_writing, meta_pb2.OpenForWritingRequest(id=ns.request_id(), paths=paths))


def sync(close: bool = False):
    """Of the file at /open, which is being written."""
    return lambda ns: (
        update.sync_files,
        meta_pb2.SyncFilesRequest(
            id=ns.request_id(), files=[meta_pb2.FileSync(inode_id=ns.open, length=5, written=not close, close=close)]
        ),
    )


PAIRS = [
    # an empty directory removed or replaced, while something appears in it
    (rmdir("/a"), mkdir("/a/x"), True),
    (mkdir("/a/x"), rmdir("/a"), True),
    (rmdir("/a"), publish(0, "/a/f"), True),
    (publish(0, "/a/f"), rmdir("/a"), True),
    (move("/b", "/a"), publish(0, "/a/f"), True),
    (publish(0, "/a/f"), move("/b", "/a"), True),
    (move("/d/old", "/a/old"), rmdir("/a"), True),
    # a subtree removed, while something changes inside it
    (rmdir("/d", recursive=True), publish(0, "/d/e/f"), True),
    (rmdir("/d", recursive=True), move("/d/old", "/d/new"), True),
    (rmdir("/d", recursive=True), move("/b", "/d/b"), True),
    # two renames: a loop, the same source, the same target, or nothing in common
    (move("/a", "/b/a"), move("/b", "/a/b"), True),
    (move("/d/e", "/a/e"), move("/a", "/d/e/a"), True),
    (move("/d/old", "/x"), move("/d/old", "/y"), True),
    (move("/a", "/x"), move("/b", "/x"), True),
    (move("/a", "/x"), move("/b", "/y"), False),
    (move("/d/old", "/d/x"), move("/a", "/d/a"), False),
    # two publishes
    (publish(0, "/a/f"), publish(1, "/a/f"), True),
    (publish(0, "/a/f", False), publish(1, "/a/f", False), True),
    (publish(0, "/a/f"), publish(0, "/a/g"), True),
    (publish(0, "/a/f"), publish(1, "/a/g"), False),
    (publish(0, "/d/old"), rmdir("/d/old"), True),
    # an empty file, made when it gets its name
    (publish_empty("/a/f"), publish_empty("/a/f"), True),
    (publish_empty("/a/f", False), publish(0, "/a/f", False), True),
    (publish_empty("/a/f"), publish_empty("/a/g"), False),
    (publish_empty("/a/f"), rmdir("/a"), True),
    (rmdir("/a"), publish_empty("/a/f"), True),
    (rmdir("/d", recursive=True), publish_empty("/d/e/f"), True),
    (chmod("/a"), publish_empty("/a/f"), True),
    (publish_empty("/a/f"), chmod("/a"), False),
    # the same name, different names in one directory
    (mkdir("/a/x"), mkdir("/a/x"), True),
    (mkdir("/a/x"), mkdir("/a/y"), False),
    (mkdir("/a/x"), publish(0, "/a/x"), True),
    # links: names as any other, and a count of names that no change of one may miss
    (symlink("/a/x"), symlink("/a/x"), True),
    (symlink("/a/x"), publish(0, "/a/x"), True),
    (symlink("/a/x"), symlink("/a/y"), False),
    (rmdir("/a"), symlink("/a/x"), True),
    (symlink("/a/x"), rmdir("/a"), True),
    (rmdir("/d/link"), mkdir("/d/link/x"), True),
    (hardlink("/d/old", "/a/x"), rmdir("/d/old"), True),
    (rmdir("/d/old"), hardlink("/d/old", "/a/x"), True),
    (hardlink("/d/old", "/a/x"), hardlink("/d/old", "/a/y"), True),
    (hardlink("/d/old", "/a/x"), publish(0, "/d/old"), True),
    (hardlink("/d/old", "/a/x"), move("/d/old", "/d/new"), True),
    (hardlink("/d/old", "/a/x"), publish(0, "/a/x"), True),
    (rmdir("/a"), hardlink("/d/old", "/a/x"), True),
    (hardlink("/d/old", "/a/x"), rmdir("/a"), True),
    (rmdir("/d/old"), rmdir("/d/other"), True),
    (hardlink("/d/old", "/a/x"), publish(0, "/a/y"), False),
    (hardlink("/d/old", "/a/x"), symlink("/a/y"), False),
    # attributes: two changes of one inode, and an inode that dies or moves meanwhile
    (chmod("/d/old", 0o600), chmod("/d/old", 0o640), True),
    (chmod("/d/old"), chmod("/d/other"), True),
    (rmdir("/d/old"), chmod("/d/old"), True),
    (chmod("/d/old"), rmdir("/d/old"), True),
    (chmod("/a"), rmdir("/a"), True),
    (rmdir("/a"), chmod("/a"), True),
    (rmdir("/d", recursive=True), chmod("/d/e"), True),
    (chmod("/d"), rmdir("/d", recursive=True), True),
    (chmod("/d/old"), move("/d/old", "/d/new"), True),
    (move("/b", "/a"), chmod("/a"), True),
    (chmod("/a"), move("/b", "/a"), True),
    (publish(0, "/d/old"), chmod("/d/old"), True),
    # permissions of a directory: whoever walked through it, or was allowed something in it, has to look again
    (chmod("/a"), publish(0, "/a/f"), True),
    (chmod("/a"), symlink("/a/x"), True),
    (chmod("/d"), move("/d/old", "/a/old"), True),
    (chmod("/d/e"), move("/d/e", "/a/e"), True),
    (move("/d/e", "/a/e"), chmod("/d/e"), True),
    (chmod("/a", 0o755), publish(0, "/a/f"), False),
    (publish(0, "/a/f"), chmod("/a"), False),
    (chmod("/a"), create("/a/f"), False),
    (chmod("/d/old"), chmod("/a"), False),
    # extended attributes: they are counted in their inode, and must not outlive it
    (set_xattr("/a"), set_xattr("/a"), True),
    (set_xattr("/a"), set_xattr("/a", "user.b"), True),
    (set_xattr("/a"), chmod("/a"), True),
    (set_xattr("/a"), rmdir("/a"), True),
    (rmdir("/a"), set_xattr("/a"), True),
    (set_xattr("/d/old"), rmdir("/d/old"), True),
    (set_xattr("/d/old"), rmdir("/d/other"), True),
    (set_xattr("/d/old"), publish(0, "/d/old"), True),
    (set_xattr("/a"), move("/b", "/a"), True),
    (set_xattr("/d"), rmdir("/d", recursive=True), True),
    (set_xattr("/d/old"), move("/d/old", "/d/new"), True),
    (set_xattr("/a"), publish(0, "/a/f"), False),
    (set_xattr("/a"), set_xattr("/b"), False),
    # the trash: a name goes there once, and comes back once
    (throw("/d/old"), throw("/d/old"), True),
    (throw("/d/old"), rmdir("/d/old"), True),
    (rmdir("/d/old"), throw("/d/old"), True),
    (throw("/d/old"), move("/d/old", "/d/new"), True),
    (throw("/d/old"), publish(0, "/d/old"), True),
    (throw("/d/old"), throw("/d/other"), True),  # two names of one inode
    (throw("/d/old"), throw("/a"), False),
    (throw("/d"), publish(0, "/d/e/f"), True),
    (publish(0, "/d/e/f"), throw("/d"), False),  # what was published first goes with it
    (throw("/a"), mkdir("/a/x"), True),
    (throw("/d"), throw("/d/old"), True),
    (throw("/d"), move("/a", "/d/a"), True),
    (chmod("/d/old"), throw("/d/old"), True),
    (restore(), restore(), True),
    (restore(), restore("/a/x"), True),
    (restore(), empty(), True),
    (empty(), restore(), True),
    (empty(), empty(), True),
    (empty(named=True), restore(), True),
    (restore(), mkdir("/thrown"), True),
    (publish(0, "/thrown"), restore(), True),
    (restore("/a/x"), rmdir("/a"), True),
    (rmdir("/a"), restore("/a/x"), True),
    (restore(), throw("/d/old"), False),
    (empty(), throw("/d/old"), False),
    (throw("/d/old"), empty(), False),
    (restore(), by_hand(rmdir), True),
    (by_hand(rmdir), restore(), True),
    (by_hand(rmdir), empty(), True),
    (empty(), by_hand(lambda path: move(path, "/back")), True),
    (by_hand(lambda path: publish(0, path)), restore(), True),
    # quotas: what comes into a directory sees its quota, or is seen when what is there is counted
    (publish(0, "/a/f"), limit("/a"), True),
    (limit("/a"), publish(0, "/a/f"), True),
    (limit("/d"), publish(0, "/d/e/f"), True),
    (publish(0, "/d/e/f"), limit("/d"), False),  # /d is not empty, and will be counted
    (limit("/d"), move("/d/old", "/a/old"), True),
    (move("/b", "/a/b"), limit("/a"), True),
    (limit("/d"), open_for_writing("/d/old"), True),
    (limit("/a"), limit("/a"), True),
    (limit("/a"), chmod("/a"), True),
    (chmod("/a"), limit("/a"), True),
    (limit("/a"), rmdir("/a"), True),
    (rmdir("/a"), limit("/a"), True),
    (rmdir("/d", recursive=True), limit("/d/e"), True),
    (limit("/a"), create("/a/f"), False),
    (limit("/a"), publish(0, "/b/f"), False),
    # listings: what is noted of them is put blindly
    (chmod("/d/old"), publish(0, "/d/new"), False),
    (hardlink("/d/old", "/a/x"), publish(0, "/d/new"), False),
    (set_xattr("/d/old"), symlink("/d/new"), False),
    (set_times("/a"), publish(0, "/a/f"), False),
    (publish(0, "/a/f"), set_times("/a"), False),
    (set_times("/d/e"), chmod("/d/old"), False),
    (set_times("/a"), rmdir("/a"), True),
    # creating without a name depends on nothing
    (rmdir("/a"), create("/a/f"), False),
    (publish(0, "/a/f"), create("/a/f"), False),
    # written in place: one writer, and neither a name that goes nor the end of a session may miss the other
    (open_for_writing("/d/old"), open_for_writing("/d/old"), True),
    (open_for_writing("/again"), open_for_writing("/again"), True),
    (open_for_writing("/d/old"), rmdir("/d/old"), True),
    (rmdir("/d/old"), open_for_writing("/d/old"), True),
    (open_for_writing("/again"), rmdir("/again"), True),
    (rmdir("/again"), open_for_writing("/again"), True),
    (open_for_writing("/again"), publish(0, "/again"), True),
    (open_for_writing("/again"), move("/d/old", "/again"), True),
    (move("/again", "/d/again"), open_for_writing("/again"), True),
    (sync(), rmdir("/open"), True),
    (rmdir("/open"), sync(), True),
    (sync(close=True), rmdir("/open"), True),
    (rmdir("/open"), sync(close=True), True),
    (sync(), sync(close=True), True),
    (sync(), chmod("/open"), True),
    (open_for_writing("/again"), open_for_writing("/d/old"), False),
    (open_for_writing("/again"), publish(0, "/a/f"), False),
    (sync(), publish(0, "/a/f"), False),
    (sync(), move("/a", "/x"), False),
]


@pytest.mark.parametrize(("first", "second", "loses"), PAIRS)
def test_pairs(drive, first, second, loses: bool) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/a")
        await ns.mkdir("/b")
        await ns.mkdir("/d/e", parents=True)
        await ns.write("/d/old")
        await ns.link("/d/old", "/d/other")
        await ns.symlink("/d/link", "../b")
        _, opened = await ns.write("/again", "/open")
        ns.open = opened.inode_id
        for path in ("/again", "/open"):
            op, request = open_for_writing(path)(ns)
            await ns.change(op, request)
        await ns.abandon((await ns.stat("/again"))[0].inode_id)
        await ns.write("/thrown")
        ns.thrown = (await ns.trash("/thrown")).name
        ns.made = [one.inode_id for one in await ns.create("/1", "/2")]
        winner, loser = ns.kv.begin(), ns.kv.begin()
        for txn, wanted in ((winner, first), (loser, second)):
            op, request = wanted(ns)
            await op(txn, request, ns.call())
        await winner.commit()
        if loses:
            with pytest.raises(errors.Conflict):
                await loser.commit()
        else:
            await loser.commit()

    drive(body)


def test_a_listing_acted_upon_conflicts_with_a_create(drive) -> None:
    async def body(ns) -> None:
        txn = ns.kv.begin()
        assert await txn.range(*keys.dentries(ROOT_INODE), limit=10) == []
        txn.put(b"verdict", b"empty")
        await ns.write("/f")
        with pytest.raises(errors.Conflict):
            await txn.commit()

    drive(body)


def test_exact_conflict_sets_of_publish_links_and_create(drive) -> None:
    async def body(ns) -> None:
        made = await ns.mkdir("/a")
        ns.made = [one.inode_id for one in await ns.create("/a/f")]
        op, request = publish(0, "/a/f")(ns)
        txn = ns.kv.begin()
        await op(txn, request, ns.call())
        record = keys.idempotency(0, 7, request.id.request_id)
        read, ranges = txn.conflicts()
        name, file_id = keys.dentry(made.inode_id, b"f"), ns.made[0]
        assert ranges == ()
        assert read == {
            record,
            keys.dentry(ROOT_INODE, b"a"),
            name,
            keys.session(file_id),
            keys.inode(file_id),
        }
        assert txn.written() == {
            record,
            name,
            keys.session(file_id),
            keys.inode(file_id),
            keys.stamp(made.inode_id),
        }
        (old,) = await ns.write("/old")
        op, request = hardlink("/old", "/a/h")(ns)
        txn = ns.kv.begin()
        await op(txn, request, ns.call())
        record, name = keys.idempotency(0, 7, request.id.request_id), keys.dentry(made.inode_id, b"h")
        walked = {keys.dentry(ROOT_INODE, b"old"), keys.dentry(ROOT_INODE, b"a")}
        assert txn.conflicts() == ({record, *walked, name, keys.inode(old.inode_id)}, ())
        stamps = {keys.stamp(made.inode_id), keys.listing(ROOT_INODE)}
        assert txn.written() == {record, name, keys.inode(old.inode_id), *stamps}
        op, request = symlink("/a/s")(ns)
        txn = ns.kv.begin()
        await op(txn, request, ns.call())
        record, name = keys.idempotency(0, 7, request.id.request_id), keys.dentry(made.inode_id, b"s")
        assert txn.conflicts() == ({record, keys.dentry(ROOT_INODE, b"a"), name}, ())
        assert len(txn.written()) == 4 and {record, name, keys.stamp(made.inode_id)} < txn.written()
        op, request = chmod("/a/h")(ns)
        await ns.link("/old", "/a/h")
        txn = ns.kv.begin()
        await op(txn, request, ns.call())
        record = keys.idempotency(0, 7, request.id.request_id)
        walked = {keys.dentry(ROOT_INODE, b"a"), keys.dentry(made.inode_id, b"h")}
        assert txn.conflicts() == ({record, *walked, keys.inode(old.inode_id)}, ())
        assert txn.written() == {record, keys.inode(old.inode_id), keys.listing(made.inode_id)}
        op, request = set_xattr("/a/h")(ns)
        txn = ns.kv.begin()
        await op(txn, request, ns.call())
        record, attribute = keys.idempotency(0, 7, request.id.request_id), keys.xattr(old.inode_id, b"user.a")
        assert txn.conflicts() == ({record, *walked, keys.inode(old.inode_id), attribute}, ())
        assert txn.written() == {record, keys.inode(old.inode_id), attribute, keys.listing(made.inode_id)}
        op, request = create("/a/g")(ns)
        txn = ns.kv.begin()
        await op(txn, request, ns.call())
        assert txn.conflicts() == ({keys.idempotency(0, 7, request.id.request_id)}, ())
        txn = ns.kv.begin()
        await stat.stat(txn, meta_pb2.StatRequest(paths=["/a", "/nothing"]))
        assert txn.conflicts() == (set(), ())

    drive(body)


def test_exact_conflict_sets_of_the_trash(drive) -> None:
    """It writes its record and reads none: those who throw away different things never wait for each other."""

    async def body(ns) -> None:
        made = await ns.mkdir("/a")
        (old,) = await ns.write("/a/old")
        ns.thrown = (await ns.trash("/a/old")).name
        (new,) = await ns.write("/a/new")
        (bin_,) = await ns.stat("/.trash")
        way = {keys.dentry(ROOT_INODE, b"a"), keys.dentry(ROOT_INODE, b".trash")}
        op, request = throw("/a/new")(ns)
        txn = ns.kv.begin()
        await op(txn, request, ns.call())
        answer, name = keys.idempotency(0, 7, request.id.request_id), keys.dentry(made.inode_id, b"new")
        assert txn.conflicts() == ({answer, *way, name, keys.inode(new.inode_id)}, ())
        written = {answer, name, keys.inode(new.inode_id), keys.stamp(made.inode_id), keys.stamp(bin_.inode_id)}
        assert written < txn.written()
        entry, record = sorted(txn.written() - written)
        assert entry.startswith(keys.dentries(bin_.inode_id)[0]) and record.startswith(keys.TRASH)
        op, request = restore()(ns)
        txn = ns.kv.begin()
        await op(txn, request, ns.call())
        answer, name = keys.idempotency(0, 7, request.id.request_id), keys.dentry(made.inode_id, b"old")
        entry, record = keys.dentry(bin_.inode_id, ns.thrown.encode()), trashed.key_of(ns.thrown.encode())
        assert txn.conflicts() == ({answer, *way, name, keys.inode(old.inode_id), entry, record}, ())
        assert txn.written() == {
            *{answer, name, keys.inode(old.inode_id), entry, record},
            *{keys.stamp(made.inode_id), keys.stamp(bin_.inode_id)},
        }
        op, request = empty()(ns)
        txn = ns.kv.begin()
        await op(txn, request, ns.call())
        answer = keys.idempotency(0, 7, request.id.request_id)
        bin_name = keys.dentry(ROOT_INODE, b".trash")
        assert txn.conflicts() == ({answer, bin_name, keys.inode(old.inode_id), entry}, ())

    drive(body)


def test_exact_conflict_set_of_an_empty_file(drive) -> None:
    async def body(ns) -> None:
        made = await ns.mkdir("/a")
        op, request = publish_empty("/a/f")(ns)
        txn = ns.kv.begin()
        reply = await op(txn, request, ns.call())
        record, name = keys.idempotency(0, 7, request.id.request_id), keys.dentry(made.inode_id, b"f")
        assert txn.conflicts() == ({record, keys.dentry(ROOT_INODE, b"a"), name}, ())
        assert txn.written() == {record, name, keys.inode(reply.inodes[0].inode_id), keys.stamp(made.inode_id)}

    drive(body)


def test_exact_conflict_set_of_a_directorys_times(drive) -> None:
    async def body(ns) -> None:
        made = await ns.mkdir("/a")
        op, request = set_times("/a")(ns)
        txn = ns.kv.begin()
        await op(txn, request, ns.call())
        record, there = keys.idempotency(0, 7, request.id.request_id), keys.inode(made.inode_id)
        assert txn.conflicts() == ({record, keys.dentry(ROOT_INODE, b"a"), there}, ())
        assert txn.written() == {record, there, keys.stamp(made.inode_id), keys.listing(made.inode_id)}

    drive(body)


def test_racing_publishes_leave_one_file_and_queue_all_others(drive) -> None:
    async def body(ns) -> None:
        made = [one.inode_id for one in await ns.create(*["/f"] * 24)]
        await asyncio.gather(*(ns.publish((inode_id, "/f")) for inode_id in made))
        (left,) = await ns.stat("/f")
        assert await ns.queued() == set(made) - {left.inode_id}
        assert await ns.count(keys.INODE) == 2 and await ns.count(keys.SESSION) == 0

        async def only_if_absent(inode_id: int) -> bool:
            try:
                await ns.publish((inode_id, "/once"), replace=False)
            except errors.Exists:
                return False
            return True

        made = [one.inode_id for one in await ns.create(*["/once"] * 12)]
        assert sum(await asyncio.gather(*(only_if_absent(inode_id) for inode_id in made))) == 1

    drive(body)


REFUSALS = (
    errors.NotFound,
    errors.Exists,
    errors.NotEmpty,
    errors.IsADirectory,
    errors.NotADirectory,
    errors.Invalid,
    errors.NotPermitted,
)


@pytest.mark.parametrize("seed", range(3))
def test_the_tree_stays_a_tree_under_random_concurrent_changes(drive, seed: int) -> None:
    """Afterwards every inode is reachable from the root by as many names as it says, or queued; parents agree."""

    async def body(ns) -> None:
        top = ["/a", "/b", "/c"]
        for path in top:
            await ns.mkdir(path)
        paths = top + [f"{one}/{name}" for one in top for name in "xy"] + [f"{one}/x/y" for one in top]

        async def change(rng: random.Random, one: str, two: str) -> None:
            kind = rng.choice(("mkdir", "write", "rename", "rename", "remove", "link"))
            if kind in ("rename", "link"):
                await getattr(ns, kind)(one, two)
            elif kind == "remove":
                await ns.remove(one, recursive=rng.random() < 0.5)
            else:
                await getattr(ns, kind)(one)

        async def client(rng: random.Random) -> None:
            for _ in range(15):
                with contextlib.suppress(*REFUSALS):
                    await change(rng, rng.choice(paths), rng.choice(paths))

        await asyncio.gather(*(client(random.Random(seed * 100 + number)) for number in range(6)))
        seen: Counter[int] = Counter([ROOT_INODE])
        counts: dict[int, int] = {}
        pending = ["/"]
        while pending:
            path = pending.pop()
            (above,) = await ns.stat(path)
            for name in await ns.names(path):
                (found,) = await ns.stat(f"{path.rstrip('/')}/{name}")
                seen[found.inode_id] += 1
                if found.is_directory:
                    assert found.parent == above.inode_id
                    pending.append(f"{path.rstrip('/')}/{name}")
                else:
                    counts[found.inode_id] = found.nlink
        assert all(count == counts.get(inode_id, 1) for inode_id, count in seen.items())
        assert not set(seen) & await ns.queued()
        await collect_directories(ns)
        unpublished = await ns.count(keys.SESSION)
        assert await ns.count(keys.INODE) == len(seen) + unpublished
        assert await ns.count(keys.DENTRY) == seen.total() - 1

    drive(body)


async def collect_directories(ns) -> None:
    """Take removed subtrees apart; the files in them stay queued."""

    class Never:
        async def remove_file(self, inode: object) -> None:
            raise errors.Unavailable("no storage in this test")

    collector = Collector(ns.kv, Never(), session_lease_s=1e9, delay_s=1e9, interval_s=1.0)
    while (await collector.round(0.0)).productive:
        pass
