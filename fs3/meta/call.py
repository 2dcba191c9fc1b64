"""What an operation gets beside its transaction and request, and how it chooses a layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fs3.errors import Corrupt, Unavailable
from fs3.ids import InodeId
from fs3.inode import Inode
from fs3.layout import Durability, Layout, check_choice
from fs3.meta.access import SUPERUSER, Caller
from fs3.pb import meta_pb2
from fs3.routing import ChainTable, Routing


@dataclass(frozen=True, slots=True)
class Call:
    """The circumstances of one attempt: the time for people, fresh inode ids, the cluster's chain tables, who calls."""

    now_ns: int
    new_id: Callable[[], InodeId]
    routing: Routing
    caller: Caller = SUPERUSER
    at_once: int = 16  # how many inodes one transaction surely may hold


def default_layout(routing: Routing) -> Layout:
    """What the root directory starts with: as many replicas as the cluster offers. Raises: Unavailable."""
    if not routing.tables:
        raise Unavailable("the cluster has no chain tables yet; wait until its storage daemons have joined")
    table = routing.table_for_replicas(max(table.replicas for table in routing.tables.values()))
    return Layout(chain_table=table.table_id, chain_table_version=table.version)


def choose_layout(directory: Inode, choice: meta_pb2.LayoutChoice, routing: Routing) -> Layout:
    """The layout for something new in `directory`: the caller's choice, and the directory's where none was made.

    New things use the newest version of their chain table; what exists keeps the one it was made with.

    Raises:
        Invalid: the choice cannot be laid out.
        NotFound: no chain table has so many replicas.
    """
    inherited = directory.layout
    if inherited is None:
        raise Corrupt(f"directory {directory.inode_id} has no layout")
    if choice.HasField("replicas"):
        table: ChainTable | None = routing.table_for_replicas(choice.replicas)
    else:
        versions = [table for table in routing.tables.values() if table.table_id == inherited.chain_table]
        table = max(versions, key=lambda table: table.version, default=None)
    chosen = (inherited if table is None else _at(inherited, table))._replace(
        chunk_bytes=choice.chunk_bytes if choice.HasField("chunk_bytes") else inherited.chunk_bytes,
        stripe=choice.stripe if choice.HasField("stripe") else inherited.stripe,
        durability=Durability(choice.durability) if choice.HasField("durability") else inherited.durability,
    )
    check_choice(chunk_bytes=chosen.chunk_bytes, stripe=chosen.stripe)
    return chosen


def _at(layout: Layout, table: ChainTable) -> Layout:
    return layout._replace(chain_table=table.table_id, chain_table_version=table.version)
