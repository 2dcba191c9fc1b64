"""grpc.aio as a peer: a server of one file, and a client, each a program of its own; messages are bytes as they are.

    request:  u64 offset, u64 length        reply: the bytes, in one message

Nothing is serialized, and no message is too large. Each call in flight has a connection of its own, and a buffer into
which the client copies what came, as whoever reads into memory of their own has to. It is the version that fs3 itself
uses for its control plane, so it needs no environment of its own; but neither end shares an interpreter with the
benchmark.

    grpc_aio.py serve FILE      then until standard input ends
    grpc_aio.py read PORT       then as it is told (obey.py)
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil

from benchmarks.peers.congestion import use_loopback_congestion
from benchmarks.peers.driven import Driven
from benchmarks.peers.obey import obey
from benchmarks.peers.peer import Missing
from benchmarks.rounds import Timed

_METHOD = "/bench.Ranges/Read"
_RANGE = struct.Struct("<QQ")
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class GrpcAio:
    """A server and a client. Use it as a context manager."""

    def __init__(self, path: Path, folder: Path) -> None:
        """`folder`: to be made, for what they say."""
        self._path = path
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._server: psutil.Process | None = None
        self._client: Driven | None = None

    @property
    def processes(self) -> list[psutil.Process]:
        assert self._server is not None
        return [self._server]

    def __enter__(self) -> GrpcAio:
        """Raises: Missing."""
        self._folder.mkdir()
        with self._stack:
            try:
                server = Driven([sys.executable, __file__, "serve", str(self._path)], self._folder / "server")
                self._stack.callback(server.close)
                self._server = psutil.Process(server.pid)
                use_loopback_congestion(self._server)
                port = str(server.ready["port"])
                self._client = Driven([sys.executable, __file__, "read", port], self._folder / "client")
                self._stack.callback(self._client.close)
            except OSError as error:
                raise Missing(str(error)) from None
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def read(self, offsets: Sequence[int], size: int, in_flight: int, seconds: float) -> Timed:
        """Ranges of `size` at `offsets`, again and again, so many in flight; how many there were."""
        assert self._client is not None
        answer = self._client.ask(do="run", offsets=offsets, size=size, in_flight=in_flight, seconds=seconds)
        return Timed(**answer)

    def read_into(self, offset: int, out: memoryview) -> None:
        """One range, to be compared."""
        assert self._client is not None
        out[:] = bytes.fromhex(self._client.ask(do="check", offset=offset, size=len(out))["hex"])


def serve(path: str) -> None:
    """Serve `path` until standard input ends."""
    asyncio.run(_serve(path))


async def _serve(path: str) -> None:
    import grpc

    with open(path, "rb") as file:  # noqa: ASYNC230 - before it serves anybody
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)

    async def read(request: bytes, context: Any) -> bytes:
        offset, length = _RANGE.unpack(request)
        return mapped[offset : offset + length]

    service, method = _METHOD.strip("/").split("/")
    handler = grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(read)})
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await asyncio.to_thread(obey, {}, port=port)
    await server.stop(None)


def read(port: int) -> None:
    """Read until standard input ends."""
    loop = asyncio.new_event_loop()
    clients: list[Any] = []

    def clients_of(count: int) -> list[Any]:
        while len(clients) < count:
            clients.append(loop.run_until_complete(_client(port)))
        return clients[:count]

    def run(offsets: list[int], size: int, in_flight: int, seconds: float) -> dict[str, Any]:
        return loop.run_until_complete(_read(clients_of(in_flight), offsets, size, seconds))

    def check(offset: int, size: int) -> dict[str, Any]:
        (client,) = clients_of(1)

        async def one() -> bytes:
            answer: bytes = await client(_RANGE.pack(offset, size))
            return answer

        return {"hex": loop.run_until_complete(one()).hex()}

    obey({"run": run, "check": check})


async def _client(port: int) -> Any:
    """On a connection of its own."""
    import grpc

    options = (*_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options).unary_unary(_METHOD)


async def _read(clients: list[Any], offsets: list[int], size: int, seconds: float) -> dict[str, Any]:
    begin_s, cpu_s = time.perf_counter(), time.process_time()

    async def caller(slot: int, client: Any) -> int:
        out, number = memoryview(bytearray(size)), 0
        while not number or time.perf_counter() - begin_s < seconds:
            out[:] = await client(_RANGE.pack(offsets[(slot * 1_009 + number) % len(offsets)], size))
            number += 1
        return number

    done = await asyncio.gather(*(caller(slot, client) for slot, client in enumerate(clients)))
    elapsed_s = time.perf_counter() - begin_s
    return {"amount": sum(done), "seconds": elapsed_s, "client_cpu_s": time.process_time() - cpu_s}


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        read(int(sys.argv[2]))
