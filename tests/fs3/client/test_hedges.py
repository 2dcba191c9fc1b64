"""Reads of which one replica is late: another answers in its place, the caller's memory stays as it was read, and the
second requests stay within their budget.

A daemon may be silent for longer here than a call may take, so a read that waited for one that is stopped would fail.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fs3.client.hedge_core import HedgePolicy
from fs3.client.storage import ChunkUpdate, StorageClient
from fs3.clock import deadline_after
from fs3.errors import Unavailable
from fs3.ids import file_chunk
from fs3.transport.messages import RANGE

POLICY = HedgePolicy(floor_s=0.005, unknown_s=0.02, share=0.1, burst=8.0)
HI, _ = file_chunk(7, 0)
CHUNKS, SIZE = 12, 40_000


@pytest.fixture
def client(cluster):
    made = StorageClient(cluster.mgmtd, timeout_s=20.0, stall_s=60.0, client_id=77, hedging=POLICY)
    yield made
    for server in cluster.servers:
        server.goes_on.set()
    made.close()


@pytest.fixture
def datas(client) -> list[bytes]:
    made = [np.random.default_rng(at).bytes(SIZE) for at in range(CHUNKS)]
    client.write([ChunkUpdate(hi=HI, lo=at, chain=at % 6 + 1, data=data) for at, data in enumerate(made)])
    return made


class Call:
    """Reads of every chunk, whole or its first bytes, into a buffer of its own; `check` may be called again later."""

    def __init__(self, datas: list[bytes], length: int = SIZE) -> None:
        self._wanted = b"".join(data[:length] for data in datas)
        self.out = bytearray(len(self._wanted))
        self._ranges = np.zeros(len(datas), dtype=RANGE)
        self._ranges["hi"], self._ranges["lo"] = HI, np.arange(len(datas))
        self._ranges["chain"] = np.arange(len(datas)) % 6 + 1
        self._ranges["length"] = length
        self._offsets = np.arange(len(datas)) * length

    def read(self, client: StorageClient, **more: float) -> None:
        client.read(self._ranges.copy(), memoryview(self.out), self._offsets, **more)

    def check(self) -> None:
        assert self.out == self._wanted


def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(2_000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError(what)


def read_until(client: StorageClient, datas: list[bytes], condition: Callable[[], bool], what: str) -> None:
    for _ in range(2_000):
        Call(datas, 100).read(client)
        if condition():
            return
    raise AssertionError(what)


def calm(client: StorageClient) -> None:
    """Wait until no late answer is owed any more."""
    until(lambda: not client.peers.hedges.late, f"late answers never came: {client.peers.hedges.late}")


@pytest.mark.parametrize("length", [100, SIZE])
def test_reads_go_on_while_a_daemon_is_stopped_and_its_late_answers_touch_nothing(cluster, client, datas, length):
    for _ in range(10):
        Call(datas, length).read(client)
    stopped = cluster.servers[1]
    before = len(stopped.asked)
    stopped.goes_on.clear()
    calls = [Call(datas, length) for _ in range(60)]
    for call in calls:
        call.read(client)
        call.check()
    hedges = client.peers.hedges
    assert hedges.late[stopped.endpoint] and 1 <= hedges.sent <= 8 + 0.1 * hedges.requests
    assert not cluster.mgmtd.suspected  # it was left alone, and not connected to in vain
    for call in calls:
        call.out[:] = bytes(len(call.out))  # the caller's again
    stopped.goes_on.set()
    calm(client)
    assert not any(any(call.out) for call in calls)
    assert before < len(stopped.asked) <= before + 3  # as long as it owes an answer it is not asked again
    before = len(stopped.asked)
    read_until(client, datas, lambda: len(stopped.asked) > before, "it is never asked again")


def test_threads_that_wait_for_the_same_daemon_all_get_their_bytes(cluster, client, datas) -> None:
    for _ in range(10):
        Call(datas, 100).read(client)
    cluster.servers[2].goes_on.clear()
    calls = [Call(datas, 100) for _ in range(200)]
    with ThreadPoolExecutor(12) as threads:
        for done in [threads.submit(call.read, client) for call in calls]:
            done.result()
    for call in calls:
        call.check()


def test_hedges_stay_within_their_budget_when_all_are_slow(cluster, client, datas) -> None:
    for _ in range(30):
        Call(datas, 100).read(client)
    hedges = client.peers.hedges
    for server in cluster.servers:
        server.slow_s = 0.04
    before, asked = hedges.sent, hedges.requests
    for _ in range(60):
        call = Call(datas, 100)
        call.read(client)
        call.check()
    assert 1 <= hedges.sent - before <= 8 + 0.1 * (hedges.requests - asked)
    later = hedges.sent
    for _ in range(40):  # by now this is what they take
        Call(datas, 100).read(client)
    assert hedges.sent - later <= 8
    calm(client)


def test_when_nobody_answers_no_more_is_asked_than_the_budget_allows(cluster, client, datas) -> None:
    for _ in range(10):
        Call(datas, 100).read(client)
    for server in cluster.servers:
        server.goes_on.clear()
    hedges = client.peers.hedges
    before = hedges.sent
    with ThreadPoolExecutor(12) as threads:
        calls = [threads.submit(Call(datas, 100).read, client, deadline_s=deadline_after(0.5)) for _ in range(24)]
        for done in calls:
            with pytest.raises(Unavailable):
                done.result()
    assert hedges.sent - before <= 8 + 0.1 * hedges.requests


class Hedged:
    """A call on a thread, of which one daemon was asked, then another, while none of them answers."""

    def __init__(self, cluster, client: StorageClient, datas: list[bytes]) -> None:
        self.call = Call(datas, 100)
        read_until(client, datas, lambda: len(client.peers._connect_s) == 3, "not all were connected to")
        self._thread = ThreadPoolExecutor(1)
        for server in cluster.servers:
            server.goes_on.clear()

        def owing() -> list:
            return [server for server in cluster.servers if client.peers._load.get(server.endpoint, 0)]

        self._reading = self._thread.submit(self.call.read, client)
        until(lambda: bool(owing()), "nobody was asked")
        (self.first,) = owing()
        until(lambda: client.peers.hedges.sent == 1 and len(owing()) == 2, "nobody else was asked")
        (self.second,) = (server for server in owing() if server is not self.first)

    def done(self) -> None:
        """Wait until the call has returned. Raises: what it raised."""
        self._reading.result()
        self._thread.shutdown()
        self.call.check()


@pytest.fixture
def hesitant(cluster):
    """A client that hedges late enough to see whom it asks first."""
    policy = HedgePolicy(floor_s=0.4, unknown_s=0.4)
    made = StorageClient(cluster.mgmtd, timeout_s=20.0, stall_s=60.0, client_id=79, hedging=policy)
    yield made
    for server in cluster.servers:
        server.goes_on.set()
    made.close()


def test_the_first_replica_may_yet_be_the_one_that_answers(cluster, hesitant, datas) -> None:
    hedged = Hedged(cluster, hesitant, datas)
    hedged.first.goes_on.set()
    hedged.done()
    assert hesitant.peers.hedges.late == {hedged.second.endpoint: 1}
    hedged.second.goes_on.set()
    calm(hesitant)
    hedged.call.check()


def test_a_second_replica_that_breaks_off_leaves_the_first(cluster, hesitant, datas) -> None:
    hedged = Hedged(cluster, hesitant, datas)
    hedged.second.stop()
    hedged.first.goes_on.set()
    hedged.done()


def test_a_first_replica_that_breaks_off_leaves_the_others(cluster, hesitant, datas) -> None:
    hedged = Hedged(cluster, hesitant, datas)
    hedged.first.stop()
    for server in cluster.servers:
        server.goes_on.set()
    hedged.done()


def test_damage_is_blamed_on_the_replica_that_sent_it(cluster, hesitant, datas) -> None:
    hedged = Hedged(cluster, hesitant, datas)
    for server in cluster.servers:
        server.corrupt = server is not hedged.first
    hedged.second.goes_on.set()
    until(lambda: bool(hesitant.peers.hedges.late), "the first was never let go of")
    for server in cluster.servers:
        server.goes_on.set()
    hedged.done()
    until(lambda: bool(hedged.second.reported), "nothing was reported")
    assert not hedged.first.reported


def test_without_a_policy_nothing_is_hedged(cluster, datas) -> None:
    client = StorageClient(cluster.mgmtd, timeout_s=20.0, stall_s=0.3, client_id=78, hedging=None)
    cluster.servers[1].goes_on.clear()
    for _ in range(6):
        call = Call(datas, 100)
        call.read(client)
        call.check()
    assert client.peers.hedges.sent == 0
    client.close()
