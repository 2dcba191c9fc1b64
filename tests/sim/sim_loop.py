"""The asyncio loop of one simulated process: virtual time, no selector, run by a simulated thread of its own.

A callback may block (production code takes a lock in it): then the whole loop waits, as it would in production.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from asyncio import base_events, events
from collections.abc import Callable, Coroutine
from typing import Any

from sim_kernel import SimProcess
from sim_threads import SimThread

_A_TURN = 1_000


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, coro: Coroutine[Any, Any, Any], *, loop: SimLoop, **options: Any) -> None:
        self.number = loop.next_number()
        super().__init__(coro, loop=loop, **options)
        loop.tasks[self] = None
        self.add_done_callback(_forget)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


def _forget(task: asyncio.Task[Any]) -> None:
    loop = task.get_loop()
    assert isinstance(loop, SimLoop)
    loop.tasks.pop(task, None)


class SimHandle:
    """A callback that is to run; as `asyncio.Handle`, without what only debugging needs."""

    __slots__ = ("_args", "_callback", "_context", "_loop")

    def __init__(self, loop: SimLoop, callback: Callable[..., Any], args: tuple[Any, ...], context: Any) -> None:
        self._loop = loop
        self._callback: Callable[..., Any] | None = callback
        self._args = args
        self._context = context if context is not None else contextvars.copy_context()

    def cancel(self) -> None:
        self._callback, self._args = None, ()

    def cancelled(self) -> bool:
        return self._callback is None

    def due(self) -> None:
        """Its time has come; in the hub."""
        if self._callback is not None:
            self._loop.push(self)

    def run(self) -> None:
        """In the loop's thread."""
        if self._callback is None:
            return
        try:
            self._context.run(self._callback, *self._args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  # as asyncio.Handle
            self._loop.call_exception_handler({"handle": self, "exception": error, "message": repr(self._callback)})


class SimLoop(base_events.BaseEventLoop):
    """See the module."""

    _begun = False

    def __init__(self, process: SimProcess) -> None:
        self.process = process
        super().__init__()
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self._sim = process.sim
        self._tasks_made = 0
        self._pump: list[Any] | None = None
        self._asleep = False
        self.set_task_factory(lambda loop, coro, **options: SimTask(coro, loop=loop, **options))  # type: ignore[arg-type]
        self._thread = SimThread(process, self._main, "loop")
        self._begun = True

    def next_number(self) -> int:
        self._tasks_made += 1
        return self._tasks_made

    def time(self) -> float:
        return self.process.mono_s()

    def is_running(self) -> bool:
        return self._begun and self.process.alive

    def get_debug(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> SimHandle:  # type: ignore[override]
        handle = SimHandle(self, callback, args, context)
        if self.process.alive:
            self._ready.append(handle)
            if self._asleep:
                self._asleep = False
                self._sim.soon(self._thread.resume, self.process)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = SimHandle(self, callback, args, context)
        process = self.process
        if process.alive:
            self._sim.after(process.virtual(when - process.mono_s()), handle.due, process)
        return handle

    def push(self, handle: SimHandle) -> None:
        """Run it, now; in the hub."""
        self._ready.append(handle)
        if self._asleep:
            self._asleep = False
            self._thread.resume()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """On a simulated thread of its own."""
        future = self.create_future()

        def settle(set_it: Callable[[Any], None], value: Any) -> None:
            if not future.done():
                set_it(value)

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001  # it is the future's
                self.call_soon(settle, future.set_exception, error)
            else:
                self.call_soon(settle, future.set_result, result)

        SimThread(self.process, work, "executor")
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A callback that raises is a defect. What comes from `__del__` comes at any time, and is left out."""
        if "handle" in context and self.process.alive:
            self._sim.fail(self.process, context.get("message") or "asyncio", context["exception"])

    def run(self, make: Callable[[], Coroutine[Any, Any, Any]], *, name: str = "main") -> None:
        """Have the coroutine that `make` returns run as a task; an error that leaves it ends the simulation."""

        async def guarded() -> None:
            try:
                await make()
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001
                if self.process.alive:
                    self._sim.fail(self.process, f"task {name}", error)

        self.call_soon(lambda: self.create_task(guarded(), name=name))

    def _main(self) -> None:
        ready, process, thread = self._ready, self.process, self._thread
        while True:
            events._set_running_loop(self)
            thread.loop = self
            try:
                for _ in range(_A_TURN):
                    if not ready or not process.alive:
                        break
                    ready.popleft().run()
            finally:
                thread.loop = None
                events._set_running_loop(None)
            if not process.alive:
                return
            if ready:
                self._sim.soon(thread.resume, process)
            else:
                self._asleep = True
            thread.park()

    def end(self) -> None:
        """The process is dead: close what its tasks have open, without effect."""
        self._ready.clear()
        for task in list(self.tasks):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coro = task.get_coro()
            with contextlib.suppress(BaseException):
                coro.close()  # type: ignore[union-attr]
        self.tasks.clear()
        self._closed = True

    def waiting(self) -> list[str]:
        """A line for every task that waits."""
        lines = []
        for task in self.tasks:
            frames = task.get_stack(limit=3)
            places = [f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}" for frame in reversed(frames)]
            lines.append(f"{self.process.name:<11} task {task.get_name()}: {' < '.join(places)}")
        return lines

    def __del__(self, _warn: Any = None) -> None:  # type: ignore[override]
        pass
