"""Both ends of a data connection, in frames: `Connection` for a client, `Peer` and `IoThread` for a daemon.

The client's end has the public face of `fs3.transport.connection.Connection` (plan: port P3). The daemon's end hands
each frame to the production `Service.begin`, on a simulated IO thread, with itself as the peer. As on a real socket,
what a plain reply names is copied when it is sent, which is a little after it was queued; what goes by `sendfile` is
read as late as it arrives, and its blocks are kept until the client has acknowledged it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sim_kernel import ProcessEnded, SimProcess
from sim_network import Network, Wire
from sim_threads import SimRuntime, SimThread

from fs3.checksum import Bytes
from fs3.errors import Busy, Corrupt, Fs3Error, Invalid, Unavailable, from_code
from fs3.pb import storage_pb2
from fs3.storage.connections import Figures, Handler
from fs3.storage.reassembly_core import Frame
from fs3.storage.reply import FileRange, Reply, error_reply
from fs3.transport.frame_core import (
    HEADER_BYTES,
    ONE_WAY,
    TRAILER_BYTES,
    Flag,
    Header,
    Kind,
    unpack_header,
    unpack_trailer,
)
from fs3.transport.messages import RESULT

_TICK_S = 0.5
_CONGESTED_S = (0.001, 0.01, 0.3)  # for about how long a socket takes nothing more
_SETTLE_AFTER_S = 0.5
_NEED_ACK, _TRAILER = int(Flag.NEED_ACK), int(Flag.TRAILER)
_MAX_UNACKED = 256
_WITH_RESULTS = (int(Kind.READ), int(Kind.QUERY), int(Kind.WRITE))


@dataclass(slots=True)
class _Answer:
    """A reply on the wire; `late` makes the body when it arrives, from what `sendfile` reads then."""

    raw: bytes  # header and head
    body: bytes
    late: Callable[[], bytes] | None


class SimConnection:
    """The client's end; as `fs3.transport.connection.Connection`."""

    def __init__(self, network: Network, runtime: SimRuntime, endpoint: str, machine: str) -> None:
        self.endpoint = endpoint
        self.hello_reply = storage_pb2.HelloReply()
        self.deadline_s = runtime.now_s() + 5.0
        self.stall_s: float | None = None
        self.idle_since_s = 0.0
        self._network = network
        self._runtime = runtime
        self._process = runtime.process
        self._number = network.next_number()
        self._wire = Wire(
            network,
            (self._process, network.of(endpoint).process or self._process),
            (machine, network.of(endpoint).name),
        )
        self._wire.received[0] = self._received
        self._wire.broken[0] = self._broken
        self._inbox: deque[_Answer] = deque()
        self._why = ""
        self._waiter: SimThread | None = None
        self._closed = False
        self._request_id = 0
        self._received_id = 0
        self._awaited: deque[int] = deque()
        self._kinds: dict[int, tuple[int, int]] = {}
        self._need_ack = False
        self._now = Header(Kind.HELLO, 0)
        self._body = b""
        self._body_at = 0

    def __hash__(self) -> int:
        return self._number  # sets of connections are gone through in an order that every run has

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def outstanding(self) -> int:
        return len(self._awaited)

    def close(self) -> None:
        if not self._closed and self._process.alive:
            self._closed = True
            self._wire.close(0)

    def send(
        self,
        kind: Kind,
        head_parts: Sequence[Bytes],
        body_parts: Sequence[Bytes] = (),
        *,
        count: int,
        flags: int = 0,
        hop: int = 0,
        deadline_s: float,
    ) -> int:
        if not self._process.alive:
            raise ProcessEnded
        self.deadline_s = deadline_s
        left_s = deadline_s - self._runtime.now_s()
        if self._closed:
            raise Unavailable(f"the connection to {self.endpoint} is closed")
        if left_s <= 0:
            self.close()
            raise Unavailable(f"{self.endpoint} did not answer in time")
        if self._why and not self._inbox:
            self._lost()
        head, body = b"".join(head_parts), b"".join(body_parts)
        self._request_id += 1
        header = Header(
            kind,
            self._request_id,
            flags=flags,
            count=count,
            head_bytes=len(head),
            body_bytes=len(body),
            deadline_ms=max(1, int(left_s * 1_000)),
            hop=hop,
            ack_id=self._received_id,
        )
        self._need_ack = False
        if kind not in ONE_WAY:
            self._awaited.append(self._request_id)
            self._kinds[self._request_id] = (kind, hop)
        self._wire.send(0, Frame(header, head, memoryview(body)))
        return self._request_id

    def wait(self, until_s: float, other: SimConnection | None = None) -> SimConnection | None:
        both = [self] if other is None else [self, other]
        while True:
            if not self._process.alive:
                raise ProcessEnded
            if self._inbox or self._why or self._closed:
                return self
            if other is not None and other._inbox:
                return other
            left_s = until_s - self._runtime.now_s()
            if left_s <= 0:
                return None
            waiter = self._process.sim.current
            assert waiter is not None
            for one in both:
                one._waiter = waiter
            waiter.park(left_s)
            for one in both:
                one._waiter = None

    def receive_head(self) -> tuple[Header, memoryview]:
        self._wait()
        answer = self._inbox.popleft()
        header = unpack_header(answer.raw)
        head = memoryview(answer.raw)[HEADER_BYTES:]
        if not header.reply or header.request_id not in self._awaited:
            self.close()
            raise Corrupt(f"{self.endpoint} sent frame {header.request_id}, which answers nothing")
        self._body_at = 0
        self._now, self._body = header, answer.body if answer.late is None else answer.late()
        self._tell(header, head)
        if header.status:
            if header.body_bytes or header.flags & _TRAILER:
                self.close()
            self._finish()
            raise from_code(header.status, bytes(head).decode(errors="replace"))
        if not header.body_bytes and not header.flags & _TRAILER:
            self._finish()
        return header, head

    def receive_body(self, views: Sequence[memoryview], part_bytes: int | None = None) -> None:
        if not self._process.alive:
            raise ProcessEnded
        header = self._now
        if not header.body_bytes and not header.flags & _TRAILER:
            return
        at = self._body_at
        body = self._body
        for view in views:
            size = len(view)
            view[:] = body[at : at + size]
            at += size
        assert part_bytes is None or at == self._body_at + part_bytes
        self._body_at = at
        if part_bytes is not None and at < header.body_bytes:
            return
        assert at == header.body_bytes, f"memory for {at} bytes, and {self.endpoint} sent {header.body_bytes}"
        self._finish()

    def receive_trailer(self) -> tuple[int, int]:
        if not self._now.flags & _TRAILER:
            return 0, 0
        return unpack_trailer(self._body[-TRAILER_BYTES:])

    @property
    def owes_ack(self) -> bool:
        return self._need_ack and not self._closed

    def acknowledge(self) -> None:
        if self.owes_ack:
            self.send(Kind.ACK, [b""], count=0, deadline_s=self._runtime.now_s() + 1.0)

    def alive(self) -> bool:
        return not (self._closed or self._awaited or self._inbox or self._why)

    def _finish(self) -> None:
        header = self._now
        self._awaited.remove(header.request_id)
        self._kinds.pop(header.request_id, None)
        self._received_id = self._awaited[0] - 1 if self._awaited else self._request_id
        if header.flags & _NEED_ACK:
            self._need_ack = True

    def _wait(self) -> None:
        """Until there is a reply. Raises: Unavailable."""
        begun_s = self._runtime.now_s()
        while not self._inbox:
            if not self._process.alive:
                raise ProcessEnded
            if self._closed:
                raise Unavailable(f"the connection to {self.endpoint} is closed")
            if self._why:
                self._lost()
            now_s = self._runtime.now_s()
            left_s = self.deadline_s - now_s
            if self.stall_s is not None:
                left_s = min(left_s, begun_s + self.stall_s - now_s)
            if left_s <= 0:
                self._emit_broken("no answer in time")
                self.close()
                raise Unavailable(f"{self.endpoint} did not answer in time")
            sim = self._process.sim
            assert sim.current is not None
            self._waiter = sim.current
            self._waiter.park(min(left_s, _TICK_S))
            self._waiter = None

    def _lost(self) -> None:
        self._emit_broken(self._why)
        self.close()
        raise Unavailable(f"{self.endpoint} broke off: {self._why}")

    def _received(self, answer: _Answer) -> None:
        if answer.late is not None:
            body = answer.late()
            answer = _Answer(answer.raw, body, None)
        self._inbox.append(answer)
        self._wake()

    def _broken(self, why: str) -> None:
        self._why = why
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.woken:
            waiter.wake()

    def _tell(self, header: Header, head: memoryview) -> None:
        sim = self._process.sim
        if sim.listeners("answer"):
            kind, hop = self._kinds.get(header.request_id, (header.kind, header.hop))
            statuses: dict[int, int] = {}
            if not header.status and kind in _WITH_RESULTS and header.count:
                column = np.frombuffer(head, dtype=RESULT, count=header.count)["status"].tolist()
                statuses = dict(Counter(column))
            fields = {"peer": self.endpoint, "kind": kind, "hop": hop, "status": header.status, "statuses": statuses}
            sim.emit("answer", self._process, **fields)

    def _emit_broken(self, why: str) -> None:
        kinds = [self._kinds[one] for one in self._awaited if one in self._kinds]
        self._process.sim.emit("broken", self._process, peer=self.endpoint, why=why, waiting=kinds)


