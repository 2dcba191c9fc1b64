"""The connections of one event loop to the storage daemons, one to each, and the frames that are under way on them.

A connection is borrowed from the client's pool by a thread, since that may have to connect; until it is there, and when
it is lost, what would go over it is declined, and goes the blocking way. A daemon that is silent for the client's
`stall_s` is given up here as there, and one that is late is hedged: the frame is declined after all, and if its answer
comes first it still counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

from fs3.client import reply_core
from fs3.client.peers import Peers
from fs3.client.reply_core import Expected, Found
from fs3.client.select_core import ReplicaTable
from fs3.errors import Corrupt, Fs3Error, Unavailable
from fs3.transport.connection import Connection
from fs3.transport.frame_core import Flag, Header, Kind
from fs3.transport.loop_connection import LoopConnection
from fs3.transport.messages import Records

MAX_FRAME_BYTES = 16 << 20
MOST_FRAMES = 16  # on one connection
_TICK_S = 0.01
_CHECKSUM = int(Flag.CHECKSUM)


@dataclass(slots=True, eq=False)
class Frame:
    """A READ of `ranges` [n], `bytes` in all, of an endpoint of `table`; `tag` is the asker's own."""

    table: ReplicaTable
    endpoint: int
    ranges: Records
    bytes: int
    deadline_s: float
    tag: Any
    sent_s: float = 0.0
    expected: Expected | None = None
    hedged: bool = False


@dataclass(slots=True)
class _Lane:
    connection: LoopConnection
    borrowed: Connection
    frames: dict[int, Frame]


Answered = Callable[[Frame, Found | None], None]
"""Told what became of each frame: None if nothing came of it, or not in time; it may be told again then, if something
comes all the same."""


