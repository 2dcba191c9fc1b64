"""A process's session with mgmtd: opened when it first changes something, renewed for as long as the process lives.

Daemons keep for a session what makes a repeated update harmless, and forget it when the session has ended
(fs3/sessions.py). A process that only reads opens none. A forked child is a client of its own: it opens another one and
leaves its parent's alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import weakref
from typing import Any, Protocol

from fs3.errors import Fs3Error, Unavailable
from fs3.pb import mgmtd_pb2
from fs3.runtime import Event, Runtime
from fs3.transport.credentials import Credentials

_log = logging.getLogger(__name__)
_OPEN_S = 10.0
_CLOSE_S = 0.5
_RENEWALS = 6  # within the time that mgmtd allows
_RETRIES = 30


class Service(Protocol):
    """mgmtd, as blocking code calls it; `ControlService` is the one in production."""

    @property
    def addresses(self) -> tuple[str, ...]: ...
    def learn(self, addresses: tuple[str, ...]) -> None: ...
    def call(self, method: str, request: Any, *, timeout_s: float, credentials: Credentials) -> Any: ...
    def close(self) -> None: ...


class ClientSession:
    """Thread-safe; its thread ends with it."""

    def __init__(self, service: Service, credentials: Credentials, runtime: Runtime) -> None:
        self._service = service
        self._credentials = credentials
        self._runtime = runtime
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._id = 0
        self._session_s = 0.0
        self._opening = self._runtime.lock()
        self._stop = self._runtime.event()
        self._renewed = False

    def current(self, deadline_s: float | None = None) -> int:
        """The session's id; opens one if there is none. Blocks until `deadline_s` (default: 10 s from now).

        Raises:
            Unavailable: no mgmtd that decides answered before the deadline, to this thread or to one that asked before.
            Fs3Error: what mgmtd raised.
        """
        if (known := self._known()) != 0:
            return known
        if deadline_s is None:
            deadline_s = self._runtime.now_s() + _OPEN_S
        opening = self._opening
        if not opening.acquire(timeout=self._left_s(deadline_s)):
            raise Unavailable("a session with mgmtd was being opened, and no time was left to wait for it")
        try:
            return self._id or self._open(self._left_s(deadline_s))
        finally:
            opening.release()

    def _left_s(self, deadline_s: float) -> float:
        return max(deadline_s - self._runtime.now_s(), 0.0)

    def _open(self, left_s: float) -> int:
        if left_s <= 0:
            raise Unavailable("no time was left to open a session with mgmtd")
        request = mgmtd_pb2.OpenSessionRequest(host=socket.gethostname(), pid=self._pid)
        reply = self._service.call("OpenSession", request, timeout_s=left_s, credentials=self._credentials)
        self._session_s = reply.session_ms / 1000
        self._id = int(reply.session_id)
        if not self._renewed:
            self._renewed = True
            self._keep_renewing()
        return self._id

    def lost(self, session_id: int) -> None:
        """A daemon or mgmtd said that it has ended: the next `current` opens another."""
        if self._known() == session_id:
            self._id = 0
            _log.warning("session %d has ended: this process was not heard by mgmtd in time", session_id)

    def end(self) -> None:
        """Close the session, if there is one; that mgmtd cannot be told is no error, for it will run out."""
        session_id = self._known()
        self._id = 0
        if session_id:
            request = mgmtd_pb2.CloseSessionRequest(session_ids=[session_id])
            with contextlib.suppress(Fs3Error):
                self._service.call("CloseSession", request, timeout_s=_CLOSE_S, credentials=self._credentials)

    def close(self) -> None:
        """End, and renew nothing any more."""
        self.end()
        self._stop.set()

    def _keep_renewing(self) -> None:
        stop, first_s = self._stop, self._session_s / _RENEWALS
        reference = weakref.ref(self, lambda _: stop.set())
        self._runtime.spawn(lambda: _renew(reference, stop, first_s), name="fs3-session")

    def _known(self) -> int:
        """The id, in the process whose session it is."""
        if self._pid != os.getpid():
            with _fork_guard:
                if self._pid != os.getpid():
                    self._start()
        return self._id

    def renew_once(self) -> float:
        """Renew the session, if there is one; after how long to do it again."""
        session_id = self._id
        if session_id == 0:
            return self._session_s / _RENEWALS
        request = mgmtd_pb2.RenewSessionRequest(session_ids=[session_id])
        try:
            reply = self._service.call(
                "RenewSession", request, timeout_s=self._session_s / _RENEWALS, credentials=self._credentials
            )
        except Unavailable:
            return self._session_s / _RETRIES
        except Fs3Error as error:
            _log.warning("session %d could not be renewed: %s", session_id, error)
            return self._session_s / _RENEWALS
        if session_id in reply.ended:
            self.lost(session_id)
        return self._session_s / _RENEWALS


def _renew(reference: weakref.ref[ClientSession], stop: Event, pause_s: float) -> None:
    """The background thread; it holds the session only while it renews."""
    while not stop.wait(pause_s) and (session := reference()) is not None:
        pause_s = session.renew_once()
        del session


_fork_guard = threading.Lock()


def _renew_fork_guard() -> None:
    global _fork_guard
    _fork_guard = threading.Lock()


os.register_at_fork(after_in_child=_renew_fork_guard)
