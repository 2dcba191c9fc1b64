"""How a call to meta is made: under a deadline, repeated within it, at whichever daemon answers.

A change is sent with a request id and repeated under the same one: however often it is repeated, and whichever daemon
answers, it applies once: all meta daemons share one store, and the answer is recorded there with the change. A
repetition says that it is one; a refusal of it is recorded too, as a copy that is under way must not be applied later.
Thread-safe; a forked child goes on with connections of its own (fs3/client/control.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fs3.client.control import Channel, ControlChannel
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
        open_channel: Callable[[str], Channel] | None = None,
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
        self._channels: dict[str, Channel] = {}
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
        request = _made(make, fields)
        now_s = self._runtime.now_s
        deadline_s = now_s() + (self._timeout_s if timeout_s is None else timeout_s)
        failures = 0
        tried: set[str] = set()  # since the last pause
        while True:
            try:
                address, others = self._next_address(tried)
                left_s = deadline_s - now_s()
                attempt_s = left_s if patient else min(left_s, _SHORT_ATTEMPT_S if others else _ATTEMPT_S)
                reply = self._ask(address, method, request, max(attempt_s, 0.001))
            except (Unavailable, MaybeApplied, Conflict, Busy) as error:
                if self._closed or now_s() >= deadline_s:
                    raise
                if "id" in fields:
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

    def _channel(self, address: str) -> Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels.setdefault(address, self._open_channel(address))
            if self._closed:
                channel.close()
        return channel


def _open(address: str) -> ControlChannel:
    return ControlChannel(address, META)


def _made(make: Callable[..., Any], fields: dict[str, Any]) -> Any:
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
