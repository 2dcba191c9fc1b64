"""The operator of a simulated cluster: what `fs3 admin` asks of mgmtd, from a machine of his own, job after job; and
what he does to daemons and disks himself.

He follows docs/operations.md: a disk is only wiped once the cluster has taken its targets out of service and serves
without them. What only had one replica, there, is given up with `rotate-lastsrv`, and is no chain that clients use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from sim_cluster import CLUSTER_ID, Cluster, SimMachine, SimStorage
from sim_control import SimChannel
from sim_kernel import SimProcess

from fs3.client.control import ControlService
from fs3.errors import Fs3Error, Unavailable
from fs3.ids import NodeId
from fs3.pb import admin_pb2
from fs3.routing import TargetState
from fs3.transport.credentials import Credentials

_ASK_S = 2.0
_LOOK_S = 0.1
_ASIDE = (TargetState.OFFLINE, TargetState.WAITING)


class SimOperator(SimMachine):
    """`busy` while a job waits or runs."""

    kind = "operator"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster, 1)
        self._jobs: deque[Callable[[], None]] = deque()
        self._working = False

    @property
    def busy(self) -> bool:
        return self._working or bool(self._jobs)

    def boot(self) -> None:
        self._service = ControlService(
            self.cluster.addresses,
            open_channel=lambda address: SimChannel(self.cluster.network, self.runtime, self.name, address),
            runtime=self.runtime,
        )

    def ask(self, job: Callable[[], None]) -> None:
        """Have a job done, after those that wait."""
        self._jobs.append(job)
        if not self._working:
            self._working = True
            self.spawn(self._work, name="operator")

    def order(self, method: str, request: Any) -> bool:
        """Have mgmtd do something, however long it takes; False if it is refused."""
        while True:
            try:
                reply = self._service.call(
                    method, request, timeout_s=_ASK_S, credentials=Credentials(cluster_id=CLUSTER_ID)
                )
            except Unavailable:
                self.runtime.sleep(_LOOK_S)
            except Fs3Error as error:
                self.sim.note(f"{method} is refused: {error}", self.process)
                self.sim.emit("operator", self.process, method=method, done=False)
                return False
            else:
                self.sim.note(f"{method}: {'; '.join(reply.lines)}", self.process)
                self.sim.emit("operator", self.process, method=method, done=True)
                return True

    def drain(self, place: admin_pb2.Place) -> None:
        self.order("Drain", admin_pb2.PlaceRequest(place=place))

    def undrain(self, place: admin_pb2.Place) -> None:
        self.order("Undrain", admin_pb2.PlaceRequest(place=place))

    def offline(self, target: int) -> None:
        self.order("Offline", admin_pb2.PlaceRequest(place=admin_pb2.Place(target_id=target)))

    def online(self, target: int) -> None:
        self.order("Online", admin_pb2.PlaceRequest(place=admin_pb2.Place(target_id=target)))

    def replace_disk(self, storage: SimStorage, within_s: float) -> None:
        """Stop the daemon, wait until nobody needs its disks, put in empty ones, start it, have them filled."""
        self.in_hub(lambda: self._stop(storage))
        self.wait_for(lambda: self._needless(storage), within_s)
        wiped: list[bool] = []
        self.in_hub(lambda: wiped.append(self._wipe(storage)))
        if not wiped[0]:
            return
        for number in range(len(storage.disks)):
            place = admin_pb2.Place(node_id=storage.node_id, disk=number)
            self.order("Replace", admin_pb2.ReplaceRequest(place=place))  # refused where a drain has left no targets
        self.accept_losses(storage)

    def accept_losses(self, storage: SimStorage, then: Callable[[], None] = lambda: None) -> None:
        """Have what has its one replica there serve, with what there is, `then` the rest of the job.

        He comes back to it if it takes long and other jobs wait: it may be those that it waits for, such as ending
        another daemon that has the node's id, or mounting the disk from which a replica there is to be filled.
        """
        while not self._accepted(storage):
            self.runtime.sleep(_LOOK_S)
            if self._jobs:
                self.ask(lambda: self.accept_losses(storage, then))
                return
        then()

    def restart_all(self, patience_s: float) -> None:
        """A new version everywhere: each daemon in turn is stopped and started, once all is well, or not in time."""
        for machine in self._daemons():
            self.wait_for(self._all_serve, patience_s)
            if not machine.alive or machine.held:
                continue
            process = machine.process
            machine.held = True
            self.in_hub(machine.stop)
            self.wait_for(lambda process=process: not process.alive, 2 * patience_s)
            self.in_hub(lambda machine=machine, process=process: self._start_again(machine, process))

    def _daemons(self) -> list[SimMachine]:
        return [*self.cluster.mgmtds, *self.cluster.storages, *self.cluster.metas]

    def _start_again(self, machine: SimMachine, process: SimProcess) -> None:
        if process.alive:
            process.kill("does not end")
        machine.held = False
        machine.start_again()

    def _all_serve(self) -> bool:
        routing = self.cluster.routing
        up = all(machine.alive and not machine.stopping for machine in self._daemons())
        return up and all(target.state == TargetState.SERVING for target in routing.targets.values())

    def wait_for(self, condition: Callable[[], bool], within_s: float) -> bool:
        """Look again and again, in a job; whether it came to be."""
        end_s = self.sim.now + within_s
        while not (true := condition()) and self.sim.now < end_s:
            self.runtime.sleep(_LOOK_S)
        return true

    def _accepted(self, storage: SimStorage) -> bool:
        """Whether what had its one replica there serves again, empty; accepts the loss where that is due."""
        routing, daemon = self.cluster.routing, storage.daemon
        targets = [
            target
            for target in routing.targets.values()
            if target.node_id == storage.node_id and routing.chain(target.chain_id).replicas == 1
        ]
        for target in targets:
            if target.state == TargetState.LASTSRV and not target.accept_loss:
                request = admin_pb2.RotateLastServingRequest(chain_id=target.chain_id, target_id=target.target_id)
                self.order("RotateLastServing", request)
        known = daemon is not None and routing.nodes[NodeId(storage.node_id)].generation == daemon.generation
        return known and all(target.state == TargetState.SERVING for target in targets)

    def _stop(self, storage: SimStorage) -> None:
        storage.held = True
        if storage.alive:
            storage.kill("stopped by the operator")

    def _wipe(self, storage: SimStorage) -> bool:
        """New disks, if they are needless still; the daemon starts in any case. In the hub."""
        needless = self._needless(storage)
        if needless:
            for disk in storage.disks:
                disk.replace()
            self.sim.note("its disks are replaced by empty ones", storage.process)
            self.sim.emit("disk", storage.process, disk=storage.disks[0].name, what="replaced")
        storage.held = False
        if storage.host.up and not storage.alive:
            storage.start()
        return needless

    def _needless(self, storage: SimStorage) -> bool:
        """Whether every chain with a target there serves without it, and counts it out."""
        routing = self.cluster.routing
        for chain in routing.chains.values():
            targets = [routing.targets[target_id] for target_id in chain.targets]
            here = [target for target in targets if target.node_id == storage.node_id]
            if not here or chain.replicas == 1:
                continue
            others = [target for target in targets if target.node_id != storage.node_id]
            if any(target.state not in _ASIDE for target in here):
                return False
            if not any(target.state == TargetState.SERVING for target in others):
                return False
        return True

    def in_hub(self, work: Callable[[], None]) -> None:
        """Do what only the hub may, such as ending a process, and wait for it."""
        thread = self.sim.current
        assert thread is not None

        def does() -> None:
            work()
            thread.wake()

        self.sim.soon(does)
        thread.park()

    def _work(self) -> None:
        while self._jobs:
            self._jobs.popleft()()
        self._working = False
