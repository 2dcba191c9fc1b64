"""The scheduler of the simulator: virtual time, one heap of events, simulated processes, hooks and the transcript.

    Simulation ── heap of (virtual time, tie, number, process, what to run)
        └ SimProcess ── its threads (sim_threads.py) and its asyncio loop (sim_loop.py), its clocks

Everything runs in one OS thread. An event runs in the hub, the greenlet that called `run`; most events resume a
simulated thread, which runs until it waits for something. Events of the same time run in an order that the seed draws.
Two runs of a seed are the same event for event, whatever PYTHONHASHSEED: `trace_hash` covers time and process of each.
"""

from __future__ import annotations

import heapq
import logging
import random
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import greenlet

if TYPE_CHECKING:
    from sim_loop import SimLoop
    from sim_threads import SimThread

MIN_WAIT_S = 1e-6  # what is waited for takes at least this: floating point must not make a loop that stands still
_WALL_BEGIN_NS = 1_700_000_000_000_000_000


class Violation(Exception):  # it is what the run found, not a fault of the simulator
    """Something happened that must never happen."""


class ProcessEnded(greenlet.GreenletExit):
    """Raised where a thread of a killed process touches anything: it ends there, without effect."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a hook hears of; the kinds are in README.md."""

    time_s: float
    process: str
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


