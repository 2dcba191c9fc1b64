"""`fs3 admin lost`: files that lack chunks."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fs3.cli.admin_show import client_of, json_option, secret_option, show, url_argument
from fs3.client.lost import Losses, LostFile
from fs3.errors import Fs3Error, Unavailable
from fs3.mgmtd.named_core import some
from fs3.url import parse_url


@click.command("lost", short_help="Find files that lack chunks.")
@url_argument
@json_option
@secret_option
def lost(url: str, as_json: bool, secret: str) -> int:
    """Look whether every file at or below URL has the chunks that its length says it has.

    After the metadata came back from a backup, or the loss of a replica was accepted, this lists the files that cannot
    be read whole: remove them, or write them anew. The cluster goes on meanwhile; nothing is changed. What a chunk
    holds is not looked at (`fs3 admin scrub` does that). Exits 1 if a file lacks chunks, or a chain did not answer.
    """
    client = client_of(url, secret)
    client.mgmtd.wait_ready(5.0)
    top = parse_url(url)[1]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("files", total=_count(client.meta, top) if console.is_terminal else None)
        losses = Losses(
            lambda: client.mgmtd.routing,
            client.storage,
            client.meta,
            top,
            on_files=lambda count: bar.advance(task, count),
        )
        found = list(losses)
    search = losses.search
    if as_json:
        data = {"lost": [_data(one) for one in found], **dataclasses.asdict(search)}
        click.echo(json.dumps(data, indent=2))
    else:
        seen = f"{search.files:,} files with {search.chunks - search.left_out:,} chunks"
        show([_row(one) for one in found], as_json=False, empty=f"nothing is lost of {seen}")
    if search.silent:
        raise Unavailable(
            f"chains {some(search.silent)} did not answer, and {search.left_out:,} chunks on them were left out"
        )
    return 1 if found else 0


def _count(meta: Any, top: str) -> int | None:
    """How many files there are, for the bar."""
    try:
        return int(meta.usage(top, timeout_s=60.0).files)
    except Fs3Error:
        return None


def _data(one: LostFile) -> dict[str, Any]:
    return {**dataclasses.asdict(one), "chunks": [chunk._asdict() for chunk in one.chunks]}


def _row(one: LostFile) -> dict[str, Any]:
    missing = [chunk.chunk for chunk in one.chunks if chunk.has is None]
    short = [chunk.chunk for chunk in one.chunks if chunk.has is not None]
    return {
        "path": one.path,
        "size": one.length,
        "lost": f"{len(one.chunks)} of {one.of_chunks}",
        "missing": some(missing),
        "too short": some(short),
        "on chains": some({chunk.chain for chunk in one.chunks}),
    }


COMMANDS = (lost,)
