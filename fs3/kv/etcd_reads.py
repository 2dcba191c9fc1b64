"""Point reads at revisions, gathered: what several transactions ask for at the same time is one request.

A request costs etcd and its client more than the reading does. Gathered reads need no leader either: etcd answers a
request that only reads, each at its revision, from the history of the member that gets it.
"""

from __future__ import annotations

import asyncio

from fs3.clock import deadline_after
from fs3.errors import Fs3Error
from fs3.kv.etcd_client import EtcdClient, NotYet, TooOld
from fs3.pb.etcd import etcd_pb2 as pb

_REQUESTS = 2  # under way at once
_KEYS = 64  # in one of them


class Reads:
    """The point reads of one engine."""

    def __init__(self, client: EtcdClient, timeout_s: float, max_operations: int) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._at_once = min(_KEYS, max_operations)
        self._waiting: list[tuple[pb.RangeRequest, asyncio.Future[pb.KeyValue | None]]] = []
        self._working = 0  # counted by the workers themselves: a task that has ended is known for it only later
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, key: bytes, revision: int) -> pb.KeyValue | None:
        """What the key was at the revision. Raises: TooOld, Unavailable, and whatever etcd refuses it with."""
        found: asyncio.Future[pb.KeyValue | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((pb.RangeRequest(key=key, revision=revision, serializable=True), found))
        if self._working < _REQUESTS:
            self._working += 1
            task = asyncio.get_running_loop().create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await found

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch = self._waiting[: self._at_once]
                del self._waiting[: self._at_once]
                try:
                    await self._read(batch)
                finally:
                    for _, found in batch:
                        found.cancel()  # of those that have an answer, this changes nothing
        finally:
            self._working -= 1

    async def _read(self, batch: list[tuple[pb.RangeRequest, asyncio.Future[pb.KeyValue | None]]]) -> None:
        request = pb.TxnRequest(success=[pb.RequestOp(request_range=one) for one, _ in batch])
        try:
            answers = (await self._client.repeat(request, deadline_after(self._timeout_s))).responses
        except (NotYet, TooOld):  # one of them is; the others must not suffer for it
            await asyncio.gather(*(self._read_one(one, found) for one, found in batch))
        except Fs3Error as error:
            for _, found in batch:
                _fail(found, error)
        else:
            for (_, found), answer in zip(batch, answers, strict=True):
                _settle(found, answer.response_range)

    async def _read_one(self, request: pb.RangeRequest, found: asyncio.Future[pb.KeyValue | None]) -> None:
        try:
            _settle(found, await self._client.range(request, deadline_after(self._timeout_s)))
        except Fs3Error as error:
            _fail(found, error)


def _settle(found: asyncio.Future[pb.KeyValue | None], answer: pb.RangeResponse) -> None:
    if not found.done():  # who asked may have been cancelled
        found.set_result(answer.kvs[0] if answer.kvs else None)


def _fail(found: asyncio.Future[pb.KeyValue | None], error: Fs3Error) -> None:
    if not found.done():
        found.set_exception(type(error)(str(error)))  # each asker gets one of its own, with its own traceback
