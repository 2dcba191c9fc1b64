"""Requests that are no message: refused as Invalid, with nothing in the log, and the next caller is served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from fs3.errors import Fs3Error, Invalid
from fs3.pb import common_pb2, mgmtd_pb2, mgmtd_pb2_grpc
from fs3.routing import NodeKind, local_state_from_pb, node_from_pb
from fs3.transport import rpc
from fs3.transport.credentials import Credentials


class _Mgmtd(mgmtd_pb2_grpc.MgmtdServicer):  # type: ignore[misc]
    credentials = Credentials(secret="s3cret")

    @rpc.handler
    async def GetClusterInfo(self, request: common_pb2.Empty) -> mgmtd_pb2.ClusterInfo:
        return mgmtd_pb2.ClusterInfo(cluster_id="c")

    @rpc.handler
    async def Goodbye(self, request: mgmtd_pb2.GoodbyeRequest) -> common_pb2.Empty:
        return common_pb2.Empty()


def _serve(use: Callable[[str], Awaitable[None]]) -> None:
    async def run() -> None:
        server = rpc.aio_server()
        mgmtd_pb2_grpc.add_MgmtdServicer_to_server(_Mgmtd(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            await use(f"127.0.0.1:{port}")
        finally:
            await server.stop(None)

    asyncio.run(run())


async def _call(channel: grpc.aio.Channel, method: str, raw: bytes, secret: str = "s3cret") -> bytes | Fs3Error:
    call: Any = channel.unary_unary(f"/fs3.pb.Mgmtd/{method}")
    try:
        answer: bytes = await call(raw, timeout=10, metadata=Credentials(secret=secret).metadata())
    except grpc.RpcError as error:
        return rpc.error_of(error, "mgmtd")
    return answer


def test_what_is_no_message_is_refused_in_a_word(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def use(address: str) -> None:
        async with rpc.aio_channel(address) as channel:
            for raw in (b"\xff\xff\xff", b"\x0a\xff", bytes([0x0B]) * 50):
                answer = await _call(channel, "Goodbye", raw)
                assert isinstance(answer, Invalid) and "Goodbye" in str(answer), answer
            assert await _call(channel, "Goodbye", b"") == b""
            answered = await _call(channel, "GetClusterInfo", b"")
            assert isinstance(answered, bytes) and mgmtd_pb2.ClusterInfo.FromString(answered).cluster_id == "c"
            assert isinstance(await _call(channel, "GetClusterInfo", b"", secret="no"), Fs3Error)
            assert isinstance(await _call(channel, "NoSuchMethod", b""), Fs3Error)

    _serve(use)
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


def test_unknown_kinds_and_states_are_somebody_elses_mistake() -> None:
    with pytest.raises(Invalid, match="NodeKind 77"):
        node_from_pb(mgmtd_pb2.NodeInfo(node_id=1, kind=77))  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="LocalState 9"):
        local_state_from_pb(9)
    assert node_from_pb(mgmtd_pb2.NodeInfo(node_id=1, kind=NodeKind.META)).kind is NodeKind.META  # type: ignore[arg-type]
