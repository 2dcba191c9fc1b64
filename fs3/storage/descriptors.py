"""What a client that reads block files by itself was given: read-only descriptions of them, and the blocks it has
pinned.

Each connection has descriptions of its own, opened for it and shared with its client by SCM_RIGHTS. The blocks that an
unacknowledged LOCATE named are locked on them (file_locks.py), beside the engine's own pins: those end with this
process, the locks with the client's copy of the description. So a client that loses its daemon while it reads still
reads what it was shown, whatever the daemon that comes after does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from fs3.storage import file_locks
from fs3.storage.engine_api import ChunkEngine
from fs3.transport.change_counters import ChangeCounters
from fs3.transport.messages import COUNTERS

MOST_FILES = 128  # descriptions of one connection

FileKey = int  # engine number << 16 | block file number
Block = tuple[FileKey, int, int]  # file, position, bytes


class Budget:
    """How many descriptions all connections may have together. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._lock = threading.Lock()

    def take(self) -> bool:
        """One more; False if there is none left."""
        with self._lock:
            if self._left <= 0:
                return False
            self._left -= 1
            return True

    def give_back(self, count: int) -> None:
        """So many are closed."""
        with self._lock:
            self._left += count


class Descriptors:
    """Those of one connection; for the thread that owns it."""

    def __init__(self, budget: Budget, *, to_keep_places: bool = False) -> None:
        """`to_keep_places`: the client looks at change counters."""
        self.to_keep_places = to_keep_places
        self._budget = budget
        self._fds: dict[FileKey, int] = {}
        self._unsent: list[FileKey] = []
        self._locked: dict[Block, int] = {}

    def has(self, key: FileKey, engine: ChunkEngine, file_no: int) -> bool:
        """Whether there is a description of a block file, or one could be made."""
        return key in self._fds or self._open(key, lambda: engine.share(file_no))

    def has_counters(self, key: FileKey, counters: ChangeCounters) -> bool:
        """Whether the client has an engine's change counters, or gets them with the next reply."""
        return key in self._fds or self._open(key, counters.share)

    def _open(self, key: FileKey, share: Callable[[], int]) -> bool:
        if len(self._fds) >= MOST_FILES or not self._budget.take():
            return False
        try:
            self._fds[key] = share()
        except OSError:
            self._budget.give_back(1)
            return False
        self._unsent.append(key)
        return True

    def unsent(self, *, counters: bool = False) -> tuple[list[FileKey], list[int]]:
        """The files of which the client has no descriptor yet, and these, which the next reply must bring; or only
        change counters."""
        keys = [key for key in self._unsent if not counters or key & COUNTERS == COUNTERS]
        self._unsent = [key for key in self._unsent if key not in keys]
        return keys, [self._fds[key] for key in keys]

    def lock(self, blocks: list[Block]) -> Callable[[], None]:
        """Lock these blocks until the function that this returns is called; locks of a block add up.

        Raises: OSError; none of them is locked then.
        """
        done: list[Block] = []
        try:
            for block in blocks:
                count = self._locked.get(block, 0)
                if not count:
                    file_locks.lock(self._fds[block[0]], block[1], block[2])
                self._locked[block] = count + 1
                done.append(block)
        except OSError:
            self._unlock(done)
            raise
        return lambda: self._unlock(done)

    def _unlock(self, blocks: list[Block]) -> None:
        for block in blocks:
            left = self._locked.get(block, 0) - 1
            if left > 0:
                self._locked[block] = left
            elif left == 0:
                del self._locked[block]
                file_locks.unlock(self._fds[block[0]], block[1], block[2])

    def let_go(self) -> None:
        """Close this side's descriptors; what is locked stays locked for as long as a client has one of them."""
        self._locked.clear()
        self.close()

    def close(self) -> None:
        """End every lock and close this side's descriptors; any number of times. After the socket: `Peer.close`."""
        self._unlock([block for block, count in self._locked.items() for _ in range(count)])
        fds, self._fds = self._fds, {}
        for fd in fds.values():
            os.close(fd)
        self._budget.give_back(len(fds))
