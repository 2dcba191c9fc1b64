"""Control calls of asyncio code over frames: one connection to each address, any number of calls on it at a time."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError

from fs3.errors import Corrupt, Fs3Error, Invalid, Unavailable, from_code
from fs3.transport.credentials import Credentials
from fs3.transport.frame_core import HEADER_BYTES, MAX_HEAD_BYTES, Header, Kind, check_head, pack_header, unpack_header
from fs3.transport.methods import CALL, methods_of

_CONNECT_S = 5.0


class FrameCalls:
    """`fs3.transport.rpc.ControlCall` over frames; for one event loop. `service` is the one that is called."""

    def __init__(self, service: ServiceDescriptor) -> None:
        self._methods = methods_of(service)
        self._lines: dict[str, _Line] = {}

    async def __call__(
        self, address: str, method: str, request: Any, *, timeout_s: float, credentials: Credentials
    ) -> Any:
        called = self._methods[method]
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._line(address, credentials)
                head = await line.ask(CALL, called.name, request.SerializeToString(), timeout_s)
        except TimeoutError:
            raise Unavailable(f"{address} did not answer in time") from None
        reply = called.reply()
        try:
            reply.ParseFromString(head)
        except DecodeError:
            raise Corrupt(f"{address}: the answer to {method} cannot be understood") from None
        return reply

    async def aclose(self) -> None:
        """Cancel what is under way."""
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    async def _line(self, address: str, credentials: Credentials) -> _Line:
        """A connection that has said these credentials. Raises: Fs3Error."""
        line = self._lines.get(address)
        if line is None or line.over or line.credentials != credentials:
            if line is not None:
                line.retire()
            line = self._lines[address] = _Line(address, credentials)
        await line.ready()
        return line


class _Line(asyncio.Protocol):
    """One connection."""

    def __init__(self, address: str, credentials: Credentials) -> None:
        self.credentials = credentials
        self.over = False  # closed, or about to be
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._last_id = 0
        self._rest = bytearray()
        self._retired = False
        self._opening: asyncio.Task[None] | None = None

    async def ready(self) -> None:
        """Wait until HELLO was answered. Raises: Fs3Error."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
            self._opening.add_done_callback(lambda done: done.cancelled() or done.exception())  # if nobody waits
        try:
            await asyncio.shield(self._opening)
        except asyncio.CancelledError:
            if not self._opening.cancelled():
                raise
            raise Unavailable(f"{self._address}: the connection was closed") from None

    async def ask(self, kind: int, name: bytes, message: bytes, timeout_s: float) -> bytes:
        """The head of the answer. Raises: Fs3Error."""
        if self._transport is None or self._transport.is_closing():
            raise Unavailable(f"{self._address} broke off")
        self._last_id += 1
        head = name + message
        header = Header(
            kind,
            self._last_id,
            count=len(name),
            head_bytes=len(head),
            deadline_ms=max(1, int(timeout_s * 1_000)),
        )
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[header.request_id] = answer
        self._transport.write(pack_header(header, head) + head)
        try:
            return await answer
        finally:
            self._waiting.pop(header.request_id, None)
            if self._retired and not self._waiting:
                self.close()

    def retire(self) -> None:
        """Take no more calls, and close with the last one."""
        self.over = self._retired = True
        if not self._waiting:
            self.close()

    def close(self) -> None:
        self.over = True
        if self._opening is not None:
            self._opening.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._fail(Unavailable(f"{self._address}: the connection was closed"))

    async def _open(self) -> None:
        host, _, port = self._address.rpartition(":")
        hello = self.credentials.hello(role="control")
        try:
            if not host or not port.isdecimal():
                raise Invalid(f"address {self._address!r}: expected host:port")
            async with asyncio.timeout(_CONNECT_S):
                await asyncio.get_running_loop().create_connection(lambda: self, host.strip("[]"), int(port))
                await self.ask(Kind.HELLO, b"", hello.SerializeToString(), _CONNECT_S)
        except TimeoutError:
            self.over = True
            raise Unavailable(f"{self._address} cannot be reached: no answer in {_CONNECT_S:.0f} s") from None
        except OSError as error:
            self.over = True
            why = os.strerror(error.errno) if isinstance(error, ConnectionError) and error.errno else error.strerror
            raise Unavailable(f"{self._address} cannot be reached: {why or error}") from None
        except BaseException:
            self.over = True
            raise
        finally:
            if self.over and self._transport is not None:
                self._transport.abort()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.over = True
        self._fail(Unavailable(f"{self._address} broke off: {error or 'closed the connection'}"))

    def data_received(self, data: bytes) -> None:
        self._rest += data
        view, at = memoryview(self._rest), 0
        try:
            while len(view) - at >= HEADER_BYTES:
                raw = bytes(view[at : at + HEADER_BYTES])
                header = unpack_header(raw)
                end = at + HEADER_BYTES + header.head_bytes
                if not header.reply or header.body_bytes or header.head_bytes > MAX_HEAD_BYTES:
                    raise Invalid(f"{self._address} does not answer as a control port does")
                if end > len(view):
                    break
                head = bytes(view[at + HEADER_BYTES : end])
                check_head(raw, head)
                at = end
                self._settle(header, head)
        except Fs3Error as error:
            self.over = True
            self._fail(Unavailable(f"{self._address}: {error}"))
            assert self._transport is not None
            self._transport.abort()
        view.release()
        del self._rest[:at]

    def _settle(self, header: Header, head: bytes) -> None:
        answer = self._waiting.get(header.request_id)
        if answer is None or answer.done():
            return  # nobody waits for it any more
        if header.status:
            answer.set_exception(from_code(header.status, head.decode(errors="replace")))
        else:
            answer.set_result(head)

    def _fail(self, error: Fs3Error) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(type(error)(str(error)))
