"""`fs3 trash list|restore|empty`: what `fs3 rm --trash` has put away."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from fs3.cli.admin_change import confirm
from fs3.cli.places import Failures, check_trash, place
from fs3.cli.status import size
from fs3.config import parse_seconds

_COLUMNS = 150


@click.group()
def trash() -> None:
    """Show, restore, or remove for good what `fs3 rm --trash` has put away."""


@trash.command("list", short_help="Show what can be restored.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.argument("url", metavar="URL")
def list_command(url: str, as_json: bool) -> None:
    """Show what was removed at or below URL and can be restored; what goes first comes first."""
    rows = [_row(one) for one in _cluster(url).trashed(place(url).path)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        _print(rows)
    else:
        click.echo("nothing from there is in the trash")


@trash.command("restore", short_help="Bring something back.")
@click.option("--to", "target", metavar="URL", help="Where to instead of where it was.")
@click.argument("places", nargs=-1, required=True, metavar="URL...")
def restore(places: tuple[str, ...], target: str | None) -> int:
    """Move things out of the trash to where they were, never over something.

    URL is the path that it had (of several, the one that was removed last comes back), or the one that it has in the
    trash, such as fs3://HOST:PORT/.trash/NAME.
    """
    if target is not None and len(places) > 1:
        raise click.UsageError("--to takes one thing at a time")
    failures = Failures("trash restore")
    for text in places:
        with failures.of("cannot restore", text):
            fs = _cluster(text)
            path = fs.restore(place(text).path, None if target is None else place(target).path)
            click.echo(f"restored {path}")
    return failures.exit_code()


@trash.command("empty", short_help="Remove for good.")
@click.option("--older-than", metavar="TIME", help="Only what was removed so long ago, such as 12h or 2d.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("url", metavar="URL")
def empty(url: str, older_than: str | None, yes: bool) -> None:
    """Remove for good what was removed at or below URL, or the one thing that has this path in the trash."""
    fs = _cluster(url)
    before_s = None if older_than is None else time.time() - parse_seconds(older_than)
    confirm(f"What is in the trash of {url} is removed for good.", yes=yes)
    count = fs.empty_trash(place(url).path, removed_before_s=before_s)
    click.echo(f"{count:,} removed for good; its room is free some seconds later")


def _cluster(text: str) -> Any:
    """The filesystem of a URL. Raises: Invalid: it is a local path."""
    at = place(text)
    check_trash(at)
    return at.fs


def _row(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "path": one["was"],
        "type": one["type"] if one["type"] != "other" else "symlink",
        "size": one["size"] if one["type"] == "file" else None,
        "removed": one["removed"],
        "expires": one["expires"],
        "name": one["name"],
    }


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
    for row in rows:
        room = "" if row["size"] is None else size(row["size"])
        table.add_row(row["path"], row["type"], room, _when(row["removed"]), _when(row["expires"]), row["name"])
    console = Console(highlight=False, markup=False, emoji=False)
    console.width = max(console.width, _COLUMNS)
    console.print(table)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
