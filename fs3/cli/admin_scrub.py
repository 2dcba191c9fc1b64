"""`fs3 admin scrub start|status` and `fs3 admin damaged`: what lies on the disks, verified by the daemons."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from fs3.cli.admin_show import NODE, connected, json_option, raise_silent, secret_option, show, url_argument
from fs3.client.meta import MetaClient
from fs3.client.scrub import DamagedChunk, ScrubReport, TargetScrub, scrub
from fs3.errors import Fs3Error
from fs3.ids import KIND_FILE, MAX_INODE, chunk_bytes, chunk_kind, chunk_name, file_chunk
from fs3.mgmtd.named_core import find_storage_nodes
from fs3.routing import Routing

_META_S = 5.0

_nodes = click.option("--node", "nodes", type=NODE, multiple=True, help="Only this storage node.")


@click.group("scrub", short_help="Verify everything on the disks.")
def scrub_group() -> None:
    """Have the daemons verify every chunk against its sums, and see how far they are.

    They do so by themselves too, slowly; what is damaged is repaired from another replica.
    """


@scrub_group.command("start", short_help="Begin to verify every chunk now.")
@url_argument
@_nodes
@secret_option
def scrub_start(url: str, nodes: tuple[int, ...], secret: str) -> None:
    """Begin to verify every chunk on every disk now, at the rate of each daemon's configuration."""
    report = _ask(url, secret, nodes, begin=True)
    said = sorted({target.node_id for target in report.targets})
    click.echo(f"begun on {len(report.targets)} targets of {len(said)} nodes; see: fs3 admin scrub status URL")
    raise_silent(report.errors)


@scrub_group.command("status", short_help="How far it is, and what it found.")
@url_argument
@_nodes
@json_option
@secret_option
def scrub_status(url: str, nodes: tuple[int, ...], as_json: bool, secret: str) -> None:
    """Show, disk by disk, how much was verified and when everything last was."""
    report = _ask(url, secret, nodes)
    by_disk: dict[tuple[int, int], list[TargetScrub]] = {}
    for target in report.targets:
        by_disk.setdefault((target.node_id, target.disk), []).append(target)
    rows = [_disk_row(targets) for _, targets in sorted(by_disk.items())]
    show(rows, as_json=as_json, empty="no targets")
    if not as_json:
        where = ", see: fs3 admin damaged URL" if report.damaged_chunks else ""
        click.echo(f"{report.damaged_chunks:,} damaged chunks now{where}")
    raise_silent(report.errors)


@click.command("damaged", short_help="Show damaged chunks that are not repaired.")
@url_argument
@_nodes
@click.option("--paths", "with_paths", is_flag=True, help="Look through the whole tree for the names of their files.")
@json_option
@secret_option
def damaged(url: str, nodes: tuple[int, ...], with_paths: bool, as_json: bool, secret: str) -> int:
    """Show chunks whose bytes fail their sums and that could not be repaired yet, with the file each belongs to.

    Exits 1 if there are any.
    """
    with connected(url, secret) as client:
        report = scrub(client.mgmtd, secret=secret, nodes=_named(client.mgmtd.routing, nodes))
        meta = MetaClient(
            lambda: client.mgmtd.routing, client.mgmtd.credentials, 1, refresh=lambda: client.mgmtd.refresh(0, 1.0)
        )
        try:
            wanted = {one.hi & MAX_INODE for one in report.damaged if chunk_kind(one.hi) == KIND_FILE}
            paths = _paths(meta, wanted) if with_paths else {}
            rows = [_damage_row(one, paths.get(one.hi) or _file_of(one, meta)) for one in report.damaged]
        finally:
            meta.close()
    show(rows, as_json=as_json, empty="no damaged chunks are known")
    if report.damaged_chunks > len(rows) and not as_json:
        click.echo(f"{report.damaged_chunks - len(rows):,} more are not listed")
    raise_silent(report.errors)
    return 1 if report.damaged_chunks else 0


def _ask(url: str, secret: str, nodes: tuple[int, ...], *, begin: bool = False) -> ScrubReport:
    with connected(url, secret) as client:
        return scrub(client.mgmtd, secret=secret, begin=begin, nodes=_named(client.mgmtd.routing, nodes))


def _named(routing: Routing, nodes: tuple[int, ...]) -> set[int] | None:
    """All that are meant, workers included; None: everybody. Raises: NotFound."""
    return {int(one.node_id) for node in nodes for one in find_storage_nodes(routing, node)} or None


def _disk_row(targets: list[TargetScrub]) -> dict[str, Any]:
    begun = min((target.begun_ns for target in targets if target.running), default=0)
    ended = min(target.ended_ns for target in targets)
    running = sum(target.running for target in targets)
    return {
        "node": targets[0].node_id,
        "disk": targets[0].disk,
        "path": targets[0].path,
        "state": f"verifies since {_when(begun)}, {running} of {len(targets)} targets to go" if running else "idle",
        "chunks": sum(target.chunks for target in targets),
        "of chunks": sum(target.of_chunks for target in targets),
        "used": sum(target.read_bytes for target in targets),
        "found damaged": sum(target.damaged for target in targets),
        "everything last verified": _when(ended) if ended else "never",
    }


def _damage_row(one: DamagedChunk, file: str) -> dict[str, Any]:
    return {
        "chunk": chunk_bytes(one.hi, one.lo).hex(),
        "of": file,
        "chain": one.chain,
        "target": one.target,
        "node": one.node_id,
        "disk": one.disk,
        "version": one.version,
        "why not repaired": one.why or "is to be repaired",
    }


def _file_of(one: DamagedChunk, meta: MetaClient) -> str:
    """Whose chunk it is, in words; a meta that does not answer keeps nobody from seeing the rest."""
    if chunk_kind(one.hi) != KIND_FILE:
        return chunk_name(one.hi, one.lo)
    try:
        (found,) = meta.find([one.hi & MAX_INODE], timeout_s=_META_S)
    except Fs3Error as error:
        return f"{chunk_name(one.hi, one.lo)} ({error})"
    gone = ", which is removed" if found.dead else ", an orphan"
    return chunk_name(one.hi, one.lo) + (gone if found.inode is None else "")


def _paths(meta: MetaClient, inode_ids: set[int]) -> dict[int, str]:
    """The path of each file that has a name, by the upper half of its chunks' ids; walks the whole tree."""
    found: dict[int, str] = {}
    directories = ["/"] if inode_ids else []
    while directories:
        directory = directories.pop()
        for page in meta.list(directory):
            for entry in page:
                path = f"{directory.rstrip('/')}/{entry.name}"
                if entry.inode.is_directory:
                    directories.append(path)
                elif entry.inode.inode_id in inode_ids:
                    found[file_chunk(entry.inode.inode_id, 0)[0]] = path
    return found


def _when(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


COMMANDS = (scrub_group, damaged)
