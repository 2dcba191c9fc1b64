"""Whether the chunks are there that a file should have: a part that is to stay must not be taken for zeros."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fs3.client.plan_core import I64
from fs3.client.storage import StorageClient
from fs3.errors import Corrupt
from fs3.ids import file_chunk

_MOST_CHECKED = 65_536  # chunks, whose presence is remembered


class Presence:
    """The chunks of a file of `length` bytes, as they were when it was opened; for one thread at a time."""

    def __init__(self, storage: StorageClient, inode_id: int, chains: I64, chunk_bytes: int, length: int) -> None:
        self._storage = storage
        self._inode_id = inode_id
        self._chains = chains
        self._chunk_bytes = chunk_bytes
        self._length = length
        self._checked: set[int] = set()
        self._ours = length // chunk_bytes  # chunks from here on are as the writer made or found them

    def made_from(self, index: int) -> None:
        """Chunks from this one on are now as the writer made them."""
        self._ours = min(self._ours, index)

    def require(self, indexes: Sequence[int], deadline_s: float | None) -> None:
        """That these are there, and as long as they were. Raises: Corrupt; Unavailable."""
        unknown = [index for index in indexes if index < self._ours and index not in self._checked]
        if unknown:
            self.found(unknown, deadline_s)
            if len(self._checked) >= _MOST_CHECKED:
                self._checked.clear()
            self._checked.update(unknown)

    def found(self, indexes: Sequence[int], deadline_s: float | None) -> I64:
        """The lengths of chunks [n] that the file had: [n]. Raises: Corrupt: one is shorter than then; Unavailable."""
        chunks = np.array(indexes, dtype=np.int64)
        lengths, size = self.lengths(chunks, deadline_s), self._chunk_bytes
        short = lengths < np.minimum(self._length - chunks * size, size)
        if short.any():
            index, length = int(chunks[short][0]), int(lengths[short][0])
            raise Corrupt(
                f"chunk {index} on chain {int(self._chains[index % len(self._chains)])} has {max(length, 0)} bytes, too"
                f" few for a file of {self._length}; restore the file from its source"
            )
        return lengths

    def lengths(self, indexes: I64, deadline_s: float | None) -> I64:
        """How long each of these chunks is; -1 if it does not exist: [n] -> [n]. Raises: Unavailable."""
        hi, _ = file_chunk(self._inode_id, 0)
        found = self._storage.query(
            np.full(len(indexes), hi, dtype=np.uint64),
            indexes.astype(np.uint64),
            self._chains[indexes % len(self._chains)].astype(np.uint32),
            deadline_s=deadline_s,
        )
        return np.where(found["status"] == 0, found["chunk_length"].astype(np.int64), -1)
