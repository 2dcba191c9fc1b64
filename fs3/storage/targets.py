"""The targets of an engine: making and dropping them, their small durable state, and the results of updates on them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence, Set

from fs3.errors import Exists, NotFound
from fs3.runtime import SYSTEM, Runtime
from fs3.storage import metadata as md
from fs3.storage.chunk_locks import ChunkLocks
from fs3.storage.commit import Committer, nothing
from fs3.storage.engine_api import DedupRecord, TargetRecord
from fs3.storage.metadata import MetadataStore, Put
from fs3.storage.published import Published

_DROP_BATCH = 4096  # chunks forgotten in one metadata batch
_FORGET_BATCH = 16_384  # results


class Targets:
    """See the module; `records` is replaced, never changed, so that any thread may read it."""

    def __init__(
        self,
        path: str,
        records: Mapping[int, TargetRecord],
        metadata: MetadataStore,
        committer: Committer,
        published: Published,
        locks: ChunkLocks,
        *,
        runtime: Runtime = SYSTEM,
    ) -> None:
        self.records = records
        self._path = path
        self._metadata = metadata
        self._committer = committer
        self._published = published
        self._locks = locks
        self._changing = runtime.lock()
        self._dropping: set[int] = set()  # a drop of them has begun; on a full disk it has to be gone on with

    def check(self, target_id: int) -> None:
        """Raises: NotFound."""
        if target_id not in self.records:
            raise NotFound(f"{self._path}: no target {target_id} on this disk")

    def create(self, target_id: int, chain_id: int) -> None:
        """Raises: Exists (other chain)."""
        with self._changing:
            if target_id in self._dropping:
                self._drop(target_id)
            known = self.records.get(target_id)
            if known is None:
                key = md.target_prefix(md.TARGET, target_id)
                self._committer.submit([(key, md.pack_target(chain_id))], nothing, sync=True)
                self.records = {**self.records, target_id: TargetRecord(target_id, chain_id)}
            elif known.chain_id != chain_id:
                raise Exists(f"target {target_id} is of chain {known.chain_id}, not {chain_id}; drop it first")

    def drop(self, target_id: int) -> None:
        """Forget a target and all that belongs to it. Raises: NoSpace: not all of it yet; the same call goes on."""
        with self._changing:
            if target_id in self.records or target_id in self._dropping:
                self._drop(target_id)

    def _drop(self, target_id: int) -> None:
        """Every step may be repeated."""
        self._dropping.add(target_id)
        self.records = {key: value for key, value in self.records.items() if key != target_id}
        self._locks.wait_for_target(target_id)
        # First the target itself: if we stop after it, the next opening deletes the rest.
        self._committer.submit([(md.target_prefix(md.TARGET, target_id), None)], nothing, sync=True)
        chunks = [(target_id, hi, lo) for hi, lo in self._published.index.keys_of(target_id)]
        for first in range(0, len(chunks), _DROP_BATCH):
            some = chunks[first : first + _DROP_BATCH]
            puts = [(md.chunk_key(kind, *key), None) for key in some for kind in (md.COMMITTED, md.PENDING, md.DAMAGED)]
            self._committer.submit(puts, functools.partial(self._published.drop, some), sync=False)
        owners = [(record.client, record.channel) for record in self.results(target_id)]
        rest: list[Put] = [(md.result_key(target_id, *owner), None) for owner in owners]
        rest += [(key, None) for key, _ in self._metadata.scan(md.target_prefix(md.STATE, target_id))]

        def publish(_batch: int) -> None:
            self._published.usage.pop(target_id, None)
            for owner in owners:
                self._published.results.pop((target_id, *owner), None)

        self._committer.submit(rest, publish, sync=True)
        self._dropping.discard(target_id)

    def get_state(self, target_id: int, key: bytes) -> bytes | None:
        return self._metadata.get(md.target_prefix(md.STATE, target_id) + key)

    def put_state(self, target_id: int, key: bytes, value: bytes) -> None:
        """Raises: NotFound, NoSpace, Unavailable."""
        self.check(target_id)
        self._committer.submit([(md.target_prefix(md.STATE, target_id) + key, value)], nothing, sync=True)

    def results(self, target_id: int) -> list[DedupRecord]:
        """All results of updates on a target."""
        known = list(self._published.results.items())
        return [
            DedupRecord(client, channel, entry) for (target, client, channel), entry in known if target == target_id
        ]

    def put_results(self, target_id: int, records: Sequence[DedupRecord], *, sync: bool) -> None:
        """Raises: NotFound, NoSpace, Unavailable."""
        self.check(target_id)

        def publish(_batch: int) -> None:
            for record in records:
                self._published.results[target_id, record.client, record.channel] = record.entry

        puts: list[Put] = [
            (md.result_key(target_id, record.client, record.channel), md.pack_result(*record.entry))
            for record in records
        ]
        self._committer.submit(puts, publish, sync=sync)

    def result_clients(self) -> set[int]:
        """Whose results are kept, on any target."""
        return {client for _, client, _ in list(self._published.results)}

    def forget_clients(self, clients: Set[int], key: bytes, value: bytes) -> None:
        """Drop the results of clients from all targets, and put the state `key` of those in the same batches."""
        owners = [owner for owner in list(self._published.results) if owner[1] in clients]
        for begin in range(0, len(owners), _FORGET_BATCH):
            some = owners[begin : begin + _FORGET_BATCH]
            puts: list[Put] = [
                (md.target_prefix(md.STATE, target_id) + key, value) for target_id in sorted({one[0] for one in some})
            ]
            puts += [(md.result_key(*owner), None) for owner in some]
            self._committer.submit(puts, functools.partial(self._forgotten, some), sync=False)

    def _forgotten(self, owners: Sequence[tuple[int, int, int]], _batch: int) -> None:
        for owner in owners:
            self._published.results.pop(owner, None)
