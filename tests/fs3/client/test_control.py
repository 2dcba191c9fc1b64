"""Several daemons of one service on a clock that the test moves: who is asked, how long, and when it is given up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fs3.client.control import ControlService
from fs3.errors import Invalid, NotPrimary, Unavailable
from fs3.pb import mgmtd_pb2
from fs3.runtime import SystemRuntime
from fs3.transport.credentials import Credentials


class Clock(SystemRuntime):
    """Time passes where something waits."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds


class Daemons:
    """What each address does, by name; `asked` is who was asked when, and for how long."""

    def __init__(self, **does: str) -> None:
        self.clock = Clock()
        self.does = does
        self.asked: list[tuple[str, float, float]] = []
        self.service = ControlService(list(does), open_channel=self.channel, runtime=self.clock)

    def channel(self, address: str) -> Any:
        daemons = self

        class Channel:
            def call(self, method: str, request: Any, *, timeout_s: float, credentials: Credentials) -> str:
                return daemons.answer(address, timeout_s)

            def close(self) -> None:
                daemons.does[address] = "closed"

        return Channel()

    def answer(self, address: str, timeout_s: float) -> str:
        self.asked.append((address, self.clock.time_s, timeout_s))
        match self.does[address]:
            case "answers":
                return address
            case "stands by":
                raise NotPrimary("not me")
            case "hangs":
                self.clock.time_s += timeout_s
                raise Unavailable(f"{address} did not answer in time")
            case "refuses the request":
                raise Invalid("no")
        raise Unavailable(f"{address} cannot be reached")

    def call(self, timeout_s: float, wait_ms: int = 0) -> str:
        request = mgmtd_pb2.GetRoutingRequest(wait_ms=wait_ms)
        reply: str = self.service.call("GetRouting", request, timeout_s=timeout_s, credentials=Credentials())
        return reply


def test_who_answered_last_is_asked_first() -> None:
    daemons = Daemons(a="gone", b="answers", c="answers")
    assert [daemons.call(5.0), daemons.call(5.0)] == ["b", "b"]
    assert [address for address, _, _ in daemons.asked] == ["a", "b", "b"]
    daemons.does["b"] = "gone"
    assert daemons.call(5.0) == "c"


def test_where_all_are_gone_nobody_waits() -> None:
    daemons = Daemons(a="gone", b="gone")
    with pytest.raises(Unavailable, match="a cannot be reached; b cannot be reached"):
        daemons.call(5.0)
    assert daemons.clock.time_s == 0.0


def test_a_change_of_the_primary_is_waited_for() -> None:
    daemons = Daemons(a="gone", b="stands by")
    with pytest.raises(Unavailable, match="not me"):
        daemons.call(2.0)
    assert daemons.clock.time_s == 2.0
    taken_over: Callable[[float], None] = daemons.clock.sleep
    daemons.clock.sleep = lambda seconds: (taken_over(seconds), daemons.does.update(b="answers"))  # type: ignore[assignment,func-returns-value,method-assign]
    assert daemons.call(5.0) == "b"


def test_one_that_hangs_costs_a_second_and_gets_longer_where_nobody_else_answers() -> None:
    daemons = Daemons(a="hangs", b="answers")
    assert daemons.call(10.0) == "b"
    assert daemons.clock.time_s == 1.0
    daemons = Daemons(a="hangs", b="hangs")
    with pytest.raises(Unavailable):
        daemons.call(10.0)
    assert max(timeout_s for _, _, timeout_s in daemons.asked) >= 2.0
    assert daemons.clock.time_s == pytest.approx(10.0)
    only = Daemons(a="hangs")
    with pytest.raises(Unavailable):
        only.call(10.0)
    assert only.asked == [("a", 0.0, 10.0)], "with nobody else to ask it has all the time"


def test_a_long_poll_may_take_as_long_as_it_asks_for() -> None:
    daemons = Daemons(a="hangs", b="answers")
    assert daemons.call(30.0, wait_ms=4_000) == "b"
    assert daemons.clock.time_s == 5.0


def test_an_answer_that_is_no_is_an_answer() -> None:
    daemons = Daemons(a="refuses the request", b="answers")
    with pytest.raises(Invalid):
        daemons.call(5.0)
    assert len(daemons.asked) == 1


def test_learned_addresses_come_and_go_and_the_given_stay() -> None:
    daemons = Daemons(a="gone")
    daemons.does.update(b="answers", c="answers")
    daemons.service.learn(["b", "a"])
    assert daemons.service.addresses == ("a", "b") and daemons.call(1.0) == "b"
    daemons.service.learn(["c"])
    assert daemons.service.addresses == ("a", "c") and daemons.call(1.0) == "c"
    daemons.service.close()
    with pytest.raises(Unavailable):
        daemons.call(1.0)
