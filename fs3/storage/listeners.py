"""The sockets that a storage daemon is reached by: bound early, so that a taken port is said at once; listening late.

Until `listen` connections are refused, which clients and mgmtd understand at once; a backlog that nobody serves yet
would let them wait.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from fs3.errors import Invalid
from fs3.ids import node_name
from fs3.storage.config import StorageConfig

_LONGEST_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True)
class Bound:
    """The TCP socket first; `address` is its "host:port". `unix_path` is "" without a Unix socket."""

    sockets: tuple[socket.socket, ...]
    address: str
    unix_path: str

    def close(self) -> None:
        """Close, and remove the Unix socket's name; also if the sockets are closed already."""
        for sock in self.sockets:
            sock.close()
        if self.unix_path:
            with contextlib.suppress(OSError):
                os.unlink(self.unix_path)


def bind(config: StorageConfig) -> Bound:
    """The sockets that `config` wants; they do not listen yet. Raises: Invalid."""
    tcp = _bind_tcp(config.listen_host, config.listen_port)
    host, port = tcp.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if config.unix_dir is None:
        return Bound((tcp,), address, "")
    path = config.unix_dir / f"storage-{node_name(config.node_id)}.sock"
    try:
        return Bound((tcp, _bind_unix(path)), address, str(path))
    except Invalid:
        tcp.close()
        raise


def _bind_tcp(host: str, port: int) -> socket.socket:
    where = f"listen_host {host!r}, listen_port {port}"
    try:
        family, kind, protocol, _, name = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise Invalid(f"{where}: {error.strerror}") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind(name)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise Invalid(f"{where}: the port is taken by another process; stop that, or choose another port") from None
        raise Invalid(f"{where}: {error.strerror}") from None
    return sock


def _bind_unix(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise Invalid(f"unix_dir: {path} is longer than {_LONGEST_SOCKET_PATH} bytes; choose a shorter folder")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _remove_stale(path)
        sock.setblocking(False)
        sock.bind(str(path))
        os.chmod(path, 0o600)
    except OSError as error:
        sock.close()
        raise Invalid(f"unix_dir: {path}: {error.strerror}") from None
    except Invalid:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    """Raises: Invalid, if somebody listens there or it is no socket."""
    if not path.is_socket():
        raise Invalid(f"unix_dir: {path} is in the way and is no socket; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise Invalid(f"unix_dir: another daemon listens on {path}; stop it first")
