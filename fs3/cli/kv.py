"""`fs3 kv stats|clear`: what the KV cache in a directory holds, and making it hold less."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click
from rich.console import Console
from rich.table import Table

from fs3.config import parse_bytes
from fs3.kvcache.admin import Cleared, KVHoldings, clear, holdings

_SHOWN_DIGITS = 16

_secret = click.option("--secret", envvar="FS3_SECRET", default="", help="The cluster's secret, if it has one.")


@click.group()
def kv() -> None:
    """Show or clear the KV cache in a directory; the root of a cluster stands for all of its pages."""


@kv.command("stats", short_help="Show pages, bytes, ages and namespaces.")
@click.argument("url", metavar="URL")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@_secret
def stats(url: str, as_json: bool, secret: str) -> None:
    """Show pages, bytes, ages and namespaces of the cache at URL."""
    found = holdings(url, secret=secret)
    if as_json:
        click.echo(json.dumps(found.as_data(), indent=2))
    else:
        _print(found, Console(highlight=False, markup=False, emoji=False))


@kv.command("clear", short_help="Remove pages, all or the oldest.")
@click.argument("url", metavar="URL")
@click.option("--namespace", metavar="PREFIX", default="", help="Only namespaces whose digest begins so.")
@click.option("--keep", metavar="SIZE", default="0", help="Keep the newest pages up to this size, such as 2GiB.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a line.")
@_secret
def clear_command(url: str, namespace: str, keep: str, as_json: bool, secret: str) -> None:
    """Remove the pages of the cache at URL, all or the oldest; runners compute again what they miss."""
    cleared = clear(url, namespace=namespace, keep_bytes=parse_bytes(keep), secret=secret)
    click.echo(json.dumps(_cleared_data(cleared)) if as_json else _cleared_line(cleared))


def _cleared_data(cleared: Cleared) -> dict[str, int]:
    return {
        "removed_pages": cleared.removed.pages,
        "removed_bytes": cleared.removed.bytes,
        "kept_pages": cleared.kept.pages,
        "kept_bytes": cleared.kept.bytes,
        "silent_chains": len(cleared.silent),
    }


def _cleared_line(cleared: Cleared) -> str:
    removed, kept = cleared.removed, cleared.kept
    done = f"removed {removed.pages:,} pages, {removed.bytes:,} bytes"
    return f"{done}; {kept.pages:,} pages, {kept.bytes:,} bytes stay{_silence(cleared.silent)}"


def _silence(chains: tuple[int, ...]) -> str:
    """What a line says about chains that did not answer."""
    return f"; {len(chains)} chains did not answer and were left out" if chains else ""


def _print(found: KVHoldings, console: Console) -> None:
    unreadable = f", {found.unreadable:,} more unreadable" if found.unreadable else ""
    console.print(
        f"{found.url}: {found.pages:,} pages, {found.bytes:,} bytes{unreadable}{_silence(found.silent)}", soft_wrap=True
    )
    if not found.pages:
        return
    ages = f"oldest {_when(found.oldest_ns)}, newest {_when(found.newest_ns)}"
    console.print(f"{ages}, deepest chain {found.deepest:,} pages", soft_wrap=True)
    table = _table("namespace", "pages", "bytes", "deepest", "newest")
    for name, held in found.namespaces.items():
        newest = _when(held.newest_ns)
        table.add_row(name[:_SHOWN_DIGITS], f"{held.pages:,}", f"{held.bytes:,}", f"{held.deepest:,}", newest)
    console.print(table)
    table = _table("chain table", "pages", "bytes")
    for name, held_by_table in found.tables.items():
        table.add_row(name, f"{held_by_table.pages:,}", f"{held_by_table.bytes:,}")
    console.print(table)
    table = _table("chain", "pages", "bytes")
    for chain, held_by_chain in found.chains.items():
        table.add_row(str(chain), f"{held_by_chain.pages:,}", f"{held_by_chain.bytes:,}")
    console.print(table)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _when(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
