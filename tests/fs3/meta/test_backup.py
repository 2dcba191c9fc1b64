"""Backups of the metadata: a store as it is at one moment, in bytes that tell whether they are all there, and back."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fs3.cluster.etcd import LocalEtcd
from fs3.errors import Busy, Corrupt, Invalid, NotFound
from fs3.ids import ROOT_INODE
from fs3.kv import keys
from fs3.kv.api import KVEngine, transact
from fs3.kv.etcd import EtcdKV
from fs3.kv.memory import MemoryKV
from fs3.kv.occ_core import decode_counter, encode_counter
from fs3.kv.sqlite import SqliteKV
from fs3.meta import backup, restore
from fs3.meta.backup import Backups
from fs3.meta.backup_format import MAGIC, BackupHeader, Reader, Writer
from fs3.meta.fsck import fsck

HEADER = BackupHeader("cluster-1", "1.2.3", 1_700_000_000_000_000_000)
PAIRS = [(b"INOD%04d" % number, bytes([number % 256]) * (number % 97)) for number in range(3_000)]


def packed(pairs: list[tuple[bytes, bytes]] = PAIRS, page: int = 700) -> bytes:
    writer = Writer(HEADER)
    return b"".join(writer.pairs(pairs[at : at + page]) for at in range(0, len(pairs), page)) + writer.finish()


def unpacked(data: bytes, piece: int) -> tuple[Reader, list[tuple[bytes, bytes]]]:
    reader, pairs = Reader(), []
    for at in range(0, len(data), piece):
        pairs += reader.feed(data[at : at + piece])
    return reader, pairs


@pytest.mark.parametrize("piece", [1, 7, 1_000, 1 << 20])
def test_what_is_written_is_read_in_any_pieces(piece: int) -> None:
    reader, pairs = unpacked(packed(), piece)
    assert (reader.header, pairs, reader.complete, reader.count) == (HEADER, PAIRS, True, len(PAIRS))


def test_an_empty_store_is_a_backup_too() -> None:
    reader, pairs = unpacked(packed([]), 10)
    assert (reader.header, pairs, reader.complete) == (HEADER, [], True)


def test_what_is_cut_off_is_never_complete() -> None:
    data = packed()
    for end in (*range(0, 60), *range(60, len(data), 97), len(data) - 1):
        assert not unpacked(data[:end], 512)[0].complete


def test_what_is_damaged_is_refused() -> None:
    data = packed()
    chance = random.Random(3)
    for at in (0, 5, len(MAGIC), *(chance.randrange(len(data)) for _ in range(300))):
        broken = bytearray(data)
        broken[at] ^= 1 << chance.randrange(8)
        try:
            reader, pairs = unpacked(bytes(broken), 777)
        except (Corrupt, Invalid):
            continue
        assert not reader.complete or pairs == PAIRS  # a bit that means nothing


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK\3\4" * 10, "no backup of fs3's metadata"),
        (packed() + b"more", "goes on after its end"),
        (MAGIC + b"not compressed at all", "damaged"),
    ],
)
def test_what_is_no_backup_is_refused(data: bytes, words: str) -> None:
    with pytest.raises((Corrupt, Invalid), match=words):
        reader = Reader()
        for piece in (data[:-4], data[-4:]):
            reader.feed(piece)


def test_a_later_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fs3.meta.backup_format.VERSION", 2)
    data = packed([])
    monkeypatch.undo()
    with pytest.raises(Invalid, match="version 2, this fs3 reads version 1"):
        unpacked(data, 100)


async def dump(kv: KVEngine) -> dict[bytes, bytes]:
    return dict(await kv.begin().range(b"", b"\xff", limit=100_000))


async def fetched(backups: Backups, kv: KVEngine) -> bytes:
    token, size = await backups.begin(kv, "cluster-1", 5)
    data = b""
    while piece := backups.piece(token, len(data)):
        data += piece
    assert len(data) == size
    return data


async def fill(ns: Any) -> None:
    await ns.make_root()
    await ns.mkdir("/a/b", parents=True)
    await ns.write("/a/f", "/a/b/g", "/a/b/h")
    await ns.link("/a/f", "/a/again")
    await ns.symlink("/a/l", "f")
    await ns.set_xattr("/a/f", "user.x", b"1" * 300)
    await ns.create("/a/unpublished")
    await ns.remove("/a/b/h")
    await ns.mkdir("/gone")
    await ns.write("/gone/one", "/gone/two")
    await ns.remove("/gone", recursive=True)


def test_back_again(drive: Callable[[Callable[..., Awaitable[None]]], None], tmp_path: Path) -> None:
    async def body(ns: Any) -> None:
        await fill(ns)
        before = await dump(ns.kv)
        reader = Reader()
        pairs = reader.feed(await fetched(Backups(tmp_path), ns.kv))
        assert reader.complete and reader.header is not None and reader.header.cluster_id == "cluster-1"
        kept = {key: value for key, value in before.items() if not key.startswith((keys.IDEMPOTENCY, keys.COLLECTOR))}
        assert len(kept) < len(before) and dict(pairs) == kept
        for other in (MemoryKV(), SqliteKV(tmp_path / "other.sqlite")):
            await restore.begin(other)
            await restore.put(other, pairs)
            await restore.finish(other)
            after = await dump(other)
            given = decode_counter(kept.get(keys.NEXT_INODE)), decode_counter(after.pop(keys.NEXT_INODE))
            assert given[1] - given[0] >= 1 << 40
            assert after == {key: value for key, value in kept.items() if key != keys.NEXT_INODE}
            assert not [one for one in (await fsck(other)).findings() if "given out" not in str(one)]
            await other.close()

    drive(body)


def test_a_backup_is_of_one_moment(
    drive: Callable[[Callable[..., Awaitable[None]]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are renamed about while it is made: each is in it under exactly one name."""
    monkeypatch.setattr(backup, "_PAGE", 3)

    async def body(ns: Any) -> None:
        await ns.make_root()
        await ns.mkdir("/a")
        await ns.mkdir("/z")
        await ns.write(*(f"/a/{number}" for number in range(20)))
        going = True

        async def move() -> None:
            there, back = "/a", "/z"
            while going:
                for number in range(20):
                    await ns.rename(f"{there}/{number}", f"{back}/{number}")
                    await asyncio.to_thread(int)  # the backup takes such a turn for every page
                there, back = back, there

        moving = asyncio.ensure_future(move())
        backups, seen = Backups(), set()
        for _ in range(200):
            reader = Reader()
            names = [key for key, _ in reader.feed(await fetched(backups, ns.kv)) if key.startswith(keys.DENTRY)]
            assert reader.complete and sorted(keys.dentry_name(key) for key in names) == sorted(
                [b"a", b"z", *(b"%d" % number for number in range(20))]
            )
            seen.add(sum(key.startswith(keys.dentry(ROOT_INODE + 1, b"")[:12]) for key in names))
            if len(seen) > 2:
                break
        going = False
        await moving
        assert len(seen) > 2

    drive(body)


