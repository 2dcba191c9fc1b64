"""How an application reaches the I/O process of its user, cluster and host: by its socket, and if nobody listens there
by starting one. Of two that are started at once one gets the lock, and serves both applications."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from fs3.clock import deadline_after, lease_now_s
from fs3.errors import Conflict, PermissionDenied, Unavailable, from_code
from fs3.transport.descriptors import peer_of
from fs3.usrbio import control
from fs3.usrbio.place import Place, place_of

START_S = 20.0
ANSWER_S = 40.0  # longer than any takes: `control.WORK_S`, and `writers.END_S` to undo what was begun
_LOOK_S = 0.02
_ROOT = str(Path(__file__).resolve().parents[2])
_PROGRAM = f"""import os, sys
if os.fork():
    os._exit(0)  # whoever started this is to have no child that it must reap
sys.path.insert(0, {_ROOT!r})
from fs3.usrbio.process import main
main()"""

_pause = threading.Event()


def default_workers() -> int:
    """Of an I/O process: more of them read large ranges faster, and small ones slower, as they wait for each other."""
    return min(max(len(os.sched_getaffinity(0)), 2), 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An I/O process, as it would be started: `workers` threads, and after `idle_s` without anybody it ends."""

    addresses: tuple[str, ...]
    secret: str
    workers: int
    idle_s: float
    start: bool = True


def connect(wanted: Wanted) -> socket.socket:
    """A connection to the I/O process, after its hello.

    Raises:
        Unavailable: there is none, and none could be started in time, or the cluster does not answer.
        PermissionDenied: the secret is wrong, or another user has put something where it should be.
    """
    place = place_of(wanted.addresses, wanted.secret)
    deadline_s = deadline_after(START_S)
    while True:
        found = _attach(place)
        if found is not None:
            return found
        if not wanted.start:
            raise Unavailable(
                f"no I/O process for {','.join(wanted.addresses)}: start one with fs3 usrbio fs3://{wanted.addresses[0]}"
            )
        if lease_now_s() >= deadline_s:
            raise Unavailable(f"no I/O process could be started within {START_S:.0f} s; its log: {place.log}")
        lock = place.take()
        if lock is None:
            _pause.wait(_LOOK_S)  # somebody else's is starting, or one is ending
            continue
        os.close(lock)
        with contextlib.suppress(Conflict):  # somebody was faster
            _start(wanted, place)


def _attach(place: Place) -> socket.socket | None:
    """Raises: PermissionDenied, Unavailable, Invalid."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(ANSWER_S)
        try:
            sock.connect(str(place.socket))
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            sock.close()
            return None
        _, uid = peer_of(sock)
        if uid != os.geteuid():
            raise PermissionDenied(f"{place.socket}: is user {uid}'s, not user {os.geteuid()}'s")
        control.call(sock, {"kind": "hello", "protocol": control.PROTOCOL})
    except control.Closed:
        sock.close()
        return None  # it was ending
    except BaseException:
        sock.close()
        raise
    return sock


def _start(wanted: Wanted, place: Place) -> None:
    """Start one and wait until it can be reached. Raises: Conflict: there is another; as `connect`."""
    with place.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd="/",
            start_new_session=True,  # it outlives us, and our terminal
        )
    assert process.stdin is not None and process.stdout is not None
    with process.stdout, process.stdin:
        told = {
            "addresses": wanted.addresses,
            "secret": wanted.secret,
            "workers": wanted.workers,
            "idle_s": wanted.idle_s,
        }
        process.stdin.write(json.dumps(told).encode())
        process.stdin.close()
        ready = select.poll()  # `select` knows no descriptor beyond 1,023
        ready.register(process.stdout, select.POLLIN)
        if not ready.poll(START_S * 1e3):
            raise Unavailable(f"an I/O process was not ready within {START_S:.0f} s; its log: {place.log}")
        line = process.stdout.readline()
    process.wait()
    try:
        answer = json.loads(line)
    except ValueError:
        raise Unavailable(f"an I/O process ended before it was ready; its log: {place.log}") from None
    if "error" in answer:
        raise from_code(int(answer["error"]), str(answer["message"]))
