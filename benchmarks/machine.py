"""What a figure is worth depends on where it was measured: the machine, the versions, and who else was busy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers import iperf3, moosefs, nginx, redis_server
from benchmarks.peers.congestion import loopback_congestion
from benchmarks.rounds import cpu_s

PEERS = {
    "MooseFS": moosefs.version,
    "nginx": nginx.version,
    "Redis": redis_server.version,
    "iperf3": iperf3.version,
}
PACKAGES = ("torch", "numpy", "grpcio", "rocksdict", "crc32c", "uvloop")
_CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def facts(folder: Path) -> dict[str, Any]:
    """The machine, and the disk that `folder` lies on; no name of the machine or of a user."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "filesystem": _filesystem(folder),
        "python": platform.python_version(),
        "packages": _versions() | {name: found for name, version in PEERS.items() if (found := version())},
        "congestion_control": {
            "default": _read(_CONGESTION),
            "on loopback, all rows": loopback_congestion(),
        },
        "huge_pages": _read(_HUGE_PAGES),
    }


class OtherLoad:
    """How many cores were busy with something else while this process, its daemons and helpers ran."""

    def __init__(self) -> None:
        self._begin_s = time.monotonic()
        self._busy_s = _busy_s()
        self._ours_s = _ours_s()

    def cores(self) -> float:
        """The mean since this was made; what the hypervisor took is counted too."""
        elapsed_s = max(time.monotonic() - self._begin_s, 1e-9)
        busy_s, ours_s = _busy_s() - self._busy_s, _ours_s() - self._ours_s
        return max(0.0, (busy_s - ours_s) / elapsed_s)


def anonymous_bytes(process: psutil.Process) -> int:
    """Memory of a process that is not a mapped file: what it costs beside the page cache."""
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    return 0


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def _ours_s() -> float:
    me = psutil.Process()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = cpu_s(me) + ended.ru_utime + ended.ru_stime
    for child in me.children(recursive=True):
        try:
            total += cpu_s(child)
        except psutil.NoSuchProcess:
            continue
    return total


def _cpu_model() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _filesystem(folder: Path) -> str:
    inside = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
    return max(inside, key=lambda part: len(part.mountpoint)).fstype if inside else "unknown"


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return "unknown"
