"""The forward port on real sockets: cut by the receiver's limits, all sent before any answer is awaited, errors kept
apart, connections by lane, calls cut off. And what runs beside: the write path's locks and its chores."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fs3.clock import deadline_after
from fs3.errors import Busy, Fs3Error, StaleRouting, Unavailable
from fs3.pb import storage_pb2
from fs3.storage.chores import Chores
from fs3.storage.forward import ChainForwarder, Frame, fitting
from fs3.storage.write_locks import WriteLocks
from fs3.transport.frame_core import HEADER_BYTES, Header, Kind, check_head, pack_header, unpack_header
from fs3.transport.messages import CHUNK_META, RESULT, UPDATE, Records

Answer = Callable[[Header, bytes, bytes], tuple[int, bytes, bytes, int]]


class Successor:
    """Answers frames by `answer(header, head, body) -> (count, head, body, status)`; each connection has a thread."""

    def __init__(self, answer: Answer, *, max_ranges: int = 100, max_body_bytes: int = 1 << 20) -> None:
        self.answer = answer
        self.limits = {"max_ranges": max_ranges, "max_body_bytes": max_body_bytes}
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        self._open: list[socket.socket] = []

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            self._threads.append(threading.Thread(target=self._talk, args=(sock,), daemon=True))
            self._threads[-1].start()

    def _talk(self, sock: socket.socket) -> None:
        stream = sock.makefile("rb")
        while raw := stream.read(HEADER_BYTES):
            header = unpack_header(raw)
            head = stream.read(header.head_bytes)
            check_head(raw, head)
            body = stream.read(header.body_bytes)
            if header.kind == Kind.HELLO:
                count, head, body, status = 0, storage_pb2.HelloReply(**self.limits).SerializeToString(), b"", 0
            else:
                count, head, body, status = self.answer(header, head, body)
            reply = Header(
                header.kind,
                header.request_id,
                True,
                count=count,
                head_bytes=len(head),
                body_bytes=len(body),
                status=status,
            )
            try:
                sock.sendall(pack_header(reply, head) + head + body)
            except OSError:
                return

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            sock.close()


@pytest.fixture
def port() -> Iterator[ChainForwarder]:
    forwarder = ChainForwarder(storage_pb2.Hello(protocol=1, role="chain"), max_per_endpoint=4)
    yield forwarder
    forwarder.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Successor]]:
    made: list[Successor] = []

    def start(answer: Answer, **limits: int) -> Successor:
        made.append(Successor(answer, **limits))
        return made[-1]

    yield start
    for one in made:
        one.close()


def frame(endpoint: str, count: int, *, size: int = 10, hop: int = 1, lane: int = 1) -> Frame:
    records = np.zeros(count, dtype=UPDATE)
    records["lo"], records["length"], records["n_sums"] = np.arange(count), size, 1
    sums = [np.array([number], dtype=np.uint32) for number in range(count)]
    return Frame(endpoint, hop, lane, records, sums, [memoryview(bytes([number]) * size) for number in range(count)])


def echo(seen: list[tuple[Header, int]]) -> Answer:
    """Every update's version becomes its lo; checks that sums and bytes belong to it."""

    def answer(header: Header, head: bytes, body: bytes) -> tuple[int, bytes, bytes, int]:
        updates = np.frombuffer(head, dtype=UPDATE, count=header.count)
        sums = np.frombuffer(head, dtype="<u4", offset=header.count * UPDATE.itemsize)
        assert sums.tolist() == updates["lo"].tolist()
        assert body == b"".join(bytes([lo]) * length for lo, length in updates[["lo", "length"]].tolist())
        seen.append((header, len(body)))
        results: Records = np.zeros(header.count, dtype=RESULT)
        results["version"] = updates["lo"]
        return header.count, results.tobytes(), b"", 0

    return answer


def test_a_frame_is_cut_by_the_receivers_limits(port: ChainForwarder, serve: Callable[..., Successor]) -> None:
    seen: list[tuple[Header, int]] = []
    there = serve(echo(seen), max_ranges=7, max_body_bytes=50)
    (answer,) = port.forward([frame(there.endpoint, 20, hop=2)], deadline_s=deadline_after(10.0))
    assert not isinstance(answer, Fs3Error) and answer["version"].tolist() == list(range(20))
    assert [(header.count, length) for header, length in seen] == [(5, 50)] * 4
    assert {header.hop for header, _ in seen} == {2} and all(0 < header.deadline_ms <= 10_000 for header, _ in seen)
    assert there.connections == 1


def test_fitting() -> None:
    assert fitting([5, 5, 5], 9, 10) == 2
    assert fitting([50, 5], 9, 10) == 1, "one too large goes alone: the receiver says so"
    assert fitting([0] * 5, 3, 10) == 3


