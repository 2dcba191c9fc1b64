"""How a call to meta is made: under a deadline, repeated within it, at whichever daemon answers.

A change is sent with a request id and repeated under the same one: however often it is repeated, and whichever daemon
answers, it applies once: all meta daemons share one store, and the answer is recorded there with the change. A
repetition says that it is one; a refusal of it is recorded too, as a copy that is under way must not be applied later.
Thread-safe; a forked child goes on with connections of its own (fs3/client/control.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from fs3.client.control import Channel, ControlChannel, Sent
from fs3.client.retry_core import pause_s
from fs3.client.turns_core import Turns
from fs3.errors import Busy, Conflict, Invalid, MaybeApplied, Unavailable
from fs3.pb import meta_pb2
from fs3.routing import NodeKind, Routing
from fs3.runtime import SYSTEM, Runtime
from fs3.transport.credentials import Credentials

META = meta_pb2.DESCRIPTOR.services_by_name["Meta"]
_ATTEMPT_S = 10.0  # a silent meta daemon is asked again after so long
_SHORT_ATTEMPT_S = 3.0  # and given up for another, if there is one


class MetaChannel(Channel, Protocol):
    """A connection to meta, on which a call may also be begun, to be waited for later."""

    def begin(self, method: str, request: Any, *, timeout_s: float, credentials: Credentials) -> Sent: ...


class MetaCalls:
    """What stands below every method of `fs3.client.meta.MetaClient`."""

    def __init__(
        self,
        routing: Callable[[], Routing],
        credentials: Credentials,
        client_id: int,
        *,
        timeout_s: float = 30.0,
        refresh: Callable[[], object],
        open_channel: Callable[[str], MetaChannel] | None = None,
        runtime: Runtime = SYSTEM,
    ) -> None:
        """`routing` gives the newest known routing, which names the meta daemons; `refresh` fetches a newer one.

        `open_channel(address)` and `runtime` are ports.
        """
        self.client_id = client_id
        self._routing = routing
        self._refresh = refresh
        self._credentials = credentials
        self._timeout_s = timeout_s
        self._open_channel = open_channel or _open
        self._runtime = runtime
        self._channels: dict[str, MetaChannel] = {}
        self._turns = Turns(client_id)
        self._closed = False

    def close(self) -> None:
        """Close the connections; later calls raise Unavailable."""
        self._closed = True
        for channel in list(self._channels.values()):
            channel.close()

    def _change(self, method: str, request: Callable[..., Any], timeout_s: float | None, **fields: Any) -> Any:
        """A call under a new request id, which repetitions keep. Random, so that forked children do not share any."""
        request_id = meta_pb2.RequestId(client_id=self.client_id, request_id=self._runtime.random_bits(63) + 1)
        return self._call(method, request, timeout_s, id=request_id, **fields)

    def _call(
        self,
        method: str,
        make: Callable[..., Any],
        timeout_s: float | None,
        *,
        patient: bool = False,
        **fields: Any,
    ) -> Any:
        return self._asked(method, made(make, **fields), timeout_s, patient=patient)

    def _asked(self, method: str, request: Any, timeout_s: float | None, *, patient: bool = False) -> Any:
        """The answer to a request, which is sent as often as the deadline allows."""
        now_s = self._runtime.now_s
        deadline_s = now_s() + (self._timeout_s if timeout_s is None else timeout_s)
        failures = 0
        tried: set[str] = set()  # since the last pause
        while True:
            try:
                address, others = self._next_address(tried)
                left_s = deadline_s - now_s()
                attempt_s = left_s if patient else min(left_s, _attempt_s(others))
                reply = self._ask(address, method, request, max(attempt_s, 0.001))
            except (Unavailable, MaybeApplied, Conflict, Busy) as error:
                if self._closed or now_s() >= deadline_s:
                    raise
                if hasattr(request, "id"):
                    request.id.retry = True
                elsewhere = isinstance(error, Unavailable | MaybeApplied)
                if elsewhere and not tried.issuperset(self._addresses()):
                    continue
                wait_s = pause_s(failures, self._runtime.random_bits(16) / (1 << 16))
                if now_s() + wait_s >= deadline_s:
                    raise
                if elsewhere:
                    self._refresh()
                self._runtime.sleep(wait_s)
                failures += 1
                tried.clear()
                continue
            return reply

    def _ask(self, address: str, method: str, request: Any, timeout_s: float) -> Any:
        """One attempt, remembered if the daemon cannot answer. Raises: Fs3Error."""
        try:
            reply = self._channel(address).call(method, request, timeout_s=timeout_s, credentials=self._credentials)
        except (Unavailable, MaybeApplied):
            self._turns.failed(address, self._runtime.now_s())
            raise
        self._turns.answered(address)
        return reply

    def _begin(self, method: str, request: Any) -> Begun:
        """Send a request that changes nothing before its answer is wanted, if that can be done at once."""
        address = ""
        try:
            address, others = self._next_address(set())
            wait_s = min(self._timeout_s, _attempt_s(others))
            channel = self._channel(address)
            sent = channel.begin(method, request, timeout_s=wait_s, credentials=self._credentials)
        except (Unavailable, Busy):
            return Begun(method, request, address)
        return Begun(method, request, address, sent, wait_s)

    def _answer(self, begun: Begun, timeout_s: float | None, others: Iterable[Begun] = ()) -> Any:
        """The answer to what was begun, which is sent again if need be; `others` then give their connections back.

        The deadline counts from now. Raises: Fs3Error.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        begun_s = self._runtime.now_s()
        sent, begun.sent = begun.sent, None
        if sent is not None:
            try:
                reply = sent.result(min(begun.wait_s, timeout_s))
            except (Unavailable, MaybeApplied):
                self._turns.failed(begun.address, self._runtime.now_s())
            except (Conflict, Busy):
                pass
            else:
                self._turns.answered(begun.address)
                return reply
        for other in others:
            other.drop()  # nobody holds a connection while waiting for another
        return self._asked(begun.method, begun.request, timeout_s - (self._runtime.now_s() - begun_s))

    def _next_address(self, tried: set[str]) -> tuple[str, bool]:
        """Whom to ask, who is tried then, and whether there are others. Raises: Unavailable."""
        addresses = self._addresses()
        if not addresses:
            raise Unavailable("the cluster has no meta daemon; start one with `fs3 meta`")
        order = self._turns.order(addresses, self._runtime.now_s())
        address = next((one for one in order if one not in tried), order[0])
        tried.add(address)
        return address, len(addresses) > 1

    def _addresses(self) -> tuple[str, ...]:
        """Of the daemons that are alive, or of all if mgmtd knows none that is."""
        nodes = [node for node in self._routing().nodes.values() if node.kind is NodeKind.META and node.endpoints]
        return tuple(node.endpoints[0] for node in nodes if node.alive) or tuple(node.endpoints[0] for node in nodes)

    def _channel(self, address: str) -> MetaChannel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels.setdefault(address, self._open_channel(address))
            if self._closed:
                channel.close()
        return channel


class Begun:
    """A request that was sent before its answer is wanted, or could not be."""

    __slots__ = ("address", "method", "request", "sent", "wait_s")

    def __init__(self, method: str, request: Any, address: str, sent: Sent | None = None, wait_s: float = 0.0) -> None:
        self.method = method
        self.request = request
        self.address = address
        self.sent = sent
        self.wait_s = wait_s

    def drop(self) -> None:
        """Want no answer to what was sent; any number of times."""
        sent, self.sent = self.sent, None
        if sent is not None:
            sent.drop()


def _open(address: str) -> ControlChannel:
    return ControlChannel(address, META)


def _attempt_s(others: bool) -> float:
    return _SHORT_ATTEMPT_S if others else _ATTEMPT_S


def made(make: Callable[..., Any], **fields: Any) -> Any:
    """The request. Raises: Invalid, naming the text that is none."""
    try:
        return make(**fields)
    except UnicodeEncodeError as error:
        raise Invalid(f"path {error.object!r}: not valid UTF-8") from None


def text(path: str) -> str:
    """Raises: Invalid if `path` has no UTF-8 form (a message cannot carry it)."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise Invalid(f"path {path!r}: not valid UTF-8") from None
    return path
