"""The daemons of a soak: processes of `fs3`, each with its own TOML file, in its own namespace, off loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soak_network import Network

from fs3.client.control import ControlChannel
from fs3.client.mgmtd import MgmtdClient
from fs3.client.node_agent import MGMTD
from fs3.errors import Fs3Error, Unavailable
from fs3.pb import mgmtd_pb2
from fs3.routing import NodeKind, Routing, TargetState
from fs3.transport.credentials import Credentials

SECRET = "soak"
PORT = 7300
LEASE_S = 3.0  # as `fs3 up`
_STOP_S = 15.0


def daemon_names(nodes: int) -> list[str]:
    """Two mgmtds, two metas and so many storage nodes."""
    return ["mgmtd-1", "mgmtd-2", "meta-1", "meta-2", *(f"storage-{node}" for node in range(1, nodes + 1))]


class Cluster:
    """The daemons in `folder`, one per namespace of `network`."""

    def __init__(self, folder: Path, network: Network, *, nodes: int, replicas: int) -> None:
        self.folder = folder
        self.network = network
        self.nodes = nodes
        self.names = daemon_names(nodes)
        self.mgmtds = tuple(f"{network.address(name)}:{PORT}" for name in ("mgmtd-1", "mgmtd-2"))
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stopped: set[str] = set()
        for part in ("config", "log", "mgmtd", "meta"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for name, values in self._configs(replicas).items():
            lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
            (folder / "config" / f"{name}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def log(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.log"

    def start(self, name: str) -> None:
        """Start a daemon that does not run."""
        assert name not in self._running, name
        command = [sys.executable, "-m", "fs3.cli.main", name.partition("-")[0]]
        command += ["--config", str(self.folder / "config" / f"{name}.toml")]
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                self.network.command(name, command), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        """SIGKILL."""
        process = self._running.pop(name)
        self._stopped.discard(name)
        process.kill()
        process.wait()

    def freeze(self, name: str) -> None:
        """SIGSTOP."""
        self._stopped.add(name)
        os.kill(self._running[name].pid, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self._stopped.discard(name)
        with contextlib.suppress(ProcessLookupError, KeyError):
            os.kill(self._running[name].pid, signal.SIGCONT)

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def runs(self, name: str) -> bool:
        return name in self._running

    def died(self) -> list[str]:
        """The daemons that have ended by themselves since the last look, and how; they are started again."""
        out = []
        for name, process in list(self._running.items()):
            status = process.poll()
            if status is not None:
                del self._running[name]
                last = self.log(name).read_bytes().decode(errors="replace").strip().splitlines()[-1:]
                out.append(f"{name} ended with status {status}: {last[0] if last else ''}"[:300])
                self.start(name)
        return out

    def stop(self) -> None:
        """End everything, in order."""
        for name in list(self._stopped):
            self.thaw(name)
        for kinds in (("meta", "storage"), ("mgmtd",)):
            wave = [name for name in self._running if name.partition("-")[0] in kinds]
            for name in wave:
                self._running[name].terminate()
            until_s = time.monotonic() + _STOP_S
            for name in wave:
                process = self._running.pop(name)
                try:
                    process.wait(max(until_s - time.monotonic(), 0.1))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def primary(self) -> str:
        """The mgmtd that decides now, or the first if none answers."""
        running = [number for number in (1, 2) if self.runs(f"mgmtd-{number}")]
        number = deciding([self.mgmtds[number - 1] for number in running], SECRET)
        return f"mgmtd-{running[number] if number is not None else 1}"

    def wait(self, within_s: float, *, recovered: bool) -> str:
        """Wait until every chain serves (`recovered`: with every replica) and metas answer; what is missing if not."""
        until_s = time.monotonic() + within_s
        pause = threading.Event()
        why = "mgmtd does not answer"
        client: MgmtdClient | None = None
        with contextlib.ExitStack() as stack:
            while time.monotonic() < until_s:
                try:
                    if client is None:
                        client = MgmtdClient.connect(self.mgmtds, SECRET, timeout_s=1.0)
                        stack.callback(client.close)
                    why = what_is_missing(client.fetch(1.0), self.nodes, recovered=recovered)
                except Fs3Error as error:
                    why = f"mgmtd does not answer: {error}"
                if not why:
                    return ""
                pause.wait(0.1)
        return why

    def _configs(self, replicas: int) -> Mapping[str, dict[str, Any]]:
        out: dict[str, dict[str, Any]] = {}
        shared = {"secret": SECRET, "listen_port": PORT}
        for number in (1, 2):
            host = self.network.address(f"mgmtd-{number}")
            out[f"mgmtd-{number}"] = {
                **shared,
                "node_id": 2_000 + number,
                "listen_host": host,
                "data_dir": str(self.folder / f"mgmtd-{number}"),
                "kv": str(self.folder / "mgmtd" / "mgmtd.sqlite"),
                "lease_s": LEASE_S,
                "bootstrap_nodes": self.nodes,
                "bootstrap_replicas": replicas,
            }
            out[f"meta-{number}"] = {
                **shared,
                "node_id": 1_000 + number,
                "listen_host": self.network.address(f"meta-{number}"),
                "data_dir": str(self.folder / "meta"),
                "mgmtd": list(self.mgmtds),
            }
        for node in range(1, self.nodes + 1):
            out[f"storage-{node}"] = {
                **shared,
                "node_id": node,
                "listen_host": self.network.address(f"storage-{node}"),
                "mgmtd": list(self.mgmtds),
                "disks": [str(self.folder / f"storage-{node}" / "disk")],
            }
        return out


def deciding(addresses: Sequence[str], secret: str) -> int | None:
    """Which of these mgmtds is the primary, None if none says so."""
    credentials = Credentials(secret=secret)
    for number, address in enumerate(addresses):
        with contextlib.closing(ControlChannel(address, MGMTD)) as channel, contextlib.suppress(Unavailable):
            channel.call("GetRouting", mgmtd_pb2.GetRoutingRequest(), timeout_s=0.5, credentials=credentials)
            return number
    return None


def what_is_missing(routing: Routing, nodes: int, *, recovered: bool) -> str:
    """What keeps a cluster from being whole, or ""."""
    if not routing.ready:
        return "not every storage node has registered"
    states = [target.state for target in routing.targets.values()]
    if recovered and any(state != TargetState.SERVING for state in states):
        return f"{sum(state == TargetState.SERVING for state in states)} of {len(states)} targets serve"
    idle = [chain for chain in routing.chains if not routing.serving(chain)]
    if idle:
        return f"{len(idle)} of {len(routing.chains)} chains do not serve"
    alive = [node.kind for node in routing.nodes.values() if node.alive]
    if NodeKind.META not in alive:
        return "no meta is alive"
    if recovered and alive.count(NodeKind.STORAGE) < nodes:
        return "not every storage node is alive"
    return ""
