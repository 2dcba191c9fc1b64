"""Directories as they were last listed, to be used again if meta says that nothing has changed: one small call each.

meta gives each listing a validator, and sends no entries to whoever shows the directory's newest one. So what is kept
is never wrong, and never expires; it is bounded by the number of its entries, which have about 1 KiB each.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from fs3.client.meta import Page
from fs3.filesystem.facts import describe
from fs3.inode import Entry, Inode

MAX_ENTRIES = 200_000

Listing: TypeAlias = Sequence[dict[str, Any]]


class ListPages(Protocol):
    """`MetaClient.list_pages`."""

    def __call__(self, path: str, *, validator: bytes) -> Iterator[Page]: ...


class _Kept(NamedTuple):
    validator: bytes
    entries: Listing


def may_keep(inode: Inode) -> bool:
    """Whether the directory's validator covers all that a listing shows of it (fs3/meta/listing.py).

    Not that of a subdirectory, nor of a file that has several names, or was once opened to be written in place.
    """
    return not inode.is_directory and inode.nlink == 1 and not inode.rewritten


class Listings:
    """Thread-safe; a forked child begins with none."""

    def __init__(self, *, max_entries: int = MAX_ENTRIES, max_paths: int | None = None) -> None:
        """Those used last are kept: up to `max_entries` entries of `max_paths` directories; 0 keeps nothing."""
        self._max_entries = max_entries
        self._max_paths = max_paths
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._entries = 0

    def __len__(self) -> int:
        """How many directories are kept."""
        return len(self._kept)

    def listed(self, path: str, list_pages: ListPages, *, refresh: bool = False) -> tuple[Listing, bool]:
        """What is in the directory now, as fsspec tells it, and whether it is kept: then nobody may change it.

        `refresh` takes nothing that is kept already. Raises: as `list_pages`.
        """
        kept = None if refresh else self._get(path)
        base = path.rstrip("/")
        found: list[dict[str, Any]] = []
        validators: set[bytes] = set()
        keep = self._max_entries > 0
        for page in list_pages(path, validator=kept.validator if kept else b""):
            if page.same and kept is not None:
                return kept.entries, True
            validators.add(page.validator)
            keep = keep and self._may_keep(validators, page.entries)
            found += [describe(f"{base}/{entry.name}", entry.inode) for entry in page.entries]
        if keep and len(found) <= self._max_entries:
            self._keep(path, _Kept(validators.pop(), found))
            return found, True
        self.forget(path)
        return found, False

    def forget(self, path: str | None = None) -> None:
        """Keep nothing of this directory, or of any."""
        with self._locked():
            for one in list(self._kept) if path is None else [path]:
                self._drop(one)

    def _may_keep(self, validators: set[bytes], entries: Sequence[Entry]) -> bool:
        return len(validators) == 1 and b"" not in validators and all(may_keep(entry.inode) for entry in entries)

    def _get(self, path: str) -> _Kept | None:
        with self._locked():
            kept = self._kept.get(path)
            if kept is not None:
                self._kept.move_to_end(path)
            return kept

    def _keep(self, path: str, listing: _Kept) -> None:
        with self._locked():
            self._drop(path)
            self._kept[path] = listing
            self._entries += len(listing.entries)
            most = self._max_paths or len(self._kept)
            while self._entries > self._max_entries or len(self._kept) > most:
                self._drop(next(iter(self._kept)))

    def _drop(self, path: str) -> None:
        kept = self._kept.pop(path, None)
        if kept is not None:
            self._entries -= len(kept.entries)

    def _locked(self) -> threading.Lock:
        if self._pid != os.getpid():
            self._reset()
        return self._lock
