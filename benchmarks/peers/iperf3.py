"""iperf3 as a limit for moving bytes over loopback: no file, no request, the same pages again and again.

Its server sends pieces of 1 MiB, its client receives into a buffer of its own: the fastest of its ways here (with
sendfile, `-Z`, it was slower). Before iperf3 3.16 each end is one thread, whatever the number of streams.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from benchmarks.peers.congestion import loopback_congestion
from benchmarks.peers.server import Server, free_port, program, version_of
from benchmarks.rounds import Timed


class Iperf3(Server):
    """A server, which sends to `run`."""

    def __init__(self, folder: Path) -> None:
        """Raises: Missing."""
        super().__init__(folder, free_port())
        self._program = program("iperf3", "iperf3")
        self.command = (self._program, "--server", "--bind", "127.0.0.1", "--port", str(self.port))

    def __enter__(self) -> Iperf3:
        """Raises: Missing."""
        super().__enter__()
        return self

    def run(self, streams: int, size: int) -> Timed:
        """Receive `size` bytes, over all streams together. Raises: RuntimeError."""
        options = ["--client", "127.0.0.1", "--port", str(self.port), "--json", "--reverse", "--length", "1M"]
        options += ["--parallel", str(streams), "--bytes", str(size), "--congestion", loopback_congestion()]
        ended = subprocess.run([self._program, *options], capture_output=True, text=True, check=False)
        said = json.loads(ended.stdout or "{}")
        if ended.returncode or "error" in said:
            raise RuntimeError(f"iperf3 ended with status {ended.returncode}: {said.get('error') or ended.stderr}")
        received, cpu = said["end"]["sum_received"], said["end"]["cpu_utilization_percent"]
        seconds = float(received["seconds"])
        return Timed(amount=received["bytes"], seconds=seconds, client_cpu_s=cpu["host_total"] / 100 * seconds)


def version() -> str:
    """Of the installed iperf3, or ""."""
    return version_of("iperf3", "--version").partition(" ")[2].partition(" ")[0]
