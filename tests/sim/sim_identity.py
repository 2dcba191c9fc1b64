"""A node that is not itself: what somebody did by mistake, and how the operator puts it right.

    another disk   the disk's file system is not mounted when the machine boots, so the daemon finds an empty folder
    a second one   a daemon with the configuration of a node is started on another machine, with an empty disk

In both, chunks may be written while the node is not the one that it should be; so before the mistake is put right,
others must serve what it serves. Where they cannot, because all of them are gone before mgmtd counts it out, what was
wrong holds the data: it has to come back until others have that too. What has one replica may have been drained to the
wrong one, and is given up; clients use no such chain where mistakes are made.
"""

from __future__ import annotations

import dataclasses

from sim_cluster import Cluster, SimStorage
from sim_disk import SimDisk
from sim_operator import SimOperator

from fs3.ids import NodeId
from fs3.routing import Target, TargetState


class SimTwin(SimStorage):
    """A second daemon with the node id of `first`, on another machine, with an empty disk."""

    kind = "twin"

    def __init__(self, cluster: Cluster, number: int, first: SimStorage) -> None:
        super().__init__(cluster, number)
        self.node_id = first.node_id
        self.config = dataclasses.replace(self.config, node_id=self.node_id)


class Mistake:
    """One of them; `begin` and what puts it right run in the hub."""

    def __init__(self, cluster: Cluster, first: SimStorage, *, careless: bool) -> None:
        """`careless`: it is put right without a look whether others have the data, and may have to be wrong again."""
        self.cluster = cluster
        self.first = first
        self._look = not careless

    def begin(self) -> None:
        """Make it."""
        self.first.misplaced = True

    def wrong(self) -> None:
        """The node as it should not be."""
        raise NotImplementedError

    def right(self) -> None:
        """The node as it should be."""
        raise NotImplementedError

    def put_right(self, operator: SimOperator, patience_s: float) -> None:
        """A job of the operator; he comes back to it where another one may have to be done first."""
        if self._look and not operator.wait_for(self._spare, patience_s) and not self._lacks():
            operator.ask(lambda: self.put_right(operator, patience_s))
            return
        self._look = True
        operator.in_hub(self.right)
        operator.wait_for(lambda: self._is_itself() and not self._lacks(), patience_s)
        if self._lacks():
            self.cluster.sim.note("the wrong one served last, and is needed once more", self.first.process)
            operator.in_hub(self.wrong)
            operator.ask(lambda: self.put_right(operator, patience_s))
            return
        operator.accept_losses(self.first, self._over)

    def _over(self) -> None:
        self.first.misplaced = False

    def _spare(self) -> bool:
        """Whether others serve every chain of which the data is there."""
        routing = self.cluster.routing
        return all(
            any(one.node_id != self.first.node_id for one in routing.serving(target.chain_id))
            for target in self._targets(TargetState.SERVING, TargetState.LASTSRV)
        )

    def _lacks(self) -> bool:
        """Whether a chain waits for what was there last."""
        return bool(self._targets(TargetState.LASTSRV))

    def _targets(self, *states: TargetState) -> list[Target]:
        """Those there, in such a state, of chains that have others too."""
        routing = self.cluster.routing
        return [
            target
            for target in routing.targets.values()
            if target.node_id == self.first.node_id and target.state in states
            if routing.chain(target.chain_id).replicas > 1
        ]

    def _is_itself(self) -> bool:
        daemon, node = self.first.daemon, self.cluster.routing.nodes.get(NodeId(self.first.node_id))
        return daemon is not None and node is not None and node.generation == daemon.generation


class AnotherDisk(Mistake):
    """See the module."""

    def begin(self) -> None:
        super().begin()
        self.kept = list(self.first.disks)
        size = self.cluster.shape.capacity_bytes
        self.others = [SimDisk(self.cluster.sim, disk.name, capacity_bytes=size) for disk in self.kept]
        self.wrong()

    def wrong(self) -> None:
        self._start_on(self.others)

    def right(self) -> None:
        self._start_on(self.kept)

    def _start_on(self, disks: list[SimDisk]) -> None:
        first = self.first
        if first.alive:
            first.kill("the machine boots")
        first.disks[:] = disks
        self.cluster.sim.note("finds other disks in the place of its own", first.process)
        self.cluster.sim.emit("disk", first.process, disk=first.disks[0].name, what="replaced")
        first.start_again()


class SecondDaemon(Mistake):
    """See the module."""

    def begin(self) -> None:
        super().begin()
        self.twin = SimTwin(self.cluster, len(self.cluster.twins) + 1, self.first)
        self.cluster.twins.append(self.twin)
        self.twin.start()

    def wrong(self) -> None:
        self.first.held = True
        if self.first.alive:
            self.first.kill("stopped for the other one's sake")
        self.twin.held = False
        self.twin.start_again()

    def right(self) -> None:
        self.twin.held = True
        if self.twin.alive:
            self.twin.kill("is not to be there")
        self.first.held = False
        self.first.start_again()


_MISTAKES: dict[str, type[Mistake]] = {
    "a disk is not mounted": AnotherDisk,
    "a storage daemon is started twice": SecondDaemon,
}


def mistake(kind: str, cluster: Cluster, first: SimStorage, *, careless: bool) -> Mistake:
    """Made by its kind of fault."""
    return _MISTAKES[kind](cluster, first, careless=careless)
