"""Puts a backup into a store that holds no names, while no meta daemon uses it.

An interrupted restore leaves a mark, with which no meta serves the store; a further one begins from scratch. Inode ids
that were given out after the backup are not known to it, while chunks of those files may still lie on storage nodes: so
that none is ever given out again, the next one is far above.
"""

from __future__ import annotations

from collections.abc import Iterable

from fs3.client.mgmtd import MgmtdClient
from fs3.errors import Corrupt, Invalid
from fs3.ids import ROOT_INODE
from fs3.kv import keys
from fs3.kv.api import KVEngine, Transaction, transact
from fs3.kv.occ_core import decode_counter, encode_counter
from fs3.kv.opening import open_store
from fs3.meta.backup_format import Reader
from fs3.meta.config import MetaConfig
from fs3.routing import NodeKind

_SKIPPED_IDS = 1 << 40
_END = b"\xff"
_AT_ONCE_BYTES = 512 << 10  # in one transaction
_OPERATIONS_OF_A_PAIR = 2  # on etcd: it, and the stamp of its group
_RECORD = 1  # of the commit, on etcd


async def restore_into(config: MetaConfig, pieces: Iterable[bytes]) -> Reader:
    """Put the backup whose bytes these are into the store of a meta daemon's file; what was read of it.

    Raises:
        Invalid: it is no backup, or another cluster's; the store holds names; a meta daemon runs.
        Corrupt: it is damaged, or not all there; the store then waits for another restore.
        Unavailable: mgmtd or the store does not answer.
    """
    cluster_id = _cluster_without_metas(config)
    reader = Reader()
    kv = await open_store(config.store, keys.group)
    try:
        begun = False
        for piece in pieces:
            pairs = reader.feed(piece)
            if reader.header is not None and not begun:
                if reader.header.cluster_id != cluster_id:
                    raise Invalid(
                        f"the backup is of cluster {reader.header.cluster_id}, and mgmtd is of cluster {cluster_id}"
                    )
                await begin(kv)
                begun = True
            await put(kv, pairs)
        if not reader.complete:
            raise Corrupt("the backup ends too early; restore from another one")
        await finish(kv)
    finally:
        await kv.close()
    return reader


def _cluster_without_metas(config: MetaConfig) -> str:
    """The cluster's id. Raises: Invalid: one of its metas is alive; Unavailable."""
    client = MgmtdClient.connect(config.mgmtd, config.secret)
    try:
        alive = [node.node_id for node in client.routing.nodes.values() if node.kind is NodeKind.META and node.alive]
        if alive:
            raise Invalid(f"meta {', '.join(map(str, sorted(alive)))} is alive; stop every meta daemon first")
        return client.cluster_info.cluster_id
    finally:
        client.close()


async def begin(kv: KVEngine) -> None:
    """Mark the store, and clear what an interrupted restore left. Raises: Invalid: it holds names."""

    async def body(txn: Transaction) -> None:
        if await txn.get(keys.RESTORING) is None:
            entries = await txn.range(*keys.whole(keys.DENTRY), limit=1)
            if entries:
                raise Invalid("the store holds names already; restore into an empty one")
        txn.delete_range(b"", _END)
        txn.put(keys.RESTORING, b"")

    await transact(kv, body)


async def put(kv: KVEngine, pairs: Iterable[tuple[bytes, bytes]]) -> None:
    """Write pairs of the backup. Raises: Fs3Error of the store."""
    most = max(min((kv.limits.max_operations - _RECORD) // _OPERATIONS_OF_A_PAIR, 2_000), 1)
    some: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in pairs:
        if some and (len(some) >= most or size + len(value) > _AT_ONCE_BYTES):
            await _put(kv, some)
            some, size = [], 0
        some.append((key, value))
        size += len(key) + len(value)
    if some:
        await _put(kv, some)


async def finish(kv: KVEngine) -> None:
    """All pairs are there: the store may be used. Raises: Invalid: it has no root directory."""

    async def body(txn: Transaction) -> None:
        if await txn.get(keys.inode(ROOT_INODE)) is None:
            raise Invalid("the backup has no root directory; was it made of a cluster that had never been used?")
        newest = decode_counter(await txn.get(keys.NEXT_INODE))
        txn.put(keys.NEXT_INODE, encode_counter(newest + _SKIPPED_IDS))
        txn.delete(keys.RESTORING)

    await transact(kv, body)


async def _put(kv: KVEngine, pairs: list[tuple[bytes, bytes]]) -> None:
    async def body(txn: Transaction) -> None:
        for key, value in pairs:
            txn.put(key, value)

    await transact(kv, body)
