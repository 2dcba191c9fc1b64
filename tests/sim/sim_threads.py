"""Simulated threads: greenlets that switch only where production code waits, and the `Runtime` of a process.

A thread that must wait parks itself and lets the hub go on; whoever ends the wait has the hub resume it by an event of
its process, so that a stopped process does not run and a dead one never does. A lock is handed over by its holder, to
one of those who wait, drawn by the seed.
"""

from __future__ import annotations

import asyncio.events
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

import greenlet
from sim_kernel import MIN_WAIT_S, ProcessEnded, SimProcess, Simulation

_PREEMPTED_S = 0.002
_OUTSIDE = object()  # the owner of a lock that is taken outside of any simulated thread


class SimThread:
    """One simulated thread of a process; as `fs3.runtime.Thread`."""

    __slots__ = ("_greenlet", "_joiners", "_sim", "_timer", "_timer_of", "_work", "loop", "name", "process", "woken")

    def __init__(self, process: SimProcess, work: Callable[[], None], name: str) -> None:
        self.process = process
        self.name = name
        self.woken = False
        self.loop: asyncio.AbstractEventLoop | None = None  # the one it runs at the moment
        self._sim = process.sim
        self._work = work
        self._timer: list[Any] | None = None
        self._timer_of: Any = None
        self._joiners: list[SimThread] = []
        self._greenlet: greenlet.greenlet | None = greenlet.greenlet(self._run, process.sim._hub)
        process.threads[self] = None
        process.sim.soon(self.resume, process)

    def is_alive(self) -> bool:
        return self._greenlet is not None

    def join(self, timeout: float | None = None) -> None:
        while self._greenlet is not None:
            waiter = self._sim.current
            if waiter is None:
                return  # at the interpreter's exit: nobody runs the simulation any more
            self._joiners.append(waiter)
            if not waiter.park(timeout):
                self._joiners.remove(waiter)
                return

    def resume(self) -> None:
        """Go on, from the hub, until the thread waits again or ends."""
        if self._greenlet is None:
            return
        sim = self._sim
        sim.current = self
        self._greenlet.switch()
        sim.current = None

    def park(self, timeout: float | None = None, on_timeout: Callable[[], bool] | None = None) -> bool:
        """Wait for `wake`, at most `timeout` seconds of the process; False: nobody woke it in time.

        `on_timeout` is asked, in the hub, whether the wait may end now; else somebody resumes the thread later.
        """
        sim = self._sim
        self.woken = False
        if timeout is not None:
            self._timer_of = on_timeout
            self._timer = sim.after(self.process.virtual(timeout), self._timed_out, self.process)
        loop = self.loop
        if loop is not None:
            asyncio.events._set_running_loop(None)
        sim._hub.switch()
        if not self.process.alive:
            raise ProcessEnded
        if loop is not None:
            asyncio.events._set_running_loop(loop)
        return self.woken

    def wake(self) -> None:
        """End the wait; the thread goes on by an event of its own."""
        self.notified()
        self._sim.soon(self.resume, self.process)

    def notified(self) -> None:
        """The wait was answered, though the thread may have to wait for a lock yet: no timeout any more."""
        self.woken = True
        if self._timer is not None:
            self._timer[4] = None
            self._timer = None

    def _timed_out(self) -> None:
        self._timer = None
        allowed, self._timer_of = self._timer_of, None
        if allowed is None or allowed():
            self.resume()

    def end(self) -> None:
        """The process is dead: unwind, from the hub, without effect."""
        if self._greenlet is not None:
            sim = self._sim
            sim.current = self
            try:
                self._greenlet.throw(ProcessEnded)
            finally:
                sim.current = None

    def where(self) -> str:
        """The innermost lines of production code it stands at."""
        frame = self._greenlet.gr_frame if self._greenlet is not None else None
        places: list[str] = []
        while frame is not None and len(places) < 4:
            if "/sim_" not in frame.f_code.co_filename:
                places.append(f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}")
            frame = frame.f_back
        return " < ".join(places) or "not begun"

    def _run(self) -> None:
        try:
            if self.process.alive:
                self._work()
        except greenlet.GreenletExit:
            pass
        except BaseException as error:  # noqa: BLE001  # whatever it is, it ends the run
            if self.process.alive:
                self._sim.fail(self.process, f"thread {self.name}", error)
        finally:
            self._greenlet = None
            self.process.threads.pop(self, None)
            if self.process.alive:
                for waiter in self._joiners:
                    waiter.wake()


