"""Start a cluster on this machine, as `fs3 up` does, and see that it is what was asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fs3.cluster.local import LocalCluster
from fs3_trainer.demo.demo import Demo
from fs3_trainer.demo.outcome import Check, Figure
from fs3_trainer.demo.units import count, duration

UP_S = 90.0
QUICKLY_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStarted:
    """The cluster as `fs3 status` shows it."""

    url: str
    up_s: float
    storage_nodes_alive: int
    nodes_wanted: int
    chains_serving: int
    chains: int
    table_replicas: tuple[int, ...]
    replicas_wanted: int
    targets: int

    @property
    def checks(self) -> tuple[Check, ...]:
        serve = 0 < self.chains == self.chains_serving
        return (
            Check(
                f"{count(self.nodes_wanted, 'storage node')} are alive",
                f"{self.storage_nodes_alive} alive",
                self.storage_nodes_alive == self.nodes_wanted,
            ),
            Check("every chain serves", f"{self.chains_serving} of {self.chains}", serve),
            Check(
                f"there are chain tables for 1 to {self.replicas_wanted} replicas",
                ", ".join(map(str, self.table_replicas)),
                self.table_replicas == tuple(range(1, self.replicas_wanted + 1)),
            ),
        )

    @property
    def figures(self) -> tuple[Figure, ...]:
        return (
            Figure("ready after", duration(self.up_s)),
            Figure("chains", f"{self.chains:,}"),
            Figure("targets", f"{self.targets:,}"),
        )


def start_cluster(demo: Demo) -> ClusterStarted:
    """The stage."""
    settings = demo.settings
    options = ["--nodes", str(settings.nodes), "--replicas", str(settings.replicas)]
    if settings.lease_s is not None:
        options += ["--lease", f"{settings.lease_s:g}"]
    up = demo.commands.run(
        "fs3", "up", "--dir", str(demo.cluster_dir), *options, "--detach", timeout_s=UP_S, busy="starting five daemons"
    )
    cluster = LocalCluster(demo.cluster_dir)
    cluster.recall()
    demo.url = cluster.url
    demo.narrator.say(f"{demo.url} is ready after {duration(up.seconds)}; logs in {cluster.folder.log_dir}")
    status = read_status(demo)
    demo.commands.run(
        "fs3",
        "mkdir",
        "--replicas",
        str(settings.replicas),
        demo.place("").rstrip("/"),
        timeout_s=QUICKLY_S,
        busy="mkdir",
    )
    return ClusterStarted(
        url=demo.url,
        up_s=up.seconds,
        storage_nodes_alive=sum(node["alive"] for node in status["nodes"] if node["kind"] == "storage"),
        nodes_wanted=settings.nodes,
        chains_serving=sum(_serves(chain) for chain in status["chains"]),
        chains=len(status["chains"]),
        table_replicas=tuple(sorted({table["replicas"] for table in status["tables"]})),
        replicas_wanted=settings.replicas,
        targets=len(status["targets"]),
    )


def read_status(demo: Demo) -> dict[str, Any]:
    """What `fs3 status --json` says, whether the cluster is healthy (exit 0) or not (exit 1)."""
    done = demo.commands.run("fs3", "status", "--json", demo.url, timeout_s=QUICKLY_S, busy="status", ok=(0, 1))
    status: dict[str, Any] = json.loads(done.stdout)
    return status


def _serves(chain: dict[str, Any]) -> bool:
    return any(target["state"] == "serving" for target in chain["targets"])
