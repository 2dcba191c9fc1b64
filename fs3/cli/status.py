"""`fs3 status URL`: what mgmtd knows, as tables or as JSON; exit 1 when a chain has no serving target."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fs3.client.mgmtd import MgmtdClient
from fs3.ids import machine_of, node_name, worker_of
from fs3.routing import Chain, Disk, Node, NodeKind, Routing, TargetState
from fs3.url import parse_url

_COLOURS = {
    TargetState.SERVING: "green",
    TargetState.SYNCING: "yellow",
    TargetState.WAITING: "yellow",
    TargetState.LASTSRV: "red",
    TargetState.OFFLINE: "red",
}
_TABLE_COLUMNS = 120
FULLNESS = ("", "nearly full", "no new chunks", "no writes")  # by `Disk.fullness`


@click.command()
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--chains", "all_chains", is_flag=True, help="Every chain, not only those with a target missing.")
@click.option("--secret", envvar="FS3_SECRET", default="", help="The cluster's secret, if it has one.")
def status(url: str, as_json: bool, all_chains: bool, secret: str) -> int:
    """Show nodes, targets, chains, space and versions of the cluster at URL.

    Exits 1 when a chain has no serving target, or the cluster is not ready.
    """
    addresses, _ = parse_url(url)
    client = MgmtdClient.connect(addresses, secret=secret)
    try:
        routing, primary = client.fetch(), client.primary()
    finally:
        client.close()
    console = Console(highlight=False, emoji=False)
    console.width = max(console.width, _TABLE_COLUMNS)  # a narrow terminal wraps lines; rich would cut them
    return show(routing, console, primary=primary, as_json=as_json, all_chains=all_chains)


def show(
    routing: Routing, console: Console, *, primary: str = "", as_json: bool = False, all_chains: bool = False
) -> int:
    """Write `routing` to `console`, with the mgmtd at `primary` marked as the one that decides; the exit status."""
    if as_json:
        console.file.write(json.dumps(as_data(routing, primary=primary), indent=2) + "\n")
    else:
        _print(console, routing, primary=primary, all_chains=all_chains)
    return 0 if healthy(routing) else 1


def healthy(routing: Routing) -> bool:
    """Whether the cluster is ready and every chain has a serving target."""
    return routing.ready and all(routing.serving(chain) for chain in routing.chains)


def decides(node: Node, primary: str) -> bool:
    """Whether `node` is the mgmtd at `primary`."""
    return node.kind == NodeKind.MGMTD and primary in node.endpoints


def as_data(routing: Routing, *, primary: str = "") -> dict[str, Any]:
    """`routing` as plain JSON values, with names for states and kinds."""
    return {
        "cluster_id": routing.cluster_id,
        "routing_version": routing.version,
        "ready": routing.ready,
        "healthy": healthy(routing),
        "nodes": [
            {
                "node_id": node.node_id,
                "name": node_name(node.node_id),
                "kind": NodeKind(node.kind).name.lower(),
                "alive": node.alive,
                "primary": decides(node, primary),
                "endpoints": list(node.endpoints),
                "metrics": node.metrics,
                "version": node.version,
                "generation": node.generation,
                "heartbeat_age_s": node.last_heartbeat_age_ms / 1000,
            }
            for node in _nodes(routing)
        ],
        "disks": [
            {
                "node_id": disk.node_id,
                "disk": disk.disk,
                "path": disk.path,
                "total_bytes": disk.total_bytes,
                "free_bytes": disk.free_bytes,
                "fullness": disk.fullness,
                "damaged_chunks": disk.damaged_chunks,
            }
            for disk in routing.disks
        ],
        "targets": [
            {
                "target_id": target.target_id,
                "node_id": target.node_id,
                "disk": target.disk,
                "chain_id": target.chain_id,
                "state": target.state.name.lower(),
                "local_state": target.local_state.name.lower(),
                "used_bytes": target.used_bytes,
                "chunks": target.chunks,
            }
            for target in routing.targets.values()
        ],
        "chains": [
            {
                "chain_id": chain.chain_id,
                "version": chain.version,
                "replicas": chain.replicas,
                "targets": [
                    {"target_id": target, "state": routing.targets[target].state.name.lower()}
                    for target in chain.targets
                ],
            }
            for chain in routing.chains.values()
        ],
        "tables": [
            {
                "table_id": table.table_id,
                "version": table.version,
                "replicas": table.replicas,
                "chains": list(table.chains),
            }
            for table in routing.tables.values()
        ],
    }


def in_order(node: Node) -> tuple[int, int, int]:
    """In which order nodes are shown: by kind, and a node's workers one after the other."""
    return -node.kind, machine_of(node.node_id), worker_of(node.node_id)


