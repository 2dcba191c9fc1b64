"""Group commit: the batches of all waiting callers become one batch of the metadata store and one sync of its log.

RocksDB's write holds the GIL and its sync does not, and a sync costs a flush of the disk however much it covers. So one
thread takes whatever has been handed in, writes it as a single atomic batch, syncs if anybody asked for it, and then
calls everybody's `publish`, in order: readers learn of a version only when it can no longer be lost.

Batches are numbered; `synced` is called with the number up to which all are on stable storage, which is what a freed
block waits for. Batches without a sync are followed by one when `lazy_sync` asks (freed blocks pile up), or on close.

A full disk, whoever filled it, has the store opened anew, and if there is no room for that either, opened to be read
alone: everything is refused then, and readers go on, until there is room again, which is looked for every second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fs3.errors import Fs3Error, NoSpace, Unavailable
from fs3.runtime import SYSTEM, Event, Runtime
from fs3.storage.blocks import Step, no_step
from fs3.storage.metadata import MetadataStore, Put

_LOG = logging.getLogger("fs3.storage")
_MAX_GROUP = 512  # batches; a bound on how long the first waits for the last
_LOOK_AGAIN_S = 1.0  # for room on a full disk


def nothing(_batch: int) -> None:
    """The `publish` of a batch that no reader sees."""


@dataclass(slots=True)
class _Batch:
    puts: Sequence[Put]
    publish: Callable[[int], None]
    sync: bool
    done: Event
    failure: Fs3Error | None = None


class Committer:
    """The one thread that writes an engine's metadata."""

    def __init__(
        self,
        metadata: MetadataStore,
        synced: Callable[[int], None],
        *,
        name: str,
        step: Step = no_step,
        runtime: Runtime = SYSTEM,
    ) -> None:
        self._runtime = runtime
        self._metadata = metadata
        self._synced = synced
        self._step = step
        self._wake = runtime.condition()
        self._queue: list[_Batch] = []
        self._closing = False
        self._sync_asked = False
        self._broken: Fs3Error | None = None
        self._full: NoSpace | None = None  # the store is open to be read alone
        self._look_s = 0.0  # when to look for room again
        self.groups = 0
        self.syncs = 0
        self._number = 0
        self._synced_number = 0
        self._thread = runtime.spawn(self._run, name=name)

    def submit(self, puts: Sequence[Put], publish: Callable[[int], None], *, sync: bool) -> None:
        """Write `puts` atomically, durable if `sync`; then `publish(batch number)` runs, and this returns.

        Raises: NoSpace (nothing was written), Unavailable (the store is broken, or the engine is closed).
        """
        batch = _Batch(puts, publish, sync, self._runtime.event())
        with self._wake:
            refusal = self._broken or self._full
            if refusal is not None:
                raise type(refusal)(str(refusal))
            if self._closing:
                raise Unavailable("the chunk engine is closed")
            self._queue.append(batch)
            self._wake.notify()
        batch.done.wait()
        if batch.failure is not None:
            raise batch.failure

    @property
    def failure(self) -> Fs3Error | None:
        """Why nothing is written any more; None while all is well, or room on the disk would mend it."""
        return self._broken

    def lazy_sync(self) -> None:
        """Sync soon what was written without; does not wait."""
        with self._wake:
            self._sync_asked = True
            self._wake.notify()

    def close(self) -> None:
        """Write what is queued, sync, end."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            # After a close nobody is left; after a programming error nobody may wait for ever.
            with self._wake:
                self._closing = True
                left, self._queue = self._queue, []
            for batch in left:
                batch.failure = Unavailable("the chunk engine's commit thread ended")
                batch.done.set()

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not (self._queue or self._closing or self._sync_asked or self._is_to_look()):
                    self._wake.wait(_LOOK_AGAIN_S if self._full is not None else None)
                group, self._queue = self._queue[:_MAX_GROUP], self._queue[_MAX_GROUP:]
                ends = self._closing and not group
                sync = self._sync_asked or ends
                self._sync_asked = False
            if self._is_to_look() and not ends:
                self._look_for_room()
            self._commit(group, sync=sync)
            if ends:
                return

    def _is_to_look(self) -> bool:
        return self._full is not None and self._broken is None and self._runtime.now_s() >= self._look_s

    def _look_for_room(self) -> None:
        try:
            self._reopen()
        except Fs3Error as error:
            self._break(error)

    def _commit(self, group: list[_Batch], *, sync: bool) -> None:
        ended: Fs3Error = Unavailable("the chunk engine's commit thread ended")
        failure: Fs3Error | None = ended  # until the way through is known; a programming error leaves it so
        try:
            failure = self._broken or self._full or self._write(group, sync=sync)
            if failure is None:
                self._publish([batch for batch in group if not batch.done.is_set()])
        finally:
            for batch in group:
                if not batch.done.is_set():
                    reason = failure or ended
                    batch.failure = type(reason)(str(reason))
                    batch.done.set()

    def _write(self, group: list[_Batch], *, sync: bool) -> Fs3Error | None:
        """Write and sync a group; what those who are not done by then are told."""
        applied = False
        try:
            if group:
                self._step("write metadata", -1, 0, len(group))
                self._metadata.apply(put for batch in group for put in batch.puts)
                self._number += 1
                self.groups += 1
            applied = True
            # Those who did not ask for a sync need not wait for the others'.
            self._publish([batch for batch in group if not batch.sync])
            if sync or any(batch.sync for batch in group):
                self._sync()
        except Fs3Error as error:
            return self._after_failure(error, group, applied=applied)
        return None

    def _publish(self, batches: list[_Batch]) -> None:
        for batch in batches:
            batch.publish(self._number)
            batch.done.set()

    def _sync(self) -> None:
        if self._synced_number == self._number:
            return
        self._step("sync metadata", -1, 0, 0)
        self._metadata.sync()
        self._step("metadata synced", -1, 0, 0)
        self.syncs += 1
        self._synced_number = self._number
        self._synced(self._number)

    def _after_failure(self, error: Fs3Error, group: list[_Batch], *, applied: bool) -> Fs3Error | None:
        """What the group is told. A full disk is survived by reopening the store; anything else ends all changes.

        The failed batch is atomic, so one of its keys tells whether it is in the reopened store. If it is, it is synced
        and counts as done.
        """
        if not isinstance(error, NoSpace):
            return self._break(error)
        try:
            self._reopen()
            if applied and self._full is not None:
                # The kernel may have dropped pages of the log that look whole (fsyncgate), and a sync would not tell.
                # A store that is open to write has written all of them anew.
                return self._break(error)
            last = {key: value for batch in group for key, value in batch.puts}
            written = applied or all(self._metadata.get(key) == value for key, value in last.items())
            if written and not applied:
                self._number += 1
            self._metadata.sync()
            self._synced_number = self._number
            self._synced(self._number)
        except Fs3Error as again:
            return self._break(again)
        return None if written else error

    def _reopen(self) -> None:
        """`_full` tells whether it was to be read alone. Raises: Unavailable, Corrupt."""
        try:
            self._metadata.reopen()
        except NoSpace as error:
            if self._full is None:
                _LOG.error("%s; until then it takes no changes, and is read", error)
            self._full = error
            self._look_s = self._runtime.now_s() + _LOOK_AGAIN_S
        else:
            if self._full is not None:
                _LOG.warning("over, as there is room again: %s", self._full)
            self._full = None

    def _break(self, error: Fs3Error) -> Fs3Error:
        self._broken = Unavailable(f"{error}; this disk takes no changes until its daemon is restarted")
        return self._broken