def test_one_backup_at_a_time_and_none_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        kv, backups = MemoryKV(), Backups()
        token, _ = await backups.begin(kv, "c", 1)
        with pytest.raises(Busy):
            await backups.begin(kv, "c", 1)
        with pytest.raises(NotFound, match="begin again"):
            backups.piece(token + 1, 0)
        first = backups.piece(token, 0)
        assert backups.piece(token, 0) == first  # an answer may be lost
        assert backups.piece(token, len(first)) == b""
        with pytest.raises(NotFound):
            backups.piece(token, 0)
        await backups.begin(kv, "c", 1)
        monkeypatch.setattr(backup, "_IDLE_S", 0.0)  # nobody fetches it
        await backups.begin(kv, "c", 1)

    asyncio.run(body())


def test_a_store_with_names_is_left_alone(drive: Callable[[Callable[..., Awaitable[None]]], None]) -> None:
    async def body(ns: Any) -> None:
        await fill(ns)
        before = await dump(ns.kv)
        with pytest.raises(Invalid, match="holds names already"):
            await restore.begin(ns.kv)
        assert await dump(ns.kv) == before

    drive(body)


def test_an_interrupted_restore_begins_from_scratch(drive: Callable[[Callable[..., Awaitable[None]]], None]) -> None:
    async def body(ns: Any) -> None:
        await fill(ns)
        pairs = Reader().feed(await fetched(Backups(), ns.kv))
        other = MemoryKV()
        await restore.begin(other)
        await restore.put(other, [*pairs[: len(pairs) // 2], (b"XATRstray", b"")])
        assert keys.RESTORING in await dump(other)
        await restore.begin(other)
        await restore.put(other, pairs)
        await restore.finish(other)
        assert keys.RESTORING not in await dump(other) and b"XATRstray" not in await dump(other)

    drive(body)


def test_what_is_restored_fits_into_transactions_of_etcd(etcd: LocalEtcd) -> None:
    """Where each pair is in a group of its own, and so costs a stamp."""

    async def body() -> None:
        kv = EtcdKV(etcd.endpoints, f"test-{secrets.token_hex(4)}", grouping=keys.group)
        assert kv.limits.max_operations == 128
        pairs = [(keys.xattr(inode, b"user.sha256"), b"v" * 64) for inode in range(1_000, 1_200)]
        await restore.begin(kv)
        await restore.put(kv, pairs)
        assert await dump(kv) == {**dict(pairs), keys.RESTORING: b""}
        await kv.close()

    asyncio.run(body())


def test_a_backup_without_a_root_is_not_taken_for_a_namespace() -> None:
    async def body() -> None:
        kv = MemoryKV()
        await restore.begin(kv)
        await restore.put(kv, [(keys.NEXT_INODE, encode_counter(5))])
        with pytest.raises(Invalid, match="no root directory"):
            await restore.finish(kv)
        assert keys.RESTORING in await dump(kv)

    asyncio.run(body())


def test_a_snapshot_that_is_read_for_long_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others expire, when there are too many or they are too old; that of a patient transaction does not."""
    monkeypatch.setattr("fs3.kv.sqlite_snapshot._SNAPSHOT_AGE_S", 0.0)

    async def body() -> None:
        kv = SqliteKV(tmp_path / "kv.sqlite")

        async def put(value: bytes) -> None:
            async def change(txn: Any) -> None:
                txn.put(b"k", value)

            await transact(kv, change)

        await put(b"1")
        patient = kv.begin(patient=True)
        for value in (b"2", b"3"):
            await put(value)
            assert await kv.begin().get(b"k") == value
        assert await patient.get(b"k") == b"1"
        await kv.close()

    asyncio.run(body())
