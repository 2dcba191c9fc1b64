"""An application that talks nonsense to its I/O process is refused, and nobody else notices."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fs3.cluster.local import LocalCluster
from fs3.errors import Busy, Invalid
from fs3.transport.descriptors import close_all
from fs3.usrbio import UsrBio, control
from fs3.usrbio.batch import file_columns
from fs3.usrbio.memory import SharedMemory, fence
from fs3.usrbio.place import place_of
from fs3.usrbio.ring_core import ApplicationRing, Ended
from fs3.usrbio.ring_format import Op, RingLayout, write_header
from fs3.usrbio.writers import MAX_WRITABLE
from tests.fs3.usrbio.conftest import shared_pieces, until


@pytest.fixture
def peer(cluster: LocalCluster, io: UsrBio) -> Iterator[socket.socket]:
    """A connection of its own to the I/O process of `io`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(20.0)
        sock.connect(str(place_of(cluster.shape.addresses, "").socket))
        yield sock


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"kind": "no such"},
        {"kind": 7},
        {"kind": "hello", "protocol": 99},
        {"kind": "open"},
        {"kind": "open", "paths": 3},
        {"kind": "files", "number": 1, "first": 0, "files": [[1, 2]]},
        {"kind": "files", "number": 1, "first": 5, "files": []},
        {"kind": "files", "number": 1, "first": 0, "files": [[1, 2, [1, 1, 65536, 1, 0, 77], [1], 1, "x"]]},
        {"kind": "ring", "bytes": 5_000, "priority": 1},
        {"kind": "iov", "number": 1, "bytes": 1},
        {"kind": "open for writing", "application": "x", "paths": 3, "create": False},
        {"kind": "open for writing", "paths": [], "create": False},
        {"kind": "writable files", "application": "x", "number": 1, "first": 0, "files": [["/noise-a"]]},
        {"kind": "writable files", "application": "x", "number": 1, "first": 5, "files": []},
        {"kind": "sync", "application": "x", "close": True},
    ],
)
def test_a_wrong_message_is_refused(io: UsrBio, peer: socket.socket, message: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        control.call(peer, message)
    assert control.call(peer, {"kind": "hello", "protocol": control.PROTOCOL}) == {"protocol": control.PROTOCOL}


def test_a_connection_is_of_one_application(io: UsrBio, peer: socket.socket) -> None:
    message = {"kind": "sync", "application": "one", "paths": ["/nowhere"], "close": False}
    assert control.call(peer, message) == {}
    with pytest.raises(Invalid, match="another application's"):
        control.call(peer, {**message, "application": "other"})


def test_no_more_files_than_can_be_held(io: UsrBio, peer: socket.socket) -> None:
    files = [[f"/nowhere/{number}", 1] for number in range(MAX_WRITABLE + 1)]
    with pytest.raises(Busy, match="are open for writing; close some"):
        control.call(peer, {"kind": "writable files", "application": "x", "number": 1, "first": 0, "files": files})


@pytest.mark.parametrize(
    "raw",
    [b"\xff" * 100, struct.pack("<I", 5) + b"{]}{}", struct.pack("<I", 4) + b"null"],
    ids=["too long", "no JSON", "no object"],
)
def test_bytes_that_are_no_message_end_the_connection(io: UsrBio, peer: socket.socket, raw: bytes) -> None:
    peer.sendall(raw)
    with contextlib.suppress(ConnectionResetError):
        assert peer.recv(100) == b""
    until(lambda: io.stats()["connections"] == 1, "the connection is still there")


def test_wrong_descriptors_are_refused_and_closed(io: UsrBio, peer: socket.socket) -> None:
    control.call(peer, {"kind": "hello", "protocol": control.PROTOCOL})
    pid = io.stats()["pid"]
    before = shared_pieces(pid)
    layout = RingLayout(2, 4)
    ring, unsealed = SharedMemory.make(layout.bytes, "fs3-test"), os.memfd_create("fs3-test")
    os.ftruncate(unsealed, 8_192)
    bell, null = os.eventfd(0), os.open("/dev/null", os.O_RDWR)

    def refused(message: dict[str, Any], *descriptors: int) -> None:
        with pytest.raises(Invalid):
            control.call(peer, message, descriptors)

    add = {"kind": "ring", "bytes": ring.size, "priority": 1}
    refused(add, ring.descriptor, bell, bell)  # no ring begins there
    write_header(ring.view, layout)
    refused(add, ring.descriptor, bell)
    refused(add, null, bell, bell)
    refused({**add, "bytes": ring.size + 1}, ring.descriptor, bell, bell)
    refused({**add, "bytes": 100}, ring.descriptor, bell, bell)
    refused({**add, "priority": 9}, ring.descriptor, bell, bell)
    with open(__file__, "rb") as file:
        refused(add, ring.descriptor, file.fileno(), bell)  # nobody can wait at a file
    refused({"kind": "iov", "number": 1, "bytes": 8_192}, unsealed)
    refused({"kind": "iov", "number": 1, "bytes": 8_192}, null)
    until(lambda: shared_pieces(pid) == before, "what was refused is still there")
    assert control.call(peer, add, (ring.descriptor, bell, bell)) == {}
    refused(add, ring.descriptor, bell, bell)  # a second one
    close_all((unsealed, bell, null))
    ring.close()
    files, zero = io.open_files(["/noise-b"]), np.zeros(1, dtype=np.int64)
    with io.iov(8_192) as iov, io.ior() as own:
        own.read(files, zero, zero, zero + 10, iov, zero)
        own.wait()[0].check()


def test_a_bell_that_cannot_be_rung_keeps_nobody_waiting(io: UsrBio, peer: socket.socket) -> None:
    layout = RingLayout(2, 4)
    memory = SharedMemory.make(layout.bytes, "fs3-test")
    ring = ApplicationRing(layout, memory.view, fence)
    bells = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0)
    os.eventfd_write(bells[1], 2**64 - 2)  # all that it can count
    control.call(peer, {"kind": "ring", "bytes": memory.size, "priority": 1}, (memory.descriptor, *bells))
    zero = np.zeros(1, dtype=np.int64)
    ring.prepare(Op.READ, 1, file_columns(1, zero, zero, zero, zero), files=1, iov=1, deadline_ns=1)
    ring.publish()
    assert ring.want(1)
    os.eventfd_write(bells[0], 1)
    ended: list[Ended] = []
    until(lambda: bool(ended.extend(ring.reap()) or ended), "it does not end")
    assert ended[0].status == Invalid.code
    pid = io.stats()["pid"]
    assert control.call(peer, {"kind": "stats"})["pid"] == pid, "it hung, and was killed"
    close_all(bells)
    memory.close()


def test_those_for_whom_there_are_no_descriptors_wait(
    cluster: LocalCluster, io: UsrBio, runtime_directory: Path
) -> None:
    pid, most = io.stats()["pid"], resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (most, most), "it has fewer than it could have"
    (log,) = (runtime_directory / "fs3").glob("*.log")
    with contextlib.ExitStack() as opened:
        held = [int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir()]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(held) + 1, most))
        waiting = []
        for _ in range(max(held) + 2 - len(held)):
            sock = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.settimeout(20.0)
            sock.connect(str(place_of(cluster.shape.addresses, "").socket))
            waiting.append(sock)
        until(lambda: "Too many open files" in log.read_text() or not Path(f"/proc/{pid}").exists(), "none has to wait")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        for sock in waiting:
            assert control.call(sock, {"kind": "stats"})["pid"] == pid


def test_one_that_takes_no_answers_does_not_keep_it_from_ending(io: UsrBio, peer: socket.socket) -> None:
    pid = io.stats()["pid"]
    asked = b'{"kind":"stats"}'
    peer.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            peer.sendall(struct.pack("<I", len(asked)) + asked)
    os.kill(pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pid}").exists(), "it waits for that one")
