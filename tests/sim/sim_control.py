"""Control calls (gRPC in production) between simulated processes: asyncio and blocking callers, servers on their loops.

A call is a request and an answer, each a message of its own, in bytes, so that nobody shares an object. Either may be
lost: then the caller hears of a broken connection, or nothing until its time is over. A request may be met twice; a
change of names only if its caller sends it again, as gRPC never does so by itself. As with gRPC, a server stops working
on a call whose deadline has passed, wherever it then stands.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable
from typing import Any

from sim_kernel import ProcessEnded, SimProcess
from sim_network import Machine, Network
from sim_threads import SimRuntime, SimThread

from fs3.errors import Fs3Error, Unavailable, from_code

Handler = Callable[[str, Any, Any], Awaitable[Any]]  # method in snake case, request, credentials -> reply
_Done = Callable[[Any], None]
_LATE_S = 1.5


@functools.cache
def _snake(method: str) -> str:
    """The Python name of an rpc."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()


def serve_control(network: Network, machine: Machine, process: SimProcess, handler: Handler) -> None:
    """Have `handler` answer the control calls to `machine`, as tasks of `process`."""
    server = _Server(network, machine, process, handler)
    machine.control = server.receive  # type: ignore[assignment]


class _Server:
    def __init__(self, network: Network, machine: Machine, process: SimProcess, handler: Handler) -> None:
        self._network = network
        self._machine = machine
        self._process = process
        self._handler = handler

    def receive(self, call: _Call) -> None:
        """A request has arrived; in the hub."""
        self._process.loop.run(lambda: self._answer(call), name=call.method)

    async def _answer(self, call: _Call) -> None:
        request = call.request_type.FromString(call.raw)
        task = asyncio.current_task()
        assert task is not None
        over = self._process.loop.call_later(call.left_s(), task.cancel)
        try:
            reply = await self._handler(_snake(call.method), request, call.credentials)
        except asyncio.CancelledError:
            return  # its deadline has passed
        except Fs3Error as error:
            call.answered(self._machine, (error.code, str(error)))
        else:
            call.answered(self._machine, reply)
        finally:
            over.cancel()


class _Call:
    """One call on its way."""

    def __init__(
        self,
        network: Network,
        caller: SimProcess,
        machine: str,
        address: str,
        method: str,
        request: Any,
        timeout_s: float,
        credentials: Any,
        done: _Done,
    ) -> None:
        self.method = method
        twice = network.twice and network.random.random() < network.twice
        if twice and hasattr(request, "id"):
            request.id.retry = True  # as if it had been sent before, and lost: only then is it met twice
        self.raw: bytes = request.SerializeToString()
        self.request_type = type(request)
        self.credentials = credentials
        self._network = network
        self._caller = caller
        self._from = machine
        self._address = address
        self._done: _Done | None = done
        self._deadline_s = network.sim.now + caller.virtual(timeout_s)
        sim = network.sim
        there = network.of(address)
        sim.after(network.delay(machine, there.name), lambda: self._arrive(there))
        kept = network.kept.get(machine) if method == "Heartbeat" else None
        if twice or kept is not None:
            late_s = 2 * network.delay(machine, there.name)
            if (method == "Heartbeat" or hasattr(request, "id")) and network.random.random() < 0.5:
                late_s += network.random.random() * _LATE_S  # after others, of a later run of the daemon too
            server = there.process  # a connection ends with its server: what is late reaches no later run of it
            again = lambda: self._arrive(there) if there.process is server else None  # noqa: E731
            if kept is not None:
                kept.append(again)
            else:
                sim.after(late_s, again)
            self._tell("twice")

    def left_s(self) -> float:
        return max(self._deadline_s - self._network.sim.now, 0.0)

    def forget(self) -> None:
        """The caller waits no longer."""
        self._done = None

    def _arrive(self, there: Machine) -> None:
        if self._lost(self._from, there.name, "lost request") or not there.up:
            return
        if not there.alive or there.control is None:
            self._back(there.name, Unavailable(f"{self._address} cannot be reached: Connection refused"), "refused")
            return
        process = there.process
        assert process is not None
        if process.paused_until > self._network.sim.now:
            self._network.sim.soon(lambda: self._arrive(there), process)  # once it goes on
            return
        there.control(self)  # type: ignore[call-arg, arg-type]

    def answered(self, there: Machine, reply: Any) -> None:
        """The server has an answer: a message, or an error as (code, text)."""
        if isinstance(reply, tuple):
            self._back(there.name, from_code(*reply), type(from_code(*reply)).__name__)
        else:
            self._back(there.name, type(reply).FromString(reply.SerializeToString()), "ok")

    def _back(self, there: str, result: Any, outcome: str) -> None:
        network = self._network

        def arrive() -> None:
            if not self._lost(there, self._from, "lost answer"):
                self._finish(result, outcome)

        network.sim.after(network.delay(there, self._from), arrive)

    def _lost(self, a: str, b: str, outcome: str) -> bool:
        network = self._network
        if network.is_cut(a, b):
            self._tell(outcome)
            return True
        # Answers more often than requests: what was done and not heard of is what retries are about.
        rate = min(2 * network.loss, 0.4) if outcome == "lost answer" else network.loss
        if rate and network.random.random() < rate:
            self._tell(outcome)
            if network.random.random() < 0.5:
                self._finish(Unavailable(f"{self._address} cannot be reached: connection reset"), "")
            return True
        return False

    def _finish(self, result: Any, outcome: str) -> None:
        done, self._done = self._done, None
        if done is not None and self._caller.alive:
            if outcome:
                self._tell(outcome)
            done(result)

    def _tell(self, outcome: str) -> None:
        sim = self._network.sim
        if sim.listeners("call"):
            sim.emit("call", self._caller, address=self._address, method=self.method, outcome=outcome)

    def late(self) -> Unavailable:
        """The caller's time is over."""
        self._tell("late")
        self.forget()
        return Unavailable(f"{self._address} did not answer in time")


