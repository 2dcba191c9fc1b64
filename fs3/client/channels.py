"""Update channels: how a daemon knows a repeated update from a new one.

Each update in flight has a channel to itself and takes the channel's next sequence number; a daemon keeps the last
result per (client, channel), so that a repeated (channel, seq) is answered and not applied again. A channel goes back
to the pool only after a definite answer. One whose update may still arrive late is retired: were it used again, the
late update could be taken for the new one. (3FS, update channels of the storage client.)
"""

from __future__ import annotations

from dataclasses import dataclass

from fs3.errors import Busy
from fs3.runtime import SYSTEM, Runtime

MAX_CHANNELS = 4_096


@dataclass(slots=True)
class Channel:
    """One lane of updates; `seq` is that of the update it carries now, or carried last."""

    channel: int
    seq: int = 0


class Channels:
    """The channels of one client, lent to its threads. Bounded: every one costs each daemon a record per target."""

    def __init__(self, limit: int = MAX_CHANNELS, *, runtime: Runtime = SYSTEM) -> None:
        self._limit = limit
        self._free: list[Channel] = []
        self._lent = 0
        self._made = 0
        self._runtime = runtime
        self._changed = runtime.condition()

    def take(self, count: int, deadline_s: float) -> list[Channel]:
        """`count` channels, each with the sequence number of its next update.

        Raises: Busy: not so many came free before the deadline, or are never lent at once.
        """
        if count > self._limit:
            raise Busy(f"{count} updates in one call; at most {self._limit} can be in flight")
        with self._changed:
            while self._lent + count > self._limit:
                left_s = deadline_s - self._runtime.now_s()
                if left_s <= 0 or not self._changed.wait(left_s):
                    raise Busy(f"{self._lent} updates are in flight and did not end in time")
            self._lent += count
            taken = [self._free.pop() for _ in range(min(count, len(self._free)))]
            while len(taken) < count:
                taken.append(Channel(self._made))
                self._made += 1
        for channel in taken:
            channel.seq += 1
        return taken

    def give_back(self, channels: list[Channel], *, retired: int = 0) -> None:
        """End the loan of `channels`, whose updates have a definite result, and of `retired` more that have none."""
        with self._changed:
            self._lent -= len(channels) + retired
            self._free.extend(channels)
            self._changed.notify_all()
