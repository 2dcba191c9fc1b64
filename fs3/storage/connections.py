"""One client, or predecessor in a chain, as the storage daemon's IO threads see it.

    receive -> assemble -> handle -> outbox -> send

Everything here runs on the thread that owns the connection; what others have to say comes through `IoThread.post`. A
connection stops reading, and so pushes back on its peer, while its outbox is full or while there is no memory for the
body that it is about to receive. What a peer holds it must also use: who keeps memory that others wait for, and sends
or takes next to nothing, is closed (`Patience`).

    OPEN      reads and answers
    ENDING    an answer is the last one (malformed frame, refused HELLO): sends what is queued
    DRAINING  has said that it sends no more, and discards what comes until the peer closes: closing with unread bytes
              would reset the connection, and the peer would lose the answer
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from fs3.errors import Busy, Fs3Error, Invalid
from fs3.storage.body_pool import Body, BodyPool, Grant, Share
from fs3.storage.descriptors import Descriptors
from fs3.storage.outbox import Held, Outbox
from fs3.storage.reassembly_core import Frame, FrameAssembler
from fs3.storage.reply import Reply, error_reply
from fs3.transport.descriptors import peer_user
from fs3.transport.frame_core import Header, Kind

MAX_HOPS = 8
_HELLO_HEAD_BYTES = 64 << 10
_RECEIVES_A_TURN = 4
_SEND_A_TURN = 8 << 20
_SETTLE_AFTER_S = 0.5
_MAX_UNACKED = 256
_MAX_OWN_BYTES = 32 << 20  # of replies that a peer does not take; their blocks in mapped files do not count
_SLOWEST_BYTES_S = 1 << 20  # of a body whose memory others wait for
_READ = select.EPOLLIN
_WRITE = select.EPOLLOUT


class State(Enum):
    """See the module."""

    OPEN = 1
    ENDING = 2
    DRAINING = 3


class PeerGone(Exception):
    """The connection is over; nobody is to blame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a peer may take, in seconds."""

    hello_s: float = 10.0
    frame_s: float = 30.0  # without a byte of a frame that has begun
    send_s: float = 60.0  # without taking a byte of what it asked for
    drain_s: float = 2.0
    ack_s: float = 60.0  # without acknowledging replies whose blocks stay pinned until then
    idle_s: float = 5.0  # with nothing under way, when the daemon has as many connections as it takes
    scarce_s: float = 2.0  # holding memory that others wait for, at less than `_SLOWEST_BYTES_S`


@dataclass(slots=True)
class Figures:
    """Counters of one IO thread, which alone changes them."""

    requests: list[int] = field(default_factory=lambda: [0] * 16)
    errors: dict[int, int] = field(default_factory=dict)
    read_bytes: int = 0
    located_bytes: int = 0
    write_bytes: int = 0
    accepted: int = 0
    refused: int = 0
    unreadable: int = 0


class Handler(Protocol):
    """What the daemon does with requests."""

    def begin(self, peer: Peer, frame: Frame, body: Body | None) -> None:
        """Answer now or later through `peer`; takes over `body`. Raises: Fs3Error, for a status reply."""


class Loop(Protocol):
    """The IO thread of a connection."""

    figures: Figures
    held: Held

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` run on the IO thread, soon; from any thread."""

    def watch(self, peer: Peer, mask: int) -> None: ...
    def again(self, peer: Peer) -> None:
        """Come back to this connection in the next turn, whatever its socket says."""


