"""The nemesis: draws from the seed what goes wrong and when, and in the end heals everything.

Each seed has a few kinds of faults of its own and a pace, so that seeds differ in kind: rare pairs meet in some,
and none drowns in everything at once. A fault has a beginning and an end; several are in effect at a time. Nothing that
is done here breaks what the cluster promises: power may go everywhere, but a disk that is wiped or corrupted is one of
which other replicas have everything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sim_cluster import Cluster, SimMachine, SimMgmtd, SimStorage
from sim_identity import mistake
from sim_kernel import SimProcess, Simulation
from sim_late import Late
from sim_network import CONGESTED, Hung, Wire
from sim_operator import SimOperator
from sim_store import STORE

from fs3.ids import TargetId
from fs3.pb import admin_pb2
from fs3.routing import TargetState
from fs3.storage.blocks import name_of
from fs3.storage.metadata import FLAG_OS, PENDING, chunk_key, unpack_pending
from fs3.storage.reassembly_core import Frame
from fs3.transport.frame_core import Kind

_FORGOTTEN_S = 1.5  # after a session's end daemons have forgotten its results
T = TypeVar("T")
End = Callable[[], None]

KINDS = (
    "storage crash",
    "storage power loss",
    "storage stall",
    "all storages lose power",
    "mgmtd crash",
    "mgmtd stall",
    "meta crash",
    "meta stall",
    "client crash",
    "client stall",
    "partition",
    "one-way partition",
    "no way to the mgmtds",
    "no way to the store",
    "connections reset",
    "connections hang",
    "messages lost",
    "requests met twice",
    "slow network",
    "disk full",
    "disk slow",
    "disk fails",
    "bytes change on a disk",
    "lease clock jumps",
    "wall clock jumps",
    "operator drains a node",
    "operator drains a target",
    "operator takes a target offline",
    "operator replaces disks",
    "operator restarts all daemons",
    "storage stops",
    "mgmtd stops",
    "meta stops",
    "a disk is not mounted",
    "a storage daemon is started twice",
)
# They leave a disk without what it had: clients use no chain of one replica then.
NEED_WIPES = {"operator replaces disks", "a disk is not mounted", "a storage daemon is started twice"}
# Of two of one kind the second begins while the first is in effect. What has no duration counts for a while.
IMPOSSIBLE_PAIRS: dict[str, str] = {
    "messages lost + messages lost": "there is one rate for the whole network",
    "requests met twice + requests met twice": "there is one rate for the whole network",
    "all storages lose power + all storages lose power": "they have none until the first is over",
    "a disk is not mounted + bytes change on a disk": "two losses of one chunk, which may have only two replicas",
    "a storage daemon is started twice + bytes change on a disk": "as a disk that is not mounted",
}


class Nemesis:
    """`start` it once the cluster is ready; `done` when all is healed."""

    def __init__(self, sim: Simulation, cluster: Cluster) -> None:
        self.sim = sim
        self.cluster = cluster
        self.corrupted = False
        self._healed = False
        self.operator = SimOperator(cluster)
        self.operator.start()
        self.chance = sim.stream("faults")
        self._lease_s = cluster.shape.lease_s
        self._late = Late(sim, cluster, self.chance, self._lease_s)
        self._ends: dict[int, tuple[str, End]] = {}
        self._number = 0
        count = self.chance.choice([2, 3, 4, 6, 9, len(KINDS)])
        # Bytes that change come to nothing where others do not have them, or where they are no chunk's any more.
        kinds = {*self.chance.sample(KINDS, count), *self.chance.choice([(), (), ("bytes change on a disk",)])}
        self.kinds = sorted(kinds, key=KINDS.index)
        self.every_s = self._lease_s * self.chance.choice([0.3, 0.6, 1.0, 2.0])

    @property
    def done(self) -> bool:
        """Whether all is healed, and the operator has nothing left to do."""
        return self._healed and not self.operator.busy

    def start(self, for_s: float) -> None:
        """Have faults begin for so many virtual seconds from now; afterwards everything is healed."""
        self.sim.at(self.sim.now + for_s, self.heal)
        self._until_s = self.sim.now + for_s
        self._next()

    def heal(self) -> None:
        """End all that is in effect; from the hub. What the operator has begun he still brings to its end."""
        for number in list(self._ends):
            self._end(number)
        for storage in self.cluster.storages:
            for disk in storage.disks:
                disk.full, disk.slow = False, 1.0
                disk.fail_syncs = disk.fail_writes = disk.fail_reads = 0
        self.sim.note("the faults are over")
        self._healed = True

    def _next(self) -> None:
        self.sim.after(self.chance.expovariate(1.0 / self.every_s), self._strike)

    def _strike(self) -> None:
        if self.sim.now >= self._until_s:
            return
        for _ in range(4):
            kind = self.chance.choice(self.kinds)
            if getattr(self, "_" + kind.replace(" ", "_").replace("-", "_"))(kind):
                break
        self._next()

    # What faults are made of

    def _begin(self, kind: str, machine: SimMachine | None, end: End, lasts_s: float | None, **about: object) -> bool:
        """A fault is in effect for so long; None: until somebody ends it."""
        self._number += 1
        number = self._number
        self._ends[number] = (kind, end)
        where = machine.process if machine is not None else None
        said = "".join(f", {name} {value}" for name, value in about.items())
        self.sim.note(f"FAULT {kind}{'' if lasts_s is None else f' for {lasts_s:.3f} s'}{said}", where)
        self.sim.emit("fault", where, what=kind, lasts_s=lasts_s, **about)
        if lasts_s is not None:
            self.sim.after(lasts_s, lambda: self._end(number))
        return True

    def _operates(self, kind: str, machine: SimMachine | None, job: Callable[[], None]) -> bool:
        """What the operator does is in effect until he has done it, and a while longer."""
        self._begin(kind, machine, lambda: None, None)
        number, lasts_s = self._number, self._lasts()

        def done() -> None:
            self.sim.after(lasts_s, lambda: self._end(number))

        def work() -> None:
            job()
            self.operator.in_hub(done)

        self.operator.ask(work)
        return True

    def _end(self, number: int) -> None:
        if number in self._ends:
            kind, end = self._ends.pop(number)
            self.sim.note(f"healed: {kind}")
            end()
            self.sim.emit("heal", None, what=kind)

    def _lasts(self) -> float:
        """From a blink to several leases."""
        return self._lease_s * self.chance.choice([0.05, 0.2, 0.5, 1.0, 1.5, 3.0]) * self.chance.uniform(0.5, 1.5)

    def _one(self, machines: list[T]) -> T:
        return self.chance.choice(machines)

    def _crashes(self, kind: str, machine: SimMachine) -> bool:
        if not machine.alive:
            return False
        machine.kill()
        return self._begin(kind, machine, machine.start_again, self._lasts())

    def _stops(self, kind: str, machine: SimMachine) -> bool:
        """In order, however long that takes; it is started again then."""
        if not machine.alive or machine.stopping:
            return False
        machine.stop()
        return self._begin(kind, machine, partial(self._starts_once_ended, machine, machine.process), self._lasts())

    def _starts_once_ended(self, machine: SimMachine, process: SimProcess) -> None:
        if process.alive:
            process.at_end.append(lambda: self.sim.soon(machine.start_again))
        else:
            machine.start_again()

    def _stalls(self, kind: str, machine: SimMachine) -> bool:
        if not machine.alive:
            return False
        lasts_s = self._lasts()
        machine.process.pause(lasts_s)
        process = machine.process

        return self._begin(kind, machine, process.unpause, lasts_s)

    def _cuts(self, kind: str, machine: SimMachine, others: list[str], *, one_way: bool = False) -> bool:
        network = self.cluster.network
        pairs = [(machine.name, other) for other in others]
        if one_way and self.chance.random() < 0.5:
            pairs = [(other, name) for name, other in pairs]
        for pair in pairs:
            network.cut(*pair, one_way=one_way)

        def end() -> None:
            for pair in pairs:
                network.mend(*pair, one_way=one_way)

        return self._begin(kind, machine, end, self._lasts(), between=pairs)

    # The kinds

    def _storage_crash(self, kind: str) -> bool:
        return self._crashes(kind, self._one(self.cluster.storages))

    def _mgmtd_crash(self, kind: str) -> bool:
        return self._crashes(kind, self._mgmtd())

    def _meta_crash(self, kind: str) -> bool:
        return bool(self.cluster.metas) and self._crashes(kind, self._one(self.cluster.metas))

    def _storage_stops(self, kind: str) -> bool:
        return self._stops(kind, self._one(self.cluster.storages))

    def _mgmtd_stops(self, kind: str) -> bool:
        return self._stops(kind, self._mgmtd())

    def _meta_stops(self, kind: str) -> bool:
        return bool(self.cluster.metas) and self._stops(kind, self._one(self.cluster.metas))

    def _meta_stall(self, kind: str) -> bool:
        return bool(self.cluster.metas) and self._stalls(kind, self._one(self.cluster.metas))

    def _client_crash(self, kind: str) -> bool:
        return self._crashes(kind, self._one(self.cluster.clients))

    def _storage_stall(self, kind: str) -> bool:
        return self._stalls(kind, self._one(self.cluster.storages))

    def _mgmtd_stall(self, kind: str) -> bool:
        return self._stalls(kind, self._mgmtd())

    def _client_stall(self, kind: str) -> bool:
        return self._stalls(kind, self._one(self.cluster.clients))

    def _mgmtd(self) -> SimMgmtd:
        """Often the one that decides."""
        mgmtds = self.cluster.mgmtds
        deciding = [mgmtd for mgmtd in mgmtds if mgmtd.primary is not None]
        return self._one(deciding if deciding and self.chance.random() < 0.7 else mgmtds)

    def _storage_power_loss(self, kind: str) -> bool:
        storage = self._one(self.cluster.storages)
        if not storage.host.up:
            return False
        storage.lose_power()
        return self._begin(kind, storage, lambda: _powers_on(storage), self._lasts())

    def _all_storages_lose_power(self, kind: str) -> bool:
        lost = [storage for storage in self.cluster.storages if storage.host.up]

        lasts_s = self._lasts()
        over = False

        def lose() -> None:
            for storage in lost:
                if storage.host.up and not over:
                    storage.lose_power()
                    if self.chance.random() < 0.5:  # some are back before the others
                        self.sim.after(lasts_s * self.chance.random(), partial(_powers_on, storage))

        def end() -> None:
            nonlocal over
            over = True
            self.chance.shuffle(lost)
            for storage in lost:
                _powers_on(storage)

        if self.chance.random() < 0.4:
            self._with_changed_bytes(lose, self.sim.now + 0.5 * lasts_s)
        else:
            lose()
        return bool(lost) and self._begin(kind, None, end, lasts_s)

    def _partition(self, kind: str) -> bool:
        machine = self._one([*self.cluster.storages, *self.cluster.clients])
        return self._cuts(kind, machine, self._some_others(machine))

    def _one_way_partition(self, kind: str) -> bool:
        machine = self._one([*self.cluster.storages, *self.cluster.clients])
        return self._cuts(kind, machine, self._some_others(machine), one_way=True)

    def _some_others(self, machine: SimMachine) -> list[str]:
        others = [other.name for other in self.cluster.machines if other is not machine]
        return others if self.chance.random() < 0.3 else self.chance.sample(others, self.chance.randint(1, len(others)))

    def _no_way_to_the_mgmtds(self, kind: str) -> bool:
        if self.cluster.shape.session_s < 5 and self.chance.random() < 0.4:
            return self._hears_nobody(kind, self._one(self.cluster.clients))
        machine = self._one(self.cluster.storages + self.cluster.clients)  # type: ignore[operator]
        return self._cuts(kind, machine, [mgmtd.name for mgmtd in self.cluster.mgmtds])

    def _hears_nobody(self, kind: str, client: SimMachine) -> bool:
        """What it changes now is changed, and it is not told; when it is, its session is over, and forgotten."""
        network = self.cluster.network
        pairs = [(storage.name, client.name) for storage in self.cluster.storages]
        mgmtds = [(client.name, mgmtd.name) for mgmtd in self.cluster.mgmtds]
        for one_way, some in ((True, pairs), (False, mgmtds)):
            for pair in some:
                network.cut(*pair, one_way=one_way)

        def end() -> None:
            for one_way, some in ((True, pairs), (False, mgmtds)):
                for pair in some:
                    network.mend(*pair, one_way=one_way)

        lasts_s = self.cluster.shape.session_s + _FORGOTTEN_S + self._lease_s * self.chance.random()
        return self._begin(kind, client, end, lasts_s, between=[*mgmtds, *pairs])

    def _no_way_to_the_store(self, kind: str) -> bool:
        machine = self._one([self._mgmtd(), *self.cluster.metas])
        return self._cuts(kind, machine, [STORE], one_way=self.chance.random() < 0.5)

    def _connections_reset(self, kind: str) -> bool:
        wires = list(self.cluster.network.wires.values())
        if not wires:
            return False
        share = self.chance.choice([0.1, 0.5, 1.0])
        for wire in wires:
            if self.chance.random() < share:
                wire.reset()
        return self._begin(kind, None, lambda: None, self._lasts(), share=share)

    def _connections_hang(self, kind: str) -> bool:
        """One direction of one or two connections, often of a chain: what is on it arrives when the fault is over, late
        enough for whoever sent it to have given up, gone another way, and forgotten it; or, of some, soon after they
        have given up, when nothing else may have changed but that they have gone another way.

        Or whatever is sent next to replicas that are being filled hangs, now and then; or what will arrive when it does
        most harm (sim_late.py).
        """
        network = self.cluster.network
        lasts_s = self._lease_s * self.chance.choice([0.3, 1.0, 3.0, 6.0]) * self.chance.uniform(0.5, 1.5)
        if network.catch is None and (end_late := self._arrives_late()) is not None:
            return self._begin(kind, None, end_late, max(lasts_s, 3 * self._lease_s), until="it is too late")
        if network.catch is None and self.chance.random() < 0.5:
            hung = Hung(self.sim, self.chance, self._lease_s, soon=True)
            storages = {storage.name for storage in self.cluster.storages}

            def catch(wire: Wire, end: int, item: Any) -> None:
                inner = end == 0 and storages.issuperset(wire.names)
                writes = inner and isinstance(item, Frame) and item.header.kind == Kind.WRITE
                if writes and self.chance.random() < 0.3 and wire.names[1] in self._syncing():
                    hung.hang(wire, 0)

            def end_catching() -> None:
                network.catch = None
                hung.resume_all()

            network.catch = catch
            return self._begin(kind, None, end_catching, lasts_s, sent_by="whoever fills a replica")
        wires = list(network.wires.values())
        storages = {storage.name for storage in self.cluster.storages}
        syncing = self._syncing()
        inner = [wire for wire in wires if storages.issuperset(wire.names)]
        filling = [wire for wire in inner if wire.names[1] in syncing]
        for some, likely in ((filling, 0.7), (inner, 0.7)):
            if some and self.chance.random() < likely:
                wires = some
                break
        if not wires:
            return False
        end = int(self.chance.random() < 0.3)
        hung = Hung(self.sim, self.chance, self._lease_s, soon=self.chance.random() < 0.5)
        chosen = self.chance.sample(wires, min(len(wires), self.chance.choice([1, 1, 2, 4])))
        for wire in chosen:
            hung.hang(wire, end)
        sent_by = ("client", "server")[end]
        return self._begin(
            kind, None, hung.resume_all, lasts_s, between=[wire.names for wire in chosen], sent_by=sent_by
        )

    def _arrives_late(self) -> End | None:
        drawn = self.chance.random()
        if drawn < 0.25 and self.cluster.shape.tombstone_s <= 1.0:
            return self._late.updates()
        if 0.25 <= drawn < 0.5:
            return self._late.recovery(partial(self._crashes, "storage crash"))
        if 0.5 <= drawn < 0.75:
            return self._late.filling()
        if 0.75 <= drawn < 0.9:
            return self._late.attempts()
        if drawn >= 0.9 and self.cluster.shape.tombstone_s <= 1.0:
            return self._late.forgets()
        return None

    def _syncing(self) -> set[str]:
        """The storages of which a target is being filled."""
        targets = self.cluster.routing.targets.values()
        nodes = {target.node_id for target in targets if target.state is TargetState.SYNCING}
        return {storage.name for storage in self.cluster.storages if storage.node_id in nodes}

    def _messages_lost(self, kind: str) -> bool:
        network = self.cluster.network
        before, network.loss = network.loss, self.chance.choice([0.02, 0.1, 0.3])
        if before:
            network.loss = before
            return False
        return self._begin(kind, None, lambda: setattr(network, "loss", 0.0), self._lasts(), rate=network.loss)

    def _requests_met_twice(self, kind: str) -> bool:
        network = self.cluster.network
        if network.twice:
            return False
        network.twice = self.chance.choice([0.1, 0.5])
        return self._begin(kind, None, lambda: setattr(network, "twice", 0.0), self._lasts(), rate=network.twice)

    def _slow_network(self, kind: str) -> bool:
        machine, extra_s = self._one(self.cluster.machines), self.cluster.network.extra_s
        if machine.name in extra_s:
            return False
        extra_s[machine.name] = self.chance.choice([0.005, 0.05, 0.3])
        by_s = extra_s[machine.name]
        network = self.cluster.network
        network.congested = self.chance.choice([CONGESTED, 0.5])  # of all sockets

        def end() -> None:
            extra_s.pop(machine.name, None)
            network.congested = CONGESTED

        return self._begin(kind, machine, end, self._lasts(), by_s=by_s, congested=network.congested)

    def _disk_full(self, kind: str) -> bool:
        storage = self._one(self.cluster.storages)
        disk = self._one(storage.disks)
        if disk.full:
            return False
        disk.full = True
        return self._begin(kind, storage, lambda: setattr(disk, "full", False), self._lasts())

    def _disk_slow(self, kind: str) -> bool:
        storage = self._one(self.cluster.storages)
        disk = self._one(storage.disks)
        if disk.slow > 1:
            return False
        disk.slow = self.chance.choice([10.0, 100.0, 500.0])
        return self._begin(kind, storage, lambda: setattr(disk, "slow", 1.0), self._lasts(), factor=disk.slow)

    def _disk_fails(self, kind: str) -> bool:
        """An operation or two fail; the daemon may give the disk up, and is started again in the end."""
        storage = self._one(self.cluster.storages)
        disk = self._one(storage.disks)
        if not storage.alive:
            return False
        what = self.chance.choice(["fail_syncs", "fail_syncs", "fail_writes", "fail_reads"])
        setattr(disk, what, self.chance.choice([1, 2]))

        def end() -> None:
            disk.fail_syncs = disk.fail_writes = disk.fail_reads = 0
            self._restart(storage)

        return self._begin(kind, storage, end, self._lasts(), operation=what)

    def _restart(self, storage: SimStorage) -> None:
        """For its disk's sake; later, if it is stopped now."""
        if storage.alive and self._stopped(storage):
            self.sim.after(0.1 * self._lease_s, lambda: self._restart(storage))
            return
        if storage.alive:
            storage.kill("started again for its disk's sake")
        storage.start_again()

    def _bytes_change_on_a_disk(self, kind: str) -> bool:
        """On one disk in all the run, so that others have what it loses; and not while others lack it."""
        storage = self.cluster.storages[0]
        others = self.cluster.storages
        wiping = self.operator.busy and self.cluster.shape.wipes
        if not self._others_have_it(storage) or wiping or any(one.misplaced for one in others):
            return False
        if self.chance.random() < 0.5 and storage.daemon is not None:  # in a few chunks, and not just anywhere
            disk, engine = self._one(list(zip(storage.disks, storage.daemon.engines, strict=False)))
            where = _committed(engine)
            if not where or not [disk.corrupt(self.chance, where=where) for _ in range(self.chance.choice([1, 4]))]:
                return False
        else:
            disk, some = self._one(storage.disks), self.chance.choice([1, 4, 16])  # most bytes are no chunk's any more
            if not any([disk.corrupt(self.chance, sums=self.chance.random() < 0.3) for _ in range(some)]):
                return False
        self.corrupted = True
        lasts_s = self._lasts()
        self._pending_bytes_change(storage, self.sim.now + lasts_s)
        if self.cluster.network.catch is None and self.chance.random() < 0.5:
            return self._begin(kind, storage, self._late.good_bytes(storage), max(lasts_s, 3 * self._lease_s))
        return self._begin(kind, storage, lambda: None, lasts_s)

    def _with_changed_bytes(self, lose: Callable[[], None], until_s: float) -> None:
        """`lose` power as soon as bytes can change of a chunk that others have committed as well, but so that this is
        not synced, and will be pending there again; or at last without that."""
        storage = self.cluster.storages[0]
        wiping = self.operator.busy and self.cluster.shape.wipes
        stray = any(one.misplaced for one in self.cluster.storages)
        engines = storage.daemon.engines if storage.daemon is not None else ()
        if not wiping and not stray and self._others_have_it(storage):
            for disk, engine in zip(storage.disks, engines, strict=False):
                where = self._pending_elsewhere(engine)
                if where:
                    self.corrupted = disk.corrupt(self.chance, where=where) or self.corrupted
                    lose()
                    return
        if self.sim.now < until_s:
            self.sim.after(0.0005 * self._lease_s, lambda: self._with_changed_bytes(lose, until_s))
        else:
            lose()

    def _pending_elsewhere(self, engine: Any) -> list[tuple[str, int, int]]:
        """Where on its disk the bytes of such versions are."""
        routing, published = self.cluster.routing, engine._published
        stores = {one.node_id: [disk.store for disk in one.disks] for one in self.cluster.storages}
        where = []
        for target in sorted(set(engine.targets()) & set(routing.targets)):
            chain = routing.chains[routing.targets[TargetId(target)].chain_id]
            others = [routing.targets[one] for one in chain.targets if one != target]
            for hi, lo in sorted(published.index.keys_of(target)):
                entry = published.get((target, hi, lo))
                durable = [
                    raw
                    for one in others
                    if (raw := stores[one.node_id][one.disk].durable(chunk_key(PENDING, one.target_id, hi, lo)))
                ]
                versions = {one.version for one in map(unpack_pending, durable) if not one.flags & FLAG_OS}
                if entry.version in versions and entry.file > 0 and entry.length:
                    where.append((name_of(entry.file - 1), entry.position, entry.length))
        return where

    def _pending_bytes_change(self, storage: SimStorage, until_s: float) -> None:
        """Until then: now and then the bytes of a version that is pending, which few are at any one moment."""
        engines = storage.daemon.engines if storage.daemon is not None else ()
        for disk, engine in zip(storage.disks, engines, strict=False):
            where = _pending(engine)
            if where and self.chance.random() < 0.5 and self._others_have_it(storage):
                disk.corrupt(self.chance, where=where)
        if self.sim.now < until_s:
            self.sim.after(0.01 * self._lease_s, lambda: self._pending_bytes_change(storage, until_s))

    def _cut_off(self, storage: SimStorage) -> bool:
        """Whether somebody is out of reach from here: then what is pending may be pending nowhere else, and if it is
        not heard of again, the version before it is lost with it."""
        others = [one for one in self.cluster.storages if one is not storage]
        is_cut = self.cluster.network.is_cut
        return any(
            not one.alive or self._stopped(one) or is_cut(storage.name, one.name) or is_cut(one.name, storage.name)
            for one in others
        )

    def _others_have_it(self, storage: SimStorage) -> bool:
        if self._cut_off(storage):
            return False
        routing = self.cluster.routing
        for chain in routing.chains.values():
            targets = [routing.targets[target_id] for target_id in chain.targets]
            here = any(target.node_id == storage.node_id for target in targets)
            serving = [one for one in targets if one.state == TargetState.SERVING and one.node_id != storage.node_id]
            if here and chain.chain_id in self.cluster.chains and not serving:
                return False
        return True

    @staticmethod
    def _stopped(storage: SimStorage) -> bool:
        return storage.process.paused_until > storage.sim.now

    def _lease_clock_jumps(self, kind: str) -> bool:
        """Forward, as after a suspend that took no time. Not at the mgmtd that decides: it would take leases for
        over that are not, which no lease survives; a standby that jumps takes over too early, which must do no harm."""
        mgmtds = self.cluster.mgmtds  # one that is about to take over decides already
        standing_by = [one for one in mgmtds if one.primary is None and any(other.primary for other in mgmtds)]
        machine: SimMachine = self._one([*self.cluster.storages, *standing_by])
        by_s = self._lasts()
        machine.boot_s += by_s
        if machine.alive:
            machine.process.boot_s += by_s
        return self._begin(kind, machine, lambda: None, self._lasts(), by_s=round(by_s, 3))

    # The operator

    def _operator_drains_a_node(self, kind: str) -> bool:
        return self._drains(kind, admin_pb2.Place(node_id=self._one(self.cluster.storages).node_id))

    def _operator_drains_a_target(self, kind: str) -> bool:
        targets = sorted(self.cluster.routing.targets)
        if self.corrupted and self.chance.random() < 0.7:  # one whose replacement is filled from changed bytes, perhaps
            targets = self._beside_changed() or targets
        return self._drains(kind, admin_pb2.Place(target_id=self._one(targets)))

    def _beside_changed(self) -> list[TargetId]:
        """Targets of others in chains of three of which one is on the disks where bytes change."""
        routing, changed = self.cluster.routing, self.cluster.storages[0].node_id
        return sorted(
            target
            for chain in routing.chains.values()
            if len(chain.targets) > 2 and any(routing.targets[one].node_id == changed for one in chain.targets)
            for target in chain.targets
            if routing.targets[target].node_id != changed
        )

    def _drains(self, kind: str, place: admin_pb2.Place) -> bool:
        if self.operator.busy:
            return False
        self.operator.ask(lambda: self.operator.drain(place))
        end = lambda: self.operator.ask(lambda: self.operator.undrain(place))  # noqa: E731
        return self._begin(kind, None, end, 2 * self._lasts(), place=str(place).strip())

    def _operator_takes_a_target_offline(self, kind: str) -> bool:
        if self.operator.busy:
            return False
        target = self._one(sorted(self.cluster.routing.targets))
        self.operator.ask(lambda: self.operator.offline(target))
        end = lambda: self.operator.ask(lambda: self.operator.online(target))  # noqa: E731
        return self._begin(kind, None, end, self._lasts(), target=target)

    def _operator_replaces_disks(self, kind: str) -> bool:
        storage = self._one(self.cluster.storages)
        if self.operator.busy or not self.cluster.shape.wipes or storage.held or storage.misplaced or self.corrupted:
            return False  # where bytes have changed on another disk, this one may be the last that has them

        def replace() -> None:
            self.operator.replace_disk(storage, 6 * self._lease_s)
            self.operator.in_hub(lambda: self.sim.after(0.01 * self._lease_s, self._change_bytes_now))

        return self._operates(kind, storage, replace)

    def _change_bytes_now(self) -> None:
        """Just after a disk was filled again, which by lot alone hardly ever happens."""
        kind = "bytes change on a disk"
        if kind in self.kinds and self.sim.now < self._until_s:
            self._bytes_change_on_a_disk(kind)

    def _a_disk_is_not_mounted(self, kind: str) -> bool:
        return self._mistakes(kind)

    def _a_storage_daemon_is_started_twice(self, kind: str) -> bool:
        return self._mistakes(kind)

    def _mistakes(self, kind: str) -> bool:
        """Somebody makes a mistake with a node; the operator notices later, and puts it right."""
        storage = self._one(self.cluster.storages)
        if not self.cluster.shape.wipes or self.corrupted or storage.misplaced or storage.held or not storage.host.up:
            return False
        made = mistake(kind, self.cluster, storage, careless=self.chance.random() < 0.5)
        made.begin()
        end = lambda: self.operator.ask(lambda: made.put_right(self.operator, 6 * self._lease_s))  # noqa: E731
        return self._begin(kind, storage, end, 2 * self._lasts())

    def _operator_restarts_all_daemons(self, kind: str) -> bool:
        if self.operator.busy:
            return False
        return self._operates(kind, None, lambda: self.operator.restart_all(6 * self._lease_s))

    def _wall_clock_jumps(self, kind: str) -> bool:
        if self.chance.random() < 0.5:
            return self._boots_with_an_older_clock(kind, self._one(self.cluster.storages))
        machine = self._one(self.cluster.machines)
        by_s = self.chance.choice([-3_600.0, -5.0, -0.5, 0.5, 5.0, 86_400.0])
        self._set_wall_clock(machine, by_s)
        return self._begin(kind, machine, lambda: None, self._lasts(), by_s=by_s)

    def _boots_with_an_older_clock(self, kind: str, storage: SimStorage) -> bool:
        """So that a run of its daemon seems older than the one before it, of which heartbeats still arrive; often once
        more before that run has had its turn, of which heartbeats arrive then when the last one may have had its own.
        """
        if not storage.alive or storage.misplaced or storage.held:
            return False
        self._requests_met_twice("requests met twice")
        by_s = self.chance.choice([-3_600.0, -60.0])
        kept = self.cluster.network.kept

        over = False

        def boots() -> None:
            if not over and storage.alive and not self._stopped(storage):
                self._set_wall_clock(storage, by_s)
                storage.kill("its machine boots, with another clock")

        def end() -> None:
            nonlocal over
            over = True
            storage.start_again()
            for late in kept.pop(storage.name, ()):
                self.sim.after(self._lease_s * self.chance.uniform(0.0, 2.0), late)
            if self.sim.now < self._until_s and self.chance.random() < 0.5:
                kept[storage.name] = []
                if not self._boots_with_an_older_clock(kind, storage):
                    del kept[storage.name]

        self.sim.after(self._lease_s * self.chance.uniform(0.2, 0.6), boots)
        return self._begin(kind, storage, end, self._lease_s * self.chance.uniform(0.7, 0.9), by_s=by_s)

    def _set_wall_clock(self, machine: SimMachine, by_s: float) -> None:
        machine.wall_s += by_s
        if machine.alive:
            machine.process.wall_s += by_s


def _pending(engine: Any) -> list[tuple[str, int, int]]:
    """Where on its disk the bytes of pending versions are."""
    return [
        (name_of(version.file), engine._files[version.file].position(version.slot), version.length)
        for version in engine._published.pending.values()
        if version.file >= 0
    ]


def _committed(engine: Any) -> list[tuple[str, int, int]]:
    """Where on its disk the bytes of committed versions are."""
    published = engine._published
    entries = [
        published.get((target, *chunk))
        for target in sorted(engine.targets())
        for chunk in sorted(published.index.keys_of(target))
    ]
    return [
        (name_of(entry.file - 1), entry.position, entry.length) for entry in entries if entry.file > 0 and entry.length
    ]


def _powers_on(storage: SimStorage) -> None:
    if not storage.host.up:
        storage.power_on()
        storage.start_again()
