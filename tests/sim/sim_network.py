"""The network between simulated machines: what a message takes, what cuts it off, and what TCP makes of that.

A link is one direction between two machines. Packets are lost and late on it; a connection on top shows that as TCP
does: in order, with a delay, or not at all until the link is back. A machine that is cut off is silent; one whose
process is dead refuses, and resets what is left of the connections. Control calls (gRPC) are single messages here: a
request or its answer is lost, late, overtaken by another, or met twice.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from sim_kernel import SimProcess, Simulation

_RETRANSMIT_S = 0.2


class Machine:
    """A host with one process of fs3 at a time. Without power it is silent; with power and no process it refuses."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.up = True
        self.process: SimProcess | None = None
        self.listening: Callable[[Wire], None] | None = None  # accepts connections, in the hub
        self.control: Callable[[str, bytes, float, Callable[[bytes | Exception], None]], None] | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive


CONGESTED = 0.03  # how often a socket takes nothing more for a while


class Network:
    """All machines, links and wires. Endpoints are "machine:port"; a machine has a data port and one for control."""

    def __init__(self, sim: Simulation, *, latency_s: float = 0.0002) -> None:
        self.sim = sim
        self.machines: dict[str, Machine] = {}
        self.wires: dict[int, Wire] = {}
        self.latency_s = latency_s
        self.loss = 0.0  # of a control message, or of a packet of a connection: then it comes late
        self.congested = CONGESTED
        self.twice = 0.0  # how likely a control request is met twice
        self.catch: Callable[[Wire, int, Any], None] | None = None  # sees what an end of a wire is about to send
        self.kept: dict[str, list[Callable[[], None]]] = {}  # machine -> copies of its heartbeats, to come late
        self.extra_s: dict[str, float] = {}  # machine -> slow network card
        self._cut: dict[tuple[str, str], int] = {}
        self._cut_since_s: dict[tuple[str, str], float] = {}
        self._number = 0
        self.random = sim.stream("network")

    def machine(self, name: str) -> Machine:
        """The machine of that name, made when it is first asked for."""
        if name not in self.machines:
            self.machines[name] = Machine(name)
        return self.machines[name]

    def of(self, endpoint: str) -> Machine:
        """The machine that an endpoint is on."""
        return self.machine(endpoint.rpartition(":")[0])

    def delay(self, a: str, b: str) -> float:
        """How long a message takes from a to b."""
        chance = self.random
        seconds = self.latency_s * (0.5 + chance.random())
        if chance.random() < 0.02:
            seconds += chance.expovariate(1.0) * 0.01
        if self.loss and chance.random() < self.loss:
            seconds += _RETRANSMIT_S * (1 + chance.random())
        if self.extra_s:
            seconds += self.extra_s.get(a, 0.0) + self.extra_s.get(b, 0.0)
        return seconds

    # Partitions

    def cut(self, a: str, b: str, *, one_way: bool = False) -> None:
        """Nothing gets from a to b any more, nor back unless `one_way`; counted, so cuts may overlap."""
        for pair in ((a, b),) if one_way else ((a, b), (b, a)):
            self._cut[pair] = self._cut.get(pair, 0) + 1
            self._cut_since_s.setdefault(pair, self.sim.now)

    def mend(self, a: str, b: str, *, one_way: bool = False) -> None:
        """Undo a `cut`."""
        for pair in ((a, b),) if one_way else ((a, b), (b, a)):
            left = self._cut[pair] - 1
            if left:
                self._cut[pair] = left
                continue
            del self._cut[pair]
            lasted_s = self.sim.now - self._cut_since_s.pop(pair)
            for wire in self.wires.values():
                wire.link_is_back(*pair, lasted_s)

    def is_cut(self, a: str, b: str) -> bool:
        return (a, b) in self._cut

    # Machines

    def power_off(self, name: str) -> None:
        """The machine is silent from now on; its process must be killed by whoever calls this."""
        self.machine(name).up = False

    def power_on(self, name: str) -> None:
        """The machine answers again, and resets what it does not know any more."""
        self.machine(name).up = True
        for wire in list(self.wires.values()):
            wire.machine_is_back(name)

    def next_number(self) -> int:
        self._number += 1
        return self._number