class Simulation:
    """One run. Make it with a seed, put processes in, `run`, and `close` at the end."""

    def __init__(
        self, seed: int | str, *, max_steps: int = 5_000_000, lines: int = 20_000, preempt: float = 0.0
    ) -> None:
        """`preempt`: how likely a thread is made to wait a little before it takes a lock."""
        self.seed = seed
        self.now = 0.0
        self.steps = 0
        self.trace_hash = 0
        self.max_steps = max_steps
        self.preempt = preempt
        self.current: SimThread | None = None
        self.processes: list[SimProcess] = []
        self.after_step: list[Callable[[], None]] = []
        self.transcript: deque[str] = deque(maxlen=lines)
        self._listeners: list[tuple[Callable[[Event], None], tuple[str, ...]]] = []
        self._hearing: dict[str, list[Callable[[Event], None]]] = {}  # those of a kind, once it has been asked for
        self._heap: list[list[Any]] = []
        self._number = 0
        self._ties = self.stream("ties").random
        self.choice = self.stream("threads")
        self._failure: BaseException | None = None
        self._hub = greenlet.getcurrent()
        self._log = _Log(self)
        self._log.install()

    def stream(self, name: str) -> random.Random:
        """Random numbers for one purpose, independent of every other's."""
        return random.Random(f"{self.seed}/{name}")

    def close(self) -> None:
        """End every process; the simulation is of no use afterwards."""
        for process in self.processes:
            if process.alive:
                process.kill(why="")
        self._heap.clear()
        self._log.remove()

    # Events

    def at(self, time_s: float, work: Callable[[], None], process: SimProcess | None = None) -> list[Any]:
        """Have `work` run at virtual time `time_s`, unless `process` is dead by then; for `cancel`."""
        self._number += 1
        entry = [time_s if time_s > self.now else self.now, self._ties(), self._number, process, work]
        heapq.heappush(self._heap, entry)
        return entry

    def after(self, delay_s: float, work: Callable[[], None], process: SimProcess | None = None) -> list[Any]:
        """The same, `delay_s` from now."""
        return self.at(self.now + delay_s, work, process)

    def soon(self, work: Callable[[], None], process: SimProcess | None = None) -> list[Any]:
        """The same, now, in an order with other events of now that the seed draws."""
        self._number += 1
        entry = [self.now, self._ties(), self._number, process, work]
        heapq.heappush(self._heap, entry)
        return entry

    @staticmethod
    def cancel(entry: list[Any]) -> None:
        """Have an event not run; any number of times, also after it ran."""
        entry[4] = None

    def run(  # noqa: PLR0912  # the innermost loop
        self, until_s: float | None = None, *, stop: Callable[[], bool] | None = None, steps: int | None = None
    ) -> bool:
        """Run events until virtual time `until_s`, until `stop()`, for `steps`, or until there are none.

        True: `stop` said so. Raises: Violation.
        """
        assert greenlet.getcurrent() is self._hub, "the simulation is run by whoever made it"
        heap, pop = self._heap, heapq.heappop
        last = self.steps + steps if steps is not None else self.max_steps
        if stop is not None and stop():
            return True
        while heap:
            if until_s is not None and heap[0][0] > until_s:
                break
            entry = pop(heap)
            work = entry[4]
            if work is None:
                continue
            process = entry[3]
            if process is not None:
                if not process.alive:
                    continue
                if process.paused_until > entry[0]:
                    process.deferred.append(entry)
                    continue
            self.now = entry[0]
            self.steps += 1
            self.trace_hash = hash((self.trace_hash, self.now, 0 if process is None else process.number))
            work()
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            for hook in self.after_step:
                hook()
            if stop is not None and stop():
                return True
            if self.steps >= last:
                if steps is not None:
                    return False
                raise Violation(f"no end after {self.steps} steps, {self.now:.1f} virtual seconds")
        if until_s is not None and until_s > self.now:
            self.now = until_s
        return False

    def run_until(self, stop: Callable[[], bool], *, within_s: float, what: str = "what was waited for") -> None:
        """Run until `stop()`. Raises: Violation: it did not come within so many virtual seconds, or can never come."""
        end_s = self.now + within_s
        if self.run(end_s, stop=stop):
            return
        if not self._heap:
            raise Violation(
                f"deadlock at {self.now:.3f}: nothing can ever run, and {what} has not come\n{self.stuck()}"
            )
        raise Violation(f"{what} has not come within {within_s:g} virtual seconds\n{self.stuck()}")

    def stuck(self) -> str:
        """Who waits, one line a thread, with the place in the code."""
        return "\n".join(line for process in self.processes for line in process.waiting())

    def fail(self, process: SimProcess | None, where: str, error: BaseException) -> None:
        """An error that nobody handles: the run ends with it."""
        if self._failure is None:
            name = process.name if process is not None else "world"
            if isinstance(error, Violation):
                self._failure = error
                return
            trace = "".join(traceback.format_exception(error))
            self._failure = Violation(f"{name}, {where}: {type(error).__name__}: {error}\n{trace}")
            self._failure.__cause__ = error

    # Hooks and the transcript

    def subscribe(self, listener: Callable[[Event], None], *kinds: str) -> None:
        """Have `listener` hear of every event of these kinds that is emitted; of all, if none is named."""
        self._listeners.append((listener, kinds))
        self._hearing.clear()

    def listeners(self, kind: str) -> list[Callable[[Event], None]]:
        """Who hears of events of this kind, in the order of their subscription."""
        if kind not in self._hearing:
            self._hearing[kind] = [one for one, kinds in self._listeners if not kinds or kind in kinds]
        return self._hearing[kind]

    def emit(self, kind: str, process: SimProcess | None = None, /, **fields: Any) -> None:
        """Tell the listeners."""
        if listeners := self.listeners(kind):
            event = Event(self.now, process.name if process is not None else "", kind, fields)
            for listener in listeners:
                listener(event)

    def note(self, text: str, process: SimProcess | None = None) -> None:
        """A line for the transcript."""
        self.transcript.append(f"{self.now:12.6f} {process.name if process is not None else '':<11} {text}")

    def render(self) -> str:
        """The transcript, oldest line first."""
        return "\n".join(self.transcript)


