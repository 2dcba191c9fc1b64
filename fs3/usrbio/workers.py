"""The threads of an I/O process that read and write. None hands work to another while there is work.

Whoever has finished a batch looks into the rings itself and takes the next. If there is none, one of the idle waits at
the doorbells of all rings (edge-triggered, so that nobody need empty them) and the others for it: a batch that comes
wakes one thread, which takes it, and wakes another if there is more. A doorbell that rings while nobody waits is still
there when somebody does; so none is missed.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from fs3.errors import Fs3Error
from fs3.usrbio.schedule_core import Priority, Schedule

_EVENTS_AT_ONCE = 64


class Source(Protocol):
    """A ring whose batches are to be worked on."""

    doorbell: int
    priority: Priority

    def waiting(self) -> bool:
        """Whether `take` would give something. Called with the pool's lock held."""

    def take(self) -> Callable[[], None] | None:
        """The next batch, as what is to be done, which raises nothing. Called with the pool's lock held.

        Raises: Fs3Error: the ring is to be given up.
        """

    def take_overdue(self) -> list[Callable[[], None]]:
        """All batches whose time is over, as `take` gives one, which take no time to end. Otherwise as `take`."""

    def broken(self, error: Fs3Error) -> None:
        """`take` has raised, and the source was removed. Called with the pool's lock held."""


class Errands(Source):
    """What is to be done by whoever is free, in turn with the batches of rings."""

    priority = Priority.NORMAL

    def __init__(self) -> None:
        self.doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waiting: deque[Callable[[], None]] = deque()

    def add(self, errand: Callable[[], None]) -> None:
        """Have it done. It raises nothing."""
        self._waiting.append(errand)
        os.eventfd_write(self.doorbell, 1)

    def waiting(self) -> bool:
        """See `Source`."""
        return bool(self._waiting)

    def take(self) -> Callable[[], None] | None:
        """See `Source`."""
        return self._waiting.popleft() if self._waiting else None

    def take_overdue(self) -> list[Callable[[], None]]:
        """See `Source`: it has none that could not wait."""
        return []

    def broken(self, error: Fs3Error) -> None:
        """See `Source`; it never is."""
        raise AssertionError from error

    def finish(self) -> None:
        """Do all that is left, and what comes of it, once no worker does any more."""
        while (errand := self.take()) is not None:
            errand()


class Workers:
    """At most `count` threads, made when there is work for them. Sources come and go at any time."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._schedule: Schedule[Source] = Schedule(count)
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._watched = False
        self._stopping = False
        self._bells = select.epoll()
        self._end = os.eventfd(0)
        self._bells.register(self._end, select.EPOLLIN)

    def add(self, source: Source) -> None:
        """Work on its batches from now on. Raises: OSError: nobody can wait at its doorbell."""
        with self._changed:
            self._bells.register(source.doorbell, select.EPOLLIN | select.EPOLLET)
            self._schedule.add(source, source.priority)
            if not self._threads:
                self._start_one()

    def remove(self, source: Source) -> None:
        """Take no more of it; what is being worked on goes on."""
        with self._changed:
            self._remove(source)

    def end_overdue(self) -> None:
        """End the batches whose time is over, though no worker has come to them; to be called every now and then.

        An application takes a process whose batches do not end for one that hangs, and kills it.
        """
        late: list[Callable[[], None]] = []
        with self._changed:
            for source in self._schedule.rings():
                try:
                    late += source.take_overdue()
                except Fs3Error as error:
                    self._give_up(source, error)
        for work in late:
            work()

    def stop(self) -> None:
        """Take nothing more of anybody, and wait until what is being worked on has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            os.eventfd_write(self._end, 1)
        for thread in self._threads:
            thread.join()

    def _remove(self, source: Source) -> None:
        self._schedule.remove(source)
        try:
            self._bells.unregister(source.doorbell)
        except (OSError, ValueError):
            return

    def _give_up(self, source: Source, error: Fs3Error) -> None:
        self._remove(source)
        source.broken(error)

    def _start_one(self) -> None:
        thread = threading.Thread(target=self._work, name=f"fs3-usrbio-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (found := self._next()) is not None:
            work, priority = found
            try:
                work()
            finally:
                with self._changed:
                    self._schedule.ended(priority)

    def _next(self) -> tuple[Callable[[], None], Priority] | None:
        with self._changed:
            while not self._stopping:
                found = self._take()
                if found is not None:
                    return found
                self._idle += 1
                try:
                    if self._watched:
                        self._changed.wait()
                    else:
                        self._watch()
                finally:
                    self._idle -= 1
        return None

    def _take(self) -> tuple[Callable[[], None], Priority] | None:
        while (chosen := self._schedule.next(lambda source: source.waiting())) is not None:
            source, priority = chosen
            try:
                work = source.take()
            except Fs3Error as error:
                self._give_up(source, error)
                continue
            if work is not None:
                self._schedule.begun(priority)
                self._see_to_the_rest()
                return work, priority
        return None

    def _see_to_the_rest(self) -> None:
        """Have somebody wait at the bells, who first looks for what else there is; whoever waits there has."""
        if self._watched:
            return
        if self._idle:
            self._changed.notify()
        elif len(self._threads) < self._count:
            self._start_one()

    def _watch(self) -> None:
        """Wait at the doorbells, with the lock released meanwhile."""
        self._watched = True
        self._changed.release()
        try:
            self._bells.poll(maxevents=_EVENTS_AT_ONCE)
        finally:
            self._changed.acquire()
            self._watched = False
