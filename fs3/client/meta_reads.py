"""Reading many names: the next ones are under way while the answer for the last ones is decoded.

An answer costs meta about twice what it costs the client, so a batch is cut into some that overlap, and the page after
the one that the caller looks at is asked for already. Each request has a connection of its own (fs3/client/control.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fs3.client.meta_calls import Begun, MetaCalls, made
from fs3.errors import Fs3Error, from_code
from fs3.inode import Entry, Inode, inode_from_pb
from fs3.pb import meta_pb2

_STATS_AT_ONCE = 256
PAGE = 1_000
_AHEAD = 2  # batches that meta has while the answer for one is decoded: it goes from one to the next without a pause


class Page(NamedTuple):
    """Entries of a directory, sorted by name, and the validator that it had then; `same`: the caller's, no entries."""

    entries: list[Entry]
    validator: bytes
    same: bool = False


class MetaReads(MetaCalls):
    """A part of `fs3.client.meta.MetaClient`."""

    def stat(
        self, paths: Sequence[str], *, follow: bool = True, access: int = 0, timeout_s: float | None = None
    ) -> list[Inode | Fs3Error]:
        """The inode of each path, or its error in its place; each 256 paths are from one moment.

        `access` is what must be allowed, as of access(2), from os.R_OK, os.W_OK and os.X_OK; else PermissionDenied.
        `timeout_s` is for all together; without one each 256 have as long as any call.
        """
        found: list[Inode | Fs3Error] = []
        until_s = None if timeout_s is None else self._runtime.now_s() + timeout_s
        left = iter(range(0, len(paths), _STATS_AT_ONCE))
        waiting: deque[Begun] = deque()

        def send() -> None:
            while len(waiting) < _AHEAD and (at := next(left, None)) is not None:
                waiting.append(self._begin("Stat", _stats(paths[at : at + _STATS_AT_ONCE], follow, access)))

        if len(paths) <= _STATS_AT_ONCE:
            return _found(self._asked("Stat", _stats(paths, follow, access), timeout_s)) if paths else found
        try:
            send()
            while waiting:
                left_s = None if until_s is None else max(until_s - self._runtime.now_s(), 0.001)
                reply = self._answer(waiting.popleft(), left_s, waiting)
                send()
                found += _found(reply)
        finally:
            for begun in waiting:
                begun.drop()
        return found

    def list_pages(
        self, path: str, *, validator: bytes = b"", page: int = PAGE, timeout_s: float | None = None
    ) -> Iterator[Page]:
        """As `list`, with validators; one page that says so if the directory still has the caller's `validator`.

        Pages with the same validator show one state of the directory, as far as one tells (fs3/meta/listing.py).
        """
        request = made(meta_pb2.ListRequest, path=path, limit=page, validator=validator)
        reply = self._asked("List", request, timeout_s)
        ahead: Begun | None = None
        try:
            while True:
                if reply.more:
                    after = reply.entries[-1].name
                    ahead = self._begin("List", meta_pb2.ListRequest(path=path, after=after, limit=page))
                entries = [Entry(entry.name, inode_from_pb(entry.inode)) for entry in reply.entries]
                yield Page(entries, reply.validator, reply.same)
                if ahead is None:
                    return
                reply = self._answer(ahead, timeout_s)
                ahead = None
        finally:
            if ahead is not None:
                ahead.drop()

    def list(self, path: str, *, page: int = PAGE, timeout_s: float | None = None) -> Iterator[list[Entry]]:
        """The entries of a directory, sorted by name, in pages, each from one moment; the deadline is a page's.

        A page is asked for when the one before is handed out.
        """
        for one in self.list_pages(path, page=page, timeout_s=timeout_s):
            yield one.entries


def _stats(paths: Sequence[str], follow: bool, access: int) -> meta_pb2.StatRequest:
    request: meta_pb2.StatRequest = made(meta_pb2.StatRequest, paths=paths, nofollow=not follow, access=access)
    return request


def _found(reply: meta_pb2.StatReply) -> list[Inode | Fs3Error]:
    return [
        from_code(result.code, result.message) if result.code else inode_from_pb(result.inode)
        for result in reply.results
    ]
