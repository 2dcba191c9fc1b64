"""An IO thread: epoll over nonblocking sockets, in turns; every connection gets its share of each.

The first thread accepts and deals connections out, the fewest first. A connection that fails, in whatever way, is
closed with one line in the log; the loop goes on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence

from fs3.clock import lease_now_s
from fs3.storage.body_pool import BodyPool
from fs3.storage.connections import Figures, Handler, Patience, Peer, PeerGone
from fs3.storage.outbox import Held
from fs3.transport.sockets import prefer_loopback_congestion

_LOG = logging.getLogger("fs3.storage")
_SWEEP_S = 0.5
_ACCEPTS_A_TURN = 64


class IoThread:
    """One thread and its connections. `accepted` is called with every new connection's socket."""

    def __init__(
        self,
        number: int,
        handler: Handler,
        pool: BodyPool,
        *,
        max_requests: int,
        patience: Patience,
        accepted: Callable[[socket.socket], None],
        reply_bytes: int = 256 << 20,
    ) -> None:
        """`reply_bytes`: how much memory replies that peers do not take may fill before requests are answered Busy."""
        self.figures = Figures()
        self.held = Held(reply_bytes)
        self.peers: dict[int, Peer] = {}
        self._handler = handler
        self._pool = pool
        self._max_requests = max_requests
        self._patience = patience
        self._accepted = accepted
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._listeners: dict[int, socket.socket] = {}
        self._resting: list[socket.socket] = []
        self._mail: deque[Callable[[], None]] = deque()
        self._awake = threading.Event()
        self._again: dict[int, Peer] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"fs3-io-{number}", daemon=True)

    def start(self, listeners: Sequence[socket.socket] = ()) -> None:
        """Begin, accepting from `listeners`."""
        for listener in listeners:
            self._listeners[listener.fileno()] = listener
            self._epoll.register(listener, select.EPOLLIN)
        self._thread.start()

    def post(self, call: Callable[[], None]) -> None:
        """See `connections.Loop`."""
        self._mail.append(call)
        if not self._awake.is_set():
            self._awake.set()
            with contextlib.suppress(OSError):  # closed meanwhile
                os.eventfd_write(self._wake, 1)

    def watch(self, peer: Peer, mask: int) -> None:
        """See `connections.Loop`."""
        self._epoll.modify(peer.fd, mask)

    def again(self, peer: Peer) -> None:
        """See `connections.Loop`."""
        self._again[peer.fd] = peer

    def adopt(self, sock: socket.socket, turned_away: str = "") -> None:
        """Take a connection, or answer its HELLO with the reason why not; from any thread."""
        self.post(lambda: self._adopt(sock, turned_away))

    def stop(self) -> None:
        """Close every connection and listener, and end the thread."""
        self._stopping = True
        self.post(lambda: None)
        self._thread.join()

    def unsent(self) -> int:
        """How many replies still wait to be sent; a glance from another thread."""
        return sum(len(peer.outbox) + peer.in_progress for peer in list(self.peers.values()))

    def stop_accepting(self) -> None:
        """Close the listeners; from any thread."""
        self.post(self._close_listeners)

    def _run(self) -> None:
        swept_s = lease_now_s()
        while not self._stopping:
            events = self._epoll.poll(0 if self._again or self._mail else _SWEEP_S)
            now_s = lease_now_s()
            again, self._again = self._again, {}
            for fd, mask in events:
                peer = self.peers.get(fd)
                if peer is not None:
                    again.pop(fd, None)
                    self._turn(peer, mask, now_s)
                elif fd == self._wake:
                    self._read_mail()
                elif fd in self._listeners:
                    self._accept(self._listeners[fd])
            for peer in again.values():
                if not peer.closed:
                    self._turn(peer, 0, now_s)
            if now_s - swept_s >= _SWEEP_S:
                swept_s = now_s
                self._sweep(now_s)
        self._finish()

    def _turn(self, peer: Peer, mask: int, now_s: float) -> None:
        try:
            peer.turn(mask, now_s)
        except (PeerGone, ConnectionError):
            self._close(peer)
        except Exception as error:  # noqa: BLE001  # one connection's trouble must not end all others
            _LOG.warning("closed the connection of %s: %s: %s", _name(peer), type(error).__name__, error)
            self._close(peer)

    def _sweep(self, now_s: float) -> None:
        for peer in list(self.peers.values()):
            try:
                peer.sweep(now_s, self._patience)
            except PeerGone:
                _LOG.info("closed the connection of %s: it took too long", _name(peer))
                self._close(peer)
        while self._resting:
            self._epoll.register(self._resting.pop(), select.EPOLLIN)

    def _read_mail(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        self._awake.clear()
        for _ in range(len(self._mail)):
            call = self._mail.popleft()
            try:
                call()
            except Exception:  # noqa: BLE001  # what is posted is our own: say where it failed, and go on
                _LOG.exception("an answer could not be queued")

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    _LOG.warning("cannot accept connections: %s; trying again soon", error.strerror)
                    self._epoll.unregister(listener)
                    self._resting.append(listener)
                    return
                continue  # the peer gave up before we came to it
            self.figures.accepted += 1
            self._accepted(sock)

    def _adopt(self, sock: socket.socket, turned_away: str) -> None:
        try:
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                prefer_loopback_congestion(sock)
        except OSError:
            sock.close()
            return
        peer = Peer(sock, self, self._handler, self._pool, max_requests=self._max_requests, now_s=lease_now_s())
        if turned_away and not self._make_room():
            peer.turned_away = turned_away
        self.peers[peer.fd] = peer
        peer.mask = select.EPOLLIN
        self._epoll.register(peer.fd, peer.mask)

    def _make_room(self) -> bool:
        """Close the connection that has been idle the longest; False if none has been for long."""
        idlest = max(self.peers.values(), key=lambda peer: peer.idle_for_s, default=None)
        if idlest is None or idlest.idle_for_s <= self._patience.idle_s:
            return False
        self._close(idlest)
        return True

    def _close(self, peer: Peer) -> None:
        if self.peers.pop(peer.fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(peer.fd)
        self._again.pop(peer.fd, None)
        peer.close()

    def _close_listeners(self) -> None:
        for listener in self._listeners.values():
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(listener)
            listener.close()
        self._listeners.clear()
        self._resting.clear()

    def _finish(self) -> None:
        self._read_mail()
        self._close_listeners()
        for peer in list(self.peers.values()):
            self._close(peer)
        self._epoll.close()
        os.close(self._wake)


def _name(peer: Peer) -> str:
    try:
        name = peer.sock.getpeername()
    except OSError:
        return peer.role or "a client"
    where = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "the Unix socket"
    return f"{peer.role or 'a client'} at {where}"
