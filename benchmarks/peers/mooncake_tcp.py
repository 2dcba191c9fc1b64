"""Mooncake's transfer engine as a peer, over TCP: a process that has registered a file's bytes in its memory, and one
that reads ranges of them straight into memory of its own, which is registered too.

Nothing is configured but the protocol: it keeps connections by itself. Both ends are `mooncake_program.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.peers import mooncake_program
from benchmarks.peers.congestion import use_loopback_congestion
from benchmarks.peers.driven import Driven
from benchmarks.peers.peer import Missing
from benchmarks.rounds import Timed

PACKAGE = "mooncake-transfer-engine-non-cuda==0.3.13.post1"
_LIBRARIES = "libibverbs1 ibverbs-providers"


class Mooncake:
    """Both processes. Use it as a context manager."""

    def __init__(self, python: Path, path: Path, folder: Path, room_bytes: int) -> None:
        """`python`: of its environment. `folder`: to be made, for what they say. `room_bytes`: read at once at most."""
        self._python = python
        self._path = path
        self._folder = folder
        self._room_bytes = room_bytes
        self._stack = contextlib.ExitStack()
        self._server: psutil.Process | None = None
        self._client: Driven | None = None

    @property
    def processes(self) -> list[psutil.Process]:
        assert self._server is not None
        return [self._server]

    def __enter__(self) -> Mooncake:
        """Raises: Missing."""
        self._folder.mkdir()
        program = [str(self._python), mooncake_program.__file__]
        with self._stack:
            try:
                server = Driven([*program, "serve", str(self._path)], self._folder / "server")
                self._stack.callback(server.close)
                self._server = psutil.Process(server.pid)
                use_loopback_congestion(self._server)
                where = [f"127.0.0.1:{server.ready['port']}", str(server.ready["memory"]), str(self._room_bytes)]
                self._client = Driven([*program, "read", *where], self._folder / "client")
                self._stack.callback(self._client.close)
            except (Missing, OSError) as error:
                hint = f" (apt-get install {_LIBRARIES})" if "shared object" in str(error) else ""
                raise Missing(f"{error}{hint}") from None
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def read(self, turns: Sequence[Sequence[int]], size: int, in_flight: int, seconds: float) -> Timed:
        """Batches of ranges of `size` at the offsets of each turn, again and again, so many in flight; in bytes."""
        assert self._client is not None
        return Timed(**self._client.ask(do="run", turns=turns, size=size, in_flight=in_flight, seconds=seconds))

    def read_into(self, offset: int, out: memoryview) -> None:
        """One range, to be compared."""
        assert self._client is not None
        out[:] = bytes.fromhex(self._client.ask(do="check", offset=offset, size=len(out))["hex"])
