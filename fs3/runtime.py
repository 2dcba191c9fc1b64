"""Threads, locks and the lease clock as the blocking shells use them: a port, so that the simulator runs the same code.

The write path, the chunk engine and the client block: they wait for locks, conditions, disks and peers. Each of them is
handed a `Runtime` and takes from it every thread, lock, pause, random number and time it needs. In production that is
`SYSTEM`, plain `threading` and CLOCK_BOOTTIME; in tests/sim it is a scheduler that switches between light threads at
exactly these points, on virtual time and from one seed.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from fs3.clock import lease_now_s, wall_now_ns


class Lock(Protocol):
    """As `threading.Lock`."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Condition(Protocol):
    """As `threading.Condition`, with a lock of its own that its holder may take again."""

    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool: ...
    def notify(self, n: int = 1) -> None: ...
    def notify_all(self) -> None: ...


class Event(Protocol):
    """As `threading.Event`."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...
    def clear(self) -> None: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class Thread(Protocol):
    """A thread that `Runtime.spawn` has started."""

    @property
    def name(self) -> str: ...
    def join(self, timeout: float | None = None) -> None: ...
    def is_alive(self) -> bool: ...


class Runtime(Protocol):
    """See the module."""

    def now_s(self) -> float:
        """The lease clock: monotone, goes on while the machine is suspended."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, for people and for generations; may jump."""

    def sleep(self, seconds: float) -> None: ...
    def lock(self) -> Lock: ...
    def condition(self) -> Condition: ...
    def event(self) -> Event: ...
    def spawn(self, work: Callable[[], None], *, name: str) -> Thread:
        """Run `work` on a thread that ends with the process, whatever it is doing."""

    def random_bits(self, bits: int) -> int: ...


class SystemRuntime:
    """The operating system's threads and clocks."""

    def now_s(self) -> float:
        return lease_now_s()

    def wall_ns(self) -> int:
        return wall_now_ns()

    def sleep(self, seconds: float) -> None:
        threading.Event().wait(seconds)

    def lock(self) -> Lock:
        return threading.Lock()

    def condition(self) -> Condition:
        return threading.Condition()

    def event(self) -> Event:
        return threading.Event()

    def spawn(self, work: Callable[[], None], *, name: str) -> Thread:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread

    def random_bits(self, bits: int) -> int:
        return secrets.randbits(bits)


SYSTEM: Runtime = SystemRuntime()
