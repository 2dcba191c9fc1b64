"""A process's session on a clock that the test moves: how long one who changes something waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from fs3.client.session import ClientSession
from fs3.errors import Unavailable
from fs3.pb import mgmtd_pb2
from fs3.runtime import SystemRuntime, Thread
from fs3.transport.credentials import Credentials


class Clock(SystemRuntime):
    """Time passes where mgmtd is waited for; a session is not renewed."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s

    def spawn(self, work: Callable[[], None], *, name: str) -> Thread:
        return threading.Thread(target=work)


class Service:
    """Stands where ControlService stands: answers after `takes_s`, or not in time."""

    addresses: tuple[str, ...] = ("mgmtd",)

    def __init__(self, clock: Clock, takes_s: float) -> None:
        self.clock = clock
        self.takes_s = takes_s
        self.waits_s: list[float] = []
        self.on_call: Callable[[], None] = lambda: None

    def learn(self, addresses: tuple[str, ...]) -> None: ...

    def call(self, method: str, request: Any, *, timeout_s: float, credentials: Credentials) -> Any:
        self.waits_s.append(timeout_s)
        self.on_call()
        self.clock.time_s += min(self.takes_s, timeout_s)
        if self.takes_s > timeout_s:
            raise Unavailable("mgmtd did not answer in time")
        return mgmtd_pb2.OpenSessionReply(session_id=7, session_ms=60_000)

    def close(self) -> None: ...


def session_of(takes_s: float) -> tuple[Service, ClientSession]:
    clock = Clock()
    service = Service(clock, takes_s)
    return service, ClientSession(service, Credentials(), clock)


def test_a_session_is_waited_for_until_the_callers_deadline() -> None:
    service, session = session_of(takes_s=5.0)
    with pytest.raises(Unavailable, match="in time"):
        session.current(deadline_s=102.0)
    assert service.clock.time_s == 102.0
    with pytest.raises(Unavailable, match="no time was left to open"):
        session.current(deadline_s=102.0)
    assert service.waits_s == [2.0], "nobody is asked once the time is over"
    assert session.current() == 7
    assert service.waits_s == [2.0, 10.0]
    assert session.current(deadline_s=0.0) == 7, "a known one takes no time"


def test_who_waits_for_another_threads_asking_keeps_to_its_own_deadline() -> None:
    service, session = session_of(takes_s=0.0)
    told: list[str] = []

    def in_a_hurry() -> None:
        try:
            session.current(deadline_s=100.0)
        except Unavailable as error:
            told.append(str(error))

    def meanwhile() -> None:
        thread = threading.Thread(target=in_a_hurry, daemon=True)
        thread.start()
        thread.join(30.0)

    service.on_call = meanwhile
    assert session.current(deadline_s=160.0) == 7
    assert len(told) == 1 and "was being opened" in told[0]
