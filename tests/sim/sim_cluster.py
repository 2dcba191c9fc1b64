"""A cluster of simulated machines that run production classes: mgmtds, storage daemons, clients.

    mgmtd-1..     Election, Primary, MgmtdService on the shared store (sim_store.py)
    storage-1..   StorageDaemon (engines, write and read path, Service, NodeAgent) on simulated disks
    client-1..    MgmtdClient, StorageClient

Each machine starts its process again after a crash when it is told to. What is asked of the whole cluster (is it well?)
is asked here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sim_connection import SimConnector, SimIo
from sim_control import SimCalls, SimChannel, serve_control
from sim_disk import SimDisk
from sim_kernel import SimProcess, Simulation, Violation
from sim_network import Network
from sim_store import LinkedKV, Truth
from sim_threads import SimRuntime, SimThread

from fs3.client import mgmtd as mgmtd_module
from fs3.client.control import ControlService
from fs3.client.hedge_core import HedgePolicy
from fs3.client.meta import MetaClient
from fs3.client.mgmtd import MgmtdClient
from fs3.client.storage import StorageClient
from fs3.errors import Fs3Error
from fs3.ids import NodeId
from fs3.mgmtd.admin import AdminService
from fs3.mgmtd.config import MgmtdConfig
from fs3.mgmtd.election import Election
from fs3.mgmtd.primary import Primary
from fs3.mgmtd.service import MgmtdService
from fs3.mgmtd.store import MgmtdStore
from fs3.routing import Node, NodeKind, Routing, TargetState
from fs3.storage.config import StorageConfig
from fs3.storage.daemon import StorageDaemon, begin_run
from fs3.storage.engine import Engine
from fs3.storage.engine_api import EngineConfig
from fs3.transport.credentials import Credentials

CLUSTER_ID = "5afe5afe5afe5afe"
_RESTART_S = 1.0  # what a supervisor waits before it starts a daemon again that ended by itself
_STILL_S = 0.5
_GRACE_S = 0.3  # fs3/mgmtd/server.py: for calls that are being answered when a mgmtd stops
_HEDGING = HedgePolicy(floor_s=0.001, unknown_s=0.003, share=0.5)  # far more often than in production
_DRAIN_S = 2.0  # fs3/storage/server.py: for replies that wait to be sent when a storage daemon stops
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large a cluster is, and how it is set up."""

    mgmtds: int = 2
    metas: int = 0
    storages: int = 3
    replicas: int = 3
    clients: int = 2
    disks: int = 1
    chains_per_disk: int = 1
    lease_s: float = 2.0
    session_s: float = 10.0
    tombstone_s: float = 600.0
    stall_s: float = 0.6
    drift: float = 0.0005  # clocks go wrong by at most so much
    wipes: bool = False  # disks may be replaced by empty ones: clients use no chain of one replica
    capacity_bytes: int = 64 << 20
    piece_bytes: int = 4 << 10  # of chunks whose bytes go ahead of their updates, if they have two such pieces
    recovery_bytes_s: int = 1 << 30  # little: a replica is SYNCING for long, and meets more updates meanwhile

    @property
    def write_session_s(self) -> float:
        """After which a meta collects a file that was not published, unless its session is renewed."""
        return 10 * self.lease_s

    @classmethod
    def drawn(cls, chance: random.Random) -> Shape:
        """A shape for one seed."""
        storages = chance.choice([3, 3, 4, 5, 6])
        return cls(
            mgmtds=chance.choice([1, 2, 2, 3]),
            metas=chance.choice([0, 0, 0, 1, 2]),
            storages=storages,
            replicas=chance.choice([2, 3, 3]),
            clients=chance.choice([2, 3]),
            lease_s=chance.choice([1.0, 2.0]),
            wipes=chance.random() < 0.65,
            session_s=chance.choice([1.5, 3.0, 10.0]),
            tombstone_s=chance.choice([0.3, 0.5, 1.0, 600.0]),
            recovery_bytes_s=chance.choice([1 << 30, 1 << 30, 200_000, 50_000]),
            piece_bytes=chance.choice([4 << 10, 16 << 10, 32 << 10, 1 << 20]),
        )