class SimCalls:
    """`fs3.transport.rpc.ControlCall` of a process on `machine`."""

    def __init__(self, network: Network, process: SimProcess, machine: str) -> None:
        self._network = network
        self._process = process
        self._machine = machine

    async def __call__(self, address: str, method: str, request: Any, *, timeout_s: float, credentials: Any) -> Any:
        loop = self._process.loop
        answer = loop.create_future()

        def settle(result: Any) -> None:
            if not answer.done():
                answer.set_result(result)

        def done(result: Any) -> None:
            loop.call_soon(settle, result)

        call = _Call(
            self._network, self._process, self._machine, address, method, request, timeout_s, credentials, done
        )
        over = loop.call_later(timeout_s, settle, None)
        try:
            result = await answer
        finally:
            over.cancel()
            if not answer.done() or answer.cancelled():
                call.forget()
        if result is None:
            raise call.late()
        if isinstance(result, Fs3Error):
            raise result
        return result

    async def close(self) -> None:
        """Nothing is kept open."""


class SimSent:
    """A call of `thread` that is under way, as `fs3.client.control.Sent`."""

    call: _Call

    def __init__(self, thread: SimThread) -> None:
        self._thread = thread
        self._results: list[Any] = []
        self._awaited = False

    def done(self, result: Any) -> None:
        self._results.append(result)
        if self._awaited:
            self._thread.wake()

    def result(self, timeout_s: float) -> Any:
        self._awaited = not self._results
        if self._awaited and not self._thread.park(timeout_s) and not self._results:
            raise self.call.late()
        if isinstance(self._results[0], Fs3Error):
            raise self._results[0]
        return self._results[0]

    def drop(self) -> None:
        self.call.forget()


class SimChannel:
    """A blocking caller of one address; as `fs3.client.control.ControlChannel`."""

    def __init__(self, network: Network, runtime: SimRuntime, machine: str, address: str) -> None:
        self.address = address
        self._network = network
        self._runtime = runtime
        self._machine = machine
        self._closed = False

    def call(self, method: str, request: Any, *, timeout_s: float, credentials: Any) -> Any:
        return self.begin(method, request, timeout_s=timeout_s, credentials=credentials).result(timeout_s)

    def begin(self, method: str, request: Any, *, timeout_s: float, credentials: Any) -> SimSent:
        process = self._runtime.process
        if not process.alive:
            raise ProcessEnded
        if self._closed:
            raise Unavailable(f"{self.address}: the connection was closed")
        thread = process.sim.current
        if thread is None:
            raise Unavailable("only a simulated thread can wait for an answer")  # at the interpreter's exit
        if method == "OpenSession":  # which names the machine and process that it really is
            request.host, request.pid = self._machine, process.number

        sent = SimSent(thread)
        sent.call = _Call(
            self._network, process, self._machine, self.address, method, request, timeout_s, credentials, sent.done
        )
        return sent

    def close(self) -> None:
        self._closed = True
