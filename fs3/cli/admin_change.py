"""`fs3 admin drain|undrain|replace|replace-disk|remove|offline|online|create|rotate-lastsrv`: changes of a cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fs3.cli.admin_left import to_move, to_refill, to_serve, to_stop
from fs3.cli.admin_show import DISK, ID, NODE, connected, secret_option, url_argument
from fs3.client.admin import AdminClient, place
from fs3.errors import Fs3Error, Invalid, NotFound, Unavailable
from fs3.ids import TargetId, node_name
from fs3.mgmtd.named_core import find_storage_nodes, is_named
from fs3.pb import admin_pb2
from fs3.routing import Routing, TargetState

_LOOK_S = 0.5
_ASK_WHY_S = 3.0  # that nothing has moved for so long is worth a reason

_node = click.option("--node", type=NODE, help="A storage node with all its workers, or one of them, as 3.1.")
_disk = click.option("--disk", type=DISK, help="One disk of the node, by its number.")
_target = click.option("--target", type=ID, help="One target, by its id.")
_one_target = click.option("--target", type=ID, required=True, help="The target's id.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_wait = click.option("--wait", "waiting", is_flag=True, help="Return once it is done; show how far it is.")
_timeout = click.option(
    "--timeout", "timeout_s", type=float, default=0.0, help="Seconds to --wait. [default: no limit]"
)


def confirm(question: str, *, yes: bool) -> None:
    """Go on only if the operator says so, at the terminal or with --yes. Raises: click.Abort, click.UsageError."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Say --yes.")
    click.confirm(question, abort=True)


def say(lines: Collection[str]) -> None:
    """What was done."""
    for line in lines:
        click.echo(line)


@click.command("drain", short_help="Move targets away while their chains serve.")
@url_argument
@_node
@_disk
@_target
@_wait
@_timeout
@secret_option
def drain(
    url: str, node: int | None, disk: int | None, target: int | None, waiting: bool, timeout_s: float, secret: str
) -> None:
    """Move all targets away from a node, or from one of its disks, or move one target, while their chains serve.

    Each gets a replacement on another node; once that serves, the old one leaves its chain and is deleted. A drained
    node or disk gets no new targets, until `undrain`.
    """
    _check_place(node, disk, target)
    with connected(url, secret) as client:
        leaving = _targets_at(client.fetch(), node, disk, target)
        say(client.change("Drain", admin_pb2.PlaceRequest(place=place(node=node, disk=disk, target=target))))
        if waiting:
            watch(client, "moved", lambda routing: to_move(routing, leaving), timeout_s)


@click.command("undrain", short_help="Cancel a drain.")
@url_argument
@_node
@_disk
@_target
@secret_option
def undrain(url: str, node: int | None, disk: int | None, target: int | None, secret: str) -> None:
    """Cancel a drain: what has not left stays, and the node or disk may get new targets again."""
    _check_place(node, disk, target)
    with connected(url, secret) as client:
        say(client.change("Undrain", admin_pb2.PlaceRequest(place=place(node=node, disk=disk, target=target))))


@click.command("replace", short_help="Refill one target from its chain's other replicas.")
@url_argument
@_one_target
@click.option("--elsewhere", is_flag=True, help="On another disk: this one will not come back.")
@_yes
@_wait
@_timeout
@secret_option
def replace(url: str, target: int, elsewhere: bool, yes: bool, waiting: bool, timeout_s: float, secret: str) -> None:
    """Give up what a target's disk held and refill it from its chain's other replicas."""
    _replace(url, secret, elsewhere=elsewhere, yes=yes, wait_s=timeout_s if waiting else None, target=target)


