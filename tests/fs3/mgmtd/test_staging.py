"""A decision that no transaction of the store can hold: in force as a whole or not at all, wherever its writer dies."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from fs3.cluster.etcd import LocalEtcd
from fs3.errors import Conflict, Corrupt, Fs3Error, MaybeApplied, Unavailable
from fs3.ids import NodeId
from fs3.kv.api import KVEngine, Limits, Transaction
from fs3.kv.etcd import EtcdKV
from fs3.kv.memory import MemoryKV
from fs3.mgmtd.placement_core import DiskSlot, Plan, plan_tables
from fs3.mgmtd.routing_core import publish
from fs3.mgmtd.stage_core import Change, Stage, batches, overlaid, pack, unpack
from fs3.mgmtd.store import MgmtdStore
from fs3.routing import Node, NodeKind, Routing, TargetState

SMALL = Limits(max_operations=24, max_transaction_bytes=1_600)


def plan_of(nodes: int, disks: int) -> Plan:
    return plan_tables([DiskSlot(NodeId(node), disk) for node in range(1, nodes + 1) for disk in range(disks)], 3, 1)


def node(node_id: NodeId) -> Node:
    return Node(node_id=node_id, kind=NodeKind.STORAGE, endpoints=(f"h:{node_id}",), generation=1)


def all_offline(routing: Routing, version: int) -> Routing:
    targets = {key: replace(target, state=TargetState.OFFLINE) for key, target in routing.targets.items()}
    return replace(routing, version=version, targets=targets)


def without_chains(routing: Routing, version: int) -> Routing:
    """A decision that removes."""
    return replace(routing, version=version, targets={}, chains={}, tables={})


class Stopping:
    """An engine of which the commit number `at`, counted from 0, is lost, or its answer is, and all that come later."""

    def __init__(self, kv: KVEngine, at: int, *, answer_only: bool) -> None:
        self.kv = kv
        self.left = at
        self.answer_only = answer_only

    @property
    def limits(self) -> Limits:
        return self.kv.limits

    def begin(self) -> Transaction:
        txn = self.kv.begin()
        commit = txn.commit

        async def stopping() -> None:
            self.left -= 1
            if self.left == -1 and self.answer_only:
                await commit()
                raise MaybeApplied("lost")
            if self.left < 0:
                raise Unavailable("gone")
            await commit()

        return Committing(txn, stopping)

    def watch(self, prefix: bytes) -> AsyncIterator[None]:
        return self.kv.watch(prefix)

    async def close(self) -> None:
        await self.kv.close()


class Committing:
    """A transaction with another commit."""

    def __init__(self, txn: Transaction, commit: object) -> None:
        self._txn = txn
        self.commit = commit

    def __getattr__(self, name: str) -> object:
        return getattr(self._txn, name)


async def begin(kv: KVEngine, plan: Plan) -> tuple[MgmtdStore, Routing]:
    """A store with `plan` published."""
    store = MgmtdStore(kv)
    empty = (await store.take_over()).routing
    first = replace(empty, version=1, nodes={target.node_id: node(target.node_id) for target in plan.targets})
    await store.save(empty, first)
    await store.save_plan(first, plan)
    assert (await store.load()).plan is not None
    second = publish(first, plan)
    await store.save(first, second)
    assert (await store.load()).routing == second
    return store, second


def test_what_was_saved_in_parts_is_what_is_loaded() -> None:
    async def run() -> None:
        kv = MemoryKV(SMALL)
        store, routing = await begin(kv, plan_of(6, 2))
        for step in (all_offline, without_chains):
            after = step(routing, routing.version + 1)
            await store.save(routing, after)
            assert (await MgmtdStore(kv).take_over()).routing == after, "from what lies under the keys"
            store, routing = MgmtdStore(kv), after
            await store.take_over()
        assert not await kv.begin().range(b"MGMT/staged/", b"MGMT/staged0", limit=1), "nothing is left behind"

    asyncio.run(run())


@pytest.mark.parametrize("answer_only", [False, True])
@pytest.mark.parametrize("step", [all_offline, without_chains])
def test_whoever_takes_over_finds_the_decision_whole_or_not_at_all(step: object, answer_only: bool) -> None:
    async def run() -> None:
        seen = set()
        for at in range(100):
            kv = MemoryKV(SMALL)
            stopping = Stopping(kv, 1 << 30, answer_only=answer_only)
            store, before = await begin(stopping, plan_of(6, 2))
            after = step(before, before.version + 1)  # type: ignore[operator]
            stopping.left = at
            try:
                await store.save(before, after)
            except Fs3Error:
                said = False
            else:
                said = True
            found = await check_next(kv, before, after)
            assert found == after or not said, "an acknowledged decision is there"
            seen.add((found == after, said))
            if stopping.left >= 0:
                break
        else:
            raise AssertionError("it never came to an end")
        assert at > 6 and seen >= {(False, False), (True, True)}, "it was stopped before and after the step"

    asyncio.run(run())


async def check_next(kv: KVEngine, before: Routing, after: Routing) -> Routing:
    """What the next mgmtd finds, which is whole; it goes on deciding, and so does the one after it."""
    store = MgmtdStore(kv)
    found = (await store.take_over()).routing
    assert found in (before, after)
    assert (await MgmtdStore(kv).take_over()).routing == found, "also from a stage that nobody has moved yet"
    await store.take_over()
    small = replace(found, version=found.version + 1, last_target_id=found.last_target_id + 1)
    await store.save(found, small)
    large = all_offline(replace(before, last_target_id=small.last_target_id), small.version + 1)
    await store.save(small, large)
    assert (await MgmtdStore(kv).take_over()).routing == large
    return found


def test_a_replaced_mgmtd_cannot_go_on_with_its_stage() -> None:
    async def run() -> None:
        kv = MemoryKV(SMALL)
        old, before = await begin(kv, plan_of(6, 2))
        new = MgmtdStore(kv)
        assert (await new.take_over()).routing == before
        with pytest.raises(Conflict, match="another mgmtd has taken over"):
            await old.save(before, all_offline(before, before.version + 1))
        assert (await new.load()).routing == before

    asyncio.run(run())


def test_after_a_lost_answer_what_is_stored_is_what_counts() -> None:
    async def run() -> None:
        kv = MemoryKV(SMALL)
        stopping = Stopping(kv, 1 << 30, answer_only=True)
        store, before = await begin(stopping, plan_of(6, 2))
        stopping.left = 0  # the first part of the stage arrives, and no answer
        with pytest.raises(MaybeApplied, match="lost"):
            await store.save(before, all_offline(before, before.version + 1))
        stopping.left = 1 << 30
        with pytest.raises(MaybeApplied, match="a commit arrived late"):
            await store.save(before, all_offline(before, before.version + 1))
        assert (await store.load()).routing == before
        await store.save(before, all_offline(before, before.version + 1))

    asyncio.run(run())


def test_hundreds_of_targets_within_what_etcd_allows(etcd: LocalEtcd) -> None:
    async def run() -> None:
        kv = EtcdKV(etcd.endpoints, f"test-{secrets.token_hex(4)}")
        assert kv.limits.max_operations == 128
        store, routing = await begin(kv, plan_of(20, 4))
        assert len(routing.targets) > 400
        for step in (all_offline, without_chains):
            after = step(routing, routing.version + 1)
            await store.save(routing, after)
            other = MgmtdStore(kv)
            assert (await other.take_over()).routing == after
            store, routing = other, after
        await kv.close()

    asyncio.run(run())


def test_parts() -> None:
    changes: list[Change] = [(b"a", b"x" * 10), (b"b", None), (b"c", b""), (b"d" * 300, b"y" * 70_000)]
    assert unpack(pack(changes)) == changes and unpack(b"") == []
    assert pack(changes[:3]).hex() == "00010000000a61" + "78" * 10 + "0001ffffffff62" + "00010000000063"
    for cut in range(1, len(pack(changes[:1]))):
        with pytest.raises(Corrupt):
            unpack(pack(changes[:1])[:cut])
    assert [len(batch) for batch in batches(changes, most=2, most_bytes=1 << 20)] == [2, 2]
    assert [len(batch) for batch in batches(changes, most=9, most_bytes=30)] == [2, 1, 1]
    assert overlaid({b"b": b"1", b"c": b"2"}, changes, b"") == [b"x" * 10, b"", b"y" * 70_000]
    assert overlaid({b"b": b"1"}, changes, b"c") == [b"1", b""]
    assert Stage.unpack(None) == Stage(0, 0) and Stage.unpack(Stage(7, 3).pack()) == Stage(7, 3)
    assert Stage(7, 3).pack().hex() == "000000000000000700000003"