def test_successors_are_asked_at_the_same_time_and_fail_alone(
    port: ChainForwarder, serve: Callable[..., Successor]
) -> None:
    """Each successor answers only when the other's frame has come too."""
    both = threading.Barrier(2, timeout=10.0)
    seen: list[tuple[Header, int]] = []

    def together(header: Header, head: bytes, body: bytes) -> tuple[int, bytes, bytes, int]:
        both.wait()
        return echo(seen)(header, head, body)

    first, second = serve(together), serve(together)
    stale = serve(lambda *_: (0, b"old chain", b"", StaleRouting.code))
    gone = serve(echo(seen))
    gone.close()
    frames = [frame(one.endpoint, 3) for one in (first, stale, gone, second)]
    answers = port.forward(frames, deadline_s=deadline_after(10.0))
    assert [type(answer) for answer in answers] == [np.ndarray, StaleRouting, Unavailable, np.ndarray]
    again = port.forward([frame(stale.endpoint, 1)], deadline_s=deadline_after(10.0))
    assert isinstance(again[0], StaleRouting) and stale.connections == 1, "an error leaves the connection usable"


def test_lanes_share_no_connection_and_a_gone_process_is_not_waited_for(
    port: ChainForwarder, serve: Callable[..., Successor]
) -> None:
    asked, free = threading.Semaphore(0), threading.Event()

    def hang(_header: Header, _head: bytes, _body: bytes) -> tuple[int, bytes, bytes, int]:
        asked.release()
        free.wait(20.0)
        return 0, b"", b"", Busy.code

    there = serve(hang)
    answers: list[Records | Fs3Error] = []

    def call(lane: int) -> None:
        answers.extend(port.forward([frame(there.endpoint, 1, lane=lane)], deadline_s=deadline_after(60.0)))

    threads = [threading.Thread(target=call, args=(lane,)) for lane in (1, 2)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert asked.acquire(timeout=10.0)
    assert there.connections == 2
    port.cut_off(there.endpoint)
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()
    assert all(isinstance(answer, Unavailable) for answer in answers)
    free.set()


def test_recovery_calls(port: ChainForwarder, serve: Callable[..., Successor]) -> None:
    page = np.zeros(3, dtype=CHUNK_META)
    page["lo"] = [4, 5, 6]
    done: list[int] = []

    def answer(header: Header, head: bytes, _body: bytes) -> tuple[int, bytes, bytes, int]:
        if header.kind == Kind.SYNC_LIST:
            assert storage_pb2.SyncListRequest.FromString(head).after == b"x" * 16
            return 3, storage_pb2.SyncListReply(more=True).SerializeToString(), page.tobytes(), 0
        done.append(storage_pb2.SyncDoneRequest.FromString(head).chain_version)
        return 0, b"", b"", 0 if done[-1] == 5 else StaleRouting.code

    there = serve(answer)
    request = storage_pb2.SyncListRequest(chain_id=1, chain_version=5, after=b"x" * 16, limit=3)
    reply, found = port.sync_list(there.endpoint, request, deadline_s=deadline_after(10.0))
    assert reply.more and found.tolist() == page.tolist()
    finished = storage_pb2.SyncDoneRequest(chain_id=1, chain_version=5)
    port.sync_done(there.endpoint, finished, deadline_s=deadline_after(10.0))
    finished.chain_version = 4
    with pytest.raises(StaleRouting):
        port.sync_done(there.endpoint, finished, deadline_s=deadline_after(10.0))
    assert done == [5, 4] and there.connections == 1


def test_a_closed_port_calls_nobody(port: ChainForwarder, serve: Callable[..., Successor]) -> None:
    there = serve(echo([]))
    port.close()
    (answer,) = port.forward([frame(there.endpoint, 1)], deadline_s=deadline_after(10.0))
    assert isinstance(answer, Unavailable) and there.connections == 0


def test_locks_are_handed_over_in_order_and_waited_for_until_a_deadline() -> None:
    locks = WriteLocks()
    keys = [(1, 1, number) for number in range(3)]
    assert locks.acquire(keys, deadline_after(0.0)) == set(keys)
    assert locks.acquire([*keys, (1, 1, 9)], deadline_after(0.01)) == {(1, 1, 9)}
    order: list[int] = []
    got = threading.Semaphore(0)

    def wait(number: int) -> None:
        assert locks.acquire(keys[:1], deadline_after(20.0)) == {keys[0]}
        order.append(number)
        got.release()

    threads = []
    for number in range(3):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        while len(locks._waiters[keys[0]]) <= number:
            threading.Event().wait(0.001)
    for _ in threads:
        locks.release(keys[:1])
        assert got.acquire(timeout=20.0)
    assert order == [0, 1, 2]
    locks.release([*keys, (1, 1, 9)])
    assert locks.held() == 0


def test_chores_run_once_more_when_asked_while_they_run_and_again_when_they_fail() -> None:
    runs: list[int] = []
    begun, go_on, over = threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    def work(number: int) -> float | None:
        runs.append(number)
        begun.release()
        assert go_on.acquire(timeout=20.0)
        if len(runs) == 2:
            raise Unavailable("not yet")
        if len(runs) == 3:
            over.set()
        return None

    chores = Chores({"work": work}, threads=2)
    chores.ask("work", 7)
    assert begun.acquire(timeout=20.0)
    for _ in range(3):
        chores.ask("work", 7)
    for _ in range(3):
        go_on.release()
    assert over.wait(20.0)
    chores.close()
    assert runs == [7, 7, 7] and chores.idle()
