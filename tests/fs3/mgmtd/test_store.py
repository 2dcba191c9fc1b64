"""The store: what was saved is what is loaded, also by pieces; a replaced mgmtd cannot write; a plan is not routing."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fs3.errors import Conflict
from fs3.ids import NodeId, TargetId
from fs3.kv.memory import MemoryKV
from fs3.mgmtd.placement_core import DiskSlot, plan_tables
from fs3.mgmtd.routing_core import publish
from fs3.mgmtd.store import MgmtdStore
from fs3.routing import Node, NodeKind, TargetState

PLAN = plan_tables([DiskSlot(NodeId(node), 0) for node in (1, 2, 3)], 2, 1)
NODES = {
    NodeId(node): Node(node_id=NodeId(node), kind=NodeKind.STORAGE, endpoints=(f"h:{node}",), generation=node)
    for node in (1, 2, 3)
}


def test_saved_is_loaded() -> None:
    async def run() -> None:
        kv = MemoryKV()
        store = MgmtdStore(kv)
        loaded = await store.take_over()
        assert loaded.epoch == 1 and loaded.plan is None and loaded.routing.version == 0
        assert len(loaded.routing.cluster_id) == 16
        first = replace(loaded.routing, version=1, nodes=NODES)
        await store.save(loaded.routing, first)
        await store.save_plan(first, PLAN)

        again = await MgmtdStore(kv).take_over()
        assert again.epoch == 2 and again.routing == first
        assert again.plan is not None and set(again.plan.targets) == set(PLAN.targets)
        assert again.plan.chains == PLAN.chains and again.plan.tables == PLAN.tables

        store = MgmtdStore(kv)
        await store.take_over()
        second = publish(first, PLAN)
        await store.save(first, second)
        one = replace(second.targets[TargetId(1)], state=TargetState.OFFLINE)
        third = replace(second, version=3, targets={**second.targets, TargetId(1): one})
        await store.save(second, third)
        last = await MgmtdStore(kv).take_over()
        assert last.plan is None and last.routing == third

    asyncio.run(run())


def test_a_replaced_mgmtd_cannot_write() -> None:
    async def run() -> None:
        kv = MemoryKV()
        old = MgmtdStore(kv)
        loaded = await old.take_over()
        new = MgmtdStore(kv)
        await new.take_over()
        with pytest.raises(Conflict, match="another mgmtd has taken over"):
            await old.save(loaded.routing, replace(loaded.routing, version=1, nodes=NODES))
        with pytest.raises(Conflict, match="another mgmtd has taken over"):
            await old.save_plan(loaded.routing, PLAN)
        assert (await new.take_over()).routing == loaded.routing

    asyncio.run(run())
