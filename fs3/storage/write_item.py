"""One update of one chunk on its way through a replica, and what of it goes to the successor.

A successor that serves gets the update as the writer sent it. One that is SYNCING gets the whole chunk as it will be,
and so does any successor if only the pending version is left of an update.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Corrupt, Fs3Error
from fs3.storage.ahead import Arrival
from fs3.storage.allocator_core import LARGEST_BYTES
from fs3.storage.chain_state import Acting, Role
from fs3.storage.craq_core import Identity
from fs3.storage.engine_api import ChunkEngine, Staged, Update
from fs3.storage.write_locks import Key
from fs3.transport.messages import UPDATE, Op, Records, UpdateFlag

K = TypeVar("K", bound=Hashable)

_WHOLE_BYTES = 64 << 20  # of whole chunks read at once to be forwarded
_NO_SUMS = np.empty(0, dtype=np.uint32)


@dataclass(slots=True, eq=False)
class Item:
    """One update of one chunk in one replica. `own` is false if only its pending version is known, not the update."""

    key: Key
    acting: Acting
    role: Role
    engine: ChunkEngine
    op: Op = Op.REPLACE
    offset: int = 0
    data: memoryview = field(default_factory=lambda: memoryview(b""))
    fine: NDArray[np.uint32] = field(default_factory=lambda: _NO_SUMS)
    flags: UpdateFlag = UpdateFlag.NONE
    chunk_bytes: int = LARGEST_BYTES
    version: int = 0
    identity: Identity = (0, 0, 0)
    recorded_crc: int = 0  # with UpdateFlag.DAMAGED
    from_client: bool = False
    own: bool = True
    locked: bool = False
    whole: bool = False
    first: bool = True  # no attempt to forward it can have reached anybody
    lost: bool = False  # its pending version fails its sums here, and cannot be sent whole
    arrival: Arrival | None = None  # its bytes came ahead of it
    staged: Staged | None = None
    done: bool = False
    error: Fs3Error | None = None
    length: int = 0

    @property
    def durable(self) -> bool:
        return not self.flags & UpdateFlag.OS_DURABILITY

    @property
    def bare(self) -> bool:
        """Whether it makes no version of its chunk: nothing is staged, the replicas behind do it first."""
        return self.op in (Op.FORGET, Op.NOTE)

    def update(self, version: int) -> Update:
        """What the engine is to make of it."""
        client, channel, seq = self.identity
        return Update(
            target_id=self.key[0],
            hi=self.key[1],
            lo=self.key[2],
            op=Op.REPLACE if self.op is Op.PUT_IF_ABSENT else self.op,
            offset=self.offset,
            data=self.data,
            fine=self.fine,
            version=version,
            chain_version=self.role.version,
            chunk_bytes=self.chunk_bytes,
            durable=self.durable,
            client=client,
            channel=channel,
            seq=seq,
            flags=self.flags & ~(UpdateFlag.OS_DURABILITY | UpdateFlag.FRESH | UpdateFlag.RETRY),
            recorded_crc=self.recorded_crc,
            reserved=self.arrival.reserved if self.arrival is not None and not self.arrival.used else None,
        )


def grouped(items: Sequence[Item], key: Callable[[Item], K]) -> list[tuple[K, list[Item]]]:
    """Items by key, in order of first appearance."""
    groups: defaultdict[K, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.items())


def is_whole(item: Item) -> bool:
    """Whether the successor gets the whole chunk."""
    return item.whole or not item.own or (item.role.successor is not None and item.role.successor.syncing)


def slices(items: Sequence[Item]) -> Iterator[list[Item]]:
    """`items` in runs whose whole chunks fit into memory together."""
    run: list[Item] = []
    size = 0
    for item in items:
        cost = item.staged.length if item.staged is not None and is_whole(item) else 0
        if run and size + cost > _WHOLE_BYTES:
            yield run
            run, size = [], 0
        run.append(item)
        size += cost
    if run:
        yield run


def outgoing(item: Item) -> tuple[Records, memoryview, NDArray[np.uint32]]:
    """The UPDATE record [1], bytes and sums that a successor gets. Raises: Fs3Error (the pending bytes are damaged)."""
    if item.bare:
        return _bare_record(item), memoryview(b""), _NO_SUMS
    staged, successor = item.staged, item.role.successor
    assert staged is not None and successor is not None
    flags = UpdateFlag.NONE if staged.durable else UpdateFlag.OS_DURABILITY
    if not successor.syncing and not item.engine.info(*item.key).found:
        flags |= UpdateFlag.FRESH
    if not is_whole(item):
        op = Op.REPLACE if item.op is Op.PUT_IF_ABSENT else item.op
        if item.arrival is not None and item.arrival.is_with(successor, item.role.version):
            record = _record_of(item, op, flags | UpdateFlag.AHEAD, 0, item.data, item.fine, item.chunk_bytes)
            return record, memoryview(b""), item.fine
        return (
            _record_of(item, op, flags, item.offset, item.data, item.fine, item.chunk_bytes),
            item.data,
            item.fine,
        )
    if staged.removes:
        if successor.syncing:
            flags |= UpdateFlag.SYNC_REMOVE
        return (
            _record_of(item, Op.REMOVE, flags, 0, memoryview(b""), _NO_SUMS, LARGEST_BYTES),
            memoryview(b""),
            _NO_SUMS,
        )
    if successor.syncing:
        flags |= UpdateFlag.SYNC_REPLACE
    if item.own and item.op in (Op.REPLACE, Op.PUT_IF_ABSENT):
        return _record_of(item, Op.REPLACE, flags, 0, item.data, item.fine, LARGEST_BYTES), item.data, item.fine
    try:
        chunk = item.engine.read_chunk(*item.key, pending=True)
    except Corrupt:
        if item.first or not successor.syncing:
            raise
        return _as_it_is(item, flags | UpdateFlag.DAMAGED)
    record = _record_of(item, Op.REPLACE, flags, 0, chunk.data, chunk.fine, LARGEST_BYTES)
    return record, chunk.data, chunk.fine


def _as_it_is(item: Item, flags: UpdateFlag) -> tuple[Records, memoryview, NDArray[np.uint32]]:
    """A pending version whose bytes are damaged, for a SYNCING successor, who then knows that they are."""
    found = item.engine.read_as_is(*item.key, pending=True)
    record = _record_of(item, Op.REPLACE, flags, 0, found.data, found.fine, LARGEST_BYTES)
    record["reserved"] = found.recorded_crc
    return record, found.data, found.fine


def _record_of(
    item: Item,
    op: Op,
    flags: UpdateFlag,
    offset: int,
    data: memoryview,
    fine: NDArray[np.uint32],
    chunk_bytes: int,
) -> Records:
    """The UPDATE record [1] of a pending version on its way to the successor."""
    staged = item.staged
    assert staged is not None
    record = np.zeros(1, dtype=UPDATE)
    record["hi"], record["lo"] = item.key[1:]
    record["offset"], record["length"], record["n_sums"] = offset, len(data), len(fine)
    record["chain"], record["chain_version"] = item.role.chain_id, item.role.version
    record["client"], record["channel"], record["seq"] = staged.client, staged.channel, staged.seq
    record["version"], record["op"], record["flags"] = staged.version, op, flags
    record["chunk_bytes"] = chunk_bytes
    return record


def _bare_record(item: Item) -> Records:
    """The UPDATE record [1] of what makes no version."""
    assert item.role.successor is not None
    record = np.zeros(1, dtype=UPDATE)
    record["hi"], record["lo"] = item.key[1:]
    record["chain"], record["chain_version"] = item.role.chain_id, item.role.version
    record["client"], record["channel"], record["seq"] = item.identity
    record["version"], record["op"], record["offset"] = item.version, item.op, item.length
    record["chunk_bytes"] = LARGEST_BYTES
    return record
