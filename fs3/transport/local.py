"""A client's connection over the daemon's Unix socket, with the descriptors of block files that came along it.

`files` are descriptors by the daemon's key of the file, for reading alone. They belong to the connection: the blocks
that the daemon has shown and that are not acknowledged yet are pinned on them (fs3/storage/descriptors.py).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import weakref

from fs3.clock import lease_now_s
from fs3.errors import Unavailable
from fs3.transport.connection import Connection
from fs3.transport.descriptors import close_all, receive_with_descriptors


class LocalConnection(Connection):
    """As `Connection`, of a Unix socket."""

    __slots__ = ("__weakref__", "_fresh", "_poll", "files")

    def __init__(self, sock: socket.socket, endpoint: str) -> None:
        super().__init__(sock, endpoint)
        self.files: dict[int, int] = {}
        self._fresh: list[int] = []
        self._poll = select.poll()
        self._poll.register(sock, select.POLLRDHUP)
        _living.add(self)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self._forget_files()

    def close(self) -> None:
        """Release the socket and the descriptors; any number of times."""
        super().close()
        self._forget_files()

    def fresh(self) -> list[int]:
        """The descriptors that came with the last reply's head; the caller's to add to `files`, or to close."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def still_open(self) -> bool:
        """Whether the daemon has not closed the connection, whatever else has come along it.

        It closes it before it lets go of blocks whose replies are not acknowledged.
        """
        return not self.closed and not self._poll.poll(0)

    def _receive_raw_header(self, raw: memoryview) -> None:
        begun_s = lease_now_s()
        while raw:
            sock = self._arm(begun_s)
            try:
                got, passed = receive_with_descriptors(sock, raw)
            except BlockingIOError:
                continue
            except OSError as error:
                self.close()
                raise Unavailable(f"{self.endpoint} broke off: {os.strerror(error.errno or 0)}") from None
            self._fresh += passed
            if not got:
                self.close()
                raise Unavailable(f"{self.endpoint} closed the connection")
            raw = raw[got:]

    def _forget_files(self) -> None:
        files, self.files = self.files, {}
        close_all([*files.values(), *self.fresh()])


_living: weakref.WeakSet[LocalConnection] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Close the child's copies of its parent's connections: they would keep the parent's pins after its end."""
    for connection in list(_living):
        connection.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
