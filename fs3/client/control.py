"""Blocking control-plane calls that live through `os.fork`, as a training job's data workers need them.

gRPC's threads do not exist in a forked child, and a child that opens a channel to the same address shares the parent's
socket; both end in calls that fail or hang (grpcio 1.85: the child's first call fails with `Stream removed`, and with
GRPC_ENABLE_FORK_SUPPORT set a long poll dead-locks the fork). What works, and is done here: before a fork close every
channel and let the threads that are inside gRPC leave it; afterwards both sides open channels anew when they next use
them. A call that a fork interrupted is sent again, so what is sent must be safe to repeat.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc

from fs3.clock import lease_now_s
from fs3.errors import NotPrimary, Unavailable
from fs3.runtime import SYSTEM, Runtime
from fs3.transport import rpc

_PATIENCE_S = 1.0
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.25
_LEAVE_S = 5.0
_SETTLE_S = 1.0
_LOOK_S = 0.002
_QUIET_LOOKS = 5
_pause = threading.Event()


class ControlChannel:
    """A lazily opened channel to one address; thread-safe.

    `make_stub` is the generated stub class, e.g. `mgmtd_pb2_grpc.MgmtdStub`.
    """

    def __init__(self, address: str, make_stub: Callable[[grpc.Channel], Any]) -> None:
        self.address = address
        self._make_stub = make_stub
        self._condition = threading.Condition()
        self._channel: grpc.Channel | None = None
        self._stub: Any = None
        self._inside = 0
        self._forks = 0
        self._forking = False
        self._closed = False
        _open_channels.add(self)

    def call(self, method: str, request: Any, *, timeout_s: float, credentials: rpc.Credentials) -> Any:
        """The reply of `method`, which must be safe to repeat.

        Raises:
            Fs3Error: what the server raised.
            Unavailable: no answer within `timeout_s`, or the channel was closed.
        """
        deadline_s = lease_now_s() + timeout_s
        while True:
            stub, forks = self._enter()
            try:
                left_s = max(deadline_s - lease_now_s(), 0.001)
                return getattr(stub, method)(request, timeout=left_s, metadata=credentials.metadata())
            except grpc.RpcError as error:
                failure = rpc.error_of(error, self.address)
            except ValueError:  # gRPC's word for a call on a channel that was closed since
                failure = Unavailable(f"{self.address}: the connection was closed")
            finally:
                interrupted = self._leave(forks)
            if not interrupted or lease_now_s() >= deadline_s:
                raise failure

    def close(self) -> None:
        """Cancel what is under way and refuse later calls."""
        with self._condition:
            self._closed = True
            self._drop()

    def _enter(self) -> tuple[Any, int]:
        with self._condition:
            while self._forking:
                self._condition.wait()
            if self._closed:
                raise Unavailable(f"{self.address}: the connection was closed")
            if self._channel is None:
                self._channel = rpc.sync_channel(self.address)
                self._stub = self._make_stub(self._channel)
            self._inside += 1
            return self._stub, self._forks

    def _leave(self, forks: int) -> bool:
        """Whether a fork came in between."""
        with self._condition:
            self._inside -= 1
            self._condition.notify_all()
            return forks != self._forks and not self._closed

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = self._stub = None

    def before_fork(self) -> bool:
        """Leave gRPC: whoever is inside is cancelled and waited for. Whether there was a channel to close."""
        with self._condition:
            self._forking = True
            self._forks += 1
            had_one = self._channel is not None
            self._drop()
            self._condition.wait_for(lambda: self._inside == 0, _LEAVE_S)
            return had_one

    def after_fork(self, *, child: bool) -> None:
        """Calls may go on; a child starts with fresh locks, since nobody is left who could release the old ones."""
        if child:
            self._condition = threading.Condition()
            self._inside = 0
        with self._condition:
            self._forking = False
            self._condition.notify_all()


class Channel(Protocol):
    """What `ControlService` needs of a connection to one address; `ControlChannel` is the one in production."""

    def call(self, method: str, request: Any, *, timeout_s: float, credentials: rpc.Credentials) -> Any: ...
    def close(self) -> None: ...


class ControlService:
    """Several daemons of one service, any of which may answer: the one that did last is asked first. Thread-safe.

    Where one of them says that it does not decide now (`NotPrimary`), they are asked again until the deadline: another
    is taking over. One that says nothing is waited for a second, then the others are asked, and it again for longer.
    `open_channel(address)` and `runtime` are ports.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        make_stub: Callable[[grpc.Channel], Any] | None = None,
        *,
        open_channel: Callable[[str], Channel] | None = None,
        runtime: Runtime = SYSTEM,
    ) -> None:
        assert addresses, "at least one address"
        assert (make_stub is None) != (open_channel is None), "either gRPC or a port of one's own"
        self._given = self.addresses = tuple(addresses)
        self._make_stub = make_stub
        self._open_channel = open_channel
        self._runtime = runtime
        self._channels = {address: self._open(address) for address in self.addresses}
        self._preferred = self.addresses[0]
        self._closed = False

    def learn(self, addresses: Sequence[str]) -> None:
        """Know these daemons too, instead of those that were learned before."""
        wanted = tuple(dict.fromkeys((*self._given, *addresses)))
        if wanted == self.addresses or self._closed:
            return
        for address in wanted:
            if address not in self._channels:
                self._channels[address] = self._open(address)
        self.addresses = wanted
        if self._closed:
            self.close()

    def call(self, method: str, request: Any, *, timeout_s: float, credentials: rpc.Credentials) -> Any:
        """The reply of the first daemon that answers, within `timeout_s` in all; must be safe to repeat.

        Raises:
            Fs3Error: what the daemon that answered raised.
            Unavailable: none answered; the message names every address.
        """
        now_s = self._runtime.now_s
        deadline_s = now_s() + timeout_s
        pause_s, patience_s = _FIRST_PAUSE_S, getattr(request, "wait_ms", 0) / 1000 + _PATIENCE_S
        while True:
            reasons: list[str] = []
            worth_asking_again = False
            addresses = sorted(self.addresses, key=lambda address: address != self._preferred)
            for index, address in enumerate(addresses):
                asked_s = now_s()
                share_s = max((deadline_s - asked_s) / (len(addresses) - index), 0.001)
                if len(addresses) > 1:
                    share_s = min(share_s, patience_s)
                try:
                    reply = self._channels[address].call(method, request, timeout_s=share_s, credentials=credentials)
                except Unavailable as error:
                    worth_asking_again |= isinstance(error, NotPrimary) or now_s() - asked_s >= share_s
                    reasons.append(str(error))
                    continue
                self._preferred = address
                return reply
            left_s = deadline_s - now_s()
            if not worth_asking_again or left_s <= 0 or self._closed:
                raise Unavailable("; ".join(reasons))
            self._runtime.sleep(min(pause_s, left_s))
            pause_s, patience_s = min(pause_s * 2, _LONGEST_PAUSE_S), patience_s * 2

    def close(self) -> None:
        """Cancel what is under way and refuse later calls."""
        self._closed = True
        for channel in list(self._channels.values()):
            channel.close()

    def _open(self, address: str) -> Channel:
        if self._open_channel is not None:
            return self._open_channel(address)
        assert self._make_stub is not None
        return ControlChannel(address, self._make_stub)


