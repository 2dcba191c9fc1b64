"""The sockets that a storage daemon is reached by: bound early, so that a taken port is said at once; listening late.

Until `listen` connections are refused, which clients and mgmtd understand at once; a backlog that nobody serves yet
would let them wait.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

from fs3.errors import Invalid
from fs3.storage.config import StorageConfig

_LONGEST_SOCKET_PATH = 107


def bind(config: StorageConfig) -> list[socket.socket]:
    """The TCP socket first, then the Unix socket if one is wanted; neither listens yet. Raises: Invalid."""
    bound: list[socket.socket] = []
    try:
        bound.append(_bind_tcp(config.listen_host, config.listen_port))
        if config.unix_dir is not None:
            bound.append(_bind_unix(config.unix_dir / f"storage-{config.node_id}.sock"))
    except BaseException:
        close(bound)
        raise
    return bound


def address(sock: socket.socket) -> str:
    """ "host:port" of a TCP socket."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unix_path(sock: socket.socket) -> str | None:
    """The path of a Unix socket; None for others."""
    return sock.getsockname() or None if sock.family == socket.AF_UNIX else None


def close(sockets: list[socket.socket]) -> None:
    """Close, and remove the names of Unix sockets; also for sockets that are closed already."""
    for sock in sockets:
        with contextlib.suppress(OSError):
            path = unix_path(sock)
            if path is not None:
                os.unlink(path)
        sock.close()


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
