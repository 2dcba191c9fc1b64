"""Requests whose bytes are no message of their method: refused in one line, as any other wrong request.

gRPC parses a request before any code of ours runs, and answers one that cannot be parsed with UNKNOWN and a traceback
in the log: a stranger could fill the disk with those. An interceptor parses instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from fs3.errors import Invalid

_UNREADABLE = object()


class RefuseMalformed(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """`refuse(context, error)` ends a call with an `Fs3Error`."""

    def __init__(self, refuse: Callable[[grpc.aio.ServicerContext, Invalid], Awaitable[None]]) -> None:
        self._refuse = refuse
        self._known: dict[str, grpc.RpcMethodHandler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The method's handler, or None if there is no such method."""
        known = self._known.get(details.method)
        if known is not None:
            return known
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        known = self._known[details.method] = self._guarded(details.method, handler)
        return known

    def _guarded(self, method: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        parse, answer = handler.request_deserializer, handler.unary_unary

        def parsed(raw: bytes) -> Any:
            try:
                return parse(raw)
            except DecodeError:
                return _UNREADABLE

        async def answered(request: Any, context: grpc.aio.ServicerContext) -> Any:
            if request is _UNREADABLE:
                await self._refuse(context, Invalid(f"the request of {method} cannot be understood"))
            return await answer(request, context)

        return grpc.unary_unary_rpc_method_handler(
            answered, request_deserializer=parsed, response_serializer=handler.response_serializer
        )
