"""Redis as a peer for small reads: the blocks of a file under keys 0, 1, 2, ... of a server in memory, read by MGET.

Two clients: one of our own, that speaks RESP over a socket and receives every value straight to its place in the
caller's memory; and redis-py (`redis_py.py`), a program in an environment of its own.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.server import Server, free_port, program, version_of
from fs3.transport.sockets import prefer_loopback_congestion

_LOADED_AT_ONCE = 256
_MAX_IOVECS = 1_024


class Redis(Server):
    """A server that holds the blocks of a file in memory, nothing saved."""

    def __init__(self, path: Path, block_bytes: int, folder: Path) -> None:
        """Raises: Missing."""
        super().__init__(folder, free_port())
        self._path = path
        self._block_bytes = block_bytes
        self._connections: list[RespConnection] = []
        options = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": str(folder)}
        self.command = (
            program("redis-server", "redis-server"),
            *(word for name, value in options.items() for word in (f"--{name}", value)),
        )

    def __enter__(self) -> Redis:
        """Raises: Missing."""
        super().__enter__()
        self._stack.callback(lambda: [connection.close() for connection in self._connections])
        loading = self.connect()
        with self._path.open("rb") as file:
            number = 0
            while blocks := [block for _ in range(_LOADED_AT_ONCE) if (block := file.read(self._block_bytes))]:
                loading.put(range(number, number + len(blocks)), blocks)
                number += len(blocks)
        return self

    def connect(self) -> RespConnection:
        """A new connection, closed with the server."""
        connection = RespConnection(socket.create_connection(("127.0.0.1", self.port)), self._block_bytes)
        self._connections.append(connection)
        return connection


class RespConnection:
    """One connection; for one thread. All values are of one size."""

    def __init__(self, sock: socket.socket, block_bytes: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        prefer_loopback_congestion(sock)
        self._sock = sock
        self._block_bytes = block_bytes
        self._between = f"${block_bytes}\r\n".encode()

    def read(self, keys: Sequence[int], out: memoryview) -> int:
        """The values of `keys` (as many as are received at once, 500), one after the other, into `out`.

        Raises: ConnectionError: the server went away, or answered with something else.
        """
        names = [b"%d" % key for key in keys]
        self._sock.sendall(b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1) + _bulk(names))
        size, count = self._block_bytes, len(keys)
        expected = b"*%d\r\n" % count + b"\r\n".join([self._between] * count) + b"\r\n"
        framing = memoryview(bytearray(len(expected)))
        first, rest = len(b"*%d\r\n" % count) + len(self._between), len(self._between) + 2
        pieces: list[memoryview] = [framing[:first]]
        for place in range(count):
            pieces.append(out[place * size : (place + 1) * size])
            at = first + place * rest
            pieces.append(framing[at : at + rest])
        assert len(pieces) <= _MAX_IOVECS, count
        self._receive(pieces)
        if framing != expected:
            raise ConnectionError(f"Redis answered {bytes(framing[:80])!r}")
        return count * size

    def put(self, keys: Sequence[int], values: Sequence[bytes]) -> None:
        """Raises: ConnectionError."""
        words = [word for key, value in zip(keys, values, strict=True) for word in (b"%d" % key, value)]
        self._sock.sendall(b"*%d\r\n$4\r\nMSET\r\n" % (len(words) + 1) + _bulk(words))
        answer = self._sock.recv(5, socket.MSG_WAITALL)
        if answer != b"+OK\r\n":
            raise ConnectionError(f"Redis answered {answer!r}")

    def close(self) -> None:
        """End it."""
        self._sock.close()

    def _receive(self, pieces: list[memoryview]) -> None:
        left = sum(map(len, pieces))
        while True:
            got, *_ = self._sock.recvmsg_into(pieces, 0, socket.MSG_WAITALL)
            if not got:
                raise ConnectionError("Redis went away")
            left -= got
            if not left:
                return
            while got >= len(pieces[0]):
                got -= len(pieces.pop(0))
            pieces[0] = pieces[0][got:]


def _bulk(words: Sequence[bytes]) -> bytes:
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def version() -> str:
    """Of the installed server, or ""."""
    return version_of("redis-server", "--version").partition("v=")[2].partition(" ")[0]