class SimConnector:
    """`open_connection` of a process on `machine`; as `Connection.open`."""

    def __init__(self, network: Network, runtime: SimRuntime, machine: str) -> None:
        self._network = network
        self._runtime = runtime
        self._machine = machine

    def __call__(self, endpoint: str, hello: storage_pb2.Hello, *, timeout_s: float) -> SimConnection:
        network, runtime = self._network, self._runtime
        sim = network.sim
        deadline_s = runtime.now_s() + timeout_s
        there = network.of(endpoint)
        out_s, back_s = network.delay(self._machine, there.name), network.delay(there.name, self._machine)
        while network.is_cut(self._machine, there.name) or network.is_cut(there.name, self._machine) or not there.up:
            left_s = deadline_s - runtime.now_s()
            if left_s <= 0:
                sim.emit("broken", runtime.process, peer=endpoint, why="no connection in time", waiting=[])
                raise Unavailable(f"{endpoint} cannot be reached: timed out")
            runtime.sleep(min(left_s, 0.25))  # SYN again
        runtime.sleep(out_s + back_s)
        listening = there.listening
        if not there.alive or listening is None:
            sim.emit("broken", runtime.process, peer=endpoint, why="refused", waiting=[])
            raise Unavailable(f"{endpoint} cannot be reached: Connection refused")
        connection = SimConnection(network, runtime, endpoint, self._machine)
        listening(connection._wire)
        try:
            left_s = max(deadline_s, runtime.now_s() + 1e-3)
            connection.send(Kind.HELLO, [hello.SerializeToString()], count=0, deadline_s=left_s)
            _, head = connection.receive_head()
            connection.hello_reply.ParseFromString(bytes(head))
        except BaseException:
            connection.close()
            raise
        return connection


