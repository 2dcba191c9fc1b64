"""A file that an application has open for writing, in the I/O process.

One thread at a time writes it. What other batches have for it meanwhile waits, and is then written together, in one
request for each storage node: so a ring with many batches under way is as fast as one with large batches, and threads
do not wait for each other. Who has written hands the turn over and goes back to the rings: a busy file keeps no thread.

A batch that makes the file longer tells meta before it ends. Then whatever was acknowledged is in the file whoever
dies, and a file that is opened again, after an error or by the next I/O process, goes on where it ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fs3.client.file import FileClient, FileUpdater
from fs3.client.plan_core import I64, overlap
from fs3.clock import lease_now_s
from fs3.errors import Fs3Error, InUse, Invalid, MaybeApplied, NotFound, QuotaExceeded, Unavailable

_log = logging.getLogger(__name__)
TOGETHER_BYTES = 64 << 20
TOGETHER_S = 1.0  # that the deadlines of what is written together may lie apart
LATE_S = 1.0  # that a batch may end beyond its deadline: less than `ior.GRACE_S`
_UNKNOWN = (MaybeApplied, Unavailable)

Errors = list[Fs3Error | None]
Later = Callable[[Callable[[], None]], None]  # has something done by a thread that has nothing better to do


@dataclass(slots=True, eq=False)
class Share:
    """What a batch has for one file: `datas[i]` at `offsets[i]`, [n]; `ended` is told once what befell each."""

    offsets: I64
    datas: list[memoryview]
    deadline_s: float
    ended: Callable[[Errors], None]

    @property
    def lengths(self) -> I64:
        return np.array([len(data) for data in self.datas], dtype=np.int64)

    def failed(self, error: Fs3Error) -> None:
        """End it."""
        self.ended([error] * len(self.datas))


class Held:
    """Thread-safe. It is opened when it is first needed; with `inode_id` it must still be that file."""

    def __init__(self, files: FileClient, later: Later, path: str, inode_id: int = 0) -> None:
        self.path = path
        self.inode_id = inode_id
        self._files = files
        self._later = later
        self._changed = threading.Condition()
        self._busy = False  # somebody has the turn, or it is being handed over
        self._until_s = 0.0  # when whoever writes will have ended; nothing is left to wait that must end before
        self._waiting: list[Share] = []
        self._updater: FileUpdater | None = None
        self._spoiled = False
        self._closed = False

    def open(self, deadline_s: float) -> None:
        """Begin the write session. Raises: as `FileClient.open_update`."""
        with self._alone(deadline_s):
            self._opened(deadline_s)

    def write(self, share: Share) -> None:
        """As `FileUpdater.write_batch`, and meta knows the length; by this thread, or by one that writes it anyway."""
        with self._changed:
            self._waiting.append(share)
            ours, self._busy = not self._busy, True
            if not ours:
                left_s = max(share.deadline_s - lease_now_s(), 0.0)
                if self._changed.wait_for(lambda: self._may_wait(share), left_s):
                    return
                self._waiting.remove(share)
        if ours:
            self._write_next()
        else:
            share.failed(self._late())

    def end_overdue(self) -> None:
        """End what waits and has no time left, whoever has the turn, or is to have it and does not come to it."""
        with self._changed:
            late = self._overdue()
        for share in late:
            share.failed(self._late())

    def sync(self, deadline_s: float) -> None:
        """Tell meta the exact length and times. Raises: Fs3Error."""
        with self._alone(deadline_s):
            updater = self._updater
            if updater is not None and not self._spoiled:
                self._spoiled = True
                with updater.until(deadline_s):
                    updater.sync()
                self._spoiled = False

    def close(self, deadline_s: float) -> None:
        """`sync`, and end the session, be it without. Raises: Fs3Error: it was not synced."""
        with self._alone(deadline_s):
            self._closed = True
            updater, self._updater = self._updater, None
            if updater is None:
                return
            try:
                if not self._spoiled:
                    with updater.until(deadline_s):
                        updater.close()
            finally:
                updater.abandon()  # which does nothing to one that is closed

    def _may_wait(self, share: Share) -> bool:
        """Whether it is being written, or will be looked at before its time is over, or hardly later.

        Of two batches submitted at once the later one may come here first, and must not keep a thread at the other.
        """
        return share not in self._waiting or share.deadline_s + LATE_S >= self._until_s

    @contextlib.contextmanager
    def _alone(self, deadline_s: float) -> Iterator[None]:
        with self._changed:
            if not self._changed.wait_for(lambda: not self._busy, max(deadline_s - lease_now_s(), 0.0)):
                raise self._late()
            self._busy, self._until_s = True, deadline_s
        try:
            yield
        finally:
            self._hand_over()

    def _hand_over(self) -> None:
        with self._changed:
            self._busy, self._until_s = bool(self._waiting), 0.0
            self._changed.notify_all()
            if not self._busy:
                return
        self._later(self._write_next)

    def _write_next(self) -> None:
        """Having the turn, write what waits, as far as it goes together."""
        with self._changed:
            late = self._overdue()
            some = together(self._waiting)
            self._waiting = [share for share in self._waiting if share not in some]
            self._until_s = some[0].deadline_s if some else 0.0
            self._changed.notify_all()
        for share in late:
            share.failed(self._late())
        try:
            for share, errors in zip(some, self._written(some), strict=True):
                share.ended(errors)
        finally:
            self._hand_over()

    def _overdue(self) -> list[Share]:
        """What waits and has no time left, which waits no longer."""
        now_s = lease_now_s()
        late = [share for share in self._waiting if share.deadline_s <= now_s]
        self._waiting = [share for share in self._waiting if share not in late]
        return late

    def _written(self, some: Sequence[Share]) -> list[Errors]:
        """What befell each range of each share. Those that fail together for a reason that is known are tried apart."""
        if not some:
            return []
        errors = self._try(some)
        apart: list[Errors] = []
        at = 0
        for share in some:
            mine = errors[at : at + len(share.datas)]
            at += len(share.datas)
            again = len(some) > 1 and any(mine) and not any(isinstance(error, _UNKNOWN) for error in mine)
            apart.append(self._try([share]) if again else mine)
        return apart

    def _try(self, some: Sequence[Share]) -> Errors:
        until_s = min(share.deadline_s for share in some)
        offsets = np.concatenate([share.offsets for share in some])
        datas = [data for share in some for data in share.datas]
        try:
            updater = self._opened(until_s)
            self._spoiled = True  # until it has gone well
            with updater.until(until_s):
                errors = updater.write_batch(offsets, datas)
                failure = next((error for error in errors if error is not None), None) or _told(updater)
            self._spoiled = failure is not None
        except Fs3Error as error:
            return [error] * len(datas)
        except Exception:  # noqa: BLE001  # whatever it is, the application is told, and the log
            _log.exception("%s could not be written", self.path)
            return [MaybeApplied(f"{self.path}: the log of process {os.getpid()} says why it failed")] * len(datas)
        has = updater.inode.length
        ends = [offset + len(data) for offset, data in zip(offsets.tolist(), datas, strict=True)]
        return [error or (failure if end > has else None) for error, end in zip(errors, ends, strict=True)]

    def _late(self) -> Unavailable:
        return Unavailable(f"{self.path}: something else was written into it until this one's time was over")

    def _opened(self, deadline_s: float) -> FileUpdater:
        if self._closed:
            raise Invalid(f"{self.path}: was closed; open it for writing again")
        if self._updater is not None and self._spoiled:
            self._updater.abandon()
            self._updater = None
        if self._updater is None:
            updater = self._begun(deadline_s)
            if self.inode_id not in (0, updater.inode.inode_id):
                updater.abandon()
                raise NotFound(f"{self.path}: was removed or replaced since it was opened for writing; open it again")
            self._updater, self.inode_id, self._spoiled = updater, updater.inode.inode_id, False
        return self._updater

    def _begun(self, deadline_s: float) -> FileUpdater:
        try:
            return self._files.open_update(self.path, deadline_s=deadline_s)
        except InUse as error:
            if not self.inode_id:
                raise
            raise InUse(
                f"{self.path}: nothing was written, since the I/O process that had the file open has died less than a"
                " minute ago, or somebody else writes it by now; try again"
            ) from error


def together(waiting: Sequence[Share]) -> list[Share]:
    """Of shares for one file those to be written at once: that which must end first, and what goes with it.

    They do not overlap, are not too large, and end at about the same time; and none of the others must end before.
    """
    ordered = sorted(waiting, key=lambda share: share.deadline_s)
    some = ordered[:1]
    for share in ordered[1:]:
        offsets = np.concatenate([share.offsets for share in (*some, share)])
        lengths = np.concatenate([share.lengths for share in (*some, share)])
        if share.deadline_s > some[0].deadline_s + TOGETHER_S or int(lengths.sum()) > TOGETHER_BYTES:
            break
        if not overlap(offsets, lengths):
            some.append(share)
    return some


def _told(updater: FileUpdater) -> Fs3Error | None:
    """Have meta know of a length that it does not; why it does not, or may not."""
    if updater.length <= updater.inode.length:
        return None
    try:
        updater.sync()
    except QuotaExceeded as error:
        return error
    except Fs3Error as error:
        return MaybeApplied(f"the bytes are written, and whether the file has become so long is unknown: {error}")
    return None
