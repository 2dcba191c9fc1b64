"""Reading a checkpoint's tensors as batched ranges.

torch's own reader seeks in one open file, back and forth for each tensor; behind a buffered file that fetches megabytes
for each of some hundred tensors of a few kilobytes. Here the ranges of many tensors go out as one `cat_ranges`, which
on fs3 is one request a storage node, and torch's reader then parses them from memory.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from fs3_loader.location import Location

WINDOW_BYTES = 64 * 1024 * 1024


class RangeReader(FsspecReader):
    """An FsspecReader of the folder `location` that holds at most one window of stored bytes in memory.

    A single tensor larger than the window is a window of its own.
    """

    def __init__(self, location: Location) -> None:
        super().__init__(location.url)
        self._location = location
        self._fetched: dict[tuple[int, int], bytes] = {}

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        for name, items in by_file.items():
            for window in self._windows(items):
                self._fetch(name, window)
                super().read_data(dataclasses.replace(plan, items=window), planner)
        self._fetched = {}
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _windows(self, items: list[ReadItem]) -> Iterator[list[ReadItem]]:
        window: list[ReadItem] = []
        held = 0
        for item in sorted(items, key=lambda item: self._range(item)):
            start, end = self._range(item)
            if window and held + end - start > WINDOW_BYTES:
                yield window
                window, held = [], 0
            window.append(item)
            held += end - start
        if window:
            yield window

    def _fetch(self, name: str, window: list[ReadItem]) -> None:
        ranges = sorted({self._range(item) for item in window})
        paths = [self._location.path(name)] * len(ranges)
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        found = self._location.fs.cat_ranges(paths, starts, ends, on_error="raise")
        self._fetched = dict(zip(ranges, found, strict=True))

    def _range(self, item: ReadItem) -> tuple[int, int]:
        stored = self.storage_data[item.storage_index]
        return stored.offset, stored.offset + stored.length

    def _slice_file(self, file: Any, sinfo: Any) -> io.BytesIO:
        """What torch's `read_data` calls for an item's bytes: those already fetched."""
        return io.BytesIO(self._fetched[sinfo.offset, sinfo.offset + sinfo.length])
