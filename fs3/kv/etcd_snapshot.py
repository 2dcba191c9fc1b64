"""Snapshots of a store in etcd: a revision, asked for at every begin, and reads at it.

A revision is one linearizable read, answered by the leader's word that it still leads: it is not older than anything
that was acknowledged before, to whomever. Transactions that begin while one is asked for share the next one, as in
FoundationDB. Reads at a revision need no leader; whichever member is asked answers them from its history.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fs3.clock import deadline_after
from fs3.errors import Fs3Error
from fs3.kv.etcd_client import EtcdClient
from fs3.kv.etcd_layout import Layout
from fs3.kv.etcd_reads import Reads
from fs3.kv.transaction import Pairs
from fs3.pb.etcd import etcd_pb2 as pb

_PAGE = 512


class Revisions:
    """Hands out the newest revision; one question is under way at a time, whoever comes meanwhile shares the next."""

    def __init__(self, client: EtcdClient, layout: Layout, timeout_s: float) -> None:
        self._client = client
        self._probe = layout.wide
        self._timeout_s = timeout_s
        self._current: asyncio.Future[int] | None = None  # asked for
        self._next: asyncio.Future[int] | None = None  # to be asked for
        self._task: asyncio.Task[None] | None = None

    def newest(self) -> asyncio.Future[int]:
        """Will be a revision not older than any commit that was acknowledged by now; wait for it shielded."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            self._next.add_done_callback(_looked_at)
            if self._task is None or self._task.done():
                self._task = asyncio.get_running_loop().create_task(self._ask())
        return self._next

    async def settled(self) -> None:
        """Wait until every `newest` that was handed out by now is known or has failed."""
        last = self._next or self._current
        if last is not None:
            await asyncio.wait([last])

    async def _ask(self) -> None:
        while self._next is not None:
            current, self._current, self._next = self._next, self._next, None
            request = pb.RangeRequest(key=self._probe, count_only=True)
            try:
                response = await self._client.range(request, deadline_after(self._timeout_s))
            except Fs3Error as error:
                current.set_exception(error)
            except BaseException:
                current.cancel()
                raise
            else:
                current.set_result(response.header.revision)


def _looked_at(future: asyncio.Future[int]) -> None:
    """A revision that nobody waited for may fail unheard."""
    if not future.cancelled():
        future.exception()


class EtcdSnapshot:
    """Implements `fs3.kv.transaction.Snapshot`; remembers at which revision each key it saw was changed last."""

    __slots__ = ("_client", "_layout", "_reads", "_revision", "_timeout_s", "seen")

    def __init__(
        self, client: EtcdClient, reads: Reads, layout: Layout, revision: asyncio.Future[int], timeout_s: float
    ) -> None:
        self._client = client
        self._reads = reads
        self._layout = layout
        self._revision = revision
        self._timeout_s = timeout_s
        self.seen: dict[bytes, int] = {}

    @property
    def version(self) -> int:
        """Not known yet at the begin: the committer asks for `revision`."""
        return 0

    async def revision(self) -> int:
        """Raises: Unavailable."""
        return self._revision.result() if self._revision.done() else await asyncio.shield(self._revision)

    async def get(self, key: bytes) -> bytes | None:
        found = await self._reads.get(self._layout.data(key), await self.revision())
        self.seen[key] = found.mod_revision if found else 0
        return found.value if found else None

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await asyncio.gather(*(self.get(key) for key in keys))  # `Reads` gathers them into few requests

    async def scan(self, begin: bytes, end: bytes, limit: int, reverse: bool) -> Pairs:
        revision = await self.revision()
        low, high = self._layout.data(begin), self._layout.data(end)
        result: Pairs = []
        while low < high:
            want = min(limit - len(result), _PAGE)
            request = pb.RangeRequest(key=low, range_end=high, revision=revision, limit=want)
            request.sort_order = pb.DESCEND if reverse else pb.NONE
            found = (await self._client.range(request, deadline_after(self._timeout_s))).kvs
            for pair in found:
                key = self._layout.key_of(pair.key)
                self.seen[key] = pair.mod_revision
                result.append((key, pair.value))
            if len(found) < want or len(result) == limit:
                break
            low, high = (low, found[-1].key) if reverse else (found[-1].key + b"\0", high)
        return result
