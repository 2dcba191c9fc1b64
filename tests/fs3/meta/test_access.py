"""What permissions cost and depend on: entries that carry them, old ones that do not, conflicts, retries, refusals."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from fs3 import errors
from fs3.ids import ROOT_INODE
from fs3.kv import keys
from fs3.kv.api import Transaction, transact
from fs3.meta import dentry, idempotency
from fs3.meta.access import SUPERUSER, Caller, Permissions
from fs3.meta.dentry import Dentry
from fs3.meta.fsck import fsck
from fs3.meta.ops import attributes, directory, file, remove, stat, update
from fs3.pb import meta_pb2
from fs3.user import User

ANNA = Caller(User(1_000, (1_000, 500)), superuser=False)
BERT = Caller(User(2_000, (2_000, 500)), superuser=False)


def chmod_request(ns: Any, path: str, mode: int) -> meta_pb2.SetAttrRequest:
    return meta_pb2.SetAttrRequest(id=ns.request_id(), path=path, mode=mode)


async def entry_of(ns: Any, parent: int, name: bytes) -> Dentry:
    found = await dentry.load(ns.kv.begin(), parent, name)
    assert found is not None
    return found


async def age(ns: Any) -> None:
    """Make all entries those of before permissions were enforced."""

    async def body(txn: Transaction) -> None:
        for key, value in await txn.range(*keys.whole(keys.DENTRY), limit=1_000):
            txn.put(key, value[:9])

    await transact(ns.kv, body)


async def open_tree(ns: Any) -> int:
    """/a, in which everybody writes; its inode id."""
    made = await ns.mkdir("/a", mode=0o777)
    await ns.write("/a/old")
    return int(made.inode_id)


def test_an_entry_carries_the_permissions_of_a_directory_whichever_way_they_are_changed(drive: Any) -> None:
    async def body(ns: Any) -> None:
        above = await ns.mkdir("/a", mode=0o750)
        made = await ns.mkdir("/a/b", mode=0o711)
        assert await entry_of(ns, ROOT_INODE, b"a") == dentry.of_inode(above)
        await ns.symlink("/s", "a/b")
        await ns.symlink("/up", "a/b/..")
        await ns.symlink("/top", "/")
        for path, fields, at in [
            ("/a/b", {"mode": 0o3770}, (above.inode_id, b"b")),
            ("/s", {"uid": 1_000}, (above.inode_id, b"b")),
            ("/up", {"gid": 500, "mode": 0o700}, (ROOT_INODE, b"a")),
        ]:
            after = await ns.set_attributes(path, **fields)
            assert (await entry_of(ns, *at)).permissions == (after.mode, after.uid, after.gid)
        await ns.set_attributes("/top", mode=0o1777)
        assert (await ns.stat("/"))[0].mode == 0o1777
        moved = await ns.rename("/a/b", "/c")
        assert await entry_of(ns, ROOT_INODE, b"c") == dentry.of_inode(moved)
        assert (moved.inode_id, moved.mode, moved.uid) == (made.inode_id, 0o3770, 1_000)
        (one,) = await ns.write("/f")
        assert await entry_of(ns, ROOT_INODE, b"f") == (one.inode_id, 1, b"", False)
        assert [one.text for one in (await fsck(ns.kv)).findings() if "given out" not in one.text] == []

    drive(body)


def test_entries_of_before_are_read_and_their_inodes_asked(drive: Any) -> None:
    async def body(ns: Any) -> None:
        made = await ns.mkdir("/a", mode=0o750)
        await ns.mkdir("/a/b")
        await ns.write("/a/b/f")
        await age(ns)
        assert await entry_of(ns, ROOT_INODE, b"a") == (made.inode_id, 2, b"", False)
        assert (await ns.stat("/a/b/f"))[0].length == 10
        ns.caller = ANNA
        assert await ns.stat("/a/b/f", "/a/b", "/a") == [errors.PermissionDenied.code] * 2 + [await whole(ns, "/a")]
        with pytest.raises(errors.PermissionDenied, match="uid 1000 may not read"):
            await ns.names("/a")
        ns.caller = SUPERUSER
        await ns.set_attributes("/a", mode=0o751)
        assert (await entry_of(ns, ROOT_INODE, b"a")).permissions == (0o751, 0, 0)
        ns.caller = ANNA
        assert (await ns.stat("/a/b/f"))[0].length == 10
        assert [one.text for one in (await fsck(ns.kv)).findings() if "given out" not in one.text] == []

    async def whole(ns: Any, path: str) -> Any:
        return (await ns.stat(path))[0]

    drive(body)


class Counting:
    """A transaction that counts the records that it is asked for."""

    def __init__(self, txn: Any) -> None:
        self._txn = txn
        self.read = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        self.read += 1
        found: bytes | None = await self._txn.get(key, snapshot=snapshot)
        return found

    async def get_many(self, wanted: Sequence[bytes], *, snapshot: bool = False) -> list[bytes | None]:
        self.read += len(wanted)
        found: list[bytes | None] = await self._txn.get_many(wanted, snapshot=snapshot)
        return found


def test_a_walk_reads_one_record_more_for_others_than_the_superuser_however_deep(drive: Any) -> None:
    async def body(ns: Any) -> None:
        deep = "/" + "/".join("abcdefgh")
        await ns.mkdir(deep, parents=True)
        await ns.set_attributes(deep, mode=0o777)
        await ns.write(f"{deep}/x", f"{deep}/y")
        paths = [f"{deep}/x", f"{deep}/y"]
        counted = []
        for caller in (SUPERUSER, ANNA):
            txn = Counting(ns.kv.begin())
            await stat.stat(txn, meta_pb2.StatRequest(paths=paths, access=4), caller)
            counted.append(txn.read)
        assert counted == [8 + 2 + 2, 8 + 2 + 2 + 1]

    drive(body)


@pytest.mark.parametrize("aged", [False, True])
def test_whoever_was_allowed_something_conflicts_with_a_change_of_what_allowed_it(drive: Any, aged: bool) -> None:
    """Also at the root, which has no entry, and where entries lack permissions."""

    async def body(ns: Any) -> None:
        await ns.set_attributes("/", mode=0o777)
        await open_tree(ns)
        await ns.mkdir("/a/b", mode=0o777)
        if aged:
            await age(ns)
        for path, narrowed, conflicts in [("/a", "/a", True), ("/a/b", "/a", True), ("", "/", True), ("", "/a", False)]:
            narrow, make = ns.kv.begin(), ns.kv.begin()
            await attributes.set_attributes(narrow, chmod_request(ns, narrowed, 0o755), ns.call())
            ns.caller = ANNA
            request = meta_pb2.MkdirRequest(id=ns.request_id(), path=f"{path}/new")
            await directory.mkdir(make, request, ns.call())
            ns.caller = SUPERUSER
            await narrow.commit()
            if conflicts:
                with pytest.raises(errors.Conflict):
                    await make.commit()
            else:
                await make.commit()
            await ns.set_attributes(narrowed, mode=0o777)

    drive(body)


def test_whether_a_file_may_be_published_is_asked_when_it_is_created_and_again(drive: Any) -> None:
    async def body(ns: Any) -> None:
        await open_tree(ns)
        await ns.set_attributes("/a/old", uid=2_000)
        ns.caller = ANNA
        new, over = await ns.create("/a/new", "/a/old")
        for mode, path, made, error in [
            (0o755, "/a/new", new, errors.PermissionDenied),
            (0o755, "/a/old", over, errors.PermissionDenied),
            (0o1777, "/a/old", over, errors.NotPermitted),
        ]:
            ns.caller = SUPERUSER
            await ns.set_attributes("/a", mode=mode)
            ns.caller = ANNA
            with pytest.raises(error):
                await ns.publish((made.inode_id, path))
            with pytest.raises(error):
                await ns.create(path)
        await ns.publish((new.inode_id, "/a/new"))
        assert (await ns.stat("/a/new"))[0].uid == 1_000

    drive(body)


def test_exact_conflict_sets_of_a_user(drive: Any) -> None:
    async def body(ns: Any) -> None:
        inside = await open_tree(ns)
        ns.caller = ANNA
        (made,) = await ns.create("/a/old")
        request = ns.publish_request((made.inode_id, "/a/old"))
        txn = ns.kv.begin()
        await file.publish_files(txn, request, ns.call())
        read, ranges = txn.conflicts()
        (old,) = await ns.stat("/a/old")
        assert ranges == ()
        assert read == {
            keys.idempotency(0, 7, request.id.request_id),
            keys.inode(ROOT_INODE),  # what a user needs beside the superuser's
            keys.dentry(ROOT_INODE, b"a"),
            keys.dentry(inside, b"old"),
            keys.session(made.inode_id),
            keys.inode(made.inode_id),
            keys.inode(old.inode_id),
        }
        txn = ns.kv.begin()
        request = meta_pb2.CreateFilesRequest(id=ns.request_id(), paths=["/a/x"])
        await file.create_files(txn, request, ns.call())
        assert txn.conflicts() == ({keys.idempotency(0, 7, request.id.request_id)}, ())

    drive(body)


def test_an_answer_is_repeated_and_a_refusal_stays_one_once_it_is_kept(drive: Any) -> None:
    async def body(ns: Any) -> None:
        await open_tree(ns)
        ns.caller = ANNA
        done = meta_pb2.MkdirRequest(id=ns.request_id(), path="/a/mine")
        first = await ns.change(directory.mkdir, done)
        ns.caller = SUPERUSER
        await ns.set_attributes("/a", mode=0o700)
        ns.caller = ANNA
        assert await ns.change(directory.mkdir, done) == first
        refused = meta_pb2.RemoveRequest(id=ns.request_id(), path="/a/mine")
        with pytest.raises(errors.PermissionDenied, match=r"in the directory /a: uid 1000 may not search") as told:
            await ns.change(remove.remove, refused)
        assert idempotency.lasting(told.value)
        assert await transact(ns.kv, lambda txn: idempotency.record_refusal(txn, refused.id, told.value))
        ns.caller = SUPERUSER
        await ns.set_attributes("/a", mode=0o777)
        ns.caller = ANNA
        with pytest.raises(errors.PermissionDenied, match="may not search"):
            await ns.change(remove.remove, refused)

    drive(body)


def test_a_directory_that_may_be_read_and_not_searched_tells_names_and_types(drive: Any) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/a")
        (one,) = await ns.write("/a/f")
        await ns.symlink("/a/s", "secret")
        await ns.set_attributes("/a", mode=0o744)
        ns.caller = ANNA
        reply = await ns.read(stat.list_page, meta_pb2.ListRequest(path="/a"))
        assert [(entry.name, entry.inode.type) for entry in reply.entries] == [("f", 1), ("s", 3)]
        assert reply.entries[0].inode == meta_pb2.Inode(inode_id=one.inode_id, type=meta_pb2.FILE)
        assert "secret" not in str(reply)

    drive(body)


def test_a_subtree_is_removed_by_who_may_empty_its_top(drive: Any) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/a", mode=0o777)
        for name, mode in (("empty", 0o700), ("full", 0o755), ("open", 0o777), ("sticky", 0o1777)):
            await ns.mkdir(f"/a/{name}", mode=mode)
            if name != "empty":
                await ns.mkdir(f"/a/{name}/x/y", parents=True)
        ns.caller = ANNA
        with pytest.raises(errors.PermissionDenied, match=r"^/a/full: uid 1000 may not read and write and search"):
            await ns.remove("/a/full", recursive=True)
        with pytest.raises(errors.NotPermitted, match=r"^/a/sticky: is sticky"):
            await ns.remove("/a/sticky", recursive=True)
        await ns.remove("/a/empty", recursive=True)
        await ns.remove("/a/open", recursive=True)
        assert await ns.names("/a") == ["full", "sticky"]
        ns.caller = SUPERUSER
        await ns.set_attributes("/a", mode=0o1777)
        await ns.set_attributes("/a/sticky", uid=2_000, mode=0o777)
        ns.caller = ANNA
        with pytest.raises(errors.NotPermitted, match=r"^/a/sticky: in a sticky directory only the owner"):
            await ns.remove("/a/sticky", recursive=True)
        ns.caller = BERT
        await ns.remove("/a/sticky", recursive=True)

    drive(body)


@pytest.mark.parametrize("aged", [False, True])
def test_usage_names_what_may_not_be_looked_into(drive: Any, aged: bool) -> None:
    async def measured(ns: Any, path: str) -> int:
        usage = await ns.read(stat.usage_start, meta_pb2.UsageRequest(path=path))
        while usage.pending:
            usage = await stat.usage_step(ns.kv.begin(), usage, 2, ns.caller)
        return int(usage.size)

    async def body(ns: Any) -> None:
        await ns.mkdir("/a/b/private", parents=True)
        await ns.write("/a/f", "/a/b/private/f")
        if aged:
            await age(ns)
        ns.caller = ANNA
        assert await measured(ns, "/a") == 20
        ns.caller = SUPERUSER
        await ns.set_attributes("/a/b/private", mode=0o711)
        assert await measured(ns, "/a") == 20
        ns.caller = ANNA
        with pytest.raises(errors.PermissionDenied, match="the directory private in it: uid 1000 may not read"):
            await measured(ns, "/a")
        with pytest.raises(errors.PermissionDenied, match=r"^/a/b/private: uid 1000"):
            await measured(ns, "/a/b/private")

    drive(body)


def test_what_is_new_is_its_makers_in_the_group_of_a_setgid_directory(drive: Any) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/a")
        await ns.set_attributes("/a", mode=0o2777, gid=600)
        await ns.mkdir("/b", mode=0o777)
        for caller in (ANNA, Caller(User(0, (7,)), superuser=True)):
            ns.caller = caller
            uid, gid = caller.user.uid, caller.user.gid
            for top, group, special in (("/a", 600, 0o2000), ("/b", gid, 0)):
                made = await ns.mkdir(f"{top}/{uid}/x", parents=True)
                (written,) = await ns.write(f"{top}/{uid}f", mode=0o644)
                linked = await ns.symlink(f"{top}/{uid}s", "x")
                above = (await ns.stat(f"{top}/{uid}"))[0]
                assert [(one.uid, one.gid) for one in (above, made, written, linked)] == [(uid, group)] * 4
                assert (above.mode, made.mode, written.mode) == (0o755 | special, 0o755 | special, 0o644)
        ns.caller = ANNA
        (stripped, kept) = await ns.write("/a/g", "/b/g", mode=0o2755)
        assert (stripped.mode, kept.mode) == (0o755, 0o2755)

    drive(body)


def test_attributes_of_symlinks_and_sticky_directories_are_their_owners(drive: Any) -> None:
    async def body(ns: Any) -> None:
        await ns.mkdir("/a", mode=0o1777)
        await ns.symlink("/s", "a")
        ns.caller = ANNA
        with pytest.raises(errors.NotPermitted, match="sticky directory"):
            await ns.set_xattr("/a", "user.x", b"1")
        with pytest.raises(errors.NotPermitted, match="symlink"):
            await ns.set_xattr("/s", "user.x", b"1", nofollow=True)
        await ns.write("/a/f")
        await ns.set_xattr("/a/f", "user.x", b"1")
        await ns.set_attributes("/a/f", mode=0o600)
        ns.caller = BERT
        assert await ns.xattrs_named("/a/f") == ["user.x"]
        with pytest.raises(errors.PermissionDenied, match="uid 2000 may not read"):
            await ns.xattr("/a/f", "user.x")
        with pytest.raises(errors.PermissionDenied, match="uid 2000 may not write"):
            await ns.remove_xattr("/a/f", "user.x")
        ns.caller = ANNA
        await ns.remove_xattr("/a/f", "user.x")

    drive(body)


def test_a_file_is_written_in_place_by_who_may_write_it(drive: Any) -> None:
    async def opened(ns: Any, access: int = 0) -> int:
        request = meta_pb2.OpenForWritingRequest(id=ns.request_id(), paths=["/f"], access=access)
        (found,) = (await ns.change(update.open_for_writing, request)).inodes
        await ns.abandon(found.inode_id)
        return int(found.mode)

    async def body(ns: Any) -> None:
        await ns.write("/f")
        await ns.set_attributes("/f", uid=1_000, gid=500)
        await ns.set_attributes("/f", mode=0o6670)
        assert await opened(ns, 4) == 0o6670
        ns.caller = BERT
        assert await opened(ns, 4) == 0o670  # what Bert writes does not run as Anna
        ns.caller = SUPERUSER
        await ns.set_attributes("/f", mode=0o620)
        ns.caller = BERT
        assert await opened(ns) == 0o620
        with pytest.raises(errors.PermissionDenied, match=r"^/f: uid 2000 may not read and write here"):
            await opened(ns, 4)
        ns.caller = ANNA
        await ns.set_attributes("/f", mode=0o460)
        with pytest.raises(errors.PermissionDenied, match=r"^/f: uid 1000 may not write here"):
            await opened(ns)

    drive(body)


def test_numbers_tell_only_the_superuser(drive: Any) -> None:
    async def body(ns: Any) -> None:
        request = meta_pb2.FindRequest(inode_ids=[1])
        assert (await ns.read(stat.find, request)).found[0].inode.inode_id == 1
        ns.caller = ANNA
        with pytest.raises(errors.NotPermitted, match="uid 1000 is not the superuser"):
            await ns.read(stat.find, request)

    drive(body)


def test_damaged_entries_are_no_entries() -> None:
    good = struct.pack(">QBHII", 5, 2, 0o755, 1, 2)
    assert dentry.decode(good).permissions == Permissions(0o755, 1, 2)
    for bad in (good[:-1], good + b"\0", good[:8] + b"\x09" + good[9:]):
        with pytest.raises(errors.Corrupt):
            dentry.decode(bad)


def test_the_trash_is_sticky_and_gives_back_to_who_owned_or_removed(drive: Any) -> None:
    async def body(ns: Any) -> None:
        await open_tree(ns)
        await ns.mkdir("/locked", mode=0o755)
        await ns.write("/locked/f")
        ns.caller = ANNA
        with pytest.raises(errors.PermissionDenied, match="/locked"):
            await ns.trash("/locked/f")
        thrown = await ns.trash("/a/old")  # of the superuser, in a directory where everybody may remove
        (own,) = await ns.write("/a/own")
        await ns.mkdir("/a/dir", mode=0o555)
        with pytest.raises(errors.PermissionDenied, match="write"):
            await ns.trash("/a/dir")  # its ".." would be written
        mine = await ns.trash("/a/own")
        assert thrown.record.uid == mine.record.uid == 1_000
        ns.caller = BERT
        assert [one.name for one in await ns.trashed()] == [thrown.name, mine.name], "as in its directory"
        for refused in (ns.restore(mine.name), ns.empty_trash(name=thrown.name), ns.remove(f"/.trash/{mine.name}")):
            with pytest.raises(errors.NotPermitted):
                await refused
        assert await ns.empty_trash() == 0, "nothing there is his, nor was removed by him"
        ns.caller = ANNA
        with pytest.raises(errors.PermissionDenied, match="/locked"):
            await ns.restore(mine.name, "/locked/mine")
        assert await ns.restore(thrown.name) == "/a/old" and (await ns.stat("/a/old"))[0].uid == 0
        assert await ns.restore(mine.name, "/a/back") == "/a/back"
        assert (await ns.stat("/a/back"))[0].inode_id == own.inode_id
        await ns.trash("/a/back")
        assert await ns.empty_trash() == 1
        ns.caller = SUPERUSER
        left = await ns.trash("/a/old")
        ns.caller = BERT
        assert await ns.empty_trash() == 0
        ns.caller = SUPERUSER
        assert [one.name for one in await ns.trashed()] == [left.name] and await ns.empty_trash() == 1
        findings = [one.text for one in (await fsck(ns.kv)).findings() if "given out" not in one.text]
        assert findings == []

    drive(body)


def test_a_subtree_is_thrown_away_by_who_may_remove_it(drive: Any) -> None:
    """Who throws it away may empty the trash of it."""

    async def body(ns: Any) -> None:
        await ns.mkdir("/a", mode=0o777)
        for name, mode in (("empty", 0o1777), ("full", 0o733), ("open", 0o777), ("sticky", 0o1777)):
            await ns.mkdir(f"/a/{name}", mode=mode)
            if name != "empty":
                await ns.write(f"/a/{name}/f")
        ns.caller = ANNA
        for removing in (ns.trash, partial(ns.remove, recursive=True)):
            with pytest.raises(errors.PermissionDenied, match=r"^/a/full: uid 1000 may not read and write and search"):
                await removing("/a/full")
            with pytest.raises(errors.NotPermitted, match=r"^/a/sticky: is sticky"):
                await removing("/a/sticky")
        await ns.trash("/a/empty")
        await ns.trash("/a/open")
        assert await ns.empty_trash() == 2
        ns.caller = SUPERUSER
        assert await ns.names("/a") == ["full", "sticky"]
        await ns.set_attributes("/a/full", uid=1_000, mode=0o1700)
        ns.caller = ANNA
        await ns.trash("/a/full")
        ns.caller = SUPERUSER
        await ns.trash("/a/sticky")

    drive(body)


def test_a_directory_that_may_only_be_read_has_no_validator(drive: Any) -> None:
    """Its listing lacks the attributes; when the directory may be searched later, nothing of it changes."""

    async def body(ns: Any) -> None:
        await open_tree(ns)
        await ns.set_attributes("/a", mode=0o744)
        ns.caller = ANNA
        partly = await ns.read(stat.list_page, meta_pb2.ListRequest(path="/a"))
        assert [one.name for one in partly.entries] == ["old"] and not partly.entries[0].inode.mode
        assert not partly.validator
        again = await ns.read(stat.list_page, meta_pb2.ListRequest(path="/a", validator=partly.validator))
        assert len(again.entries) == 1 and not again.same
        ns.caller = SUPERUSER
        await ns.set_attributes("/a", mode=0o755)
        ns.caller = ANNA
        whole = await ns.read(stat.list_page, meta_pb2.ListRequest(path="/a"))
        assert whole.validator and whole.entries[0].inode.mode == 0o644
        assert (await ns.read(stat.list_page, meta_pb2.ListRequest(path="/a", validator=whole.validator))).same
        ns.caller = SUPERUSER
        await ns.set_attributes("/a", mode=0o711)
        ns.caller = ANNA
        with pytest.raises(errors.PermissionDenied):
            await ns.read(stat.list_page, meta_pb2.ListRequest(path="/a", validator=whole.validator))

    drive(body)