class Cluster:
    """See the module. Everything is made by `start`."""

    def __init__(self, sim: Simulation, shape: Shape | None = None) -> None:
        self.sim = sim
        self.shape = shape or Shape()
        self.network = Network(sim)
        self.truth = Truth()
        self.truth.committed = self._committed
        self.names = Truth()  # the metas'
        self.routing = Routing()
        self.twins: list[SimStorage] = []  # daemons that should not be there (sim_identity.py)
        self.chance = sim.stream("cluster")
        count = self.shape.mgmtds
        self.mgmtds = [SimMgmtd(self, number) for number in range(1, count + 1)]
        self.storages = [SimStorage(self, number) for number in range(1, self.shape.storages + 1)]
        self.clients = [SimClient(self, number) for number in range(1, self.shape.clients + 1)]
        from sim_meta import SimMeta  # which needs what is defined here

        self.metas = [SimMeta(self, number) for number in range(1, self.shape.metas + 1)]
        self._world = SimProcess(sim, "world")
        txn = self.truth.kv.begin()
        txn.put(b"MGMT/cluster", CLUSTER_ID.encode())
        _now(txn.commit())

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of the mgmtds."""
        return tuple(mgmtd.address for mgmtd in self.mgmtds)

    @property
    def chains(self) -> list[int]:
        """The chains that clients may use."""
        least = 2 if self.shape.wipes else 1
        return sorted(chain.chain_id for chain in self.routing.chains.values() if chain.replicas >= least)

    @property
    def machines(self) -> list[SimMachine]:
        return [*self.mgmtds, *self.storages, *self.metas, *self.clients]

    def start(self) -> None:
        """Start every process."""
        for machine in self.machines:
            machine.start()

    def wait_ready(self, within_s: float = 60.0) -> None:
        """Until chain tables are published and every client is connected. Raises: Violation."""
        self.run_until(
            lambda: self.routing.ready and all(client.storage is not None for client in self.clients),
            within_s=within_s,
            what="a cluster that is ready",
        )

    def run_until(self, stop: Callable[[], bool], *, within_s: float, what: str = "what was waited for") -> None:
        """As `Simulation.run_until`."""
        self.sim.run_until(stop, within_s=within_s, what=what)

    def settle(self, within_s: float = 60.0) -> None:
        """Until every chain serves with all its targets and no daemon has work left. Raises: Violation."""
        end_s = self.sim.now + within_s
        self.sim.run(self.sim.now + _STILL_S)  # what is on its way arrives
        while not self.well():
            if self.sim.now >= end_s:
                raise Violation(f"the cluster is not well after {within_s:g} virtual seconds:\n{self.ailing()}")
            self.sim.run(self.sim.now + 0.1)

    def scrub(self, within_s: float = 60.0) -> None:
        """Have every storage daemon verify all that it has, and wait until it has. Raises: Violation."""
        end_s = self.sim.now + within_s
        daemons = [storage.daemon for storage in self.storages if storage.daemon is not None]
        for daemon in daemons:
            self.peek(partial(daemon.scrub, True))
        scrubbers = [scrubber for daemon in daemons for scrubber in daemon.scrubbers]
        while any(one.running for scrubber in scrubbers for one in self.peek(scrubber.progress).values()):
            if self.sim.now >= end_s:
                raise Violation(f"a scrub does not end within {within_s:g} virtual seconds\n{self.sim.stuck()}")
            self.sim.run(self.sim.now + 0.1)

    def damaged(self) -> list[tuple[str, tuple[int, int, int]]]:
        """The chunks that are known to be damaged: machine, and (target, hi, lo)."""
        return [
            (storage.name, key)
            for storage in self.storages
            if storage.daemon is not None
            for engine in storage.daemon.engines
            for key in engine.damaged()
        ]

    def well(self) -> bool:
        """Whether every chain serves with all its targets, all daemons know it, and none has work left."""
        return self.routing.ready and not self.ailing()

    def ailing(self) -> str:
        """What is not as it should be, a line each."""
        lines = [f"{machine.name} is not up" for machine in self.machines if not machine.alive]
        lines += [f"{machine.name} does not end" for machine in self.machines if machine.alive and machine.stopping]
        if self.primary is None:
            lines.append("no mgmtd decides")
        for chain in self.routing.chains.values():
            states = [self.routing.targets[target].state for target in chain.targets]
            if any(state != TargetState.SERVING for state in states):
                names = ", ".join(f"{target} {state.name}" for target, state in zip(chain.targets, states, strict=True))
                lines.append(f"chain {chain.chain_id} v{chain.version}: {names}")
        for storage in self.storages:
            daemon = storage.daemon
            if daemon is None or daemon.agent is None:
                continue
            if daemon.agent.routing.version != self.routing.version:
                lines.append(f"{storage.name} knows routing {daemon.agent.routing.version}, not {self.routing.version}")
            elif not self.peek(daemon.writes.idle) and not any(engine.damaged() for engine in daemon.engines):
                lines.append(f"{storage.name} has upkeep to do")
        return "\n".join(lines)

    @property
    def primary(self) -> Primary | None:
        """Of the mgmtd that decides, as it believes itself."""
        return next((mgmtd.primary for mgmtd in self.mgmtds if mgmtd.primary is not None), None)

    def peek(self, look: Callable[[], T]) -> T:
        """The result of `look`, which may take locks of production code: it runs as a thread of no machine."""
        found: list[T] = []
        thread = SimThread(self._world, lambda: found.append(look()), "peek")
        self.sim.run(stop=lambda: not thread.is_alive())
        return found[0]

    def _committed(self, process: SimProcess) -> None:
        """A transaction was committed: is there a newer routing?"""
        txn = self.truth.kv.begin()
        raw = _now(txn.get(b"MGMT/version"))
        version = int.from_bytes(raw, "big") if raw else 0
        if version != self.routing.version:
            loaded, _ = _now(MgmtdStore(self.truth.kv)._load(txn, 0, CLUSTER_ID))
            before, self.routing = self.routing, loaded.routing
            self.sim.emit("routing", process, before=before, after=self.routing)


class SimMachine:
    """One machine with one daemon or client; `incarnation` counts its processes."""

    kind = "machine"

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.sim = cluster.sim
        self.number = number
        self.name = f"{self.kind}-{number}"
        self.host = cluster.network.machine(self.name)
        self.held = False  # the operator does not want its process to run
        self.stop_asked = asyncio.Event()
        self.incarnation = 0
        self.process: SimProcess
        self.runtime: SimRuntime
        shape, chance = cluster.shape, cluster.chance
        self.rate = 1.0 + shape.drift * chance.uniform(-1, 1)
        self.boot_s = chance.uniform(0, 1_000)
        self.wall_s = chance.uniform(-1, 1)

    @property
    def alive(self) -> bool:
        return self.host.alive

    def start(self) -> None:
        """Start its process; it must not have one."""
        assert not self.alive and self.host.up, f"{self.name} runs, or has no power"
        self.incarnation += 1
        self.process = SimProcess(self.sim, self.name, rate=self.rate, boot_s=self.boot_s, wall_s=self.wall_s)
        self.process.at_end.append(self._ended)
        self.runtime = SimRuntime(self.process)
        self.stop_asked = asyncio.Event()
        self.host.process = self.process
        self.sim.note(f"starts, incarnation {self.incarnation}", self.process)
        self.sim.emit("start", self.process, incarnation=self.incarnation)
        self.boot()

    def start_again(self) -> None:
        """Start its process if it has none, and may have one."""
        if not self.alive and self.host.up and not self.held:
            self.start()

    def boot(self) -> None:
        """What its process does."""
        raise NotImplementedError

    def forget(self) -> None:
        """Its process is gone: so are its objects."""

    @property
    def stopping(self) -> bool:
        """Whether its process has been told to end."""
        return self.stop_asked.is_set()

    def stop(self) -> None:
        """SIGTERM: its process ends in order, as soon as it can."""
        self.sim.note("SIGTERM", self.process)
        self.process.loop.call_soon_threadsafe(self.stop_asked.set)

    def stopped(self) -> None:
        """Its process has ended in order; nobody starts it again by himself."""
        process = self.process

        def ends() -> None:
            if process.alive:
                process.kill("stopped in order")

        self.sim.soon(ends)

    def kill(self, why: str = "SIGKILL") -> None:
        """End its process; its kernel resets its connections."""
        self.process.kill(why)

    def lose_power(self) -> None:
        """End its process and silence it; what its disks had not synced is lost."""
        self.cluster.network.power_off(self.name)
        if self.alive:
            self.process.kill("power loss")
        self.sim.emit("power_loss", self.process, incarnation=self.incarnation)

    def power_on(self) -> None:
        """The machine is back; its process must be started."""
        self.boot_s = 0.0
        self.cluster.network.power_on(self.name)

    def spawn(self, body: Callable[[], None], *, name: str) -> SimThread:
        """Run `body` on a thread of the process."""
        return self.runtime.spawn(body, name=name)

    def exits(self, error: Exception) -> None:
        """The daemon ends by itself, as in production; a supervisor starts it again."""
        process = self.process
        self.sim.note(f"exits: {type(error).__name__}: {error}", process)

        def again() -> None:
            if self.process is process:
                self.start_again()

        def ends() -> None:
            if process.alive:
                process.kill("exit")
                self.sim.after(_RESTART_S, again)

        self.sim.soon(ends)

    def _ended(self) -> None:
        self.host.listening = None
        self.host.control = None
        self.forget()


class SimMgmtd(SimMachine):
    """A mgmtd; `primary` is what decides, while this one does."""

    kind = "mgmtd"

    def __init__(self, cluster: Cluster, number: int) -> None:
        super().__init__(cluster, number)
        self.address = f"{self.name}:7300"
        self.election: Election | None = None

    @property
    def primary(self) -> Primary | None:
        return self.election.primary if self.election is not None and self.alive else None

    @property
    def kv(self) -> Any:
        """The store that all mgmtds share."""
        return self.cluster.truth.kv

    def forget(self) -> None:
        self.election = None

    def boot(self) -> None:
        self.process.loop.run(self._main)

    async def _main(self) -> None:
        cluster, process, shape = self.cluster, self.process, self.cluster.shape
        config = MgmtdConfig(
            node_id=1_000 + self.number,
            data_dir=Path("none"),
            lease_s=shape.lease_s,
            client_session_s=shape.session_s,
            bootstrap_nodes=shape.storages,
            bootstrap_replicas=shape.replicas,
            chains_per_disk=shape.chains_per_disk,
        )
        own = Node(
            node_id=NodeId(config.node_id),
            kind=NodeKind.MGMTD,
            endpoints=(self.address,),
            generation=process.wall_ns(),
        )
        credentials = Credentials(cluster_id=CLUSTER_ID)
        kv = LinkedKV(cluster.truth, cluster.network, process, self.name)
        calls = SimCalls(cluster.network, process, self.name)
        election = Election(config, kv, own_node=own, credentials=credentials, call=calls, now=self.runtime.now_s)
        service = MgmtdService(config, CLUSTER_ID, election, refuses=self._refuses, now=self.runtime.now_s)
        admin = AdminService(election)

        async def answer(method: str, request: Any, shown: Credentials) -> Any:
            credentials.check(shown.cluster_id, shown.secret)
            return await getattr(service if hasattr(service, method) else admin, method)(request)

        self.election = election
        serve_control(cluster.network, self.host, process, answer)
        taking_part = asyncio.ensure_future(election.run())
        stopping = asyncio.ensure_future(self.stop_asked.wait())
        await asyncio.wait({taking_part, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if taking_part.done():
            try:
                taking_part.result()
            except Fs3Error as error:
                self.exits(error)
            return
        taking_part.cancel()
        await asyncio.wait({taking_part})
        self.host.control = None
        await asyncio.sleep(_GRACE_S)
        self.stopped()

    async def _refuses(self, endpoints: tuple[str, ...], timeout_s: float) -> bool:
        """As fs3/mgmtd/probe.py: whether every endpoint refuses."""
        network = self.cluster.network
        for endpoint in endpoints:
            there = network.of(endpoint)
            if not there.up or network.is_cut(self.name, there.name) or network.is_cut(there.name, self.name):
                await asyncio.sleep(timeout_s)
                return False
            await asyncio.sleep(network.delay(self.name, there.name) + network.delay(there.name, self.name))
            if there.alive and there.listening is not None:
                return False
        return True


class SimStorage(SimMachine):
    """A storage daemon and its disks, which survive it; `misplaced`: one of them is not what it should be."""

    kind = "storage"

    def __init__(self, cluster: Cluster, number: int) -> None:
        super().__init__(cluster, number)
        self.endpoint = f"{self.name}:7400"
        self.node_id = number
        self.disks = [
            SimDisk(cluster.sim, f"/{self.name}/disk{disk}", capacity_bytes=cluster.shape.capacity_bytes)
            for disk in range(cluster.shape.disks)
        ]
        self.misplaced = False
        self.daemon: StorageDaemon | None = None
        self.io: SimIo | None = None
        self.config = StorageConfig(
            node_id=self.node_id,
            mgmtd=cluster.addresses,
            disks=tuple(Path(disk.name) for disk in self.disks),
            tombstone_s=cluster.shape.tombstone_s,
            recovery_bytes_s=cluster.shape.recovery_bytes_s,
            scrub_bytes_s=8 << 20,
            scrub_every_s=max(1.0, 3 * cluster.shape.lease_s),
            engine=EngineConfig(file_bytes=1 << 20, group_bytes=256 << 10, reserve_bytes=0, index_chunks=64),
        )

    def forget(self) -> None:
        self.daemon = None
        self.io = None

    def lose_power(self) -> None:
        super().lose_power()
        for disk in self.disks:
            disk.lose_power()

    def boot(self) -> None:
        self.spawn(self._open, name="boot")

    def _open(self) -> None:
        try:
            engines = [
                Engine(disk.attach(self.process), self.config.engine, runtime=self.runtime) for disk in self.disks
            ]
        except (Fs3Error, OSError) as error:  # an OSError: fs3/storage/server.py says so in one line, and ends
            self.exits(error)
            return
        self.daemon = daemon = StorageDaemon(
            self.config,
            Credentials(cluster_id=CLUSTER_ID),
            engines,
            generation=begin_run(engines, self.process.wall_ns()),
            stats=lambda: "{}",
            open_connection=SimConnector(self.cluster.network, self.runtime, self.name),  # type: ignore[arg-type]
            runtime=self.runtime,
        )
        self.io = SimIo(self.process, daemon.service, max_requests=self.config.max_requests)
        self.host.listening = self.io.accept
        self.process.loop.run(lambda: self._serve(daemon))

    async def _serve(self, daemon: StorageDaemon) -> None:
        node = Node(
            node_id=NodeId(self.node_id),
            kind=NodeKind.STORAGE,
            endpoints=(self.endpoint,),
            host=self.name,
            generation=daemon.generation,
        )
        daemon.agent_for(node, call=SimCalls(self.cluster.network, self.process, self.name), now=self.runtime.now_s)
        try:
            await daemon.serve(self.stop_asked, wind_down=self._wind_down)
        except Fs3Error as error:
            self.exits(error)
            return
        await asyncio.get_running_loop().run_in_executor(None, self._close, daemon)
        self.stopped()

    def _wind_down(self) -> None:
        """As fs3/storage/server.py."""
        io, runtime = self.io, self.runtime
        assert io is not None
        self.host.listening = None
        deadline_s = runtime.now_s() + _DRAIN_S
        while runtime.now_s() < deadline_s and io.unsent():
            runtime.sleep(0.01)

    def _close(self, daemon: StorageDaemon) -> None:
        assert self.io is not None
        self.io.stop()
        for engine in daemon.engines:
            engine.close()


class SimClient(SimMachine):
    """A client's process; `storage`, `mgmtd` and, if there are metas, `meta` are there once it is connected."""

    kind = "client"

    def __init__(self, cluster: Cluster, number: int) -> None:
        super().__init__(cluster, number)
        self.mgmtd: MgmtdClient | None = None
        self.storage: StorageClient | None = None
        self.meta: MetaClient | None = None

    def forget(self) -> None:
        self.mgmtd = None
        self.storage = None
        self.meta = None

    def boot(self) -> None:
        self.spawn(self._connect, name="boot")

    def _connect(self) -> None:
        mgmtd, storage = connect(self)
        if self.cluster.metas:
            network, runtime = self.cluster.network, self.runtime
            self.meta = MetaClient(
                lambda: mgmtd.routing,
                mgmtd.credentials,
                runtime.random_bits(62) | 1,
                refresh=lambda: mgmtd.refresh(mgmtd.routing.version, 0.05),
                open_channel=lambda address: SimChannel(network, runtime, self.name, address),
                runtime=runtime,
            )
        self.mgmtd, self.storage = mgmtd, storage


def connect(machine: SimMachine) -> tuple[MgmtdClient, StorageClient]:
    """Production clients in the process of `machine`; takes as long as it takes until the cluster is ready."""
    network, runtime, addresses = machine.cluster.network, machine.runtime, machine.cluster.addresses
    while True:
        service = ControlService(
            addresses, open_channel=lambda address: SimChannel(network, runtime, machine.name, address), runtime=runtime
        )
        try:
            mgmtd = MgmtdClient.connect(addresses, service=service, runtime=runtime)
            # A process that is killed closes nothing at its exit.
            machine.process.at_end.append(partial(mgmtd_module._following.discard, mgmtd))
            mgmtd.wait_ready(5.0)
            break
        except Fs3Error:
            runtime.sleep(0.2)
    return mgmtd, StorageClient(
        mgmtd,
        stall_s=machine.cluster.shape.stall_s,
        max_lanes=1,
        hedging=_HEDGING,
        piece_bytes=machine.cluster.shape.piece_bytes,
        open_connection=SimConnector(network, runtime, machine.name),  # type: ignore[arg-type]
        runtime=runtime,
    )


def _now(coroutine: Any) -> Any:
    """The result of a coroutine that never waits: those of the memory store do not."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")
