"""The I/O process of one user, cluster and host: reads for applications into their memory, and writes from it.

It is an ordinary client of the cluster, in a process whose interpreter no training loop keeps busy. Started by the
first application it ends by itself when nobody has been connected for a while; as a daemon (`fs3 usrbio URL`) it stays.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from fs3.client.connect import connect
from fs3.clock import lease_now_s
from fs3.errors import Busy, Conflict, Fs3Error, PermissionDenied
from fs3.transport.descriptors import peer_of, raise_limit
from fs3.usrbio import control
from fs3.usrbio.attached import Attached
from fs3.usrbio.place import Place, place_of
from fs3.usrbio.workers import Errands, Workers
from fs3.usrbio.writers import Writers

_log = logging.getLogger(__name__)
MAX_CONNECTIONS = 256
CONNECT_S = 10.0
_LOOK_S = 1.0
_TURN_S = 0.02
_SEND_TIME = struct.pack("ll", 10, 0)  # s, us: an application that asks and does not take the answer is let go
_GIL_S = 0.001  # threads here wait for the network nearly all the time; one that has something should not wait for 5 ms

_pause = threading.Event()


def serve(addresses: Sequence[str], *, secret: str, workers: int, idle_s: float | None, ready: Any = None) -> None:
    """Run the I/O process until SIGTERM, or until nobody was connected for `idle_s`; `ready()` once it can be reached.

    Raises:
        Conflict: there is one already.
        Unavailable, PermissionDenied: as `connect`.
    """
    place = place_of(addresses, secret)
    lock = place.take()
    if lock is None:
        raise Conflict(f"an I/O process of this user for {', '.join(addresses)} is running already ({place.socket})")
    raise_limit()
    client = connect(addresses, secret=secret, timeout_s=CONNECT_S)
    sys.setswitchinterval(_GIL_S)
    process = _Process(place, Workers(workers), client)
    signal.signal(signal.SIGTERM, process.stop)
    signal.signal(signal.SIGINT, process.stop)
    process.listen()
    if ready is not None:
        ready()
    process.run(idle_s)
    os.close(lock)


class _Process:
    def __init__(self, place: Place, workers: Workers, client: Any) -> None:
        self._place = place
        self._workers = workers
        self._client = client
        self._errands = Errands()
        workers.add(self._errands)
        self._writers = Writers(client.files, self._errands.add)
        self._applications: dict[Attached, threading.Thread] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self._bound = 0  # the socket's inode
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def listen(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._place.socket.unlink()  # of one that was killed: the lock is ours
        self._sock.bind(str(self._place.socket))
        self._bound = self._place.socket.stat().st_ino
        self._sock.listen(MAX_CONNECTIONS)
        self._sock.settimeout(_LOOK_S)

    def stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # nobody is waited for any longer

    def run(self, idle_s: float | None) -> None:
        used_s = lease_now_s()
        try:
            while not self._stopping:
                self._workers.end_overdue()
                self._writers.end_overdue()
                try:
                    sock, _ = self._sock.accept()
                except TimeoutError:
                    with self._lock:
                        used_s = lease_now_s() if self._applications else used_s
                    if idle_s is not None and lease_now_s() - used_s >= idle_s:
                        return
                    continue
                except OSError as error:
                    if self._stopping:
                        return
                    _log.warning("an application has to wait: %s", error.strerror)  # for descriptors, most likely
                    _pause.wait(_LOOK_S)
                    continue
                used_s = lease_now_s()
                self._admit(sock)
        finally:
            self._end()

    def _admit(self, sock: socket.socket) -> None:
        _, uid = peer_of(sock)
        refused: Fs3Error | None = None
        if uid != os.geteuid():
            refused = PermissionDenied(f"this I/O process is user {os.geteuid()}'s, not user {uid}'s")
        elif len(self._applications) >= MAX_CONNECTIONS:
            refused = Busy(f"{MAX_CONNECTIONS} rings are in use on this host; close some")
        if refused is not None:
            with contextlib.suppress(Fs3Error):
                control.send(sock, control.refusal(refused))
            sock.close()
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIME)
        application = Attached(sock, self._client, self._workers, self._writers, self._stats)
        thread = threading.Thread(target=self._serve, args=(application,), name="fs3-usrbio-control", daemon=True)
        with self._lock:
            self._applications[application] = thread
        thread.start()

    def _serve(self, application: Attached) -> None:
        try:
            application.run()
        finally:
            with self._lock:
                del self._applications[application]

    def _stats(self) -> dict[str, int]:
        with self._lock:
            applications = list(self._applications)
        return {
            "connections": len(applications),
            "rings": sum(one.has_ring for one in applications),
            "iovs": sum(one.iovs for one in applications),
        }

    def _end(self) -> None:
        """First nobody can come, then what is under way ends, then everybody is sent away."""
        with contextlib.suppress(FileNotFoundError):  # somebody has tidied up; then it may be another process's by now
            if self._place.socket.stat().st_ino == self._bound:
                self._place.socket.unlink()
        self._sock.close()
        self._workers.stop()
        self._errands.finish()
        with self._lock:
            left = dict(self._applications)
        for application in left:
            application.hang_up()
        for thread in left.values():
            while thread.is_alive():
                self._errands.finish()  # a file's turn that it hands over when it has synced or opened it
                thread.join(_TURN_S)
        self._client.close()


def main() -> None:
    """As an application starts it: told what to do on standard input, tells on standard output how it went."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    told = json.load(sys.stdin)

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), flush=True)
        os.dup2(2, 1)  # the application reads no further

    try:
        serve(
            tuple(told["addresses"]),
            secret=told["secret"],
            workers=told["workers"],
            idle_s=told["idle_s"],
            ready=lambda: say({}),
        )
    except Fs3Error as error:
        say(control.refusal(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