@click.command("replace-disk", short_help="Refill, or give up, a disk that died.")
@url_argument
@click.option("--node", type=NODE, required=True, help="The storage node's id.")
@click.option("--disk", type=DISK, required=True, help="The disk's number on the node.")
@click.option("--elsewhere", is_flag=True, help="On other disks: this one will not come back.")
@_yes
@_wait
@_timeout
@secret_option
def replace_disk(
    url: str, node: int, disk: int, elsewhere: bool, yes: bool, waiting: bool, timeout_s: float, secret: str
) -> None:
    """Refill a disk that came back empty, or with --elsewhere move its targets to other disks.

    Targets that serve, or are being refilled already, are left alone.
    """
    wait_s = timeout_s if waiting else None
    _replace(url, secret, elsewhere=elsewhere, yes=yes, wait_s=wait_s, node=node, disk=disk)


def _replace(url: str, secret: str, *, elsewhere: bool, yes: bool, wait_s: float | None, **where: int) -> None:
    if not elsewhere:
        what = (
            f"target {where['target']}"
            if "target" in where
            else f"disk {where['disk']} of node {node_name(where['node'])}"
        )
        confirm(f"What {what} still holds and does not serve is deleted, and copied anew from other replicas.", yes=yes)
    with connected(url, secret) as client:
        before = client.fetch()
        request = admin_pb2.ReplaceRequest(place=place(**where), elsewhere=elsewhere)
        say(client.change("Replace", request))
        if wait_s is None:
            return
        asked = _targets_at(before, where.get("node"), where.get("disk"), where.get("target"))
        if elsewhere:
            watch(client, "moved", lambda routing: to_move(routing, asked), wait_s)
        else:
            places = {(before.targets[one].chain_id, before.targets[one].node_id) for one in asked}
            slots = {(chain, node) for chain, node in places if client.mgmtd.routing.serving(chain)}
            watch(client, "refilled", lambda routing: to_refill(routing, slots), wait_s)


@click.command("remove", short_help="Forget a dead node, or a target that is not needed.")
@url_argument
@_node
@_target
@secret_option
def remove(url: str, node: int | None, target: int | None, secret: str) -> None:
    """Forget a node that is gone and has no targets, or take a target that is not needed out of its chain."""
    _check_place(node, None, target)
    with connected(url, secret) as client:
        say(client.change("Remove", admin_pb2.PlaceRequest(place=place(node=node, target=target))))


@click.command("offline", short_help="Put a target out of service.")
@url_argument
@_one_target
@_wait
@_timeout
@secret_option
def offline(url: str, target: int, waiting: bool, timeout_s: float, secret: str) -> None:
    """Put a target out of service until `online`; refused for the last one that serves its chain."""
    with connected(url, secret) as client:
        say(client.change("Offline", admin_pb2.PlaceRequest(place=place(target=target))))
        if waiting:
            watch(client, "stopped", lambda routing: to_stop(routing, target), timeout_s)


@click.command("online", short_help="Put it back into service.")
@url_argument
@_one_target
@_wait
@_timeout
@secret_option
def online(url: str, target: int, waiting: bool, timeout_s: float, secret: str) -> None:
    """End `offline`: the target is brought up to date and serves again."""
    with connected(url, secret) as client:
        say(client.change("Online", admin_pb2.PlaceRequest(place=place(target=target))))
        if waiting:
            watch(client, "serving", lambda routing: to_serve(routing, target), timeout_s)


@click.command("create", short_help="Make one more replica of a chain.")
@url_argument
@click.option("--node", type=NODE, required=True, help="The storage node's id.")
@click.option("--disk", type=DISK, required=True, help="The disk's number on the node.")
@click.option("--chain", type=ID, required=True, help="The chain's id.")
@secret_option
def create(url: str, node: int, disk: int, chain: int, secret: str) -> None:
    """Make one more replica of a chain on a disk that you choose."""
    with connected(url, secret) as client:
        request = admin_pb2.CreateReplicaRequest(node_id=node, disk=disk, chain_id=chain)
        say(client.change("CreateReplica", request))


