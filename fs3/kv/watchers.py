"""Watches on key prefixes: who in this process waits for which part of the store."""

from __future__ import annotations

import asyncio
import weakref
from typing import Protocol

from fs3.kv.api import prefix_end


class Touching(Protocol):
    """What a commit did, as far as watches care."""

    def touches(self, begin: bytes, end: bytes) -> bool: ...


class Watch:
    """The iterator that `KVEngine.watch` returns; counts changes from its creation on, ends with the engine.

    Cancelling `anext` loses nothing: a change that came meanwhile is reported by the next one.
    """

    __slots__ = ("__weakref__", "_begin", "_closed", "_end", "_event")

    def __init__(self, prefix: bytes) -> None:
        self._begin = prefix
        self._end = prefix_end(prefix) if prefix.rstrip(b"\xff") else b"\xff" * 10_001
        self._event = asyncio.Event()
        self._closed = False

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> None:
        await self._event.wait()
        if self._closed:
            raise StopAsyncIteration
        self._event.clear()

    def notify(self, commit: Touching | None) -> None:
        """Wake the waiter if the commit concerns it; None may be any number of commits to anything."""
        if not self._event.is_set() and (commit is None or commit.touches(self._begin, self._end)):
            self._event.set()

    def close(self) -> None:
        """End the iteration."""
        self._closed = True
        self._event.set()


class Watchers:
    """All watches of an engine, told in order of their making; one that nobody holds any more is dropped by itself."""

    __slots__ = ("_made", "_watches")

    def __init__(self) -> None:
        self._made = 0
        self._watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()

    def add(self, prefix: bytes) -> Watch:
        watch = Watch(prefix)
        self._made += 1
        self._watches[self._made] = watch
        return watch

    def __bool__(self) -> bool:
        return bool(self._watches)

    def notify(self, commit: Touching | None) -> None:
        """As `Watch.notify`, for every watch."""
        for watch in list(self._watches.values()):
            watch.notify(commit)

    def close(self) -> None:
        for watch in list(self._watches.values()):
            watch.close()