class Peer:
    """See the module. Any method may raise `PeerGone` or OSError; the loop then closes the connection."""

    def __init__(
        self, sock: socket.socket, loop: Loop, handler: Handler, pool: BodyPool, *, max_requests: int, now_s: float
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.loop = loop
        self.outbox = Outbox(loop.held)
        self.role = ""
        self.welcome = False  # HELLO was accepted
        self.turned_away = ""  # why HELLO will not be
        self.descriptors: Descriptors | None = None  # of block files, that it was given
        self.in_progress = 0
        self.now_s = now_s
        self.mask = 0
        self.state = State.OPEN
        self.closed = False
        self._handler = handler
        self._pool = pool
        self._max_requests = max_requests
        self._assembler = FrameAssembler(max_head_bytes=_HELLO_HEAD_BYTES, max_body_bytes=0)
        self._body: Body | None = None
        self._body_s = now_s  # when its memory was granted
        self._waiting: tuple[Share, Grant] | None = None  # for a body's memory
        self._held_up = False  # the outbox was full before all frames were handled
        self._begun_s = now_s
        self._received_s = now_s
        self._sent_s = now_s

    # What the handler does

    def welcomed(self, *, max_head_bytes: int, max_body_bytes: int) -> None:
        """The peer may send requests of these sizes now."""
        self.welcome = True
        self._assembler.max_head_bytes = max_head_bytes
        self._assembler.max_body_bytes = max_body_bytes

    @property
    def user(self) -> int | None:
        """Which user of this host the peer is, if it came over the Unix socket."""
        return peer_user(self.sock)

    @property
    def may_owe_acks(self) -> bool:
        """Whether blocks may be given to it by `sendfile`; no if it forgets to acknowledge."""
        return self.outbox.unacked < _MAX_UNACKED

    @property
    def busy(self) -> bool:
        """Whether as many requests as a connection may have are being worked on."""
        return self.in_progress >= self._max_requests

    @property
    def crowded(self) -> bool:
        """Whether replies that peers do not take fill the memory there is for them; a glance from any thread."""
        return self.loop.held.full

    @property
    def idle_for_s(self) -> float:
        """How long nothing has happened here and nothing is under way, as of the last sweep; 0 if something is."""
        if self.in_progress or len(self.outbox) or self.outbox.unacked or self._assembler.in_frame:
            return 0.0
        return self.now_s - max(self._received_s, self._sent_s)

    def answer(self, reply: Reply) -> None:
        """Queue a reply, on the IO thread; it is sent at the end of the turn."""
        figures = self.loop.figures
        if reply.status:
            figures.errors[reply.status] = figures.errors.get(reply.status, 0) + 1
        for code, count in reply.failed.items():
            figures.errors[code] = figures.errors.get(code, 0) + count
        figures.read_bytes += reply.body_bytes
        figures.located_bytes += reply.located_bytes
        self.outbox.put(reply, self.now_s)
        if reply.last:
            self.state = State.ENDING

    def answer_later(self, reply: Reply) -> None:
        """Queue the reply to a request in progress; from any thread."""

        def finish() -> None:
            if self.closed:
                reply.release()
                return
            self.in_progress -= 1
            self.answer(reply)
            self.loop.again(self)

        self.loop.post(finish)

    # What the loop does

    def turn(self, events: int, now_s: float) -> None:
        """Receive, handle and send as much as is this connection's share of a turn."""
        self.now_s = now_s
        gone = select.EPOLLERR | select.EPOLLHUP | (select.EPOLLRDHUP if self._waiting is not None else 0)
        if events & gone and not events & _READ:
            raise PeerGone
        if self.state is State.DRAINING:
            self._discard()
            return
        if events & _READ:
            self._receive()
        else:
            self._handle_ready()
        self._send()
        if self._held_up and self._may_receive():
            self.loop.again(self)  # frames that wait in our memory make no event
        self._watch()

    def sweep(self, now_s: float, patience: Patience) -> None:
        """Close what takes too long; have old holds pinned. Raises: PeerGone."""
        self.now_s = now_s
        waited_s = self.outbox.sweep(now_s, _SETTLE_AFTER_S)
        send_s = patience.send_s if self.loop.held.bytes_ * 2 < self.loop.held.limit_bytes else patience.scarce_s
        if not self.welcome and now_s - self._begun_s > patience.hello_s:
            raise PeerGone
        if self._may_receive() and self._assembler.in_frame and now_s - self._received_s > patience.frame_s:
            raise PeerGone
        if waited_s > send_s and now_s - self._sent_s > send_s:
            raise PeerGone
        if self.outbox.unacked_for_s(now_s) > patience.ack_s or self._hoards_body(now_s, patience):
            raise PeerGone
        if self.state is State.DRAINING and now_s - self._sent_s > patience.drain_s:
            raise PeerGone

    def close(self) -> None:
        """Let go of everything; any number of times."""
        if self.closed:
            return
        self.closed = True
        # First: a client that still finds it open after it has read a block knows that the block was kept.
        self.sock.close()
        self.loop.figures.unreadable += self.outbox.unreadable
        self.outbox.close()
        if self.descriptors is not None:
            self.descriptors.close()
        self._drop_body()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting[0].forget(waiting[1])

    def _may_receive(self) -> bool:
        outbox = self.outbox
        return (
            self.state is State.OPEN
            and self._waiting is None
            and len(outbox) < self._max_requests
            and outbox.own_bytes < _MAX_OWN_BYTES
        )

    def _hoards_body(self, now_s: float, patience: Patience) -> bool:
        """Whether it keeps others from memory for a body that hardly arrives."""
        body, held_s = self._body, now_s - self._body_s
        if body is None or not body.share.wanted or not self._may_receive() or held_s <= patience.scarce_s:
            return False
        return self._assembler.body_received < held_s * _SLOWEST_BYTES_S

    def _receive(self) -> None:
        for _ in range(_RECEIVES_A_TURN):
            if not self._may_receive():
                return
            space = self._assembler.space()
            try:
                got = self.sock.recv_into(space)
            except BlockingIOError:
                return
            if got == 0:
                raise PeerGone
            self._received_s = self.now_s
            self._assembler.received(got)
            self._handle_ready()
            if got < len(space):
                return

    def _handle_ready(self) -> None:
        """Handle the frames that are here whole."""
        assembler = self._assembler
        self._held_up = False
        while self._may_receive():
            try:
                frame = assembler.next()
                if frame is None:
                    if assembler.due_body is not None:
                        _check_body(assembler.due_body)
                    if not assembler.wanted_body or not self._find_body():
                        return
                    continue
            except Fs3Error as error:
                self._end_with(assembler.header, error)
                return
            self._handle(frame)
        self._held_up = True

    def _handle(self, frame: Frame) -> None:
        header = frame.header
        body, self._body = self._body, None
        if header.kind < len(self.loop.figures.requests):
            self.loop.figures.requests[header.kind] += 1
        self.outbox.acknowledge(header.ack_id)
        try:
            if not self.welcome and header.kind != _HELLO:
                raise Invalid("the first frame of a connection must be HELLO")
            if self.turned_away:
                self.loop.figures.refused += 1
                raise Busy(self.turned_away)
            self._handler.begin(self, frame, body)
        except Fs3Error as error:
            if not self.welcome:
                self._end_with(header, error)
            else:
                self.answer(error_reply(header, error))

    def _end_with(self, header: Header | None, error: Fs3Error) -> None:
        self._drop_body()
        self.answer(error_reply(header, error, last=True))

    def _find_body(self) -> bool:
        """Memory for the body that comes next; False if that is not here yet."""
        header = self._assembler.header
        assert header is not None
        share = self._pool.shares[header.hop]

        def grant(granted: Body) -> None:
            self.loop.post(lambda: self._granted(granted))

        body = share.take(header.body_bytes, grant)
        if body is None:
            self._waiting = share, grant
            return False
        self._use_body(body)
        return True

    def _granted(self, body: Body) -> None:
        if self.closed:
            body.share.give_back(body)
            return
        self._waiting = None
        self._received_s = self.now_s
        self._use_body(body)
        self.loop.again(self)

    def _use_body(self, body: Body) -> None:
        self._body, self._body_s = body, self.now_s
        self._assembler.give_body(body.memory)

    def _drop_body(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.share.give_back(body)

    def _send(self) -> None:
        outbox = self.outbox
        if len(outbox):
            before = outbox.sent_bytes
            outbox.flush(self.sock, _SEND_A_TURN)
            if outbox.sent_bytes != before:
                self._sent_s = self.now_s
        if outbox.finished and self.state is State.ENDING:
            self.state = State.DRAINING
            self._sent_s = self.now_s
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:  # reset by the peer meanwhile
                raise PeerGone from None

    def _watch(self) -> None:
        mask = 0
        if self._may_receive() or self.state is State.DRAINING:
            mask = _READ
        if len(self.outbox):
            mask |= _WRITE
        if self._waiting is not None:
            mask |= select.EPOLLRDHUP  # nothing is read meanwhile, so nothing else tells that it has gone
        if mask != self.mask:
            self.mask = mask
            self.loop.watch(self, mask)

    def _discard(self) -> None:
        scratch = bytearray(64 << 10)
        for _ in range(_RECEIVES_A_TURN):
            try:
                if self.sock.recv_into(scratch) == 0:
                    raise PeerGone
            except BlockingIOError:
                return


def _check_body(header: Header) -> None:
    """Raises: Invalid: no body may follow this header."""
    if header.kind not in _WITH_BODY:
        raise Invalid(f"a request of kind {header.kind} has no body")
    if header.hop >= MAX_HOPS:
        raise Invalid(f"hop {header.hop}: chains have at most {MAX_HOPS} replicas")


_HELLO = int(Kind.HELLO)
_WITH_BODY = (int(Kind.WRITE), int(Kind.AHEAD))
