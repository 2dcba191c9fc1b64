"""Calls to an etcd cluster: deadlines, failover between its members, and what each failure means.

One member is asked until it fails; then the next one is. A call has a deadline, and a try a shorter one, so that a
member that has stopped without closing its sockets costs one try. Members that have lost the leader say so at once
(`hasleader`). Reads are repeated until the deadline; a change is sent once, and `Unanswered` if it may have happened.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from fs3.clock import lease_now_s
from fs3.errors import Busy, Fs3Error, Invalid, NoSpace, PermissionDenied, TooLarge, Unavailable
from fs3.kv.api import SnapshotExpired
from fs3.pb.etcd import etcd_pb2 as pb

TRY_S = 2.0
PAUSE_S = 0.05
_MAX_ANSWER_BYTES = 64 << 20
_METADATA = (("hasleader", "true"),)
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
    ("grpc.max_send_message_length", _MAX_ANSWER_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # whether a change may be sent again is decided here
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
_METHODS: dict[str, tuple[str, Any, Any]] = {
    "Range": ("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse),
    "Txn": ("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse),
    "Compact": ("/etcdserverpb.KV/Compact", pb.CompactionRequest, pb.CompactionResponse),
}
_WATCH = "/etcdserverpb.Watch/Watch"


class Unanswered(Unavailable):
    """No member answered; a change that was sent may have happened, or may yet."""


class TooOld(SnapshotExpired):
    """The revision that was asked for is compacted."""


class NotYet(Unavailable):
    """The member has not seen the revision that was asked for."""


class _Member:
    """One endpoint: its channel, opened at the first call."""

    __slots__ = ("_calls", "_channel", "address")

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel: grpc.aio.Channel | None = None
        self._calls: dict[str, Callable[..., Awaitable[Any]]] = {}

    def open(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = channel = grpc.aio.insecure_channel(self.address, options=_OPTIONS)
            for name, (path, request, response) in _METHODS.items():
                self._calls[name] = channel.unary_unary(
                    path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
                )
        return self._channel

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        self.open()
        return await self._calls[method](request, timeout=timeout_s, metadata=_METADATA)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()


class EtcdClient:
    """The members of one cluster, as one event loop calls them."""

    def __init__(self, endpoints: Sequence[str], *, try_s: float = TRY_S) -> None:
        """`endpoints` are "host:port". Raises: Invalid if there is none."""
        if not endpoints:
            raise Invalid("an etcd cluster needs at least one endpoint (host:port)")
        self._members = [_Member(address) for address in endpoints]
        self._at = 0
        self._try_s = try_s
        self._calls = 0
        self._idle = asyncio.Event()
        self._closed = False
        self.revision = 0  # the newest that any answer has told of

    async def range(self, request: pb.RangeRequest, deadline_s: float) -> pb.RangeResponse:
        """Read. At a revision any member will do; one that is behind is asked to catch up first.

        Raises: TooOld, Unavailable, and whatever etcd refuses it with.
        """
        request.serializable = request.revision > 0
        while True:
            try:
                response: pb.RangeResponse = await self._repeat("Range", request, deadline_s)
            except NotYet:
                request.serializable = False
            else:
                return response

    async def send(self, request: pb.TxnRequest, deadline_s: float) -> pb.TxnResponse:
        """Send a change once. Raises: Unanswered; any other error says that nothing was changed."""
        response: pb.TxnResponse = await self._once("Txn", request, deadline_s)
        return response

    async def repeat(self, request: pb.TxnRequest, deadline_s: float) -> pb.TxnResponse:
        """Send one that may be carried out several times, until it is answered. Raises: as `range`."""
        response: pb.TxnResponse = await self._repeat("Txn", request, deadline_s)
        return response

    async def compact(self, revision: int, deadline_s: float) -> None:
        """Let etcd forget what was before `revision`. Raises: TooOld if it has already."""
        await self._repeat("Compact", pb.CompactionRequest(revision=revision), deadline_s)

    def watch(self) -> grpc.aio.StreamStreamCall:
        """A stream of watches at the member that is asked now."""
        call = (
            self._members[self._at]
            .open()
            .stream_stream(
                _WATCH,
                request_serializer=pb.WatchRequest.SerializeToString,
                response_deserializer=pb.WatchResponse.FromString,
            )
        )
        return call(metadata=_METADATA)

    def avoid(self, member: int) -> None:
        """Ask the next member from now on, if `member` is the one that is asked now."""
        if self._at == member:
            self._at = (member + 1) % len(self._members)

    def out_of_time(self, deadline_s: float) -> bool:
        """Whether another try, after a pause, would begin too late."""
        return lease_now_s() + PAUSE_S >= deadline_s

    @property
    def asked(self) -> int:
        """The number of the member that is asked now."""
        return self._at

    async def close(self) -> None:
        """Refuse new calls, wait for those under way, and close the connections."""
        self._closed = True
        while self._calls:
            self._idle.clear()
            await self._idle.wait()
        for member in self._members:
            await member.close()

    async def _repeat(self, method: str, request: Any, deadline_s: float) -> Any:
        for number in itertools.count(1):
            try:
                return await self._once(method, request, deadline_s)
            except (Unanswered, Busy):
                if lease_now_s() + PAUSE_S >= deadline_s:
                    raise
            if number % len(self._members) == 0:
                await asyncio.sleep(PAUSE_S)
        raise AssertionError

    async def _once(self, method: str, request: Any, deadline_s: float) -> Any:
        if self._closed:
            raise Unavailable("the metadata store is closed")
        at, member = self._at, self._members[self._at]
        timeout_s = min(self._try_s, deadline_s - lease_now_s())
        self._calls += 1
        try:
            response = await member.call(method, request, max(timeout_s, 0.001))
        except grpc.RpcError as error:
            found = _meaning(error, member.address)
            if isinstance(found, (Unanswered, Busy)):
                self.avoid(at)
            raise found from None
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()
        self.revision = max(self.revision, response.header.revision)
        return response


def _meaning(error: grpc.RpcError, address: str) -> Fs3Error:
    """What a failed call says; all but `Unanswered` say that nothing was changed."""
    code, said = error.code(), error.details() or error.code().name
    if code == grpc.StatusCode.OUT_OF_RANGE:
        return TooOld("the transaction's snapshot has been compacted") if "compacted" in said else NotYet(said)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "space" in said:
            return NoSpace(f"etcd at {address}: {said}; raise its quota, or compact, defragment and disarm its alarm")
        if "larger than max" in said:
            return TooLarge(f"etcd at {address}: {said}")
        return Busy(f"etcd at {address}: {said}")
    if code == grpc.StatusCode.INVALID_ARGUMENT and "too many operations" in said:
        return TooLarge(f"etcd at {address}: {said}; start its members with a --max-txn-ops of 128 or more")
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return Invalid(f"etcd at {address} refuses a transaction: {said}")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return PermissionDenied(f"etcd at {address}: {said}")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unanswered(f"etcd at {address} did not answer in time")
    return Unanswered(f"etcd at {address} cannot be reached: {said}")
