"""Keeps a store in etcd from growing for ever: history, stamps of groups that rest, records of engines that ended.

Every engine looks after it now and then, and does it unless another one has since its last look. What it removes is
older than a revision that was the newest one minutes ago by the engine's own clock, the floor. Transactions that began
before the floor are refused by it if they ranged over anything (etcd_core), and can read no more once the history is
compacted; a commit that looks for its record does so in seconds. No stamp and no record is missed by anyone who could
still need it.
"""

from __future__ import annotations

import contextlib
from collections import deque

from fs3.kv.etcd_client import EtcdClient, TooOld
from fs3.kv.etcd_layout import Layout
from fs3.pb.etcd import etcd_pb2 as pb

KEEP_S = 300.0
EVERY_S = 60.0
_AT_ONCE = 100
_ROUNDS = 50


class Tidier:
    """What one engine does for the store."""

    def __init__(self, client: EtcdClient, layout: Layout) -> None:
        self._client = client
        self._layout = layout
        self._past: deque[tuple[float, int]] = deque()  # (when, the newest revision then), oldest first

    async def tidy(self, revision: int, now_s: float, deadline_s: float) -> int:
        """Given the newest `revision`, at every look, remove what is too old, and return the floor if it rose, else 0.

        Raises: Unavailable; it is finished by the next one.
        """
        last = self._past[-1][1] if self._past else 0
        self._past.append((now_s, revision))
        floor = 0
        while self._past[0][0] <= now_s - KEEP_S:
            floor = self._past.popleft()[1]
        if not floor or not (await self._client.repeat(self._raise_floor(floor, last), deadline_s)).succeeded:
            return 0
        for begin, end in (self._layout.records(), self._layout.stamps()):
            await self._sweep(begin, end, floor, deadline_s)
        with contextlib.suppress(TooOld):  # somebody keeps less, which is fine
            await self._client.compact(floor, deadline_s)
        return floor

    def _raise_floor(self, floor: int, last: int) -> pb.TxnRequest:
        """Puts `floor` in the place of the lower ones, unless there is one as high or one was put since `last`."""
        lowest, end = self._layout.floors()
        key = self._layout.floor(floor)
        return pb.TxnRequest(
            compare=[
                pb.Compare(key=key, range_end=end, target=pb.Compare.MOD, mod_revision=0),
                pb.Compare(
                    key=lowest, range_end=key, target=pb.Compare.MOD, result=pb.Compare.LESS, mod_revision=last + 1
                ),
            ],
            success=[
                pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=lowest, range_end=key)),
                pb.RequestOp(request_put=pb.PutRequest(key=key)),
            ],
        )

    async def _sweep(self, begin: bytes, end: bytes, floor: int, deadline_s: float) -> None:
        """Remove the keys of a range that were last changed at the floor or before it."""
        old = pb.RangeRequest(key=begin, range_end=end, max_mod_revision=floor, limit=_AT_ONCE, keys_only=True)
        for _ in range(_ROUNDS):
            keys = [pair.key for pair in (await self._client.range(old, deadline_s)).kvs]
            if keys:
                request = pb.TxnRequest()
                for key in keys:
                    request.compare.add(key=key, target=pb.Compare.MOD, result=pb.Compare.LESS, mod_revision=floor + 1)
                    request.success.add(request_delete_range=pb.DeleteRangeRequest(key=key))
                await self._client.repeat(request, deadline_s)  # if one was changed just now, the next round goes on
            if len(keys) < _AT_ONCE:
                return