class LoopLanes:
    """For the loop's thread alone."""

    def __init__(
        self, peers: Peers, loop: asyncio.AbstractEventLoop, threads: Callable[[], Executor], answered: Answered
    ) -> None:
        """`threads` that may block open connections."""
        self._peers = peers
        self._hedges = peers.hedges
        self._loop = loop
        self._threads = threads
        self._answered = answered
        self._lanes: dict[str, _Lane | None] = {}  # None: being opened
        self._ticking = False
        self._closed = False

    def ask(self, frame: Frame) -> bool:
        """Send a frame; False: it must go another way."""
        name = frame.table.endpoints[frame.endpoint]
        lane = self._lanes.get(name)
        if lane is None:
            if name not in self._lanes:
                self._lanes[name] = None
                self._threads().submit(self._open, frame.table, frame.endpoint, frame.deadline_s)
            return False
        hello = lane.connection.hello_reply
        count = len(frame.ranges)
        if len(lane.frames) >= MOST_FRAMES or count > hello.max_ranges or frame.bytes > hello.max_body_bytes:
            return False
        frame.sent_s = self._peers.runtime.now_s()
        head = frame.ranges.tobytes()
        try:
            request_id = lane.connection.send(
                Kind.READ, head, count=count, flags=_CHECKSUM, deadline_s=frame.deadline_s
            )
        except Unavailable as error:
            self._lost(name, error)
            return False
        lane.frames[request_id] = frame
        frame.expected = reply_core.expect(frame.ranges)  # now, while the daemon works
        self._peers.add_load(name, frame.bytes)
        if _can_hedge(frame):
            self._hedges.asked()
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(_TICK_S, self._tick)
        return True

    def close(self, *, forked: bool = False) -> None:
        """Close all connections; nothing comes of the frames on them. `forked`: they are a parent process's, and nobody
        here hears of their frames."""
        self._closed = True
        lanes, self._lanes = self._lanes, {}
        for lane in lanes.values():
            if lane is None:
                continue
            if forked:
                lane.connection.abandon()
                continue
            lane.connection.close()
            self._forget(lane)
            self._tell(lane)

    def _open(self, table: ReplicaTable, endpoint: int, deadline_s: float) -> None:
        """On a thread."""
        borrowed: Connection | None = None
        try:
            borrowed = self._peers.borrow(table, endpoint, deadline_s=deadline_s, wait=False)
            borrowed.acknowledge()
        except Unavailable:
            self._peers.failed(table, endpoint)
        except Fs3Error:
            pass  # who goes the blocking way will hear of it
        finally:
            try:
                self._loop.call_soon_threadsafe(self._opened, table.endpoints[endpoint], borrowed)
            except RuntimeError:  # the loop was closed meanwhile
                if borrowed is not None:
                    self._peers.give_back(borrowed)

    def _opened(self, name: str, borrowed: Connection | None) -> None:
        if borrowed is None or borrowed.closed or self._closed:
            self._lanes.pop(name, None)
            if borrowed is not None:
                borrowed.close()
                self._peers.give_back(borrowed)
        else:
            frames: dict[int, Frame] = {}
            connection = LoopConnection(
                self._loop,
                borrowed,
                max_frame_bytes=MAX_FRAME_BYTES,
                replied=partial(self._replied, name, frames),
                lost=partial(self._lost, name),
            )
            self._lanes[name] = _Lane(connection, borrowed, frames)

    def _replied(self, name: str, frames: dict[int, Frame], header: Header, head: memoryview, body: memoryview) -> None:
        """Raises: Corrupt: the reply is no answer to its frame."""
        frame = frames[header.request_id]
        if not header.status and header.count != len(frame.ranges):
            raise Corrupt(f"{name} answered {header.count} of {len(frame.ranges)} ranges")
        assert frame.expected is not None
        found = None if header.status else reply_core.find(frame.expected, head, body)
        del frames[header.request_id]
        self._peers.add_load(name, -frame.bytes)
        if _can_hedge(frame):
            self._hedges.replied(name, frame.bytes, self._peers.runtime.now_s() - frame.sent_s)
        if frame.hedged:
            self._hedges.owes(name, -1)
        if found is not None or not frame.hedged:
            self._answered(frame, found)

    def _lost(self, name: str, error: Fs3Error) -> None:
        lane = self._lanes.pop(name, None)
        if lane is None:
            return
        lane.connection.close()
        self._forget(lane)
        if lane.frames:
            frame = next(iter(lane.frames.values()))
            if isinstance(error, Unavailable):
                self._peers.failed(frame.table, frame.endpoint)
        self._tell(lane)

    def _tell(self, lane: _Lane) -> None:
        """That nothing came of what is still on a connection."""
        for frame in lane.frames.values():
            if not frame.hedged:
                self._answered(frame, None)

    def _forget(self, lane: _Lane) -> None:
        name = lane.borrowed.endpoint
        self._peers.give_back(lane.borrowed)
        for frame in lane.frames.values():
            self._peers.add_load(name, -frame.bytes)
            if frame.hedged:
                self._hedges.owes(name, -1)

    def _tick(self) -> None:
        """Hedge what is late, and give up daemons that are silent."""
        self._ticking = False
        if self._closed:
            return
        now_s = self._peers.runtime.now_s()
        for name, lane in list(self._lanes.items()):
            if lane is None or not lane.frames:
                continue
            oldest = next(iter(lane.frames.values()))
            if now_s >= min(oldest.sent_s + self._peers.stall_s, oldest.deadline_s):
                self._lost(name, Unavailable(f"{name} did not answer in time"))
            else:
                self._hedge(name, [frame for frame in lane.frames.values() if not frame.hedged], now_s)
        if any(lane is not None and lane.frames for lane in self._lanes.values()):
            self._ticking = True
            self._loop.call_later(_TICK_S, self._tick)

    def _hedge(self, name: str, frames: list[Frame], now_s: float) -> None:
        for frame in frames:
            due_s = frame.sent_s + self._hedges.after_s(name, frame.bytes)
            if now_s >= due_s and _can_hedge(frame) and self._hedges.spend():
                frame.hedged = True
                self._hedges.owes(name, 1)
                self._answered(frame, None)


def _can_hedge(frame: Frame) -> bool:
    return int(frame.table.endpoint.shape[1]) > 1
