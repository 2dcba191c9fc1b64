"""`fs3 admin fsck|backup|restore`: the metadata as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from fs3.cli.admin_show import client_of, json_option, secret_option, url_argument
from fs3.config import load_toml
from fs3.errors import Corrupt, Exists
from fs3.filesystem.urls import filesystem_of
from fs3.meta.backup_format import Reader
from fs3.meta.restore import restore_into

_PIECE_BYTES = 4 << 20


@click.command("fsck", short_help="Look whether the metadata hangs together.")
@url_argument
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds that it may take.")
@json_option
@secret_option
def fsck(url: str, timeout_s: float, as_json: bool, secret: str) -> int:
    """Have a meta daemon read all of the metadata, as it is at one moment, and compare every record with the others.

    The cluster goes on meanwhile; nothing is changed. Exits 1 if something is wrong.
    """
    health = client_of(url, secret).meta.fsck(timeout_s=timeout_s)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(health)))
    else:
        for line in health.findings:
            click.echo(line)
        if health.wrong > len(health.findings):
            click.echo(f"and {health.wrong - len(health.findings):,} more")
        seen = f"{health.inodes:,} inodes, {health.dead:,} that wait to be collected"
        click.echo(f"{seen}: {f'{health.wrong:,} things are wrong' if health.wrong else 'all hangs together'}")
    return 1 if health.wrong else 0


@click.command("backup", short_help="Save the metadata to a file.")
@url_argument
@click.argument("target", metavar="FILE")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds that reading it may take.")
@secret_option
def backup(url: str, target: str, timeout_s: float, secret: str) -> int:
    """Save all names, attributes and layouts, as they are at one moment, to FILE: a path, or a URL that fsspec knows.

    The cluster goes on meanwhile. The chunks themselves are not in it: it brings a lost metadata store back, with
    `fs3 admin restore`, as long as the storage nodes still have them.
    """
    fs, path = filesystem_of(target)
    if fs.exists(path):
        raise Exists(f"{target}: exists already; name another file")
    reader, meta = Reader(), client_of(url, secret).meta
    try:
        with _progress() as bar, fs.open(path, "wb") as file:
            task = bar.add_task("reading the metadata", total=None)
            total, pieces = meta.backup(timeout_s=timeout_s)
            bar.update(task, description=f"to {target}", total=total)
            for piece in pieces:
                reader.feed(piece)
                file.write(piece)
                bar.advance(task, len(piece))
            if not reader.complete:
                raise Corrupt("the backup ended too early")
    except BaseException:
        with contextlib.suppress(OSError):
            fs.rm_file(path)
        raise
    click.echo(f"{reader.count:,} records, {total:,} bytes, saved to {target}")
    return 0


@click.command("restore", short_help="Put saved metadata into an empty store; the metas must be stopped.")
@click.argument("source", metavar="FILE")
@click.option(
    "--config",
    "config_file",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The TOML file of a meta daemon, which names the store and the mgmtds.",
)
def restore(source: str, config_file: Path) -> int:
    """Put a backup (FILE: a path, or a URL that fsspec knows) into the empty metadata store that a meta daemon's file
    names. All metas of the cluster must be stopped; start them afterwards.

    What was named after the backup was made is lost; `fs3 admin orphans` finds its chunks. Files that were removed
    since have their names back, and may lack their chunks: `fs3 admin lost` lists them. If it is interrupted, run it
    again.
    """
    from fs3.meta.config import MetaConfig

    config = load_toml(config_file, MetaConfig)
    fs, path = filesystem_of(source)
    with fs.open(path, "rb") as file, _progress() as bar:
        task = bar.add_task(f"from {source}", total=fs.size(path))

        def pieces() -> Iterator[bytes]:
            while piece := file.read(_PIECE_BYTES):
                yield piece
                bar.advance(task, len(piece))

        reader = asyncio.run(restore_into(config, pieces()))
    click.echo(
        f"{reader.count:,} records restored; start the meta daemons, then `fs3 admin fsck`, `orphans` and `lost`"
    )
    return 0


def _progress() -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


COMMANDS = (fsck, backup, restore)
