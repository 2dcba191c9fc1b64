"""The key-value store that simulated mgmtds and metas share: the production MemoryKV behind a link that loses things.

A request that is lost changed nothing (Unavailable); an answer that is lost may hide a commit (MaybeApplied); a store
that cannot be reached answers nobody for a while. The truth itself never fails.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

from sim_kernel import SimProcess
from sim_network import Network

from fs3.errors import MaybeApplied, Unavailable
from fs3.kv.api import Limits, Transaction
from fs3.kv.memory import MemoryKV

STORE = "kv"  # the machine that the store is on
_PATIENCE_S = 2.0


class Truth:
    """The store. `committed(process)` is called after every commit, before anybody hears of it."""

    def __init__(self) -> None:
        self.kv = MemoryKV()
        self.committed: Callable[[SimProcess], None] = lambda process: None


class LinkedKV:
    """A `KVEngine` of one process: the shared store as seen over the network."""

    def __init__(self, truth: Truth, network: Network, process: SimProcess, machine: str) -> None:
        self._truth = truth
        self._network = network
        self.process = process
        self._machine = machine
        self._random: random.Random = network.sim.stream(f"kv/{process.number}")

    @property
    def limits(self) -> Limits:
        return self._truth.kv.limits

    def begin(self) -> _Transaction:
        return _Transaction(self, self._truth.kv.begin())

    def watch(self, prefix: bytes) -> AsyncIterator[None]:
        return self._truth.kv.watch(prefix)

    async def close(self) -> None:
        """The store goes on for the others."""

    async def cross(self, *, back: bool = False) -> bool:
        """One message to the store, or `back`; False if it was lost, after the time that this takes to notice."""
        ends = (STORE, self._machine) if back else (self._machine, STORE)
        network = self._network
        lost = bool(network.loss) and self._random.random() < network.loss / 4
        if lost or network.is_cut(*ends):
            await asyncio.sleep(_PATIENCE_S * self._random.random())
            if lost or network.is_cut(*ends):
                network.sim.emit("kv", self.process, what="lost answer" if back else "lost request")
                return False
        await asyncio.sleep(network.delay(*ends))
        return True

    async def commit(self, txn: Transaction) -> None:
        if not await self.cross():
            raise Unavailable("the key-value store does not answer")
        await txn.commit()
        self._truth.committed(self.process)
        if not await self.cross(back=True):
            raise MaybeApplied("the key-value store did not answer a commit")

    async def reach(self) -> None:
        """A question and its answer. Raises: Unavailable."""
        network = self._network
        if network.loss or network.is_cut(self._machine, STORE) or network.is_cut(STORE, self._machine):
            if not await self.cross() or not await self.cross(back=True):
                raise Unavailable("the key-value store does not answer")
            return
        await asyncio.sleep(network.delay(self._machine, STORE) + network.delay(STORE, self._machine))


class _Transaction:
    """One transaction; only what goes to the store takes time."""

    def __init__(self, link: LinkedKV, txn: Any) -> None:
        self._link = link
        self._txn = txn

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        await self._link.reach()
        value: bytes | None = await self._txn.get(key, snapshot=snapshot)
        return value

    async def range(
        self, begin: bytes, end: bytes, *, limit: int, reverse: bool = False, snapshot: bool = False
    ) -> list[tuple[bytes, bytes]]:
        await self._link.reach()
        pairs: list[tuple[bytes, bytes]] = await self._txn.range(
            begin, end, limit=limit, reverse=reverse, snapshot=snapshot
        )
        return pairs

    async def commit(self) -> None:
        await self._link.commit(self._txn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)  # what only changes the transaction itself
