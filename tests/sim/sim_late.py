"""What hangs on its way until it does most harm: frames that arrive just when what they were sent for is over.

Each method has `Network.catch` look at what is sent, holds some of it back, and lets it go when the moment has come, or
when the fault ends, which is what it returns. By lot alone such moments hardly ever come.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sim_cluster import Cluster, SimStorage
from sim_kernel import Simulation
from sim_network import Hung, Wire

from fs3.ids import ChainId, TargetId
from fs3.routing import TargetState
from fs3.storage.reassembly_core import Frame
from fs3.storage.write_locks import Key
from fs3.transport.frame_core import Kind
from fs3.transport.messages import RANGE, UPDATE, Op, Records, UpdateFlag

End = Callable[[], None]
_MOST = 3  # wires that hang at a time


class Late:
    """`lease_s` is what times are counted in."""

    def __init__(self, sim: Simulation, cluster: Cluster, chance: random.Random, lease_s: float) -> None:
        self._sim = sim
        self._cluster = cluster
        self._chance = chance
        self._lease_s = lease_s

    def updates(self) -> End:
        """An update on its way down a chain, until its chunk was removed and that was forgotten, under the same version
        of the chain; what is behind it on its wire hangs as well, and others take another one."""
        carried: dict[int, Records] = {}  # by wire
        there: set[Key] = set()  # what has been seen to exist, so that it can have been forgotten

        def catch(wire: Wire, end: int, item: Any) -> None:
            records = self._frame_of(wire, end, item, Kind.WRITE, UPDATE)
            if records is None:
                return
            removes = bool((records["op"] == Op.REMOVE).any())  # then it is forgotten soon, if nobody writes it again
            if self._takes(carried, wire, 0.5 if removes else 0.05):
                carried[wire.number] = records
                hung.hang(wire, 0)

        def forgotten(wire: Wire) -> bool:
            routing, storage = self._cluster.routing, self._storage(wire.names[1])
            for record in carried[wire.number]:
                key = self._key(storage, record)
                if key is None:
                    continue
                if self._version(storage, key):
                    there.add(key)
                elif key in there and routing.chain(ChainId(int(record["chain"]))).version == record["chain_version"]:
                    return True
            return False

        hung = Hung(self._sim, self._chance, self._lease_s, soon=True, when=forgotten)
        return self._catching(catch, hung)

    def attempts(self) -> End:
        """Updates on their way from a client that finds the connection broken: a little later, when it has sent them
        again under the same numbers, and perhaps others after them."""
        carried: dict[int, Frame] = {}

        def catch(wire: Wire, end: int, item: Any) -> None:
            servers = {storage.name for storage in self._cluster.storages}
            if end or wire.names[0] in servers or not isinstance(item, Frame) or item.header.kind != Kind.WRITE:
                return
            if self._takes(carried, wire, 0.2):
                carried[wire.number] = item
                hung.hang(wire, 0)
                self._breaks_soon(wire)

        hung = Hung(self._sim, self._chance, self._lease_s, soon=True)
        return self._catching(catch, hung)

    def recovery(self, crash: Callable[[SimStorage], object]) -> End:
        """Chunks for a replica that is being filled, which are locked meanwhile; until the chain has changed, for its
        head is made to `crash`, of which updates wait for these chunks then. Another one does so now, to be filled."""
        carried: dict[int, Records] = {}

        def catch(wire: Wire, end: int, item: Any) -> None:
            records = self._frame_of(wire, end, item, Kind.WRITE, UPDATE)
            if records is None or not len(records) or (records["flags"] & UpdateFlag.SYNC_RESULT).any():
                return
            recovers = not records["client"].any() and bool((records["flags"] & UpdateFlag.SYNC_REPLACE).any())
            head = self._head(int(records["chain"][0])) if recovers else None
            if head is not None and head.name not in wire.names and self._takes(carried, wire, 1.0):
                carried[wire.number] = records[:1]
                hung.hang(wire, 0)
                self._sim.after(self._lease_s * self._chance.uniform(0.1, 0.4), partial(crashes, head))

        def crashes(head: SimStorage) -> None:
            if self._cluster.network.catch is catch:
                crash(head)

        def changed(wire: Wire) -> bool:
            record = carried[wire.number][0]
            return bool(self._cluster.routing.chain(ChainId(int(record["chain"]))).version != record["chain_version"])

        hung = Hung(self._sim, self._chance, self._lease_s, soon=True, when=changed)
        crash(self._chance.choice(self._cluster.storages))
        return self._catching(catch, hung)

    def filling(self) -> End:
        """A chunk for a replica that is being filled, whose sender soon finds the connection broken and goes another
        way; until the replica has a newer version of it, or the chain has changed."""
        carried: dict[int, Records] = {}

        def catch(wire: Wire, end: int, item: Any) -> None:
            records = self._frame_of(wire, end, item, Kind.WRITE, UPDATE)
            if records is None or not len(records) or (records["flags"] & UpdateFlag.SYNC_RESULT).any():
                return
            fills = bool((records["flags"] & UpdateFlag.SYNC_REPLACE).any())
            if fills and self._takes(carried, wire, 0.6):
                carried[wire.number] = records
                hung.hang(wire, 0)
                self._breaks_soon(wire)

        def passed_by(wire: Wire) -> bool:
            routing, storage = self._cluster.routing, self._storage(wire.names[1])
            for record in carried[wire.number]:
                if routing.chain(ChainId(int(record["chain"]))).version != record["chain_version"]:
                    return True
                key = self._key(storage, record)
                if key is not None and self._version(storage, key) > int(record["version"]):
                    return True
            return False

        hung = Hung(self._sim, self._chance, self._lease_s, soon=True, when=passed_by)
        return self._catching(catch, hung)

    def forgets(self) -> End:
        """The answers to FORGETs, whose senders soon find the connection broken: who was asked has forgotten a removal,
        and who asked keeps its tombstone, for as long as the chain's version stays, with what clients make of it."""
        asked: dict[int, Records] = {}

        def catch(wire: Wire, end: int, item: Any) -> None:
            records = self._frame_of(wire, end, item, Kind.WRITE, UPDATE)
            if records is None or not (records["op"] == Op.FORGET).any():
                return
            if self._takes(asked, wire, 0.7):
                asked[wire.number] = records
                hung.hang(wire, 1)
                self._breaks_soon(wire)

        hung = Hung(self._sim, self._chance, self._lease_s, soon=True, when=lambda wire: not wire.open[0])
        return self._catching(catch, hung)

    def good_bytes(self, asking: SimStorage) -> End:
        """What a daemon asks others for to repair a chunk; until the chunk has another version, or for a while."""
        asked: dict[int, list[tuple[Key, int]]] = {}
        until_s: dict[int, float] = {}

        def catch(wire: Wire, end: int, item: Any) -> None:
            records = self._frame_of(wire, end, item, Kind.READ, RANGE)
            if records is not None and wire.names[0] == asking.name and self._takes(asked, wire, 0.7):
                keys = [key for record in records if (key := self._key(asking, record)) is not None]
                asked[wire.number] = [(key, self._version(asking, key)) for key in keys]
                until_s[wire.number] = self._sim.now + self._lease_s
                hung.hang(wire, 1)

        def passed_by(wire: Wire) -> bool:
            other = any(self._version(asking, key) != version for key, version in asked[wire.number])
            return other or self._sim.now >= until_s[wire.number]

        hung = Hung(self._sim, self._chance, self._lease_s, soon=True, when=passed_by)
        return self._catching(catch, hung)

    def _catching(self, catch: Callable[[Wire, int, Any], None], hung: Hung) -> End:
        network = self._cluster.network
        assert network.catch is None, "one at a time"
        network.catch = catch

        def end() -> None:
            network.catch = None
            hung.resume_all()

        return end

    def _breaks_soon(self, wire: Wire) -> None:
        """As who sends on it sees it; what was sent, and what comes back, goes on."""
        soon_s = self._lease_s * self._chance.uniform(0.005, 0.05)
        self._sim.after(soon_s, lambda: wire.tell(0, "broken, as its sender sees it"))

    def _takes(self, held: dict[int, Any], wire: Wire, likely: float) -> bool:
        return wire.number not in held and len(held) < _MOST and self._chance.random() < likely

    def _frame_of(self, wire: Wire, end: int, item: Any, kind: Kind, dtype: Any) -> Records | None:
        """The records of a request of this kind from one storage daemon to another."""
        storages = {storage.name for storage in self._cluster.storages}
        if end or not storages.issuperset(wire.names) or not isinstance(item, Frame) or item.header.kind != kind:
            return None
        return np.frombuffer(item.head, dtype=dtype, count=item.header.count)

    def _storage(self, name: str) -> SimStorage:
        return next(storage for storage in self._cluster.storages if storage.name == name)

    def _key(self, storage: SimStorage, record: Any) -> Key | None:
        """Of a chunk, as a daemon has it that has a target in its chain."""
        routing = self._cluster.routing
        chain = routing.chains.get(ChainId(int(record["chain"])))
        for target in chain.targets if chain is not None else ():
            if routing.targets[target].node_id == storage.node_id:
                return int(target), int(record["hi"]), int(record["lo"])
        return None

    def _version(self, storage: SimStorage, key: Key) -> int:
        """The committed version of a chunk; -1 while its daemon is not up."""
        target = self._cluster.routing.targets.get(TargetId(key[0]))
        if storage.daemon is None or target is None or target.disk >= len(storage.daemon.engines):
            return -1
        engine = storage.daemon.engines[target.disk]
        return engine.info(*key).version if key[0] in engine.targets() else -1

    def _head(self, chain_id: int) -> SimStorage | None:
        routing = self._cluster.routing
        chain = routing.chains.get(ChainId(chain_id))
        first = routing.targets[chain.targets[0]] if chain is not None else None
        if first is None or first.state != TargetState.SERVING:
            return None
        return next((storage for storage in self._cluster.storages if storage.node_id == first.node_id), None)