class SimProcess:
    """One incarnation of a process: once killed, nothing of it runs or has an effect any more."""

    def __init__(
        self, sim: Simulation, name: str, *, rate: float = 1.0, boot_s: float = 0.0, wall_s: float = 0.0
    ) -> None:
        """`rate` is how fast its clocks go, `boot_s` and `wall_s` by how much they are off."""
        self.sim = sim
        self.name = name
        self.number = len(sim.processes) + 1
        self.alive = True
        self.paused_until = 0.0
        self.deferred: list[list[Any]] = []  # events that came while it was stopped
        self.rate = rate
        self.boot_s = boot_s
        self.wall_s = wall_s
        self.threads: dict[SimThread, None] = {}
        self.at_end: list[Callable[[], None]] = []  # what its kernel does when it ends: sockets, locks
        self._loop: SimLoop | None = None
        self._begun_s = sim.now
        self._mono_begun_s = 1_000.0 + sim.now
        sim.processes.append(self)

    def mono_s(self) -> float:
        """Its CLOCK_MONOTONIC, which timeouts are counted on."""
        return self._mono_begun_s + (self.sim.now - self._begun_s) * self.rate

    def lease_s(self) -> float:
        """Its CLOCK_BOOTTIME."""
        return self.mono_s() + self.boot_s

    def wall_ns(self) -> int:
        """Its idea of the time of day."""
        return _WALL_BEGIN_NS + int((self.sim.now + self.wall_s) * 1e9) + self.number

    def virtual(self, seconds: float) -> float:
        """How long a wait of so many seconds on its clocks takes."""
        return max(seconds / self.rate, MIN_WAIT_S)

    @property
    def loop(self) -> SimLoop:
        """Its asyncio loop, made when it is first asked for."""
        if self._loop is None:
            from sim_loop import SimLoop

            self._loop = SimLoop(self)
        return self._loop

    def pause(self, seconds: float) -> None:
        """SIGSTOP for so long: it does nothing, its sockets and clocks go on."""
        self.paused_until = max(self.paused_until, self.sim.now + seconds)
        self.sim.note(f"is stopped for {seconds:.3f} s", self)
        self.sim.emit("pause", self, seconds=seconds)
        self.sim.at(self.paused_until, self._resume)

    def unpause(self) -> None:
        """SIGCONT."""
        self.paused_until = min(self.paused_until, self.sim.now)
        self._resume()

    def _resume(self) -> None:
        deferred = self.deferred
        if self.alive and self.sim.now >= self.paused_until and deferred:
            self.deferred = []
            self.sim.note("goes on", self)
            self.sim.emit("resume", self)
            for entry in deferred:
                entry[0] = self.sim.now
                heapq.heappush(self.sim._heap, entry)

    def kill(self, why: str = "SIGKILL") -> None:
        """End it where it stands; from the hub only."""
        assert self.alive and self.sim.current is None
        if why:
            self.sim.note(f"ends: {why}", self)
            self.sim.emit("kill", self, why=why)
        self.alive = False
        for thread in list(self.threads):
            thread.end()
        self.threads.clear()
        if self._loop is not None:
            self._loop.end()
        for work in self.at_end:
            work()
        self.at_end.clear()

    def waiting(self) -> list[str]:
        """A line for every thread that waits."""
        if not self.alive:
            return []
        lines = [f"{self.name:<11} {thread.name}: {thread.where()}" for thread in self.threads]
        return lines + (self._loop.waiting() if self._loop is not None else [])


class _Log(logging.Handler):
    """What production code logs, in the transcript and for the listeners."""

    def __init__(self, sim: Simulation) -> None:
        super().__init__(logging.INFO)
        self._sim = sim
        self._logger = logging.getLogger("fs3")

    def install(self) -> None:
        self._before = (self._logger.level, self._logger.propagate, self._logger.handlers[:])
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._logger.handlers[:] = [self]

    def remove(self) -> None:
        level, self._logger.propagate, self._logger.handlers[:] = self._before
        self._logger.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        sim = self._sim
        process = sim.current.process if sim.current is not None else None
        line = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            sim.fail(process, f"logged as an error: {line}", record.exc_info[1])
            return
        sim.note(line, process)
        sim.emit("log", process, level=record.levelno, line=line)
