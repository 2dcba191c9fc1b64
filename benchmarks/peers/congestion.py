"""Puts the server of a peer on the congestion control that fs3 uses on loopback, whatever the kernel's default is.

Few servers have an option for it. A connection takes it from the socket that it was accepted on, so that socket is
fetched from the server (pidfd_getfd(2), which needs no more than what a debugger of one's own process needs) and set.
"""

from __future__ import annotations

import ctypes
import os
import socket

import psutil

from fs3.transport.sockets import prefer_loopback_congestion

_PIDFD_GETFD = 438  # the same on every architecture
_libc = ctypes.CDLL(None, use_errno=True)


def use_loopback_congestion(process: psutil.Process) -> None:
    """For connections that `process` accepts from now on. Raises: OSError, if the kernel does not let us."""
    wanted = loopback_congestion().encode()
    pidfd = os.pidfd_open(process.pid)
    try:
        for one in process.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN:
                with socket.socket(fileno=_fetched(pidfd, one.fd)) as listening:
                    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, wanted)
    finally:
        os.close(pidfd)


def loopback_congestion() -> str:
    """The congestion control that a same-host connection of fs3's ends up with."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        prefer_loopback_congestion(sock)
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return raw.rstrip(b"\0").decode()


def _fetched(pidfd: int, descriptor: int) -> int:
    """A descriptor of our own for another process's."""
    got = _libc.syscall(_PIDFD_GETFD, pidfd, descriptor, 0)
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"pidfd_getfd: {os.strerror(code)}")
    return int(got)
