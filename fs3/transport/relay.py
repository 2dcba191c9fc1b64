"""Passes a connection on, byte for byte, to an abstract Unix socket of this machine.

Neither side is read faster than the other one takes it.
"""

from __future__ import annotations

import asyncio


async def relay(first: bytes, transport: asyncio.Transport, name: str) -> None:
    """Join a connection, of which `first` was read already and whose reading is paused, with the socket `name`, until
    either ends. Both are closed then."""
    try:
        to_inside, inside = await asyncio.get_running_loop().create_unix_connection(_Side, "\0" + name)
    except BaseException:
        transport.abort()
        raise
    outside = _Side()
    try:
        if transport.is_closing():
            return
        transport.set_protocol(outside)
        outside.other, inside.other = to_inside, transport
        to_inside.write(first)
        transport.resume_reading()
        await asyncio.wait({outside.ended, inside.ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        transport.close()
        to_inside.close()


class _Side(asyncio.Protocol):
    """One of the two connections."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.other: asyncio.Transport | None = None

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.resume_reading()
