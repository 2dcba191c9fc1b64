"""`fs3 admin nodes|targets|chains`: what mgmtd knows, as tables or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from fsspec.config import conf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fs3.cli.status import FULLNESS, coloured, decides, in_order, size
from fs3.client.admin import AdminClient
from fs3.client.connect import Client, connect
from fs3.errors import Invalid, Unavailable
from fs3.ids import node_from_name, node_name
from fs3.mgmtd.named_core import check_chain, find_storage_nodes, is_named
from fs3.routing import Node, NodeKind, Routing, Target, TargetState
from fs3.url import parse_url
from fs3.user import parse_user

_COLUMNS = 150

url_argument = click.argument("url", metavar="URL")


class _NodeId(click.ParamType[int]):
    """A node's id as people write it: `3`, and `3.1` for worker 1 of node 3."""

    name = "node"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else node_from_name(value)
        except Invalid as error:
            self.fail(str(error), param, ctx)


NODE = _NodeId()
ID = click.IntRange(1, (1 << 32) - 1)  # a target's or chain's, as requests carry it
DISK = click.IntRange(0, (1 << 32) - 1)

json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
secret_option = click.option("--secret", envvar="FS3_SECRET", default="", help="The cluster's secret, if it has one.")


@contextmanager
def connected(url: str, secret: str) -> Iterator[AdminClient]:
    """A client of the cluster at `url`, closed at the end."""
    addresses, _ = parse_url(url)
    with AdminClient.connect(addresses, secret) as client:
        yield client


def client_of(url: str, secret: str) -> Client:
    """The process's client of the cluster at `url`, for the user whom FSSPEC_FS3_USER names, as the file commands'.

    Raises: Invalid, Unavailable, PermissionDenied, as `connect`.
    """
    named = conf.get("fs3", {}).get("user", "")
    return connect(url, secret=secret, user=parse_user(named) if named else None)


def console() -> Console:
    """Standard output, wide enough for tables: a narrow terminal wraps lines, rich would cut them."""
    made = Console(highlight=False, emoji=False)
    made.width = max(made.width, _COLUMNS)
    return made