def _nodes(routing: Routing) -> list[Node]:
    return sorted(routing.nodes.values(), key=in_order)


def _free(disks: list[Disk]) -> str:
    """What is free on a node's disks, and what the fullest of them does not take any more."""
    if not disks:
        return ""
    worst = max(disk.fullness for disk in disks)
    free = size(sum(disk.free_bytes for disk in disks))
    return f"{free} [red]{FULLNESS[min(worst, len(FULLNESS) - 1)]}[/red]" if worst else free


def _print(console: Console, routing: Routing, *, primary: str, all_chains: bool) -> None:
    versions = sorted({node.version for node in routing.nodes.values() if node.version})
    console.print(f"cluster {routing.cluster_id}, routing version {routing.version}, fs3 {' and '.join(versions)}")
    console.print(_node_table(routing, primary))
    if not routing.ready:
        console.print("[yellow]not ready: waiting for storage nodes to register and create their targets[/yellow]")
        return
    shown = [chain for chain in routing.chains.values() if all_chains or _is_degraded(chain, routing)]
    if shown:
        console.print(_chain_table(shown, routing))
    without = sum(not routing.serving(chain) for chain in routing.chains)
    degraded = sum(_is_degraded(chain, routing) for chain in routing.chains.values())
    if without:
        console.print(f"[red]{without} of {len(routing.chains)} chains have no serving target[/red]")
    elif degraded:
        console.print(f"[yellow]all {len(routing.chains)} chains serve, {degraded} with fewer replicas[/yellow]")
    else:
        console.print(f"[green]all {len(routing.chains)} chains serve with all replicas[/green]")
    damaged = Counter[int]()
    for disk in routing.disks:
        damaged[disk.node_id] += disk.damaged_chunks
    if damaged.total():
        where = ", ".join(f"{count:,} on node {node_name(node)}" for node, count in sorted(damaged.items()) if count)
        console.print(f"[yellow]damaged chunks: {where}; `fs3 admin damaged URL` tells which, and why[/yellow]")


def _node_table(routing: Routing, primary: str) -> Table:
    nodes = _nodes(routing)
    versions = {node.version for node in nodes}  # shown where they differ, as in the middle of an upgrade
    table = Table(box=None, pad_edge=False)
    for name in ("node", "kind", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("address", overflow="fold", min_width=15)
    table.add_column("targets", no_wrap=True)
    for name in ("used", "free", "of", *(("version",) if len(versions) > 1 else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for node in nodes:
        targets = [target for target in routing.targets.values() if target.node_id == node.node_id]
        disks = [disk for disk in routing.disks if disk.node_id == node.node_id]
        counts = Counter(target.state for target in targets)
        table.add_row(
            node_name(node.node_id),
            NodeKind(node.kind).name.lower(),
            _state(node, primary),
            escape(" ".join(node.endpoints)),
            "\n".join(coloured(state, f"{counts[state]} {state.name.lower()}") for state in sorted(counts)),
            size(sum(target.used_bytes for target in targets)) if targets else "",
            _free(disks),
            size(sum(disk.total_bytes for disk in disks)) if disks else "",
            *((node.version,) if len(versions) > 1 else ()),
        )
    return table


def _state(node: Node, primary: str) -> str:
    heard = "[green]alive[/green]" if node.alive else f"[red]silent {node.last_heartbeat_age_ms / 1000:.0f} s[/red]"
    return f"{heard}, primary" if decides(node, primary) else heard


def _chain_table(chains: list[Chain], routing: Routing) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("chain", "version", "replicas", "targets, head first"):
        table.add_column(name)
    for chain in chains:
        members = [routing.targets[target] for target in chain.targets]
        states = "  ".join(
            coloured(target.state, f"{target.target_id}@{node_name(target.node_id)} {target.state.name.lower()}")
            for target in members
        )
        table.add_row(str(chain.chain_id), str(chain.version), str(chain.replicas), states)
    return table


def _is_degraded(chain: Chain, routing: Routing) -> bool:
    return any(routing.targets[target].state != TargetState.SERVING for target in chain.targets)


def coloured(state: TargetState, text: str) -> str:
    """`text` in the colour of `state`, as rich's markup."""
    return f"[{_COLOURS[state]}]{text}[/{_COLOURS[state]}]"


def size(count: float) -> str:
    """`1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
