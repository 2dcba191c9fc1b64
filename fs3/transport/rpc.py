"""gRPC as fs3 offers it: one way to open servers, to carry errors and to check who calls. What Python calls goes in
frames (door.py); `aio_channel` and `error_of` are for who calls through gRPC all the same.

An `Fs3Error` crosses as a gRPC status whose trailing metadata holds its code (`fs3-code`), so that the caller raises
the same class. Calls carry the cluster id, once known, and the cluster's secret; a server refuses those of another
cluster.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from fs3.errors import Fs3Error, Unavailable, from_code
from fs3.transport.credentials import CALLER, CLUSTER, SECRET, USER, stated_user
from fs3.transport.malformed import RefuseMalformed

MAX_MESSAGE_BYTES = 64 << 20

_CODE = "fs3-code"
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

R = TypeVar("R")


def aio_channel(address: str) -> grpc.aio.Channel:
    """An asyncio channel to "host:port"; nothing is connected yet."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


def aio_server() -> grpc.aio.Server:
    """An asyncio server with fs3's limits; it does not share its port with another process."""
    return grpc.aio.server(
        interceptors=[RefuseMalformed(_refuse)],
        options=[*_OPTIONS, ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=4_096,
    )


async def _refuse(context: grpc.aio.ServicerContext, error: Fs3Error) -> None:
    """End a call with an error that `error_of` understands."""
    context.set_trailing_metadata(((_CODE, str(error.code)),))
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, bounded(str(error)))


def error_of(error: grpc.RpcError, address: str) -> Fs3Error:
    """The fs3 error behind a failed call to `address`."""
    for key, value in error.trailing_metadata() or ():
        if key == _CODE:
            return from_code(int(value), error.details() or "")
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unavailable(f"{address} did not answer in time")
    return Unavailable(f"{address} cannot be reached: {error.details() or error.code().name}")


def bounded(message: str) -> str:
    """gRPC drops a status above 8 KiB, percent-encoded; of a longer message both ends stay: what, and the way out."""
    raw = message.encode(errors="replace")
    if len(raw) <= 2_000:
        return message
    return f"{raw[:1_000].decode(errors='ignore')} ... {raw[-1_000:].decode(errors='ignore')}"


def handler(
    method: Callable[[Any, Any], Awaitable[R]],
) -> Callable[[Any, Any, grpc.aio.ServicerContext], Awaitable[R]]:
    """Make `async def method(self, request)` a gRPC handler of a servicer that has `credentials`.

    Checks the caller, and turns an `Fs3Error` into a status that `error_of` understands. `Door` (door.py) calls the
    method itself, which is the handler's `__wrapped__`.
    """

    @functools.wraps(method)
    async def handle(self: Any, request: Any, context: grpc.aio.ServicerContext) -> R:
        try:
            shown = {key: str(value) for key, value in context.invocation_metadata() or ()}
            self.credentials.check(shown.get(CLUSTER, ""), shown.get(SECRET, ""))
            CALLER.set(stated_user(shown.get(USER, "")))  # each call is a task, with a context of its own
            return await method(self, request)
        except Fs3Error as error:
            await _refuse(context, error)
            raise

    return handle
