"""The network: order within a connection, what a cut, a death and a reset look like; control calls lost or doubled."""

from __future__ import annotations

from typing import Any

import pytest
from sim_control import SimCalls, SimChannel, serve_control
from sim_kernel import SimProcess, Simulation
from sim_network import Network, Wire
from sim_threads import SimRuntime

from fs3.errors import NotFound, Unavailable
from fs3.pb import common_pb2, mgmtd_pb2
from fs3.transport.credentials import Credentials


class Pair:
    """Two machines and a wire between them."""

    def __init__(self, seed: int = 1) -> None:
        self.sim = Simulation(seed)
        self.network = Network(self.sim)
        self.processes = [SimProcess(self.sim, name) for name in ("a", "b")]
        for process in self.processes:
            self.network.machine(process.name).process = process
        self.wire = Wire(self.network, (self.processes[0], self.processes[1]), ("a", "b"))
        self.seen: list[Any] = []
        self.broken: list[tuple[str, str]] = []
        self.wire.received[1] = self.seen.append
        self.wire.broken[1] = lambda why: self.broken.append(("b", why))
        self.wire.broken[0] = lambda why: self.broken.append(("a", why))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_sent_arrives_in_order_whatever_the_delays(seed: int) -> None:
    pair = Pair(seed)
    pair.network.loss = 0.3
    for number in range(50):
        pair.wire.send(0, number)
        pair.sim.run(pair.sim.now + 0.001)
    pair.wire.close(0)
    pair.sim.run()
    pair.sim.close()
    assert pair.seen == list(range(50))
    assert pair.broken == [("b", "closed the connection")]


def test_a_cut_holds_back_and_a_mended_link_delivers() -> None:
    pair = Pair()
    pair.network.cut("a", "b", one_way=True)
    pair.wire.send(0, 1)
    pair.sim.run(10.0)
    assert pair.seen == []
    pair.wire.send(0, 2)
    pair.network.mend("a", "b", one_way=True)
    pair.wire.send(0, 3)
    pair.sim.run(20.0)
    pair.sim.close()
    assert pair.seen == [1, 2, 3]


def test_what_a_hung_connection_holds_arrives_although_its_sender_has_closed_it() -> None:
    pair = Pair()
    other = Wire(pair.network, (pair.processes[0], pair.processes[1]), ("a", "b"))
    other.received[1] = pair.seen.append
    pair.wire.hang(0)
    pair.wire.send(0, "late")
    pair.sim.run(10.0)
    pair.wire.close(0)
    other.send(0, "in time")
    pair.sim.run(20.0)
    assert pair.seen == ["in time"]
    assert pair.broken == []
    pair.wire.resume(0)
    pair.sim.run(30.0)
    pair.sim.close()
    assert pair.seen == ["in time", "late"]
    assert pair.broken == [("b", "closed the connection")]


def test_a_killed_process_resets_and_a_machine_without_power_is_silent() -> None:
    pair = Pair()
    pair.processes[1].kill()
    pair.sim.run()
    assert pair.broken == [("a", "closed the connection")]
    pair = Pair()
    pair.network.power_off("b")
    pair.processes[1].kill()
    pair.wire.send(0, 1)
    pair.sim.run(10.0)
    assert pair.broken == []
    pair.network.power_on("b")
    pair.sim.run(20.0)
    pair.sim.close()
    assert pair.broken == [("a", "connection reset")]


def test_a_reset_is_seen_by_both_and_loses_what_is_on_its_way() -> None:
    pair = Pair()
    pair.wire.send(0, 1)
    pair.wire.reset()
    pair.sim.run()
    pair.sim.close()
    assert pair.seen == []
    assert sorted(pair.broken) == [("a", "connection reset"), ("b", "connection reset")]


class Control:
    """A server of one method on machine b, and what callers on a hear."""

    def __init__(self, seed: int = 1) -> None:
        self.sim = Simulation(seed)
        self.network = Network(self.sim)
        self.a, self.b = SimProcess(self.sim, "a"), SimProcess(self.sim, "b")
        self.network.machine("a").process, self.network.machine("b").process = self.a, self.b
        self.served: list[str] = []
        self.heard: list[Any] = []

        async def answer(method: str, request: Any, credentials: Credentials) -> Any:
            self.served.append(method)
            if request.node_id == 404:
                raise NotFound("no such node")
            return common_pb2.Empty()

        serve_control(self.network, self.network.machine("b"), self.b, answer)
        self.calls = SimCalls(self.network, self.a, "a")

    def call(self, node_id: int = 1, *, blocking: bool = False) -> None:
        request = mgmtd_pb2.GoodbyeRequest(node_id=node_id)

        async def asks() -> None:
            try:
                self.heard.append(await self.calls("b:1", "Goodbye", request, timeout_s=1.0, credentials=Credentials()))
            except (Unavailable, NotFound) as error:
                self.heard.append(type(error))

        channel = SimChannel(self.network, SimRuntime(self.a), "a", "b:1")

        def blocks() -> None:
            try:
                self.heard.append(channel.call("Goodbye", request, timeout_s=1.0, credentials=Credentials()))
            except (Unavailable, NotFound) as error:
                self.heard.append(type(error))

        if blocking:
            SimRuntime(self.a).spawn(blocks, name="caller")
        else:
            self.a.loop.run(asks)
        self.sim.run(self.sim.now + 2.0)


@pytest.mark.parametrize("blocking", [False, True])
def test_control_calls_are_answered_refused_cut_off_lost_and_met_twice(blocking: bool) -> None:
    control = Control()
    control.call(blocking=blocking)
    control.call(404, blocking=blocking)
    assert control.heard == [common_pb2.Empty(), NotFound]
    control.network.cut("a", "b")
    control.call(blocking=blocking)
    control.network.mend("a", "b")
    assert control.heard[2:] == [Unavailable]
    assert control.served == ["goodbye", "goodbye"]
    control.network.cut("b", "a", one_way=True)  # the request arrives, its answer does not
    control.call(blocking=blocking)
    control.network.mend("b", "a", one_way=True)
    assert control.heard[3:] == [Unavailable]
    assert len(control.served) == 3
    control.network.twice = 1.0
    control.call(blocking=blocking)
    assert control.heard[4:] == [common_pb2.Empty()]
    assert len(control.served) == 5
    control.b.kill()
    control.network.twice = 0.0
    control.call(blocking=blocking)
    assert control.heard[5:] == [Unavailable]
    control.sim.close()
