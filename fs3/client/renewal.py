"""Keeping the write sessions of a process alive: one thread for all its open writers.

meta collects a file that was created and not published once its session has gone unrenewed for a lease (60 s by
default), so that a writer that dies leaves nothing. A writer that lives says so several times per lease.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence

from fs3.client.meta import MetaClient
from fs3.errors import Fs3Error

EVERY_S = 10.0
ABANDON_S = 2.0

_log = logging.getLogger(__name__)


class Renewal:
    """Renews what is registered, from a thread that starts with the first file and ends with `close`."""

    def __init__(self, meta: MetaClient, *, every_s: float = EVERY_S) -> None:
        self._meta = meta
        self._every_s = every_s
        self.begin_again()
        _living.add(self)

    def begin_again(self) -> None:
        """Nothing is registered: the parent of a forked child renews what it has open."""
        self._open: set[int] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, inode_ids: Iterable[int]) -> None:
        """Renew these files from now on."""
        with self._lock:
            self._open.update(inode_ids)
            if self._thread is None and not self._ended.is_set():
                self._thread = threading.Thread(target=self._run, name="fs3-renewal", daemon=True)
                self._thread.start()

    def discard(self, inode_ids: Iterable[int]) -> None:
        """Renew these no longer: they are published or given up."""
        with self._lock:
            self._open.difference_update(inode_ids)

    @contextlib.contextmanager
    def during(self, inode_ids: Sequence[int]) -> Iterator[None]:
        """`add` and `discard` around a block."""
        self.add(inode_ids)
        try:
            yield
        finally:
            self.discard(inode_ids)

    def abandon(self, inode_ids: Sequence[int]) -> None:
        """Give up unpublished files, now if meta answers, else when their sessions run out."""
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
            with self._lock:
                due = list(self._open)
            if due:
                try:
                    self._meta.renew(due, timeout_s=self._every_s)
                except Fs3Error as error:
                    _log.warning("write sessions of %d files were not renewed: %s", len(due), error)


_living: weakref.WeakSet[Renewal] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for renewal in list(_living):
        renewal.begin_again()


os.register_at_fork(after_in_child=_after_fork_in_child)
