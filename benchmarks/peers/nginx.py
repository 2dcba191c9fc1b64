"""nginx as a peer for large reads: a static file, ranges of it over HTTP with keepalive, by a client of raw sockets.

The client asks for as little as HTTP allows and receives the body straight into the caller's memory, but for the few
bytes that come along with the header.
"""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

from benchmarks.peers.server import Server, free_port, program, version_of
from fs3.transport.sockets import prefer_loopback_congestion

_HEAD_BYTES = 512
_CONFIG = """
{user}
daemon off;
worker_processes auto;
pid {folder}/pid;
error_log stderr error;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=16;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


class Nginx(Server):
    """A server of one file, a worker for each core, and connections to it."""

    def __init__(self, path: Path, folder: Path) -> None:
        """Raises: Missing."""
        super().__init__(folder, free_port())
        self._path = path.resolve()
        self._connections: list[NginxConnection] = []
        config = self.folder / "nginx.conf"
        self.command = (program("nginx", "nginx-light"), "-p", str(self.folder), "-e", "stderr", "-c", str(config))

    def __enter__(self) -> Nginx:
        """Raises: Missing."""
        self.folder.mkdir()
        user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
        text = _CONFIG.format(user=user, folder=self.folder, port=self.port, root=self._path.parent)
        (self.folder / "nginx.conf").write_text(text, encoding="utf-8")
        super().__enter__()
        self._stack.callback(lambda: [connection.close() for connection in self._connections])
        return self

    def connect(self) -> NginxConnection:
        """A new connection, closed with the server."""
        connection = NginxConnection(socket.create_connection(("127.0.0.1", self.port)), f"/{self._path.name}")
        self._connections.append(connection)
        return connection


class NginxConnection:
    """One connection; for one thread."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        prefer_loopback_congestion(sock)
        self._sock = sock
        self._request = f"GET {path} HTTP/1.1\r\nHost: fs3\r\nRange: bytes="
        self._head = bytearray(_HEAD_BYTES)

    def read(self, offset: int, out: memoryview) -> int:
        """Fill `out` from `offset`. Raises: ConnectionError: it went away, or does not answer with that range."""
        self._sock.sendall(f"{self._request}{offset}-{offset + len(out) - 1}\r\n\r\n".encode("ascii"))
        got = self._sock.recv_into(self._head)
        end = self._head.find(b"\r\n\r\n", 0, got)
        if end < 0 or not self._head.startswith(b"HTTP/1.1 206"):
            raise ConnectionError(f"nginx answered {bytes(self._head[:got])!r}")
        early = got - (end + 4)
        out[:early] = self._head[end + 4 : got]
        left = out[early:]
        while left:
            got = self._sock.recv_into(left, 0, socket.MSG_WAITALL)
            if not got:
                raise ConnectionError("nginx went away")
            left = left[got:]
        return len(out)

    def close(self) -> None:
        """End it."""
        self._sock.close()


def version() -> str:
    """Of the installed nginx, or ""."""
    return version_of("nginx", "-v").rpartition("/")[2]
