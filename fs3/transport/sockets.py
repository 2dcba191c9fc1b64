"""Sockets to daemons: how an endpoint is written, and what is set on a socket before it is used."""

from __future__ import annotations

import socket

from fs3.errors import Invalid, Unavailable

UNIX_PREFIX = "unix:"
_LOOPBACK_CONGESTION = (b"cubic", b"reno")


def connect_to(endpoint: str, timeout_s: float) -> socket.socket:
    """A blocking socket connected to "host:port" or "unix:/path". Raises: Unavailable, Invalid."""
    try:
        if endpoint.startswith(UNIX_PREFIX):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(timeout_s)
                sock.connect(endpoint.removeprefix(UNIX_PREFIX))
            except BaseException:
                sock.close()
                raise
        else:
            host, _, port = endpoint.rpartition(":")
            if not host or not port.isdecimal():
                raise Invalid(f"endpoint {endpoint!r}: expected host:port or unix:/path")
            sock = socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            prefer_loopback_congestion(sock)
    except OSError as error:
        raise Unavailable(f"{endpoint} cannot be reached: {error.strerror or error}") from None
    sock.settimeout(None)
    return sock


def prefer_loopback_congestion(sock: socket.socket) -> None:
    """Take a connected TCP socket whose peer is on this host off a congestion control that paces (BBR)."""
    if sock.getpeername()[0] != sock.getsockname()[0]:
        return
    for name in _LOOPBACK_CONGESTION:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
        except OSError:
            continue  # not built into this kernel, or not allowed to us: the next one, or the default
        return
