"""What an engine knows of its chunks in memory: the index, pending versions, results of updates, and usage.

Changed by the commit thread alone, and only after the metadata batch that says so is as durable as it was asked to be;
read by any thread. Each method that lets go of a block hands it to `retire` after the index has stopped naming it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from fs3.storage.allocator_core import Block
from fs3.storage.blocks import BlockFiles
from fs3.storage.chunk_locks import Key
from fs3.storage.engine_api import DedupEntry, Located, PendingChunk, Place, Staged
from fs3.storage.index import EMPTY, Entry, Index
from fs3.storage.metadata import Version
from fs3.storage.opening import Loaded
from fs3.storage.space import block_id, block_ids
from fs3.transport.change_counters import ChangeCounters

_ABSENT = Entry()


class Published:
    """See the module. `retire(block, batch)` takes blocks that no record names from metadata batch `batch` on."""

    def __init__(
        self,
        loaded: Loaded,
        files: BlockFiles,
        retire: Callable[[Block, int], None],
        *,
        seed: int,
        chunks: int,
        changes: ChangeCounters | None = None,
    ) -> None:
        """`changes` count what readers can see change."""
        self._changes = changes
        self.index = Index(seed=seed, chunks=chunks)
        self.index.load(loaded.lines)
        self.pending: dict[Key, Version] = loaded.pending
        self.results: dict[Key, DedupEntry] = loaded.results  # (target, client, channel)
        self.usage: dict[int, tuple[int, int]] = loaded.usage  # target -> (bytes, chunks)
        self.tombstones = loaded.tombstones
        self.damaged: dict[Key, int] = loaded.damaged  # key -> version; replaced, never changed
        self._files = files
        self._retire = retire

    def get(self, key: Key) -> Entry:
        """An all-zero entry if the chunk is unknown."""
        return self.index.get(*key) or _ABSENT

    def lookup(self, target_ids: NDArray[np.uint32], hi: NDArray[np.uint64], lo: NDArray[np.uint64]) -> Located:
        lines = self.index.lookup(target_ids, hi, lo)
        stored, position = lines["file"], lines["position"]
        file = np.maximum(stored - np.int32(1), np.int32(-1))
        return Located(
            stored != 0,
            lines["version"],
            lines["pending"],
            lines["length"],
            lines["chain_version"],
            file,
            position,
            block_ids(file, position),
        )

    def place(self, key: Key) -> Place | None:
        entry = self.index.get(*key)
        if entry is None or entry.file <= 0:
            return None
        file = entry.file - 1
        return Place(entry.version, entry.pending, entry.length, file, entry.position, block_id(file, entry.position))

    def pending_of(self, target_id: int) -> list[PendingChunk]:
        """In chunk-id order."""
        return sorted(
            PendingChunk(
                key[1],
                key[2],
                version.version,
                version.chain_version,
                version.length,
                version.removed,
                self.get(key).version,
                version.client,
                version.channel,
                version.seq,
            )
            for key, version in list(self.pending.items())
            if key[0] == target_id
        )

    # Below: the commit thread.

    def stage(self, key: Key, version: Version, batch: int) -> None:
        """`version` is pending, instead of what was."""
        before = self.pending.get(key)
        self.pending[key] = version
        self._put(key, self.get(key)._replace(pending=version.version))
        self._let_go(before, batch)

    def abort(self, key: Key, batch: int) -> None:
        """Nothing is pending."""
        before = self.pending.pop(key, None)
        entry = self.get(key)
        if entry.version == 0 and entry.file == 0:
            self._erase(key)
        else:
            self._put(key, entry._replace(pending=0))
        self._let_go(before, batch)

    def commit(self, key: Key, version: Version | None, batch: int) -> None:
        """`version` (None: no record at all) is committed, and nothing pending."""
        before = self.pending.pop(key, None)
        old = self.get(key)
        used, chunks = self.usage.get(key[0], (0, 0))
        if version is None:
            self._erase(key)
        elif version.removed:
            self._put(key, Entry(version=version.version, chain_version=version.chain_version))
        else:
            position, stored = 0, EMPTY
            if version.file >= 0:
                file = self._files[version.file]
                position, stored = file.position(version.slot), version.file + 1
                used += file.block_bytes
            chunks += 1
            self._put(key, Entry(version.length, version.version, 0, position, stored, version.chain_version))
        self.tombstones += int(version is not None and version.removed) - int(old.version != 0 and old.file == 0)
        if old.file > 0:
            file = self._files[old.file - 1]
            used -= file.block_bytes
            self._retire(Block(file.file_no, file.slot(old.position)), batch)
        self.usage[key[0]] = (used, chunks - int(old.file != 0))
        self.unmark(key)
        if before != version:
            self._let_go(before, batch)

    def moved(self, key: Key, version: Version, batch: int) -> None:
        """The committed version lies in another block now, and is whole."""
        old, file = self.get(key), self._files[version.file]
        before = self._files[old.file - 1]
        self._put(key, old._replace(position=file.position(version.slot), file=version.file + 1))
        used, chunks = self.usage[key[0]]
        self.usage[key[0]] = (used + file.block_bytes - before.block_bytes, chunks)
        self._retire(Block(before.file_no, before.slot(old.position)), batch)
        self.unmark(key)

    def mark(self, key: Key, version: int) -> None:
        """The bytes of the committed version are known to fail their sums."""
        with self._changing(key):
            self.damaged = {**self.damaged, key: version}

    def unmark(self, key: Key) -> None:
        """They are not, or not any more."""
        if key in self.damaged:
            with self._changing(key):
                self.damaged = {other: version for other, version in self.damaged.items() if other != key}

    def result(self, staged: Staged) -> None:
        """Remember what the update of a client's channel came to."""
        if staged.client:
            owner = (staged.target_id, staged.client, staged.channel)
            self.results[owner] = DedupEntry(staged.seq, staged.version, staged.length)

    def drop(self, keys: Sequence[Key], batch: int) -> None:
        """Forget chunks of a dropped target."""
        for key in keys:
            self.commit(key, None, batch)

    def _let_go(self, version: Version | None, batch: int) -> None:
        if version is not None and version.file >= 0:
            self._retire(Block(version.file, version.slot), batch)

    def _put(self, key: Key, entry: Entry) -> None:
        with self._changing(key):
            self.index.put(*key, entry)

    def _erase(self, key: Key) -> None:
        with self._changing(key):
            self.index.erase(*key)

    @contextmanager
    def _changing(self, key: Key) -> Iterator[None]:
        """Around whatever readers can see change."""
        changes = self._changes
        if changes is None:
            yield
            return
        changes.begin(key[1], key[2])
        try:
            yield
        finally:
            changes.end(key[1], key[2])