def show(rows: list[dict[str, Any]], *, as_json: bool, empty: str) -> None:
    """Rows of the same keys as JSON, or as a table whose columns are the keys; `state` is coloured."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo(empty)
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    console().print(table)


def raise_silent(errors: Mapping[int, str]) -> None:
    """After what the others said was shown: nodes that did not answer, by their ids. Raises: Unavailable, if any."""
    if errors:
        raise Unavailable(f"{_left_out(len(errors))}: {told(errors)}")


def told(errors: Mapping[int, str]) -> str:
    """`node 2: not heard of; node 3: ...`."""
    return "; ".join(f"node {node_name(node)}: {why}" for node, why in sorted(errors.items()))


def _left_out(count: int) -> str:
    return f"{count} nodes were left out" if count > 1 else "1 node was left out"


_NUMBERS = ("node", "disk", "target", "chain", "version", "replicas", "targets", "used", "free", "size", "chunks")
_SIZES = ("used", "free", "size")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in _SIZES:
        return size(value)
    if name == "node":
        return node_name(value)
    if name == "state" and value.upper() in TargetState.__members__:
        return coloured(TargetState[value.upper()], value)
    if isinstance(value, list):
        return escape("  ".join(map(str, value)))
    return escape(str(value))


def wishes(routing: Routing, target: Target) -> list[str]:
    """What an operator wants of a target, in words."""
    words = ["draining"] if routing.is_draining(target) else []
    words += ["offline by wish"] if target.disabled else []
    words += ["loss accepted"] if target.accept_loss else []
    words += [f"replaces {target.replaces}"] if target.replaces in routing.targets else []
    return words


@click.command("nodes", short_help="Show daemons and their disks.")
@url_argument
@json_option
@secret_option
def nodes(url: str, as_json: bool, secret: str) -> None:
    """Show every daemon, and the disks of storage daemons with their targets."""
    with connected(url, secret) as client:
        routing, primary = client.fetch(), client.mgmtd.primary()
    rows = [row for node in _in_order(routing) for row in _node_rows(routing, node, primary)]
    show(rows if as_json else [_with_role(row) for row in rows], as_json=as_json, empty="no nodes")


@click.command("targets", short_help="Show targets: place, state, wishes.")
@url_argument
@click.option("--node", type=NODE, help="Only those of this node.")
@click.option("--chain", type=int, help="Only those of this chain.")
@click.option("--state", type=click.Choice([state.name.lower() for state in TargetState]), help="Only those in it.")
@json_option
@secret_option
def targets(url: str, node: int | None, chain: int | None, state: str | None, as_json: bool, secret: str) -> None:
    """Show targets: where they are, in which state, and what an operator wants of them."""
    with connected(url, secret) as client:
        routing = client.fetch()
    if node is not None:
        find_storage_nodes(routing, node)
    if chain is not None:
        check_chain(routing, chain)
    chosen = [
        target
        for _, target in sorted(routing.targets.items())
        if (node is None or is_named(target.node_id, node))
        and (chain is None or target.chain_id == chain)
        and (state is None or target.state.name.lower() == state)
    ]
    show([_target_row(routing, target) for target in chosen], as_json=as_json, empty="no such targets")


@click.command("chains", short_help="Show chains and their targets.")
@url_argument
@click.option("--chain", type=int, help="Only this one.")
@click.option("--degraded", is_flag=True, help="Only those in which a target does not serve.")
@json_option
@secret_option
def chains(url: str, chain: int | None, degraded: bool, as_json: bool, secret: str) -> None:
    """Show chains: version, tables, and targets in chain order."""
    with connected(url, secret) as client:
        routing = client.fetch()
    if chain is not None:
        check_chain(routing, chain)
    rows = [
        _chain_row(routing, one)
        for one in sorted(routing.chains)
        if (chain is None or one == chain) and (not degraded or _is_degraded(routing, one))
    ]
    show(rows, as_json=as_json, empty="every chain serves with all its targets")


def _in_order(routing: Routing) -> Iterable[Node]:
    return sorted(routing.nodes.values(), key=in_order)


def _with_role(row: dict[str, Any]) -> dict[str, Any]:
    """For people: one column tells whether a daemon lives and whether it decides."""
    state = f"{row['state']}, primary" if row["primary"] else row["state"]
    return {name: state if name == "state" else value for name, value in row.items() if name != "primary"}


def _node_rows(routing: Routing, node: Node, primary: str) -> list[dict[str, Any]]:
    alive = "alive" if node.alive else f"silent {node.last_heartbeat_age_ms / 1000:.0f} s"
    first = {
        "node": node.node_id,
        "kind": NodeKind(node.kind).name.lower(),
        "state": f"{alive}, draining" if node.draining else alive,
        "primary": decides(node, primary),
        "address": " ".join(node.endpoints),
    }
    own = [target for target in routing.targets.values() if target.node_id == node.node_id]
    reported = {disk.disk: disk for disk in routing.disks if disk.node_id == node.node_id}
    numbers = sorted({*reported, *(target.disk for target in own), *node.closed_disks})
    rows = []
    for number in numbers or (None,):
        there = [target for target in own if target.disk == number]
        disk = reported.get(number) if number is not None else None
        rows.append(
            {
                **first,
                "disk": number,
                "path": disk.path if disk is not None else None,
                "targets": len(there) if number is not None else None,
                "serving": sum(target.state == TargetState.SERVING for target in there) if there else None,
                "used": sum(target.used_bytes for target in there) if number is not None else None,
                "free": disk.free_bytes if disk is not None else None,
                "size": disk.total_bytes if disk is not None else None,
                "full": FULLNESS[min(disk.fullness, len(FULLNESS) - 1)] if disk is not None else None,
                "wish": "draining" if number in node.closed_disks else None,
            }
        )
    return rows


def _target_row(routing: Routing, target: Target) -> dict[str, Any]:
    return {
        "target": target.target_id,
        "chain": target.chain_id,
        "node": target.node_id,
        "disk": target.disk,
        "state": target.state.name.lower(),
        "daemon says": target.local_state.name.lower(),
        "used": target.used_bytes,
        "chunks": target.chunks,
        "wish": wishes(routing, target),
    }


def _chain_row(routing: Routing, chain_id: int) -> dict[str, Any]:
    chain = routing.chain(chain_id)
    tables = sorted({table.table_id for table in routing.tables.values() if chain_id in table.chains})
    members = [routing.targets[target_id] for target_id in chain.targets]
    return {
        "chain": chain.chain_id,
        "version": chain.version,
        "replicas": chain.replicas,
        "tables": tables if chain.joins_table is None else [*tables, f"({chain.joins_table} once it serves)"],
        "targets, head first": [
            " ".join([f"{one.target_id}@{node_name(one.node_id)} {one.state.name.lower()}", *wishes(routing, one)])
            for one in members
        ],
    }


def _is_degraded(routing: Routing, chain_id: int) -> bool:
    return any(routing.targets[one].state != TargetState.SERVING for one in routing.chain(chain_id).targets)


COMMANDS = (nodes, targets, chains)
