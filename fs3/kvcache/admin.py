"""What a KV cache holds, and making it hold less: every page is found by listing the chains, and told by its footer.

A directory's pages lie on the chains of its table and name the directory; the root stands for every page of the
cluster, also those whose directory was removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs3.client.connect import Client
from fs3.client.storage import RANGE
from fs3.clock import deadline_after
from fs3.errors import Corrupt, Invalid, NotFound, Unavailable
from fs3.ids import KIND_KV_PAGE, ROOT_INODE
from fs3.inode import Inode
from fs3.kvcache.directory import open_directory
from fs3.kvcache.evict_core import choose_victims
from fs3.kvcache.keys_core import KEY_BYTES
from fs3.kvcache.page_core import FOOTER_BYTES, Footer, unpack_footer

FOOTERS_AT_ONCE = 4_096
REMOVED_AT_ONCE = 4_096
CHAIN_TIMEOUT_S = 10.0
UNREADABLE = b""  # the namespace of a page whose footer is damaged, or of another version

PAGE = np.dtype(
    [
        ("hi", "<u8"),
        ("lo", "<u8"),
        ("created_ns", "<u8"),
        ("stored_bytes", "<u4"),
        ("chain", "<u4"),
        ("depth", "<u4"),
        ("namespace", "<u4"),
    ]
)


@dataclass(frozen=True, slots=True)
class Holding:
    """Some pages and their bytes, footers included."""

    pages: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceHolding:
    """What one namespace holds. `deepest` is the number of pages in its longest chain; times as `KVHoldings` has."""

    pages: int
    bytes: int
    deepest: int
    oldest_ns: int
    newest_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KVHoldings:
    """What a cache holds. Namespaces go by their digest (hex), times are nanoseconds since 1970 (0: no page).

    `tables` counts pages by the chain tables their chains are in, as "ID vVERSION (N replicas)". Pages whose footer
    cannot be read are counted in `unreadable`, `chains` and `tables` alone. Chains in `silent` did not answer, and what
    they hold is not counted.
    """

    url: str
    pages: int
    bytes: int
    oldest_ns: int
    newest_ns: int
    deepest: int
    unreadable: int
    namespaces: dict[str, NamespaceHolding]
    chains: dict[int, Holding]
    tables: dict[str, Holding]
    silent: tuple[int, ...]

    def as_data(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Cleared:
    """What `clear` removed, and what it left of what it was asked to look at; `silent` chains were not looked at."""

    removed: Holding
    kept: Holding
    silent: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Pages:
    """PAGE records, the namespaces that they refer to by place, and the chains that did not answer."""

    records: NDArray[Any]
    namespaces: list[bytes]
    silent: tuple[int, ...]


def holdings(url: str, *, secret: str = "") -> KVHoldings:
    """What the cache in directory `url` holds.

    Raises: Invalid, NotFound, NotADirectory, Unavailable.
    """
    client, directory = open_directory(url, secret=secret, create=False)
    found = _list(client, directory)
    known = found.records[found.records["namespace"] > 0]
    namespaces = {}
    for place, digest in enumerate(found.namespaces):
        mine = found.records[found.records["namespace"] == place]
        if place and len(mine):
            namespaces[digest.hex()] = NamespaceHolding(**_facts(mine))
    chains = {int(chain): _holding(found.records, chain) for chain in np.unique(found.records["chain"])}
    return KVHoldings(
        url=url,
        unreadable=len(found.records) - len(known),
        namespaces=namespaces,
        chains=chains,
        tables=_by_table(client, chains),
        silent=found.silent,
        **_facts(known),
    )


def clear(url: str, *, namespace: str = "", keep_bytes: int = 0, secret: str = "") -> Cleared:
    """Remove pages of the cache in directory `url`, the oldest first, until at most `keep_bytes` of them stay.

    Only pages whose namespace begins with the hex digits `namespace` are looked at; without it all are, and pages with
    an unreadable footer go first.

    Raises: Invalid, NotFound, NotADirectory, Unavailable.
    """
    wanted = _prefix(namespace)
    client, directory = open_directory(url, secret=secret, create=False)
    found = _list(client, directory)
    chosen = np.array([digest.hex().startswith(wanted) for digest in found.namespaces], dtype=np.bool_)
    pages = found.records[chosen[found.records["namespace"]]]
    victims = choose_victims(pages["created_ns"], pages["depth"], pages["stored_bytes"], keep_bytes)
    for begin in range(0, len(victims), REMOVED_AT_ONCE):
        gone = pages[victims[begin : begin + REMOVED_AT_ONCE]]
        # A page that a crash brings back is a page of the cache again, no more: nobody need wait for the disk.
        client.storage.remove(gone["hi"], gone["lo"], gone["chain"], durable=False)
    removed = Holding(len(victims), int(pages["stored_bytes"][victims].sum()))
    total = int(pages["stored_bytes"].sum())
    return Cleared(removed, Holding(len(pages) - removed.pages, total - removed.bytes), found.silent)


def _list(client: Client, directory: Inode) -> _Pages:
    """Every page of `directory`, of all of them if it is the root."""
    routing = client.mgmtd.routing
    everything = directory.inode_id == ROOT_INODE
    if everything:
        chains = sorted({int(chain) for table in routing.tables.values() for chain in table.chains})
    else:
        assert directory.layout is not None
        table = routing.table(directory.layout.chain_table, directory.layout.chain_table_version)
        chains = sorted({int(chain) for chain in table.chains})
    places = {UNREADABLE: 0}
    parts = [np.zeros(0, dtype=PAGE)]
    silent = []
    for chain in chains:
        if not client.mgmtd.routing.serving(chain):
            silent.append(chain)  # known not to answer: nobody need wait for it
            continue
        try:
            # First the list and then the footers, which have times of their own: a long chain is not a silent one.
            listing = list(client.storage.list_kind(KIND_KV_PAGE, chain, deadline_s=deadline_after(CHAIN_TIMEOUT_S)))
            of_chain = [
                _told(client, listed, chain, None if everything else directory.inode_id, places) for listed in listing
            ]
        except Unavailable:
            silent.append(chain)
        else:
            parts += of_chain
    return _Pages(np.concatenate(parts), list(places), tuple(silent))


def _told(
    client: Client, listed: NDArray[Any], chain: int, directory: int | None, places: dict[bytes, int]
) -> NDArray[Any]:
    """PAGE records of those of the LISTED ones that are of `directory` (None: of any) or cannot be told."""
    pages = np.zeros(len(listed), dtype=PAGE)
    pages["hi"], pages["lo"], pages["stored_bytes"] = listed["hi"], listed["lo"], listed["chunk_length"]
    pages["chain"] = chain
    keep = np.ones(len(pages), dtype=np.bool_)
    for i, (there, footer) in enumerate(_footers(client, pages)):
        keep[i] = there
        if footer is not None:
            keep[i] = directory is None or footer.directory == directory
            pages["created_ns"][i], pages["depth"][i] = footer.created_ns, footer.depth
            pages["namespace"][i] = places.setdefault(footer.namespace, len(places))
    return pages[keep]


def _footers(client: Client, pages: NDArray[Any]) -> Iterator[tuple[bool, Footer | None]]:
    """Whether each page is still there, and its footer, None where it cannot be read. Raises: Unavailable."""
    for begin in range(0, len(pages), FOOTERS_AT_ONCE):
        batch = pages[begin : begin + FOOTERS_AT_ONCE]
        landing = memoryview(bytearray(len(batch) * FOOTER_BYTES))
        ranges = np.zeros(len(batch), dtype=RANGE)
        for name in ("hi", "lo", "chain"):
            ranges[name] = batch[name]
        ranges["length"] = FOOTER_BYTES
        ranges["offset"] = np.maximum(batch["stored_bytes"].astype(np.int64) - FOOTER_BYTES, 0)
        offsets = np.arange(len(batch), dtype=np.int64) * FOOTER_BYTES
        statuses = _read_what_is_sound(client, ranges, landing, offsets, deadline_after(CHAIN_TIMEOUT_S))
        for i, status in enumerate(statuses.tolist()):
            footer = None
            if status == 0:
                with contextlib.suppress(Corrupt):
                    footer = unpack_footer(landing[i * FOOTER_BYTES : (i + 1) * FOOTER_BYTES])
            yield status != NotFound.code, footer


def _read_what_is_sound(
    client: Client, ranges: NDArray[Any], landing: memoryview, offsets: NDArray[np.int64], deadline_s: float
) -> NDArray[np.uint16]:
    """Read the ranges [n]; the status of each: 0, or the code of NotFound or Corrupt."""
    try:
        return np.asarray(client.storage.read(ranges, landing, offsets, deadline_s=deadline_s)["status"])
    except Corrupt:
        if len(ranges) == 1:
            return np.array([Corrupt.code], dtype=np.uint16)
        half = len(ranges) // 2
        first = _read_what_is_sound(client, ranges[:half], landing, offsets[:half], deadline_s)
        second = _read_what_is_sound(client, ranges[half:], landing, offsets[half:], deadline_s)
        return np.concatenate((first, second))


def _facts(pages: NDArray[Any]) -> dict[str, int]:
    some = len(pages) > 0
    return {
        "pages": len(pages),
        "bytes": int(pages["stored_bytes"].sum()),
        "deepest": int(pages["depth"].max()) + 1 if some else 0,
        "oldest_ns": int(pages["created_ns"].min()) if some else 0,
        "newest_ns": int(pages["created_ns"].max()) if some else 0,
    }


def _holding(pages: NDArray[Any], chain: int) -> Holding:
    mine = pages[pages["chain"] == chain]
    return Holding(len(mine), int(mine["stored_bytes"].sum()))


def _by_table(client: Client, chains: dict[int, Holding]) -> dict[str, Holding]:
    tables = {}
    for (table_id, version), table in sorted(client.mgmtd.routing.tables.items()):
        mine = [chains[int(chain)] for chain in table.chains if int(chain) in chains]
        if mine:
            name = f"{table_id} v{version} ({table.replicas} replicas)"
            tables[name] = Holding(sum(one.pages for one in mine), sum(one.bytes for one in mine))
    return tables


def _prefix(namespace: str) -> str:
    """`namespace` as lower-case hex digits. Raises: Invalid."""
    prefix = namespace.lower()
    if len(prefix) > 2 * KEY_BYTES or any(digit not in "0123456789abcdef" for digit in prefix):
        raise Invalid(f"namespace {namespace!r}: give the first hex digits of a namespace, as `fs3 kv stats` shows it")
    return prefix
