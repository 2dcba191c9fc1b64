"""`fs3 df` and `fs3 admin quota set|clear|list`: how much room there is, and who may take how much of it."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from fs3.cli.admin_show import client_of, json_option, secret_option, url_argument
from fs3.cli.admin_show import console as wide_console
from fs3.cli.status import size
from fs3.client.meta import MetaClient, Quota
from fs3.config import parse_bytes
from fs3.errors import Invalid, Unavailable
from fs3.url import parse_url

_MOST = (1 << 63) - 1
_LOOK_S = 0.5
_DEADLINE_S = 5.0


@click.command()
@url_argument
@json_option
@secret_option
def df(url: str, as_json: bool, secret: str) -> None:
    """Show how much room there is at URL: on the disks, by each quota on the way there, and what comes of both.

    The disks' figures are of all replicas, those of quotas and of what may be added are lengths of files.
    """
    meta, path = _meta(url, secret)
    space, quotas, room = meta.space(), meta.quotas(path), meta.room(path)
    if as_json:
        data = {"disks": dataclasses.asdict(space), "quotas": [dataclasses.asdict(one) for one in quotas]}
        click.echo(json.dumps({**data, "room": dataclasses.asdict(room)}, indent=2))
        return
    table = _table("", "size", "used", "free", "use", "inodes", "used", "free")
    table.add_row("disks, all replicas", *_bytes(space.total, space.used, space.free), "", "", "")
    for one in quotas:
        table.add_row(escape(f"quota of {one.path}"), *_quota_cells(one))
    counts = _counts(room.max_inodes, room.inodes) if room.inodes is not None else ("", "", "")
    table.add_row(escape(f"room in {path}"), *_bytes(room.total, room.used, room.free), *counts)
    wide_console().print(table)


@click.group("quota", short_help="Limit what may be below a directory.")
def quota() -> None:
    """Set, clear and list quotas: how many bytes and inodes may be below a directory."""


@quota.command("set", short_help="Set or change limits.")
@url_argument
@click.option("--bytes", "max_bytes", metavar="SIZE", help="Lengths of files together, such as 10TiB; 0: no limit.")
@click.option(
    "--inodes", "max_inodes", type=click.IntRange(0, _MOST), help="Files, directories and symlinks; 0: no limit."
)
@click.option("--wait", "waiting", is_flag=True, help="Return once what is there already is counted.")
@secret_option
def set_command(url: str, max_bytes: str | None, max_inodes: int | None, waiting: bool, secret: str) -> None:
    """Limit what may be below the directory at URL; a limit that is not given stays as it is.

    It holds at once for what is added. What is there already is counted in the background and may be more than the
    limit; then nothing can be added until it is not.
    """
    if max_bytes is None and max_inodes is None:
        raise click.UsageError("say a limit: --bytes, --inodes, or both")
    meta, path = _meta(url, secret)
    limit = None if max_bytes is None else _limit(max_bytes)
    made = meta.set_quota(path, max_bytes=limit, max_inodes=max_inodes)
    if made is None:
        click.echo(f"{path} has no quota any more")
        return
    if waiting:
        made = _counted(meta, path, made)
    click.echo(_line(made))


@quota.command("clear", short_help="Do away with a quota.")
@url_argument
@secret_option
def clear(url: str, secret: str) -> None:
    """Let the directory at URL grow as it may; quotas of directories above it, or in it, stay."""
    meta, path = _meta(url, secret)
    meta.set_quota(path, max_bytes=0, max_inodes=0)
    click.echo(f"{path} has no quota any more")


@quota.command("list", short_help="Show all quotas.")
@url_argument
@json_option
@secret_option
def list_command(url: str, as_json: bool, secret: str) -> None:
    """Show every quota of the cluster, those that are nearest to their limits first.

    The path is the one that the directory had when its limits were set.
    """
    meta, _ = _meta(url, secret)
    found = sorted((one for page in meta.all_quotas() for one in page), key=_fullness, reverse=True)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    elif not found:
        click.echo("no quotas")
    else:
        table = _table("path", "bytes", "used", "free", "use", "inodes", "used", "free", "")
        for one in found:
            table.add_row(escape(one.path), *_quota_cells(one), "being counted" if one.counting else "")
        wide_console().print(table)


def _meta(url: str, secret: str) -> tuple[MetaClient, str]:
    client = client_of(url, secret)
    client.mgmtd.wait_ready(_DEADLINE_S)
    return client.meta, parse_url(url)[1] or "/"


def _limit(text: str) -> int:
    """Raises: Invalid."""
    limit = parse_bytes(text)
    if text.strip().startswith("-") or limit > _MOST:
        raise Invalid(f"--bytes {text}: a limit lies between 0 and {_MOST}")
    if not limit and text.strip().strip("0.").strip():
        raise Invalid(f"--bytes {text}: is less than a byte; 0 does away with the limit")
    return limit


def _counted(meta: MetaClient, path: str, made: Quota) -> Quota:
    """The quota once what is there is counted. Raises: Unavailable: it went meanwhile."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        while made.counting:
            bar.update(task, description=f"{made.inodes:,} inodes, {size(made.bytes)} counted")
            time.sleep(_LOOK_S)
            found = [one for one in meta.quotas(path) if one.number == made.number]
            if not found:
                raise Unavailable(f"{path}: its quota was removed while it was being counted")
            made = found[0]
    return made


def _line(one: Quota) -> str:
    limits = [size(one.max_bytes)] if one.max_bytes is not None else []
    limits += [f"{one.max_inodes:,} inodes"] if one.max_inodes is not None else []
    state = "; what is there is being counted" if one.counting else ""
    used = f"{size(one.bytes)} in {one.inodes:,} inodes"
    return f"{one.path} may have {' and '.join(limits)}, and has {used}{state}"


def _fullness(one: Quota) -> float:
    pairs = ((one.max_bytes, one.bytes), (one.max_inodes, one.inodes))
    return max((used / limit for limit, used in pairs if limit), default=0.0)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number and name else "left", overflow="fold")
    return table


def _quota_cells(one: Quota) -> tuple[Any, ...]:
    if one.max_bytes is None:
        cells: tuple[Any, ...] = ("", size(one.bytes), "", "")
    else:
        cells = _bytes(one.max_bytes, one.bytes, max(one.max_bytes - one.bytes, 0))
    return (*cells, *_counts(one.max_inodes, one.inodes))


def _bytes(total: int, used: int, free: int) -> tuple[str, str, str, str]:
    return size(total), size(used), size(free), f"{used / total:.0%}" if total else ""


def _counts(most: int | None, used: int) -> tuple[str, str, str]:
    return ("", f"{used:,}", "") if most is None else (f"{most:,}", f"{used:,}", f"{max(most - used, 0):,}")


COMMANDS = (quota,)
