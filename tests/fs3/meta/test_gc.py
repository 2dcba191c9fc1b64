"""The collector: sessions that run out, subtrees taken apart, chunks removed after their delay, failures, restarts."""

from __future__ import annotations

from functools import partial

import pytest
from prometheus_client import CollectorRegistry

from fs3 import errors
from fs3.inode import Inode
from fs3.kv import keys
from fs3.kv.api import transact
from fs3.meta.gc import Collector, expire_session
from fs3.meta.idempotency import KEEP_S
from fs3.meta.inode import known_length
from fs3.meta.ops import file
from fs3.meta.unchanged_core import Unchanged

LEASE_S, DELAY_S = 60.0, 10.0


class Removed:
    """A remover that remembers what it removed, and refuses what it is told to."""

    def __init__(self) -> None:
        self.lengths: dict[int, int | None] = {}
        self.refused: set[int] = set()

    async def remove_file(self, inode: Inode) -> None:
        if inode.inode_id in self.refused:
            raise errors.Unavailable("its storage node is down")
        assert inode.inode_id not in self.lengths
        self.lengths[inode.inode_id] = known_length(inode)


def collector(ns, removed: Removed) -> Collector:
    options = {"session_lease_s": LEASE_S, "delay_s": DELAY_S, "interval_s": 1.0}
    return Collector(ns.kv, removed, registry=CollectorRegistry(), **options)


def test_a_session_that_is_renewed_lives_and_one_that_is_not_ends(drive) -> None:
    async def body(ns) -> None:
        kept, lost = (one.inode_id for one in await ns.create("/kept", "/lost"))
        removed = Removed()
        gc = collector(ns, removed)
        for now_s in (0.0, 30.0, 59.0):
            assert not (await gc.round(now_s)).productive
            await ns.renew(kept)
            await ns.renew(lost, client=8)
        assert (await gc.round(61.0)).sessions_expired == 1
        assert await ns.queued() == {lost}
        await gc.round(61.0 + DELAY_S)
        await gc.round(61.0 + 2 * DELAY_S)
        assert removed.lengths == {lost: None}, "nobody knows how much was written"
        await ns.publish((kept, "/kept"))
        assert await ns.names("/") == ["kept"] and await ns.count(keys.SESSION) == 0

    drive(body)


def test_a_session_renewed_or_published_at_the_last_moment_is_not_expired(drive) -> None:
    async def body(ns) -> None:
        renewed, published, lost = (one.inode_id for one in await ns.create("/a", "/b", "/c"))
        seen = {one: await ns.kv.begin().get(keys.session(one)) for one in (renewed, published, lost)}
        await ns.renew(renewed)
        await ns.publish((published, "/b"))
        done = [await transact(ns.kv, partial(expire_session, inode_id=one, seen=seen[one])) for one in seen]
        assert done == [False, False, True] and await ns.queued() == {lost}
        assert await transact(ns.kv, partial(expire_session, inode_id=lost, seen=seen[lost])) is False
        await ns.publish((renewed, "/a"))
        (made,) = await ns.create("/d")
        racing = [ns.kv.begin(), ns.kv.begin()]
        await expire_session(racing[0], made.inode_id, await racing[0].get(keys.session(made.inode_id)))
        await file.publish_files(racing[1], ns.publish_request((made.inode_id, "/d")), ns.call())
        await racing[0].commit()
        with pytest.raises(errors.Conflict):
            await racing[1].commit()

    drive(body)


def test_a_removed_file_keeps_its_chunks_for_the_delay(drive) -> None:
    async def body(ns) -> None:
        (made,) = await ns.write("/f", length=77)
        await ns.remove("/f")
        removed = Removed()
        gc = collector(ns, removed)
        await gc.round(0.0)
        await gc.round(DELAY_S - 0.1)
        assert removed.lengths == {} and await ns.queued() == {made.inode_id}
        assert (await gc.round(DELAY_S)).files_removed == 1
        assert removed.lengths == {made.inode_id: 77} and await ns.queued() == set()

    drive(body)


def test_a_large_subtree_is_taken_apart_in_bounded_rounds_across_restarts(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/top" + "/d" * 20, parents=True)
        files = []
        for folder in ("/top", "/top/d", "/top" + "/d" * 20):
            for begin in range(0, 700, 350):
                files += await ns.write(*(f"{folder}/f{number}" for number in range(begin, begin + 350)))
        await ns.symlink("/top/link", "/nowhere")
        survivors = await ns.write("/stays")
        await ns.remove("/top", recursive=True)
        removed = Removed()
        now_s, rounds = 0.0, 0
        while await ns.queued():
            gc = collector(ns, removed)  # restarted after every few rounds
            for _ in range(10):
                rounds += 1
                now_s += DELAY_S
                done = await gc.round(now_s)
                assert done.files_removed <= 512 and done.entries_detached <= 512 * 512
        assert rounds > 5
        assert set(removed.lengths) == {one.inode_id for one in files}
        assert await ns.count(keys.INODE) == 2 and await ns.count(keys.DENTRY) == 1
        assert await ns.count(keys.STAMP) == 1
        assert await ns.stat("/stays") == survivors

    drive(body)


def test_a_file_that_cannot_be_removed_waits_and_holds_up_nobody(drive) -> None:
    async def body(ns) -> None:
        stuck, free = await ns.write("/a", "/b")
        await ns.remove("/a")
        await ns.remove("/b")
        removed = Removed()
        removed.refused = {stuck.inode_id}
        gc = collector(ns, removed)
        await gc.round(0.0)
        done = await gc.round(DELAY_S)
        assert (done.files_removed, done.removals_failed) == (1, 1)
        assert await ns.queued() == {stuck.inode_id} and set(removed.lengths) == {free.inode_id}
        removed.refused.clear()
        await gc.round(DELAY_S + 1)
        assert await ns.queued() == set()

    drive(body)


def test_two_collectors_on_one_store_do_no_harm(drive) -> None:
    async def body(ns) -> None:
        await ns.mkdir("/d/e", parents=True)
        files = await ns.write("/d/f", "/d/e/g")
        await ns.remove("/d", recursive=True)
        removed = [Removed(), Removed()]
        pair = [collector(ns, one) for one in removed]
        for step in range(6):
            for gc in pair:
                await gc.round(step * DELAY_S)
        assert set(removed[0].lengths) | set(removed[1].lengths) == {one.inode_id for one in files}
        assert await ns.queued() == set() and await ns.count(keys.INODE) == 1

    drive(body)


def test_recorded_answers_are_dropped_in_the_end(drive) -> None:
    async def body(ns) -> None:
        for number in range(5):
            await ns.mkdir(f"/d{number}")
        gc = collector(ns, Removed())
        for period in range(4):
            await gc.round(period * KEEP_S)
        assert await ns.count(keys.IDEMPOTENCY) == 0

    drive(body)


def test_unchanged_counts_from_the_first_sight_and_is_bounded() -> None:
    seen = Unchanged(max_keys=2)
    assert seen.age_s(100.0, b"a", b"1") == 0.0
    assert seen.age_s(105.0, b"a", b"1") == 5.0
    assert seen.age_s(106.0, b"a", b"2") == 0.0
    assert seen.age_s(107.0, b"b", b"1") == 0.0
    assert seen.age_s(108.0, b"c", b"1") == 0.0 and seen.age_s(120.0, b"c", b"1") == 0.0
    seen.forget_unseen(107.0)
    assert len(seen) == 1
    assert seen.age_s(121.0, b"c", b"1") == 0.0 and seen.age_s(122.0, b"c", b"1") == 1.0