class SimLock:
    """As `threading.Lock`."""

    __slots__ = ("_locked", "_process", "_sim", "_waiters")

    def __init__(self, process: SimProcess) -> None:
        self._process = process
        self._sim = process.sim
        self._locked = False
        self._waiters: list[SimThread] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        _enter(self._process)
        if not self._locked:
            self._locked = True
            return True
        if not blocking or timeout == 0:
            return False
        me = _waiting(self._sim)
        self._waiters.append(me)
        if me.park(None if timeout < 0 else timeout):
            return True
        self._waiters.remove(me)
        return False

    def release(self) -> None:
        if not self._process.alive:
            return
        assert self._locked, "release of a lock that nobody holds"
        if self._waiters:
            _drawn(self._sim, self._waiters).wake()
        else:
            self._locked = False

    def locked(self) -> bool:
        return self._locked

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class SimCondition:
    """As `threading.Condition` with its own reentrant lock; who is notified gets the lock when it is handed over."""

    __slots__ = ("_depth", "_owner", "_process", "_queue", "_sim", "_waiters")

    def __init__(self, process: SimProcess) -> None:
        self._process = process
        self._sim = process.sim
        self._owner: Any = None
        self._depth = 0
        self._queue: list[SimThread] = []  # for the lock
        self._waiters: deque[SimThread] = deque()  # to be notified

    def __enter__(self) -> bool:
        _enter(self._process)
        me = self._sim.current or _OUTSIDE
        if self._owner is None:
            self._owner = me
            self._depth = 1
        elif self._owner is me:
            self._depth += 1
        else:
            thread = _waiting(self._sim)
            self._queue.append(thread)
            thread.park()
            self._depth = 1
        return True

    acquire = __enter__

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        if self._process.alive:
            assert self._owner is (self._sim.current or _OUTSIDE), "release of a lock that somebody else holds"
            self._depth -= 1
            if self._depth == 0:
                self._hand_over()

    release = __exit__

    def wait(self, timeout: float | None = None) -> bool:
        if not self._process.alive:
            raise ProcessEnded
        me = _waiting(self._sim)
        assert self._owner is me, "wait without the lock"
        depth, self._depth = self._depth, 0
        self._waiters.append(me)
        self._hand_over()
        notified = me.park(max(timeout, MIN_WAIT_S) if timeout is not None else None, lambda: self._give_up(me))
        self._depth = depth
        return notified

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> bool:
        end_s = None if timeout is None else self._process.mono_s() + timeout
        while not (result := predicate()):
            left_s = None if end_s is None else end_s - self._process.mono_s()
            if left_s is not None and left_s <= 0:
                break
            self.wait(left_s)
        return bool(result)

    def notify(self, n: int = 1) -> None:
        while n and self._waiters:
            n -= 1
            thread = self._waiters.popleft()
            thread.notified()
            self._queue.append(thread)

    def notify_all(self) -> None:
        self.notify(len(self._waiters))

    def _hand_over(self) -> None:
        if not self._queue:
            self._owner = None
            return
        thread = _drawn(self._sim, self._queue)
        self._owner = thread
        self._sim.soon(thread.resume, self._process)

    def _give_up(self, thread: SimThread) -> bool:
        """Its time is over: it needs the lock all the same."""
        self._waiters.remove(thread)
        if self._owner is None:
            self._owner = thread
            return True
        self._queue.append(thread)
        return False


class SimEvent:
    """As `threading.Event`."""

    __slots__ = ("_process", "_set", "_sim", "_waiters")

    def __init__(self, process: SimProcess) -> None:
        self._process = process
        self._sim = process.sim
        self._set = False
        self._waiters: list[SimThread] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        if self._process.alive:
            waiters, self._waiters = self._waiters, []
            for thread in waiters:
                thread.wake()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._process.alive:
            raise ProcessEnded
        if self._set or (timeout is not None and timeout <= 0):
            return self._set
        me = _waiting(self._sim)
        self._waiters.append(me)
        if me.park(timeout):
            return True
        if me in self._waiters:
            self._waiters.remove(me)
        return self._set


class SimRuntime:
    """The `fs3.runtime.Runtime` of one simulated process."""

    def __init__(self, process: SimProcess) -> None:
        self.process = process
        self._random = process.sim.stream(f"random/{process.number}")
        self.now_s = process.lease_s
        self.wall_ns = process.wall_ns

    def sleep(self, seconds: float) -> None:
        _enter(self.process)
        _waiting(self.process.sim).park(max(seconds, 0.0))

    def lock(self) -> SimLock:
        return SimLock(self.process)

    def condition(self) -> SimCondition:
        return SimCondition(self.process)

    def event(self) -> SimEvent:
        return SimEvent(self.process)

    def spawn(self, work: Callable[[], None], *, name: str) -> SimThread:
        if not self.process.alive:
            raise ProcessEnded
        return SimThread(self.process, work, name)

    def random_bits(self, bits: int) -> int:
        return self._random.getrandbits(bits)


def _enter(process: SimProcess) -> None:
    """Before a lock: a dead process gets no further, a living one may be made to wait a little."""
    if not process.alive:
        raise ProcessEnded
    sim = process.sim
    if sim.preempt and sim.current is not None and sim.choice.random() < sim.preempt:
        sim.current.park(sim.choice.random() * _PREEMPTED_S)


def _waiting(sim: Simulation) -> SimThread:
    """The thread that has to wait now."""
    assert sim.current is not None, "this would wait, and is no simulated thread"
    return sim.current


def _drawn(sim: Simulation, threads: list[SimThread]) -> SimThread:
    return threads.pop(sim.choice.randrange(len(threads)) if len(threads) > 1 else 0)