class SimIo:
    """The IO thread of a daemon: handles frames in order of arrival, and what others post. `connections.Loop`."""

    def __init__(self, process: SimProcess, handler: Handler, *, max_requests: int) -> None:
        self.figures = Figures()
        self.peers: dict[int, SimPeer] = {}
        self.max_requests = max_requests
        self.handler = handler
        self.process = process
        self._mail: deque[Callable[[], None]] = deque()
        self._asleep = False
        self._stopping = False
        self._thread = SimThread(process, self._run, "io")

    def accept(self, wire: Wire) -> None:
        """A connection was made; called in the hub."""
        self.figures.accepted += 1
        SimPeer(self, wire)

    def post(self, call: Callable[[], None]) -> None:
        self._mail.append(call)
        if self._asleep:
            self._asleep = False
            self._thread.wake()

    def unsent(self) -> int:
        """How many replies still wait to be sent."""
        return sum(len(peer._outbox) + peer.in_progress for peer in self.peers.values())

    def stop(self) -> None:
        """End, whatever has come; from another thread."""
        self._stopping = True
        self.post(lambda: None)
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            while self._mail and not self._stopping:
                self._mail.popleft()()
            if not self._stopping:
                self._asleep = True
                self._thread.park()


class SimPeer:
    """The daemon's end of a connection; what production code uses of `connections.Peer`."""

    def __init__(self, io: SimIo, wire: Wire) -> None:
        self.loop = io
        self.role = ""
        self.welcome = False
        self.turned_away = ""
        self.in_progress = 0
        self.closed = False
        self._wire = wire
        self._outbox: deque[Reply] = deque()
        self._congested = False
        self._unacked: dict[int, Reply] = {}
        io.peers[wire.number] = self
        wire.received[1] = lambda frame: io.post(lambda: self._handle(frame))
        wire.broken[1] = lambda why: io.post(self.close)

    def welcomed(self, *, max_head_bytes: int, max_body_bytes: int) -> None:
        self.welcome = True

    @property
    def may_owe_acks(self) -> bool:
        return len(self._unacked) < _MAX_UNACKED

    @property
    def busy(self) -> bool:
        return self.in_progress >= self.loop.max_requests

    @property
    def crowded(self) -> bool:
        return False

    def answer(self, reply: Reply) -> None:
        """Send, on the IO thread."""
        figures = self.loop.figures
        if reply.status:
            figures.errors[reply.status] = figures.errors.get(reply.status, 0) + 1
        figures.read_bytes += reply.body_bytes
        if self.closed:
            reply.release()
            return
        self._outbox.append(reply)
        if reply.kept is not None:
            self._later(_SETTLE_AFTER_S, lambda: self._settle(reply))
        if not self._congested:
            self._flush()

    def _flush(self) -> None:
        """Send what is queued; now and then the socket is full for a while."""
        self._congested = False
        network = self._wire.network
        chance = network.random
        while self._outbox:
            if chance.random() < network.congested:
                self._congested = True
                self._later(chance.expovariate(1.0) * chance.choice(_CONGESTED_S), self._flush)
                return
            reply = self._outbox.popleft()
            parts = reply.parts
            raw = bytes(parts[0])  # type: ignore[arg-type]  # a header and its head are memory
            if reply.need_ack:
                self._unacked[reply.request_id] = reply
                self._wire.send(1, _Answer(raw, b"", partial(_joined, parts[1:])))
            else:
                self._wire.send(1, _Answer(raw, _joined(parts[1:]), None))
                reply.release()
            if reply.last:
                self.close()

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        """Have the IO thread do something after a while, if the connection is open then."""

        def again() -> None:
            if not self.closed:
                self.loop.post(work)

        self.loop.process.sim.after(seconds, again, self.loop.process)

    def _settle(self, reply: Reply) -> None:
        """As `Outbox.sweep`: what takes long holds only its own blocks."""
        if reply.kept is not None and (reply in self._outbox or self._unacked.get(reply.request_id) is reply):
            reply.kept.settle()

    def answer_later(self, reply: Reply) -> None:
        def finish() -> None:
            self.in_progress -= 1
            self.answer(reply)

        if not self.loop.process.alive:
            raise ProcessEnded
        self.loop.post(finish)

    def close(self) -> None:
        """The connection is over."""
        if not self.closed:
            self.closed = True
            self.loop.peers.pop(self._wire.number, None)
            for reply in [*self._outbox, *self._unacked.values()]:
                reply.release()
            self._outbox.clear()
            self._unacked.clear()
            self._wire.close(1)

    def _handle(self, frame: Frame) -> None:
        if self.closed:
            return
        header = frame.header
        figures = self.loop.figures
        if header.kind < len(figures.requests):
            figures.requests[header.kind] += 1
        for request_id in [one for one in self._unacked if one <= header.ack_id]:
            self._unacked.pop(request_id).release()
        sim = self.loop.process.sim
        if sim.listeners("frame"):
            fields = {"sender": self._wire.names[0], "kind": header.kind, "hop": header.hop, "count": header.count}
            sim.emit("frame", self.loop.process, **fields)
        try:
            if not self.welcome and header.kind != Kind.HELLO:
                raise Invalid("the first frame of a connection must be HELLO")
            if self.turned_away:
                raise Busy(self.turned_away)
            self.loop.handler.begin(self, frame, None)  # type: ignore[arg-type]
        except Fs3Error as error:
            self.answer(error_reply(header, error, last=not self.welcome))


def _joined(parts: Sequence[Any]) -> bytes:
    """The bytes of a reply's body as they are now."""
    return b"".join(
        part.file.view[part.position : part.position + part.length] if isinstance(part, FileRange) else part
        for part in parts
    )
