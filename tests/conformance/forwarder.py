"""A TCP forwarder before one member of etcd, which can hold requests back, swallow answers and cut connections.

It reads the frames of HTTP/2 (RFC 9113, section 4.1) as they pass, so that a test can wait until an answer has arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

_DATA = 0
_HEAD_BYTES = 9
_PREFACE_BYTES = 24  # what a client says first


class _Frames:
    """Counts the DATA frames in a stream of bytes."""

    def __init__(self, *, skip: int = 0) -> None:
        self._rest = b""
        self._skip = skip

    def data_in(self, piece: bytes) -> int:
        skipped = min(self._skip, len(piece))
        self._skip -= skipped
        self._rest += piece[skipped:]
        found = 0
        while len(self._rest) >= _HEAD_BYTES:
            size = _HEAD_BYTES + int.from_bytes(self._rest[:3], "big")
            if len(self._rest) < size:
                break
            found += self._rest[3] == _DATA and size > _HEAD_BYTES
            self._rest = self._rest[size:]
        return found


class Forwarder:
    """Passes on whatever comes to `address`, unless told otherwise."""

    def __init__(self, member: str) -> None:
        host, _, port = member.rpartition(":")
        self._member = host, int(port)
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: list[tuple[asyncio.StreamWriter, bytes]] | None = None
        self._requests_held = 0
        self._swallow_in = 0  # so many answers until one is swallowed, and its connection cut
        self._changed = asyncio.Condition()
        self.answers = 0  # DATA frames that the member has sent
        self.swallowed = 0
        self.address = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Forwarder]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold(self) -> None:
        """Keep requests back from now on."""
        self._held, self._requests_held = [], 0

    async def held(self) -> None:
        """Wait until a request is kept back."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._requests_held > 0)

    async def release(self) -> None:
        """Pass on what was kept back, though who sent it may be gone, and wait until the member answers."""
        assert self._held
        held, self._held, before = self._held, None, self.answers
        for upstream, piece in held:
            upstream.write(piece)
        async with self._changed:
            await self._changed.wait_for(lambda: self.answers > before)

    def swallow(self, number: int = 1) -> None:
        """Swallow the `number`th answer from now, and cut its connection."""
        self._swallow_in = number

    def cut(self) -> None:
        """Cut the clients' connections; the member does not notice while something is kept back."""
        for client in self._clients:
            client.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        answers, upstream = await asyncio.open_connection(*self._member)
        self._clients.add(client)
        back = asyncio.ensure_future(self._pass_back(answers, client))
        frames = _Frames(skip=_PREFACE_BYTES)
        try:
            with contextlib.suppress(ConnectionError):
                while piece := await reader.read(1 << 16):
                    await self._pass_on(upstream, piece, frames.data_in(piece))
            if self._held is not None:
                await back  # until the member, or the test, ends it
        finally:
            self._clients.discard(client)
            back.cancel()
            client.transport.abort()
            upstream.transport.abort()

    async def _pass_on(self, upstream: asyncio.StreamWriter, piece: bytes, requests: int) -> None:
        if self._held is None:
            upstream.write(piece)
            return
        self._held.append((upstream, piece))
        self._requests_held += requests
        async with self._changed:
            self._changed.notify_all()

    async def _pass_back(self, answers: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        frames = _Frames()
        while piece := await answers.read(1 << 16):
            found = frames.data_in(piece)
            if self._swallow_in and found >= self._swallow_in:
                self._swallow_in = 0
                self.swallowed += 1
                client.transport.abort()
            elif found and self._swallow_in:
                self._swallow_in -= found
            self.answers += found
            async with self._changed:
                self._changed.notify_all()
            if not client.transport.is_closing():
                client.write(piece)
        client.transport.abort()
