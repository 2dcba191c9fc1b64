"""Follows what happens under a prefix of a store in etcd, whichever member tells it.

A stream that says nothing may be quiet or dead (its member stopped, or cut off): when it has been silent for a second
it is asked for a sign of life, and left for another member if none comes.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

import grpc
import grpc.aio

from fs3.errors import Fs3Error, Unavailable
from fs3.kv.etcd_client import EtcdClient
from fs3.kv.watchers import Watch
from fs3.pb.etcd import etcd_pb2 as pb

_QUIET_S = 1.0
_AGAIN_S = 0.2


class Follower:
    """Tells one watch of every change in [begin, end) until nobody holds the watch any more."""

    def __init__(self, client: EtcdClient, begin: bytes, end: bytes, watch: Watch) -> None:
        self._client = client
        self._range = begin, end
        self._watch = weakref.ref(watch)
        self._from = client.revision + 1 if client.revision else 0  # the first revision that was not reported yet

    async def run(self, newest: Callable[[], asyncio.Future[int]]) -> None:
        """Report what comes from now on; `newest` tells the newest revision. Runs until cancelled."""
        while not self._from and self._wanted():
            try:
                self._from = await asyncio.shield(newest()) + 1
            except Fs3Error:
                self._tell()  # what has happened until now will not be known
                await asyncio.sleep(_AGAIN_S)
        while self._wanted():
            member = self._client.asked
            try:
                await self._stream()
            except (grpc.RpcError, grpc.aio.UsageError, Fs3Error):
                self._client.avoid(member)
                await asyncio.sleep(_AGAIN_S)

    def _wanted(self) -> bool:
        return self._watch() is not None

    def _tell(self) -> None:
        watch = self._watch()
        if watch is not None:
            watch.notify(None)

    async def _stream(self) -> None:
        """One stream, until it breaks or nobody wants it. Raises: RpcError, Unavailable."""
        begin, end = self._range
        call = self._client.watch()
        reading: asyncio.Future[pb.WatchResponse] | None = None
        try:
            create = pb.WatchCreateRequest(key=begin, range_end=end, start_revision=self._from)
            await call.write(pb.WatchRequest(create_request=create))
            asked = False
            while self._wanted():
                reading = reading or asyncio.ensure_future(call.read())
                await asyncio.wait([reading], timeout=_QUIET_S)
                if reading.done():
                    self._take(reading.result())
                    reading, asked = None, False
                elif asked:
                    raise Unavailable("a member of etcd has stopped talking")
                else:
                    asked = True
                    await call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
        finally:
            call.cancel()
            if reading is not None:
                reading.cancel()
                await asyncio.wait([reading])

    def _take(self, response: pb.WatchResponse) -> None:
        if response is grpc.aio.EOF:
            raise Unavailable("a member of etcd has ended a watch")
        if response.events:
            self._from = response.events[-1].kv.mod_revision + 1
            self._tell()
        elif response.canceled:
            if response.compact_revision >= self._from:
                self._from = response.compact_revision + 1
                self._tell()  # what happened in between is forgotten
            raise Unavailable(f"a member of etcd has ended a watch: {response.cancel_reason}")