_open_channels: weakref.WeakSet[ControlChannel] = weakref.WeakSet()


def _before_fork() -> None:
    closed = [channel.before_fork() for channel in list(_open_channels)]
    if any(closed):
        _wait_for_native_threads()


def _wait_for_native_threads() -> None:
    """Let gRPC's own threads finish what closing a channel gave them to do, and fall asleep.

    One that holds a lock of gRPC at the moment of the fork leaves it locked in the child for ever, and the child's
    first channel hangs (7 of 60 processes that forked three times did on a loaded machine, 0 of 90 with this). Such
    threads sleep when they have nothing to do, and then they hold none.
    """
    deadline_s = lease_now_s() + _SETTLE_S
    quiet = 0
    while quiet < _QUIET_LOOKS and lease_now_s() < deadline_s:
        quiet = 0 if _native_threads_busy() else quiet + 1
        _pause.wait(_LOOK_S)


def _native_threads_busy() -> bool:
    ours = {str(thread.native_id) for thread in threading.enumerate()}
    for thread_id in set(os.listdir("/proc/self/task")) - ours:
        try:
            with open(f"/proc/self/task/{thread_id}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
        except OSError:
            continue  # it has just ended
        if state != b"S":
            return True
    return False


def _after_fork_in_parent() -> None:
    for channel in list(_open_channels):
        channel.after_fork(child=False)


def _after_fork_in_child() -> None:
    for channel in list(_open_channels):
        channel.after_fork(child=True)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
