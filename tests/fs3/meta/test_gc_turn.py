"""One collector at a time: it keeps its turn while it works, hands it over at its end, and loses it when silent."""

from __future__ import annotations

import asyncio

from fs3.kv.memory import MemoryKV
from fs3.meta.gc_turn import LEASE_S, RENEW_S, CollectorTurn


def test_one_collects_until_it_ends_or_is_silent() -> None:
    async def run() -> None:
        kv = MemoryKV()
        first, second = CollectorTurn(kv, 1), CollectorTurn(kv, 2)
        now_s = 100.0
        for _ in range(40):  # it works for longer than the lease
            assert await first.ours(now_s)
            assert not await second.ours(now_s)
            now_s += 1.0
        await first.end()
        assert await second.ours(now_s)
        assert not await first.ours(now_s)
        silent_from_s = now_s
        while not await first.ours(now_s):  # the second one has died
            assert now_s < silent_from_s + LEASE_S + 1.0
            now_s += 1.0
        assert now_s >= silent_from_s + LEASE_S
        assert not await second.ours(now_s + RENEW_S), "one that was only asleep finds its turn gone"
        await second.end()
        assert not await second.ours(now_s + RENEW_S), "and ends nobody else's"
        await kv.close()

    asyncio.run(run())
