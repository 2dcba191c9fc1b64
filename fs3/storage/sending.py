"""Updates on their way to the successor: one frame for each, and what its answer means to each update in it.

Also remembered here: about which chunks a frame went out that was never answered, because such a frame may arrive later
than anything that is sent after it (tombstones.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Corrupt, Fs3Error, Unavailable, from_code
from fs3.ids import chunk_name
from fs3.runtime import SYSTEM, Runtime
from fs3.storage.doubts_core import Doubts
from fs3.storage.forward import ForwardPort, Frame
from fs3.storage.write_item import Item, outgoing
from fs3.transport.messages import Records

_Outgoing = tuple[Item, Records, memoryview, NDArray[np.uint32]]


class Sender:
    """Thread-safe; blocks. `suspect(node_id, generation)` is told of successors that did not answer."""

    def __init__(self, port: ForwardPort, *, suspect: Callable[[int, int], None], runtime: Runtime = SYSTEM) -> None:
        self._port = port
        self._suspect = suspect
        self._runtime = runtime
        self._doubts = Doubts()
        self._doubting = runtime.lock()
        self.forwarded = 0
        self.failures = 0

    def forward(self, items: Sequence[Item], deadline_s: float) -> list[Fs3Error | None]:
        """What the successors answered to each item."""
        outcome: dict[int, Fs3Error | None] = {}
        by_place: defaultdict[tuple[str, int], list[_Outgoing]] = defaultdict(list)
        for item in items:
            assert item.role.successor is not None
            try:
                item.lost = False
                ready = (item, *outgoing(item))
                by_place[item.role.successor.endpoint, item.role.position + 1].append(ready)
            except Fs3Error as error:  # what is stored here cannot be read
                item.lost = isinstance(error, Corrupt)
                outcome[id(item)] = error
        groups = list(by_place.items())
        frames = [
            Frame(
                endpoint,
                hop,
                hop,
                np.concatenate([record for _, record, _, _ in group]),
                [sums for _, _, _, sums in group],
                [data for _, _, data, _ in group],
            )
            for (endpoint, hop), group in groups
        ]
        # A little less time than this replica has itself, so that its successor's answer still arrives.
        left_s = deadline_s - self._runtime.now_s()
        answers = self._port.forward(frames, deadline_s=deadline_s - min(0.25, left_s / 10))
        self.forwarded += len(items)
        for (_, group), answer in zip(groups, answers, strict=True):
            if isinstance(answer, Fs3Error):
                self._unanswered(group, answer)
                # The frame may have been applied, whatever was said of it.
                why: Fs3Error = answer if answer.retryable else Unavailable(str(answer))
                outcome.update((id(item), why) for item, *_ in group)
                continue
            for (item, *_), status in zip(group, answer["status"].tolist(), strict=True):
                name, successor = chunk_name(*item.key[1:]), item.role.successor
                assert successor is not None
                outcome[id(item)] = (
                    from_code(status, f"{name}: target {successor.target_id} refused it") if status else None
                )
        return [outcome[id(item)] for item in items]

    def must_remember(self, item: Item) -> str:
        """Why a removal cannot be forgotten behind this replica now; empty if it can."""
        successor, chunk = item.role.successor, item.key[1:]
        if successor is not None and successor.syncing:
            return f"target {successor.target_id} is being synced"
        with self._doubting:
            if self._doubts.has(item.key[0], item.role.version, chunk):
                return f"{chunk_name(*chunk)}: an earlier update may still arrive at the successor"
        return ""

    def _unanswered(self, group: Sequence[_Outgoing], error: Fs3Error) -> None:
        self.failures += 1
        successor = group[0][0].role.successor
        assert successor is not None
        if isinstance(error, Unavailable):
            self._suspect(successor.node_id, successor.generation)
        with self._doubting:
            for item, *_ in group:
                self._doubts.add(item.key[0], item.role.version, [item.key[1:]])
