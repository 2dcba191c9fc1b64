"""`fs3 admin tables|upload-table|grow|balance`: chain tables, and making use of nodes that came later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fs3.cli.admin_change import say, watch
from fs3.cli.admin_left import to_move
from fs3.cli.admin_show import connected, json_option, secret_option, show, url_argument
from fs3.errors import Invalid, NotFound
from fs3.mgmtd.named_core import some
from fs3.pb import admin_pb2
from fs3.routing import ChainTable, Routing

_KEYS = {"table_id", "version", "replicas", "chains"}


@click.command("tables", short_help="Show chain tables.")
@url_argument
@click.option("--table", type=click.IntRange(1), help="One table in full, as `upload-table` takes it.")
@click.option("--version", type=click.IntRange(1), help="Which version of the --table. [default: the newest]")
@json_option
@secret_option
def tables(url: str, table: int | None, version: int | None, as_json: bool, secret: str) -> None:
    """Show chain tables; new files use the newest version of the table that has their number of replicas."""
    with connected(url, secret) as client:
        routing = client.fetch()
    if table is not None:
        click.echo(json.dumps(_data(_find(routing, table, version)), indent=None if not as_json else 2))
        return
    known = [one for _, one in sorted(routing.tables.items())]
    rows = [_data(one) if as_json else {**_data(one), "chains": [some(one.chains)]} for one in known]
    show(rows, as_json=as_json, empty="no chain tables yet: the cluster waits for its storage nodes")


@click.command("upload-table", short_help="Publish a chain table from a file.")
@url_argument
@click.argument("file", type=click.Path(path_type=Path))
@secret_option
def upload_table(url: str, file: Path, secret: str) -> None:
    """Publish the chain table in FILE under its next version; files that exist keep the version they have.

    FILE is JSON as `fs3 admin tables URL --table N` shows it; its "version" does not count.
    """
    request = _read(file)
    with connected(url, secret) as client:
        say(client.change("UploadTable", request))


@click.command("grow", short_help="Use nodes that came later.")
@url_argument
@click.option("--wait", "waiting", is_flag=True, help="Return once the new tables are published.")
@secret_option
def grow(url: str, waiting: bool, secret: str) -> None:
    """Make chains on disks that have none yet, and then publish a new version of each chain table.

    New files are spread over all chains; to move existing chains to the new disks as well, see `balance`.
    """
    with connected(url, secret) as client:
        say(client.change("Grow", admin_pb2.GrowRequest()))
        if waiting:
            watch(
                client,
                "serving",
                lambda routing: sum(chain.joins_table is not None for chain in routing.chains.values()),
                0.0,
            )


@click.command("balance", short_help="Even out targets over disks.")
@url_argument
@click.option(
    "--most",
    type=click.IntRange(1, (1 << 32) - 1),
    help="Move at most so many targets now. [default: as many as it takes]",
)
@click.option("--wait", "waiting", is_flag=True, help="Return once all have moved; show how far it is.")
@secret_option
def balance(url: str, most: int | None, waiting: bool, secret: str) -> None:
    """Move targets from disks that have more of them to disks that have fewer, while their chains serve."""
    with connected(url, secret) as client:
        say(client.change("Balance", admin_pb2.BalanceRequest(most=most or 0)))
        if waiting:
            moving = [one for one, target in client.mgmtd.routing.targets.items() if target.draining]
            watch(client, "moved", lambda routing: to_move(routing, moving), 0.0)


def _find(routing: Routing, table_id: int, version: int | None) -> ChainTable:
    versions = {table.version: table for table in routing.tables.values() if table.table_id == table_id}
    if not versions:
        raise NotFound(f"no chain table {table_id}; there are {some({known for known, _ in routing.tables})}")
    if version is not None and version not in versions:
        raise NotFound(f"chain table {table_id} has no version {version}; it has {some(versions)}")
    return versions[version if version is not None else max(versions)]


def _data(table: ChainTable) -> dict[str, Any]:
    return {
        "table_id": table.table_id,
        "version": table.version,
        "replicas": table.replicas,
        "chains": list(table.chains),
    }


def _read(file: Path) -> admin_pb2.UploadTableRequest:
    """The table in a file. Raises: Invalid, which names what is wrong with it."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Invalid(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise Invalid(f"{file}: not JSON: {error}") from None
    if not isinstance(data, dict) or set(data) - _KEYS or not _KEYS - {"version"} <= set(data):
        raise Invalid(f'{file}: expected {{"table_id": N, "replicas": N, "chains": [N, ...]}}')
    numbers = data["chains"] if isinstance(data["chains"], list) else [data["chains"]]
    for number in (data["table_id"], data["replicas"], *numbers):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 32:
            raise Invalid(f"{file}: {number!r} is not a number from 0 to {(1 << 32) - 1}")
    return admin_pb2.UploadTableRequest(table_id=data["table_id"], replicas=data["replicas"], chains=numbers)


COMMANDS = (tables, upload_table, grow, balance)
