"""The machine's limit for moving file bytes between two processes over TCP loopback: sendfile -> recv_into and nothing
around it; no index, no checksum, no replica, no failure.

    request:  u32 count, then count x (u64 offset, u64 length)        reply: the bytes

The server has a process for each connection, so that no two of them share an interpreter. Ranges of 64 KiB and more go
by sendfile, smaller ones by one sendmsg of slices of the mapped file, which is faster for them (and what fs3 does too).
Both ends use the congestion control that fs3 uses on loopback.

Run as a program it serves the file it is given: `bare_pair.py FILE`, the port on standard output, until stdin ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil
from numpy.typing import NDArray

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fs3.transport.sockets import prefer_loopback_congestion

SENDFILE_BYTES = 64 << 10
MAX_IOVECS = 1_024
_COUNT = struct.Struct("<I")
_RANGE_BYTES = 16


class BarePair:
    """The server, and connections to it."""

    def __init__(self, path: Path) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the bare server of {path} ended with status {self._server.wait()}")
        self._address = ("127.0.0.1", int(line))
        self._connections: list[BareConnection] = []

    def connect(self) -> BareConnection:
        """A new connection, closed with the pair."""
        sock = socket.create_connection(self._address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        prefer_loopback_congestion(sock)
        self._connections.append(BareConnection(sock))
        return self._connections[-1]

    @property
    def processes(self) -> list[psutil.Process]:
        """The server's, one for each connection."""
        return psutil.Process(self._server.pid).children()

    def __enter__(self) -> BarePair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.close()
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


class BareConnection:
    """One connection to the server; for one thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, offsets: NDArray[np.int64], lengths: NDArray[np.int64], out: memoryview) -> int:
        """Receive the ranges one after the other into `out`; how many bytes. Raises: ConnectionError."""
        records = np.stack((offsets, lengths), axis=1).astype("<u8")
        self._sock.sendall(_COUNT.pack(len(offsets)) + records.tobytes())
        left = out[: int(lengths.sum())]
        total = len(left)
        while left:
            got = self._sock.recv_into(left, 0, socket.MSG_WAITALL)
            if not got:
                raise ConnectionError("the bare server went away")
            left = left[got:]
        return total

    def close(self) -> None:
        """End the connection, and with it its server process."""
        self._sock.close()


def serve(path: str) -> None:
    """Serve `path` until standard input ends, a forked process for each connection."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with open(path, "rb") as file, socket.create_server(("127.0.0.1", 0)) as server:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ))
        print(server.getsockname()[1], flush=True)
        while True:
            ready, _, _ = select.select([server, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            sock, _ = server.accept()
            if os.fork() == 0:
                with contextlib.suppress(ConnectionError):
                    _answer(sock, file.fileno(), mapped)
                os._exit(0)
            sock.close()


def _answer(sock: socket.socket, file: int, mapped: memoryview) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    prefer_loopback_congestion(sock)
    while True:
        raw = sock.recv(_COUNT.size, socket.MSG_WAITALL)
        if not raw:
            return
        (count,) = _COUNT.unpack(raw)
        ranges = np.frombuffer(sock.recv(count * _RANGE_BYTES, socket.MSG_WAITALL), dtype="<u8").reshape(-1, 2)
        small: list[memoryview] = []
        for offset, length in ranges.tolist():
            if length < SENDFILE_BYTES:
                small.append(mapped[offset : offset + length])
                continue
            _send(sock, small)
            small = []
            end = offset + length
            while offset < end:
                offset += os.sendfile(sock.fileno(), file, offset, end - offset)
        _send(sock, small)


def _send(sock: socket.socket, slices: Sequence[memoryview]) -> None:
    for at in range(0, len(slices), MAX_IOVECS):
        left = list(slices[at : at + MAX_IOVECS])
        sent = sock.sendmsg(left)
        for part in left:
            if sent >= len(part):
                sent -= len(part)
                continue
            sock.sendall(part[sent:])
            sent = 0


if __name__ == "__main__":
    serve(sys.argv[1])
