"""Unix sockets between processes of one host: who the peer is, and descriptors that go with a frame (SCM_RIGHTS); and
how many of them a process may have."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import socket
import struct
from collections.abc import Iterable, Sequence

_UCRED = struct.Struct("iII")  # pid, uid, gid
MOST_PASSED = 253  # what the kernel takes in one message (SCM_MAX_FD)
_ROOM = socket.CMSG_SPACE(MOST_PASSED * 4)


def peer_user(sock: socket.socket) -> int | None:
    """The user who connected, or whom this connected to, over a Unix socket; None over any other."""
    return peer_of(sock)[1] if sock.family == socket.AF_UNIX else None


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end of a Unix socket."""
    process, user, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return process, user


def rights(descriptors: Sequence[int]) -> list[tuple[int, int, bytes]]:
    """What `sendmsg` takes to pass these with the first byte that it sends."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())] if descriptors else []


def receive_with_descriptors(sock: socket.socket, view: memoryview) -> tuple[int, list[int]]:
    """(bytes received into `view`, descriptors that came with them, now the caller's). Raises: OSError."""
    got, ancillary, _, _ = sock.recvmsg_into([view], _ROOM, socket.MSG_WAITALL | socket.MSG_CMSG_CLOEXEC)
    passed = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            passed.frombytes(data[: len(data) - len(data) % passed.itemsize])
    return got, passed.tolist()


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def raise_limit() -> None:
    """Let this process have as many descriptors as it may; a shell's usual 1,024 are few for what serves many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
