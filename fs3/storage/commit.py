"""Group commit: the batches of all waiting callers become one batch of the metadata store and one sync of its log.

RocksDB's write holds the GIL and its sync does not, and a sync costs a flush of the disk however much it covers. So one
thread takes whatever has been handed in, writes it as a single atomic batch, syncs if anybody asked for it, and then
calls everybody's `publish`, in order: readers learn of a version only when it can no longer be lost.

Batches are numbered; `synced` is called with the number up to which all are on stable storage, which is what a freed
block waits for. Batches without a sync are followed by one when `lazy_sync` asks (freed blocks pile up), or on close.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fs3.errors import Fs3Error, NoSpace, Unavailable
from fs3.runtime import SYSTEM, Event, Runtime
from fs3.storage.blocks import Step, no_step
from fs3.storage.metadata import MetadataStore, Put

_MAX_GROUP = 512  # batches; a bound on how long the first waits for the last


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
            if self._broken is not None:
                raise type(self._broken)(str(self._broken))
            if self._closing:
                raise Unavailable("the chunk engine is closed")
            self._queue.append(batch)
            self._wake.notify()
        batch.done.wait()
        if batch.failure is not None:
            raise batch.failure

    @property
    def failure(self) -> Fs3Error | None:
        """Why nothing more is written; None while all is well."""
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
                while not (self._queue or self._closing or self._sync_asked):
                    self._wake.wait()
                group, self._queue = self._queue[:_MAX_GROUP], self._queue[_MAX_GROUP:]
                ends = self._closing and not group
                sync = self._sync_asked or ends
                self._sync_asked = False
            self._commit(group, sync=sync)
            if ends:
                return

    def _commit(self, group: list[_Batch], *, sync: bool) -> None:
        ended: Fs3Error = Unavailable("the chunk engine's commit thread ended")
        failure: Fs3Error | None = ended  # until the way through is known; a programming error leaves it so
        try:
            failure = self._broken or self._write(group, sync=sync)
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
        if not isinstance(error, NoSpace) or not group:
            self._broken = Unavailable(f"{error}; this disk takes no changes until its daemon is restarted")
            return self._broken
        try:
            self._metadata.reopen()
            last = {key: value for batch in group for key, value in batch.puts}
            written = all(self._metadata.get(key) == value for key, value in last.items())
            if written:
                if not applied:
                    self._number += 1
                self._metadata.sync()
                self._synced_number = self._number
                self._synced(self._number)
                return None
            if any(batch.done.is_set() for batch in group):
                self._broken = Unavailable("metadata lost a batch when the disk filled up; restart this disk's daemon")
                return self._broken
        except Fs3Error as again:
            self._broken = Unavailable(f"{again}; this disk takes no changes until its daemon is restarted")
            return self._broken
        return error
