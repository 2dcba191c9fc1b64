"""A storage daemon of several workers: the process that starts them, and starts again what dies.

Python's interpreter lock keeps a process to about one core, so a daemon uses more by having more processes. Each worker
is a storage node of its own (fs3/ids.py), with a lease, a port and engines of its own: one that dies is recovered from
like any node, while the others serve. The supervisor carries no data and asks nobody anything.

    a worker dies                it is started again, the later the more often it dies
    it cannot start at all       and never has: the daemon ends with its reason, as it would with one worker
    SIGTERM, SIGINT              all workers stop in order, then the daemon
    the supervisor is killed     the kernel kills its workers
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import select
import signal
from collections.abc import Callable, Sequence

from fs3.clock import lease_now_s
from fs3.errors import Fs3Error, Unavailable
from fs3.ids import node_name
from fs3.storage import server
from fs3.storage.config import StorageConfig

_LOG = logging.getLogger("fs3.storage")
_READY, _FAILED = "ready", "failed"
_LONGEST_REASON = 1_000  # characters: with the rest they fit into the pipe, whenever it is read
_PR_SET_PDEATHSIG = 1
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0
_LONG_LIFE_S = 60.0
_STOP_S = 25.0

Command = Callable[[int, int], Sequence[str]]
"""The command that runs a worker, by its number and the descriptor to which it reports."""


def run(config: StorageConfig, command: Command) -> int:
    """Keep the workers of `config` running until SIGTERM or SIGINT; 0 after a clean stop.

    Raises: Unavailable: a worker cannot be started; the message is its reason.
    """
    return asyncio.run(_Supervisor(config, command).run())


def run_worker(config: StorageConfig, worker: int, report: int) -> int:
    """In a process that `run` started: serve as one of its workers until SIGTERM, or the supervisor's end.

    `report` is a descriptor on which the supervisor finds what became of it.
    """
    _end_with_parent(report)
    with open(report, "w", encoding="utf-8", errors="replace", buffering=1) as said:
        try:
            return server.run(config.of_worker(worker), ready=lambda: print(_READY, file=said))
        except (Fs3Error, OSError) as error:
            print(_FAILED, str(error)[:_LONGEST_REASON], file=said)
            return 1


def _end_with_parent(report: int) -> None:
    """Have the kernel kill this process when its parent dies, or be gone at once if it has died already."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_PDEATHSIG")
    reader = select.poll()
    reader.register(report, 0)
    if reader.poll(0):  # an error: nobody has the other end open
        os._exit(1)


class _Supervisor:
    """Belongs to one event loop, on the process's main thread: the workers die with the thread that started them."""

    def __init__(self, config: StorageConfig, command: Command) -> None:
        self._config = config
        self._command = command
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """See the module's `run`."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        keepers = [asyncio.ensure_future(self._keep(worker)) for worker in range(self._config.workers)]
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({*keepers, stopping}, return_when=asyncio.FIRST_COMPLETED)
        self._stop.set()
        self._signal(signal.SIGTERM)
        _, late = await asyncio.wait(keepers, timeout=_STOP_S)
        if late:
            self._signal(signal.SIGKILL)
        await asyncio.wait({*keepers, stopping})
        for keeper in keepers:
            keeper.result()
        return 0

    async def _keep(self, worker: int) -> None:
        """Run a worker, again and again, until `stop`. Raises: Unavailable: it cannot start, and never has."""
        name = node_name(self._config.of_worker(worker).node_id)
        has_served, pause_s = False, _FIRST_PAUSE_S
        while not self._stop.is_set():
            begun_s = lease_now_s()
            try:
                status, served, reason = await self._run_once(worker)
            except OSError as error:  # no process, or no descriptor, can be had now
                status, served, reason = 1, False, f"cannot be started: {error.strerror}"
            has_served = has_served or served
            if self._stop.is_set():
                return
            if reason and not has_served:
                raise Unavailable(f"storage {name}: {reason}")
            if lease_now_s() - begun_s >= _LONG_LIFE_S:
                pause_s = _FIRST_PAUSE_S
            told = reason or (f"killed by signal {-status}" if status < 0 else f"ended with status {status}")
            _LOG.warning("storage %s: %s; it is started again in %g s", name, told, pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _run_once(self, worker: int) -> tuple[int, bool, str]:
        """From start to end: the worker's exit status, whether it served, and why it failed, if it said so."""
        reading, writing = os.pipe()
        try:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command(worker, writing), stdin=asyncio.subprocess.DEVNULL, pass_fds=(writing,)
                )
            finally:
                os.close(writing)
            self._running[worker] = process
            if self._stop.is_set():
                process.terminate()
            status = await process.wait()
            del self._running[worker]
            said = os.read(reading, select.PIPE_BUF).decode("utf-8", "replace")  # all of it: who wrote it is gone
        finally:
            os.close(reading)
        served, reason = said.startswith(_READY), said.removeprefix(_READY).strip().removeprefix(_FAILED).strip()
        return status, served, reason

    def _signal(self, number: int) -> None:
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
