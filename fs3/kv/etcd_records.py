"""Commit records: a key per commit under way, by which its engine finds out what became of one that was not answered.

A record is used by one commit at a time, and nobody else writes it, so that its engine knows its revision. Every commit
compares and moves it. Records are made as more commits run side by side, and used again; one whose commit's outcome
stays unknown is not. What engines leave behind when they end is swept after minutes (etcd_tidy).
"""

from __future__ import annotations

import asyncio
import itertools
import secrets

from fs3.kv.etcd_client import PAUSE_S, EtcdClient, Unanswered
from fs3.kv.etcd_core import Record, check_format, format_of, opening
from fs3.kv.etcd_layout import Layout

_AT_ONCE = 128


class Records:
    """The records of one engine."""

    def __init__(self, client: EtcdClient, layout: Layout) -> None:
        self._client = client
        self._layout = layout
        self._engine = secrets.token_bytes(8)
        self._numbers = itertools.count()
        self._sequence = itertools.count(1)
        self._checked = False  # whether the store is of this engine's format
        self._free: list[tuple[bytes, int]] = []
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def enter(self) -> None:
        """Wait until one more commit may run; `leave` when it is done."""
        await self._room.acquire()

    def leave(self) -> None:
        self._room.release()

    async def check(self, deadline_s: float) -> None:
        """See that the store is of this engine's format, and mark a new one. Raises: Unavailable, Invalid if not."""
        check_format(await self._client.repeat(format_of(self._layout), deadline_s))
        self._checked = True

    async def take(self, deadline_s: float) -> Record:
        """A record for one commit. Raises: Unavailable, Invalid if the store is of another format."""
        if not self._checked:
            await self.check(deadline_s)
        if self._free:
            key, revision = self._free.pop()  # the one that was used last: the others may be swept
            return Record(key, revision, next(self._sequence))
        while True:
            key = self._layout.record(self._engine, next(self._numbers))
            try:
                response = await self._client.send(opening(key), deadline_s)
            except Unanswered:  # it may be made later, by a late arrival: that one is never used
                if self._client.out_of_time(deadline_s):
                    raise
                await asyncio.sleep(PAUSE_S)
            else:
                assert response.succeeded, "two engines have the same name"
                return Record(key, response.header.revision, next(self._sequence))

    def moved(self, record: Record, revision: int) -> Record:
        """The same record after `revision` was written to it, for another try of the same commit."""
        return Record(record.key, revision, next(self._sequence))

    def give_back(self, record: Record, revision: int) -> None:
        """The commit is settled and left the record at `revision`."""
        self._free.append((record.key, revision))