@click.command("rotate-lastsrv", short_help="Accept loss: let another target serve a chain.")
@url_argument
@click.option("--chain", "chains", type=ID, multiple=True, help="A chain that nobody serves.")
@click.option("--node", type=NODE, help="All chains whose last one that served is on this node.")
@click.option("--to", "target", type=ID, help="The target that shall serve. [default: a new, empty one]")
@click.option("--accept-data-loss", is_flag=True, help="What only the last one that served has is given up.")
@_wait
@_timeout
@secret_option
def rotate_last_serving(
    url: str,
    chains: tuple[int, ...],
    node: int | None,
    target: int | None,
    accept_data_loss: bool,
    waiting: bool,
    timeout_s: float,
    secret: str,
) -> None:
    """Let a chain serve again with what another target's disk holds, when its last one that served is lost.

    Should that one come back, it is refilled from the new one: what only it had is gone for good. Name the lost target
    itself with --to if its disk came back empty.
    """
    if not accept_data_loss:
        raise click.UsageError(
            "writes that only the last one that served a chain has are lost for good by this; bring it back if you can,"
            " or say --accept-data-loss"
        )
    if bool(chains) == (node is not None):
        raise click.UsageError("name either --chain, once or more often, or --node")
    if target is not None and len(chains) != 1:
        raise click.UsageError("--to names a target of one chain; name that with --chain")
    with connected(url, secret) as client:
        if node is not None:
            chains = _last_on(client.fetch(), node)
        refused: list[Fs3Error] = []
        for chain in chains:
            request = admin_pb2.RotateLastServingRequest(chain_id=chain, target_id=target or 0)
            try:
                say(client.change("RotateLastServing", request))
            except (Invalid, NotFound) as error:
                refused.append(error)
        for one in refused[:-1]:
            click.echo(f"fs3: {one}", err=True)
        if refused:
            raise refused[-1]
        if waiting:
            watch(client, "serving", lambda routing: sum(not routing.serving(chain) for chain in chains), timeout_s)


def watch(client: AdminClient, done: str, left: Callable[[Routing], int], timeout_s: float) -> None:
    """Show how many of the first `left` are `done` until none is left; says why when nothing moves for a while.

    Raises: Unavailable: there were still some after `timeout_s` (0: no limit); what `left` raises.
    """
    routing = client.mgmtd.routing
    most = now = left(routing)
    if not now:
        return
    begun_s = moved_s = time.monotonic()
    told: list[str] = []
    console = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(done, total=most)
        while now:
            routing = client.mgmtd.refresh(routing.version, _LOOK_S)
            before, now = now, left(routing)
            most = max(most, now)
            bar.update(task, completed=most - now, total=most)
            if now != before:
                moved_s = time.monotonic()
            elif time.monotonic() - moved_s > _ASK_WHY_S:
                moved_s = time.monotonic()
                reasons = client.waits()
                if reasons != told:
                    told = reasons
                    for reason in reasons:
                        bar.console.print(f"waiting: {reason}", markup=False)
            if timeout_s and time.monotonic() - begun_s > timeout_s:
                raise Unavailable(f"{now} of {most} not {done} after {timeout_s:g} s; it goes on by itself")


def _check_place(node: int | None, disk: int | None, target: int | None) -> None:
    if (node is None) == (target is None):
        raise click.UsageError("name either --node or --target")
    if disk is not None and node is None:
        raise click.UsageError("--disk needs --node")


def _targets_at(routing: Routing, node: int | None, disk: int | None, target: int | None) -> list[TargetId]:
    return [
        one.target_id
        for one in routing.targets.values()
        if one.target_id == target
        or (node is not None and is_named(one.node_id, node) and (disk is None or one.disk == disk))
    ]


def _last_on(routing: Routing, node: int) -> tuple[int, ...]:
    """The chains that wait for a target on `node`. Raises: NotFound, Invalid: there is none."""
    find_storage_nodes(routing, node)
    chains = tuple(
        target.chain_id
        for target in routing.targets.values()
        if is_named(target.node_id, node) and target.state == TargetState.LASTSRV
    )
    if not chains:
        raise Invalid(f"no chain waits for a target on node {node_name(node)}")
    return chains


COMMANDS = (drain, undrain, replace, replace_disk, remove, offline, online, create, rotate_last_serving)
