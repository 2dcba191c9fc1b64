"""How an engine's chunks change: a batch of updates becomes pending or committed versions, in one metadata batch.

The steps of one change, and why a crash between any two of them loses nothing, are in engine.py. Every method holds the
locks of the chunks that it changes, so that what it has read of them is still so when its batch is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fs3 import checksum
from fs3.errors import Conflict, Fs3Error, Invalid, NoSpace, NotFound
from fs3.ids import chunk_name
from fs3.storage import content_core as content
from fs3.storage import metadata as md
from fs3.storage.chunk_locks import ChunkLocks, Key
from fs3.storage.commit import Committer
from fs3.storage.engine_api import PendingChunk, Staged, Update
from fs3.storage.metadata import MetadataStore, Put, Version
from fs3.storage.published import Published
from fs3.storage.staging import Prepared, Stager, key_of
from fs3.storage.targets import Targets


class Changes:
    """See the module, and engine_api.ChunkEngine for the methods of the same names."""

    def __init__(
        self,
        metadata: MetadataStore,
        published: Published,
        stager: Stager,
        committer: Committer,
        locks: ChunkLocks,
        targets: Targets,
    ) -> None:
        self._metadata = metadata
        self._published = published
        self._stager = stager
        self._committer = committer
        self._locks = locks
        self._targets = targets
        self.updates = 0
        self.updated_bytes = 0
        self.repaired = 0

    # Updates

    def stage(self, updates: Sequence[Update]) -> list[Staged | Fs3Error]:
        """Make each update its chunk's pending version."""
        results: list[Staged | Fs3Error | None] = [None] * len(updates)
        rows: list[int] = []
        keys: set[Key] = set()
        for row, update in enumerate(updates):
            key = (update.target_id, update.hi, update.lo)
            if key in keys:
                results[row] = Conflict("two updates of one chunk in a batch; stage them one after the other")
            else:
                keys.add(key)
                rows.append(row)
        for row, result in zip(rows, self._change([updates[row] for row in rows], commit=False), strict=True):
            results[row] = result
        return [result for result in results if result is not None]

    def stage_and_commit(self, updates: Sequence[Update]) -> list[Staged | Fs3Error]:
        """Both in one durable batch; updates of one chunk are applied in order."""
        results: list[Staged | Fs3Error | None] = [None] * len(updates)
        left = list(range(len(updates)))
        while left:
            keys: set[Key] = set()
            now: list[int] = []
            later: list[int] = []
            for row in left:
                key = (updates[row].target_id, updates[row].hi, updates[row].lo)
                (later if key in keys else now).append(row)
                keys.add(key)
            for row, result in zip(now, self._change([updates[row] for row in now], commit=True), strict=True):
                results[row] = result
            left = later
        return [result for result in results if result is not None]

    def _change(self, updates: Sequence[Update], *, commit: bool) -> list[Staged | Fs3Error]:
        results: list[Staged | Fs3Error] = []
        prepared: list[Prepared] = []
        with self._locks.holding({(update.target_id, update.hi, update.lo) for update in updates}):
            for update in updates:
                try:
                    self._targets.check(update.target_id)
                    ready = self._stager.prepare(update)
                    if (ready.erases or ready.damaged) and not commit:
                        raise Invalid(
                            "erasing a chunk, or damaged bytes, leave nothing to stage; stage_and_commit them"
                        )
                except Fs3Error as error:
                    results.append(error)
                else:
                    prepared.append(ready)
                    results.append(ready.staged)
            puts = [put for ready in prepared for put in self._puts(ready, commit=commit)]
            if not puts:
                return results
            self._stager.sync(prepared)
            self._submit(prepared, puts, commit=commit)
        return results

    def _submit(self, prepared: Sequence[Prepared], puts: Sequence[Put], *, commit: bool) -> None:
        try:
            self._committer.submit(
                puts,
                lambda batch: self._publish(prepared, batch, commit=commit),
                sync=any(ready.staged.durable for ready in prepared),
            )
        except NoSpace:  # nothing was written, so no record names these blocks
            self._stager.give_back(prepared)
            raise

    def _puts(self, ready: Prepared, *, commit: bool) -> list[Put]:
        staged = ready.staged
        key = (staged.target_id, staged.hi, staged.lo)
        puts: list[Put] = []
        if ready.version is not None and not commit:
            return [(md.chunk_key(md.PENDING, *key), ready.version.pack_pending())]
        if ready.version is not None:
            record = None if ready.erases else ready.version.pack()
            puts.append((md.chunk_key(md.COMMITTED, *key), record))
            if key in self._published.pending:
                puts.append((md.chunk_key(md.PENDING, *key), None))
            if ready.damaged:
                puts.append((md.chunk_key(md.DAMAGED, *key), md.pack_mark(ready.version.version)))
            elif key in self._published.damaged:
                puts.append((md.chunk_key(md.DAMAGED, *key), None))
        return puts + self._result_put(staged) if commit else puts

    def _result_put(self, staged: Staged) -> list[Put]:
        if not staged.client:
            return []
        key = md.result_key(staged.target_id, staged.client, staged.channel)
        return [(key, md.pack_result(staged.seq, staged.version, staged.length, 0))]

    def _publish(self, prepared: Sequence[Prepared], batch: int, *, commit: bool) -> None:
        """In the commit thread, once the batch is as durable as it was asked to be."""
        for ready in prepared:
            if ready.version is not None and not commit:
                self._published.stage(key_of(ready.staged), ready.version, batch)
            elif ready.version is not None:
                self._published.commit(key_of(ready.staged), None if ready.erases else ready.version, batch)
                if ready.damaged:
                    self._published.mark(key_of(ready.staged), ready.version.version)
            if commit:
                self._published.result(ready.staged)
            self.updates += 1
            self.updated_bytes += ready.data_bytes

    # Pending versions

    def commit(self, staged: Sequence[Staged], *, sync: bool = True) -> None:
        """Pending -> committed. Raises: Conflict."""
        lost: list[Staged] = []
        with self._locks.holding({(one.target_id, one.hi, one.lo) for one in staged}):
            ready: list[Prepared] = []
            for one in staged:
                key = (one.target_id, one.hi, one.lo)
                pending = self._published.pending.get(key) if one.applied else None
                if pending is not None and pending.version != one.version:
                    pending = None
                if one.applied and pending is None and self._published.get(key).version != one.version:
                    lost.append(one)
                    continue
                ready.append(Prepared(one, pending, erases=one.removes and one.version == 0))
            puts = [put for one in ready for put in self._puts(one, commit=True)]
            if puts:
                self._committer.submit(puts, lambda batch: self._publish(ready, batch, commit=True), sync=sync)
        if lost:
            raise Conflict(
                f"target {lost[0].target_id}: version {lost[0].version} of a chunk is neither pending nor committed"
            )

    def restage(self, update: Update) -> None:
        """Give a pending version its bytes again, by the update that it is of."""
        key = (update.target_id, update.hi, update.lo)
        with self._locks.holding({key}):
            self._targets.check(update.target_id)
            before = self._published.pending.get(key)
            ready = self._stager.prepare(update)
            after = ready.version
            if before is None or after is None or after.file < 0 or not _same_bytes(before, after):
                self._stager.give_back([ready])
                raise Conflict(f"{chunk_name(*key[1:])} of target {key[0]}: these are not the bytes of what is pending")
            mended = before._replace(file=after.file, slot=after.slot)
            ready = Prepared(ready.staged, mended)
            self._stager.sync([ready])
            self._submit([ready], [(md.chunk_key(md.PENDING, *key), mended.pack_pending())], commit=False)

    def abort(self, staged: Sequence[Staged]) -> None:
        """Drop pending versions, for good: nobody may find one again after its update was said to have failed."""
        with self._locks.holding({(one.target_id, one.hi, one.lo) for one in staged}):
            keys = []
            for one in staged:
                key = (one.target_id, one.hi, one.lo)
                pending = self._published.pending.get(key)
                if one.applied and pending is not None and pending.version == one.version and key not in keys:
                    keys.append(key)
            if keys:
                puts = [(md.chunk_key(md.PENDING, *key), None) for key in keys]
                self._committer.submit(puts, lambda batch: self._publish_abort(keys, batch), sync=True)

    def _publish_abort(self, keys: Sequence[Key], batch: int) -> None:
        for key in keys:
            self._published.abort(key, batch)

    def pending_of(self, target_id: int) -> list[PendingChunk]:
        """In chunk-id order."""
        return self._published.pending_of(target_id)

    def pending_staged(self, target_id: int, hi: int, lo: int) -> Staged:
        """What `commit` takes. Raises: NotFound."""
        version = self._published.pending.get((target_id, hi, lo))
        if version is None:
            raise NotFound(f"target {target_id}: the chunk has no pending version")
        return Staged(
            target_id=target_id,
            hi=hi,
            lo=lo,
            version=version.version,
            length=version.length,
            chain_version=version.chain_version,
            applied=True,
            removes=version.removed,
            durable=not version.flags & md.FLAG_OS,
            client=version.client,
            channel=version.channel,
            seq=version.seq,
        )

    # Removals that are remembered

    def forget_tombstones(self, target_id: int, removals: Sequence[tuple[int, int, int]]) -> None:
        """Forget removals (hi, lo, version), each if it is what the chunk's record says."""
        versions = {(target_id, hi, lo): version for hi, lo, version in removals}
        with self._locks.holding(set(versions)):
            self._targets.check(target_id)
            keys = []
            for key, version in versions.items():
                entry = self._published.get(key)
                if version == entry.version != 0 and entry.file == 0 and not entry.pending:
                    keys.append(key)

            def publish(batch: int) -> None:
                for key in keys:
                    self._published.commit(key, None, batch)

            if keys:
                self._committer.submit([(md.chunk_key(md.COMMITTED, *key), None) for key in keys], publish, sync=True)

    # Damage

    def mark_damaged(self, target_id: int, hi: int, lo: int, version: int) -> bool:
        """Note that the bytes of this committed version fail their sums; whether it still is the committed one."""
        key = (target_id, hi, lo)
        with self._locks.holding({key}):
            entry = self._published.get(key)
            if entry.file == 0 or entry.version != version:
                return False
            if key not in self._published.damaged:
                put = (md.chunk_key(md.DAMAGED, *key), md.pack_mark(version))
                self._committer.submit([put], lambda _batch: self._published.mark(key, version), sync=False)
            return True

    def clear_damage(self, target_id: int, hi: int, lo: int) -> None:
        """The bytes match their sums after all."""
        key = (target_id, hi, lo)
        with self._locks.holding({key}):
            if key in self._published.damaged:
                put = (md.chunk_key(md.DAMAGED, *key), None)
                self._committer.submit([put], lambda _batch: self._published.unmark(key), sync=False)

    def repair(
        self, target_id: int, hi: int, lo: int, version: int, data: memoryview, fine: NDArray[np.uint32]
    ) -> None:
        """Give the committed version a new block with the bytes it had; results and a pending version stay."""
        key = (target_id, hi, lo)
        with self._locks.holding({key}):
            self._targets.check(target_id)
            record = self._committed(key, version)
            coarse = content.check_update(data, 0, fine)
            assert coarse is not None
            if len(data) != record.length or checksum.crc(coarse.tobytes()) != record.crc:
                raise Conflict(
                    f"{chunk_name(hi, lo)} of target {target_id}: these are not the bytes of version {version}"
                )
            block = self._stager.write_whole(data, fine, coarse)
            mended = record._replace(file=block.file, slot=block.slot, flags=record.flags & ~md.FLAG_OS)
            ready = Prepared(_repaired(key, mended), mended)
            self._stager.sync([ready])
            puts: list[Put] = [
                (md.chunk_key(md.COMMITTED, *key), mended.pack()),
                (md.chunk_key(md.DAMAGED, *key), None),
            ]
            try:
                self._committer.submit(puts, lambda batch: self._published.moved(key, mended, batch), sync=True)
            except NoSpace:
                self._stager.give_back([ready])
                raise
            self.repaired += 1

    def _committed(self, key: Key, version: int) -> Version:
        """The record of a committed version that has bytes. Raises: Conflict."""
        raw = self._metadata.get(md.chunk_key(md.COMMITTED, *key))
        record = md.unpack_version(raw) if raw is not None else None
        if record is None or record.file < 0 or record.version != version:
            has = "none" if record is None or record.removed else f"version {record.version}"
            raise Conflict(f"{chunk_name(*key[1:])} of target {key[0]}: version {version} was asked for, it has {has}")
        return record


def _same_bytes(one: Version, other: Version) -> bool:
    return (one.version, one.length, one.crc) == (other.version, other.length, other.crc)


def _repaired(key: Key, record: Version) -> Staged:
    """So that the block is synced, or given back, as any other."""
    return Staged(
        target_id=key[0],
        hi=key[1],
        lo=key[2],
        version=record.version,
        length=record.length,
        chain_version=record.chain_version,
        applied=True,
        removes=False,
        durable=True,
    )
