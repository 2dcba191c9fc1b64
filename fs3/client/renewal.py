"""Keeping the write sessions of a process alive: one thread for all its open writers.

meta ends a session that has gone unrenewed for a lease (60 s by default), and collects a file that has no name then, so
that a writer that dies leaves nothing. A writer that lives says so several times per lease; of a file that has a name
it also says how far it is written, so that readers see it grow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence

from fs3.client.meta import MetaClient, Written
from fs3.clock import lease_now_s
from fs3.errors import Fs3Error, NotFound, SessionEnded, Unavailable

EVERY_S = 10.0
ABANDON_S = 2.0
FRESH = 0.5  # of the lease: who has not renewed for so long stops writing, well before another can begin

_log = logging.getLogger(__name__)


class Renewal:
    """Renews what is registered, from a thread that starts with the first file and ends with `close`."""

    def __init__(self, meta: MetaClient, *, every_s: float = EVERY_S, now: Callable[[], float] = lease_now_s) -> None:
        self._meta = meta
        self._every_s = every_s
        self._now = now
        self.begin_again()
        _living.add(self)

    def begin_again(self) -> None:
        """Nothing is registered: the parent of a forked child renews what it has open."""
        self._open: dict[int, Callable[[], Written]] = {}
        self._renewed_s: dict[int, float] = {}
        self._lost: set[int] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def add(
        self, inode_ids: Iterable[int], *, asked_s: float | None = None, written: Callable[[], Written] = Written
    ) -> None:
        """Renew these files from now on; `written` tells how far one is written.

        `asked_s` is when their sessions were asked for, for whoever means to `check` them.
        """
        with self._lock:
            for inode_id in inode_ids:
                self._open[inode_id] = written
                if asked_s is not None:
                    self._renewed_s[inode_id] = asked_s
            if self._thread is None and not self._ended.is_set():
                self._thread = threading.Thread(target=self._run, name="fs3-renewal", daemon=True)
                self._thread.start()

    def discard(self, inode_ids: Iterable[int]) -> None:
        """Renew these no longer: they are published, closed or given up."""
        with self._lock:
            for inode_id in inode_ids:
                self._open.pop(inode_id, None)
                self._renewed_s.pop(inode_id, None)
                self._lost.discard(inode_id)

    def check_new(self, inode_id: int, path: str) -> None:
        """That a file without a name is still there, as far as meta has told: chunks of one that is gone are nobody's.

        Raises: SessionEnded.
        """
        if inode_id in self._lost:
            raise SessionEnded(
                f"{path}: the write session is over, and the file was not published: it was not renewed in time (was"
                " this process suspended?); write the file again"
            )

    def check(self, inode_id: int, lease_s: float) -> None:
        """That nobody else can have begun to write this file.

        Raises: NotFound: its session is lost; Unavailable: it may be soon.
        """
        renewed_s = self._renewed_s.get(inode_id)
        if renewed_s is None:
            raise NotFound("the write session is over: it was not renewed in time, or belongs to another process")
        silent_s = self._now() - renewed_s
        if silent_s > lease_s * FRESH:
            raise Unavailable(f"the write session was not renewed for {silent_s:.0f} s: no meta daemon was reached")

    @contextlib.contextmanager
    def during(self, inode_ids: Sequence[int]) -> Iterator[None]:
        """`add` and `discard` around a block."""
        self.add(inode_ids)
        try:
            yield
        finally:
            self.discard(inode_ids)

    def abandon(self, inode_ids: Sequence[int]) -> None:
        """End sessions, now if meta answers, else when they run out; files without names go with them."""
        self.discard(inode_ids)
        try:
            self._meta.abandon(inode_ids, timeout_s=ABANDON_S)
        except Fs3Error as error:
            _log.info("unfinished files %s are left to meta's collector: %s", inode_ids, error)

    def close(self) -> None:
        """End the thread."""
        self._ended.set()

    def _run(self) -> None:
        ended = self._ended
        while not ended.wait(self._every_s):
            try:
                self.now()
            except Fs3Error as error:
                _log.warning("write sessions were not renewed: %s", error)
            except Exception:  # noqa: BLE001  # a defect must not cost every writer its session
                _log.exception("write sessions were not renewed; trying again")

    def now(self) -> None:
        """Renew all. Raises: Fs3Error."""
        with self._lock:
            due = dict(self._open)
        if not due:
            return
        asked_s = self._now()
        lost = self._meta.renew({one: written() for one, written in due.items()}, timeout_s=self._every_s)
        with self._lock:
            # Of a file that was closed and opened again meanwhile the answer is about the session before.
            same = {inode_id for inode_id, written in due.items() if self._open.get(inode_id) is written}
            for inode_id in self._renewed_s.keys() & same:
                self._renewed_s[inode_id] = asked_s
            for inode_id in same.intersection(lost):
                self._renewed_s.pop(inode_id, None)
                self._lost.add(inode_id)


_living: weakref.WeakSet[Renewal] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for renewal in list(_living):
        renewal.begin_again()


os.register_at_fork(after_in_child=_after_fork_in_child)
