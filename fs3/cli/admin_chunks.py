"""`fs3 admin chunk|orphans`: what single replicas hold, and chunks that belong to nobody."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from fs3.cli.admin_change import confirm
from fs3.cli.admin_show import client_of, json_option, raise_silent, secret_option, show, told, url_argument
from fs3.cli.status import size
from fs3.client.connect import Client
from fs3.client.inspection import Copy, Inspector, silent
from fs3.client.orphans import find_orphans, remove_orphans
from fs3.errors import IsADirectory, NotFound, Unavailable
from fs3.ids import chunk_bytes, chunk_from_bytes, chunk_name, file_chunk
from fs3.layout import stripe_chains
from fs3.mgmtd.named_core import some
from fs3.url import parse_url

_MOST_SHOWN = 64
_ID_DIGITS = 32


@click.command("chunk", short_help="Show what every replica knows of a chunk.")
@url_argument
@click.argument("what", metavar="PATH|CHUNKID")
@click.option("--index", type=click.IntRange(0), help="Only this chunk of the file. [default: the first 64]")
@json_option
@secret_option
def chunk(url: str, what: str, index: int | None, as_json: bool, secret: str) -> None:
    """Show what every replica knows of the chunks of the file at PATH, or of one chunk by its id of 32 hex digits.

    Exits 1 if a node did not answer; what the others know is shown all the same.
    """
    client = client_of(url, secret)
    inspector = Inspector(client.mgmtd, secret)
    try:
        if len(what) == _ID_DIGITS and all(digit in "0123456789abcdefABCDEF" for digit in what):
            hi, lo = chunk_from_bytes(bytes.fromhex(what))
            chains, missing = inspector.find(hi, lo)
            chunks = [(hi, lo, chain) for chain in chains]
            if not chunks:
                but = f" ({told(missing)})" if missing else ""
                raise NotFound(f"{chunk_name(hi, lo)}: no daemon that answers has it, or remembers its removal{but}")
        else:
            chunks = _chunks_of(client, what, index)
        copies = inspector.copies(chunks)
    finally:
        inspector.close()
    show([_row(copy) for copy in copies], as_json=as_json, empty=f"{what} is empty: it has no chunks")
    if not as_json and len({(c.hi, c.lo) for c in copies}) == _MOST_SHOWN and index is None:
        click.echo(f"only the first {_MOST_SHOWN} chunks are shown; name others with --index")
    raise_silent(silent(copies))


@click.command("orphans", short_help="Find chunks that belong to no file.")
@url_argument
@click.option("--remove", "removing", is_flag=True, help="Remove what was found.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@secret_option
def orphans(url: str, removing: bool, yes: bool, as_json: bool, secret: str) -> None:
    """Find chunks whose file does not exist any more, and with --remove remove them.

    After the metadata store was restored from a backup, the chunks of newer files are orphans too. Exits 1 if a chain
    did not answer.
    """
    client = client_of(url, secret)
    routing = client.mgmtd.wait_ready(5.0)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("chains", total=len(routing.chains))
        found = find_orphans(routing, client.storage, client.meta, lambda chain: bar.advance(task))
    rows: list[dict[str, Any]] = [
        {"inode": one.inode_id, "chunks": len(one.chunks), "used": one.bytes, "chains": one.chains}
        for one in found.orphans
    ]
    if as_json:
        click.echo(json.dumps({"orphans": rows, "chunks_seen": found.chunks, "silent_chains": found.silent}))
    else:
        show(rows, as_json=False, empty=f"every one of {found.chunks:,} chunks belongs to a file")
    if removing and found.orphans:
        total = sum(one.bytes for one in found.orphans)
        confirm(f"{len(found.orphans)} files' worth of chunks, {size(total)}, are removed for good.", yes=yes)
        removed = remove_orphans(client.storage, found.orphans)
        click.echo(f"{removed:,} chunks removed", err=as_json)
    if found.silent:
        raise Unavailable(f"chains {some(found.silent)} did not answer, and were left out")


def _chunks_of(client: Client, what: str, index: int | None) -> list[tuple[int, int, int]]:
    """(hi, lo, chain) of the file's chunks. Raises: NotFound, IsADirectory."""
    path = parse_url(what)[1] if "://" in what else what
    inode = client.meta.stat_one(path if path.startswith("/") else f"/{path}")
    if inode.is_directory or inode.layout is None:
        raise IsADirectory(f"{path} is a directory; name a file")
    layout = inode.layout
    chains = stripe_chains(layout, client.mgmtd.routing.table(layout.chain_table, layout.chain_table_version))
    count = -(-inode.length // layout.chunk_bytes)
    if index is not None and index >= count:
        raise NotFound(f"{path} has {count} chunks, numbered from 0; there is no chunk {index}")
    numbers = range(min(count, _MOST_SHOWN)) if index is None else [index]
    return [(*file_chunk(inode.inode_id, number), int(chains[number % len(chains)])) for number in numbers]


def _row(copy: Copy) -> dict[str, Any]:
    return {
        "chunk": chunk_bytes(copy.hi, copy.lo).hex(),
        "chain": copy.target.chain_id,
        "target": copy.target.target_id,
        "node": copy.target.node_id,
        "state": copy.target.state.name.lower(),
        "version": copy.version or None,
        "pending": copy.pending or None,
        "chain version": copy.chain_version or None,
        "length": copy.length if copy.there else None,
        "sum": f"{copy.sum:08x}" if copy.there else None,
        "remark": copy.remark or None,
    }


COMMANDS = (chunk, orphans)
