"""The server of a peer that is a program listening on loopback: started, put on fs3's congestion control, and ended."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.peers.congestion import use_loopback_congestion
from benchmarks.peers.peer import Missing

_START_S = 10.0
_POLL_S = 0.02
_PATIENCE_S = 5.0


class Server:
    """A program of its own, and its port. Use it as a context manager."""

    def __init__(self, folder: Path, port: int) -> None:
        """`folder`: to be made, the server's own. `port`: one from `free_port`. `command` is to be set before."""
        self.folder = folder.resolve()
        self.port = port
        self.command: Sequence[str] = ()
        self._stack = contextlib.ExitStack()
        self._process: psutil.Process | None = None

    @property
    def processes(self) -> list[psutil.Process]:
        """It, and those that it has started."""
        assert self._process is not None
        return [self._process, *self._process.children()]

    def __enter__(self) -> Server:
        """Raises: Missing: it does not start; with its last words."""
        self.folder.mkdir(exist_ok=True)
        log = self.folder / "log"
        with self._stack, log.open("wb") as out:
            running = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder)
            self._stack.callback(_end, running)
            self._process = psutil.Process(running.pid)
            try:
                _wait_listening(self._process, self.port)
                use_loopback_congestion(self._process)
            except (Missing, OSError) as error:
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise Missing(f"{error} ({said[-1] if said else 'no word of why'})") from None
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def program(name: str, package: str) -> str:
    """The path of an installed program. Raises: Missing, with its Debian package."""
    found = shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
    if found is None:
        raise Missing(f"not installed (apt-get install --no-install-recommends {package})")
    return found


def version_of(*command: str) -> str:
    """What the installed program says with the option for it, in one line, or ""."""
    try:
        said = subprocess.run(
            [program(command[0], ""), *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except Missing:
        return ""
    return (said.stdout.decode(errors="replace").splitlines() or [""])[0]


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _wait_listening(process: psutil.Process, port: int) -> None:
    """Raises: Missing: it has ended, or does not listen within _START_S."""
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise Missing("it does not start here")
        if any(one.laddr.port == port for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN):
            return
        time.sleep(_POLL_S)
    raise Missing(f"it does not listen within {_START_S:.0f} s")


def _end(running: subprocess.Popen[bytes]) -> None:
    running.terminate()
    try:
        running.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()
