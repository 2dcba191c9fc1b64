"""A store that hangs together is found to; one that lacks any record, or has one too many or a wrong one, is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fs3.inode import InodeType
from fs3.kv import keys
from fs3.kv.api import transact
from fs3.kv.occ_core import encode_counter
from fs3.meta import dentry, inode, trashed
from fs3.meta.fsck import fsck
from fs3.meta.fsck_core import Fsck
from fs3.meta.gc import detach_page
from fs3.pb import meta_pb2

Pairs = dict[bytes, bytes]
TRASHED = meta_pb2.TrashRecord(path="/a/x")


async def some_of_everything(ns: Any) -> Pairs:
    """Files, with two names too, links, directories in each other, attributes, a writer, what is dead, and counters."""
    await ns.mkdir("/a")
    await ns.mkdir("/a/b")
    await ns.write("/a/f", "/a/b/g")
    await ns.link("/a/f", "/a/b/f")
    await ns.symlink("/a/s", "b/g")
    await ns.set_xattr("/a/f", "user.x", b"123")
    await ns.set_xattr("/a/b", "user.y", b"")
    await ns.create("/a/unfinished")
    await ns.mkdir("/gone")
    await ns.mkdir("/gone/d")
    await ns.write("/gone/f", "/gone/d/f", "/removed", "/thrown")
    await ns.trash("/thrown")
    await ns.remove("/removed")
    await ns.remove("/gone", recursive=True)
    await transact(ns.kv, lambda txn: _count(txn, ns))
    return dict(await ns.kv.begin().range(b"", b"\xff", limit=1_000))


async def _count(txn: Any, ns: Any) -> None:
    txn.put(keys.NEXT_INODE, encode_counter(100))


def told(pairs: Pairs) -> list[str]:
    found = Fsck()
    for key, value in pairs.items():
        found.take(key, value)
    return [str(one) for one in found.findings()]


def with_everything(drive: Any, body: Callable[[Pairs], None]) -> None:
    async def run(ns: Any) -> None:
        body(await some_of_everything(ns))

    drive(run)


def test_a_whole_store_has_nothing_wrong(drive: Any) -> None:
    async def body(ns: Any) -> None:
        pairs = await some_of_everything(ns)
        assert told(pairs) == []
        found = await fsck(ns.kv)
        assert found.findings() == [] and (found.inodes, found.dead) == (12, 2)
        (dead,) = [number for number in await ns.queued() if inode.decode(pairs[keys.gc_queue(number)]).is_directory]
        while await transact(ns.kv, lambda txn: detach_page(txn, dead, 1)):
            assert (await fsck(ns.kv)).findings() == []

    drive(body)


def test_a_store_that_lacks_any_one_record_is_found(drive: Any) -> None:
    def body(pairs: Pairs) -> None:
        missed = {key for key in pairs if not told({other: pairs[other] for other in pairs.keys() - {key}})}
        kinds = (keys.STAMP, keys.LISTING, keys.IDEMPOTENCY, keys.TRASH)
        needless = {key for key in pairs if key.startswith(kinds)}
        dead_files = {key for key in pairs if key.startswith(keys.GC_QUEUE) and inode.decode(pairs[key]).is_file}
        assert missed == needless | dead_files  # those leave chunks, which `fs3 admin orphans` finds

    with_everything(drive, body)


def changed(pairs: Pairs, number: int, **fields: Any) -> Pairs:
    key = keys.inode(number)
    return {**pairs, key: inode.encode(inode.decode(pairs[key])._replace(**fields))}


def numbered(pairs: Pairs, path: str) -> int:
    at = 1
    for name in path.strip("/").split("/"):
        at = dentry.decode(pairs[keys.dentry(at, name.encode())]).inode_id
    return at


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: changed(p, numbered(p, "/a/f"), nlink=1), "counts 1 names, and has 2"),
        (lambda p: changed(p, numbered(p, "/a/s"), type=InodeType.FILE), "is a file; entry 's' of directory"),
        (lambda p: changed(p, numbered(p, "/a/b"), parent=1), "has directory 1 for its parent"),
        (lambda p: changed(p, numbered(p, "/a/b"), mode=0o700), "has mode 0700, owner 0:0; entry 'b' of directory"),
        (lambda p: changed(p, numbered(p, "/a/b"), uid=7), "says mode 0755, owner 0:0"),
        (lambda p: changed(p, numbered(p, "/a/b"), xattr_bytes=9), "counts 9 bytes of attributes, and has 6"),
        (lambda p: changed(p, numbered(p, "/a"), parent=numbered(p, "/a/b")), "nothing leads to from the root"),
        (lambda p: {**p, keys.session(numbered(p, "/a/f")): bytes(16)}, "and is no file that is being written"),
        (lambda p: {**p, keys.session(77): bytes(16)}, "inode 77: has a write session"),
        (lambda p: {**p, keys.stamp(77): bytes(8)}, "inode 77: has the time of a directory's last change"),
        (lambda p: {**p, keys.listing(77): bytes(16)}, "inode 77: has the version of a listing, and is no directory"),
        (lambda p: {**p, keys.xattr(77, b"user.x"): b""}, "inode 77: has attributes, and does not exist"),
        (lambda p: {**p, keys.dentry(77, b"x"): p[keys.dentry(1, b"a")]}, "inode 77: has the entry 'x', and is no dir"),
        (lambda p: {**p, keys.dentry(1, b"again"): p[keys.dentry(1, b"a")]}, "is a directory with 2 names"),
        (lambda p: {**p, keys.gc_queue(numbered(p, "/a/f")): p[keys.inode(numbered(p, "/a/f"))]}, "and is still there"),
        (lambda p: {**p, keys.NEXT_INODE: encode_counter(3)}, "still to be given out, from 3 on"),
        (lambda p: {**p, keys.inode(1): p[keys.inode(1)][:9]}, "an inode record cannot be read"),
        (lambda p: {**p, keys.inode(77): p[keys.inode(1)]}, "holds inode 1"),
        (lambda p: {**p, keys.dentry(1, b"x"): b"12"}, "a directory entry cannot be read"),
        (
            lambda p: {**p, keys.trash(9, 9): trashed.encode(TRASHED)},
            "the trash remembers '9-9-x', and does not have it",
        ),
        (lambda p: {**p, keys.trash(9, 9): b"?"}, "a record of the trash has format 3f"),
        (lambda p: {**p, b"WHAT": b""}, "no key of a metadata store"),
    ],
)
def test_damage_is_named(drive: Any, damage: Callable[[Pairs], Pairs], said: str) -> None:
    def body(pairs: Pairs) -> None:
        lines = told(damage(pairs))
        assert any(said in line for line in lines), lines

    with_everything(drive, body)