class Wire:
    """One TCP connection: two pipes, each in order. Ends are 0 (who connected) and 1 (who accepted).

    What is sent is any value; `received[end]` gets it, in the hub, while the process of that end lives, and
    `broken[end]` gets the reason when the other end closed or was reset. They stand for the kernel: a stopped process
    has its data arrive too, so they only put down what came and wake a thread.
    """

    def __init__(self, network: Network, ends: tuple[SimProcess, SimProcess], names: tuple[str, str]) -> None:
        self.network = network
        self.number = network.next_number()
        self.ends = ends
        self.names = names
        self.received: list[Callable[[Any], None] | None] = [None, None]
        self.broken: list[Callable[[str], None] | None] = [None, None]
        self.open = [True, True]
        self._pipes = (_Pipe(self, 0), _Pipe(self, 1))
        self._told = [False, False]
        network.wires[self.number] = self
        for end in (0, 1):
            ends[end].at_end.append(lambda end=end: self._died(end))

    def send(self, end: int, item: Any) -> None:
        """From `end` to the other one."""
        if self.open[end] and self.ends[end].alive:
            if self.network.catch is not None:
                self.network.catch(self, end, item)
            self._pipes[end].put(item)

    def close(self, end: int) -> None:
        """The process of `end` closes its socket: the other end hears of it after all that was sent."""
        if self.open[end]:
            self.open[end] = False
            if self.network.machine(self.names[end]).up:
                self._pipes[end].put(_END)
            self._forget()

    def reset(self, why: str = "connection reset") -> None:
        """Both ends lose it at once; what is on its way is lost."""
        for end in (0, 1):
            self._pipes[end].clear()
            self.tell(end, why)

    def tell(self, end: int, why: str) -> None:
        """The end learns that the connection is over."""
        if not self._told[end]:
            self._told[end] = True
            self.open[end] = False
            broken = self.broken[end]
            if broken is not None and self.ends[end].alive:
                broken(why)
        self._forget()

    def link_is_back(self, a: str, b: str, lasted_s: float) -> None:
        for end in (0, 1):
            if (self.names[end], self.names[1 - end]) == (a, b):
                self._pipes[end].flush(lasted_s)

    def machine_is_back(self, name: str) -> None:
        """It has forgotten the connection: the other end is reset when it sends something, or soon by keepalives."""
        for end in (0, 1):
            if self.names[end] == name and not self.ends[end].alive and self.open[1 - end]:
                network = self.network
                after_s = network.delay(*self.names) + network.random.random() * 0.5
                network.sim.after(after_s, lambda end=end: self.tell(1 - end, "connection reset"))

    def hang(self, end: int) -> None:
        """Nothing that `end` sends arrives from now on, as when its packets are lost again and again."""
        self._pipes[end].hang()

    def resume(self, end: int) -> None:
        """What was held back arrives, also if its sender has given the connection up meanwhile."""
        self._pipes[end].resume()

    def _died(self, end: int) -> None:
        self.close(end)

    def _forget(self) -> None:
        if not self.open[0] and not self.open[1]:
            self.network.wires.pop(self.number, None)


class Hung:
    """Wires that hang, until they are resumed; `soon`: those that their senders give up, a little after that, or, with
    `when`, as soon as that says so of one."""

    def __init__(
        self,
        sim: Simulation,
        chance: random.Random,
        lease_s: float,
        *,
        soon: bool,
        when: Callable[[Wire], bool] | None = None,
    ) -> None:
        self._sim = sim
        self._chance = chance
        self._lease_s = lease_s
        self._soon = soon
        self._when = when
        self._held: dict[int, tuple[Wire, int]] = {}

    def hang(self, wire: Wire, end: int) -> None:
        """What `end` sends is held back from now on; a wire that hangs already goes on so."""
        if wire.number in self._held:
            return
        wire.hang(end)
        self._held[wire.number] = wire, end
        if self._soon:
            self._look(wire, end)

    def resume_all(self) -> None:
        """What was held back arrives."""
        for number in list(self._held):
            self._resume(number)

    def _look(self, wire: Wire, end: int) -> None:
        if wire.number not in self._held:
            return
        if wire.open[end] if self._when is None else not self._when(wire):
            self._sim.after(0.01 * self._lease_s, lambda: self._look(wire, end))
            return
        if self._when is not None:
            self._resume(wire.number)
            return
        after_s = self._lease_s * self._chance.choice([0.003, 0.03, 0.3, 2.0]) * self._chance.random()
        self._sim.after(after_s, lambda: self._resume(wire.number))

    def _resume(self, number: int) -> None:
        wire, end = self._held.pop(number, (None, 0))
        if wire is not None:
            wire.resume(end)


_END = object()


class _Pipe:
    """One direction of a wire."""

    __slots__ = ("_from", "_held", "_hung", "_last_s", "_to", "_wire")

    def __init__(self, wire: Wire, end: int) -> None:
        self._wire = wire
        self._from = end
        self._to = 1 - end
        self._last_s = 0.0
        self._held: deque[Any] = deque()
        self._hung = 0

    def put(self, item: Any) -> None:
        wire = self._wire
        network, names = wire.network, wire.names
        sim = network.sim
        at_s = max(sim.now + network.delay(names[self._from], names[self._to]), self._last_s + 1e-9)
        self._last_s = at_s
        sim.at(at_s, lambda: self._arrive(item))

    def clear(self) -> None:
        self._wire = None  # type: ignore[assignment]  # whatever is on its way finds nothing to arrive at
        self._held.clear()

    def hang(self) -> None:
        self._hung += 1

    def resume(self) -> None:
        self._hung -= 1
        if not self._hung:
            self._deliver_held()

    def flush(self, lasted_s: float) -> None:
        """The link is back: TCP sends again when its timer next runs out, which it has doubled again and again."""
        if self._held:
            network = self._wire.network
            network.sim.after(network.random.random() * max(0.4, lasted_s), self._deliver_held)

    def _deliver_held(self) -> None:
        if self._wire is None:
            return
        held, self._held = self._held, deque()
        for item in held:
            self._arrive(item)

    def _arrive(self, item: Any) -> None:
        wire = self._wire
        if wire is None:
            return
        network, names, to = wire.network, wire.names, self._to
        machine = network.machine(names[to])
        if self._held or self._hung or network.is_cut(names[self._from], names[to]) or not machine.up:
            self._held.append(item)
            return
        process = wire.ends[to]
        if item is _END:
            wire.tell(to, "closed the connection")
        elif not process.alive or not wire.open[to]:
            # There is nobody to take it.
            network.sim.after(network.delay(names[to], names[self._from]), lambda: wire.tell(self._from, "reset"))
        else:
            received = wire.received[to]
            if received is not None:
                received(item)
