"""How far the scrubbing of a target has come, and when it begins again: values and what follows from them.

A pass goes through a target's chunks in the order of their ids. Where it stands is stored now and then, so that a
restart goes on from there instead of leaving the last chunks unread for ever. Times are wall clock, for people and
across restarts; a clock that has jumped makes a pass early or late by no more than `every_s`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Of one target. `after` is the last chunk id that was verified, while a pass is `running`."""

    running: bool = False
    after: bytes = b""
    begun_ns: int = 0
    ended_ns: int = 0  # of the last whole pass; 0: there was none
    passes: int = 0
    chunks: int = 0  # of the pass that runs, or of the last one
    read_bytes: int = 0
    damaged: int = 0

    def pack(self) -> bytes:
        """As it is stored with the target."""
        return json.dumps({**asdict(self), "after": self.after.hex()}, sort_keys=True).encode()


def unpack(raw: bytes | None) -> Progress:
    """What `pack` made; of anything else, the beginning: nothing is lost by verifying once more."""
    try:
        fields = json.loads(raw or b"")
        return Progress(**{**fields, "after": bytes.fromhex(fields["after"])})
    except (ValueError, TypeError, KeyError):
        return Progress()


def begun(progress: Progress, now_ns: int) -> Progress:
    """A new pass from the first chunk, whatever was under way."""
    return replace(progress, running=True, after=b"", begun_ns=now_ns, chunks=0, read_bytes=0, damaged=0)


def advanced(progress: Progress, after: bytes, bytes_: int, *, damaged: bool) -> Progress:
    """One more chunk is verified."""
    return replace(
        progress,
        after=after,
        chunks=progress.chunks + 1,
        read_bytes=progress.read_bytes + bytes_,
        damaged=progress.damaged + damaged,
    )


def ended(progress: Progress, now_ns: int) -> Progress:
    """The pass has come to the end."""
    return replace(progress, running=False, after=b"", ended_ns=now_ns, passes=progress.passes + 1)


def due_in_s(progress: Progress, now_ns: int, every_s: float) -> float:
    """In how many seconds there is something to do about a target; 0: now."""
    if progress.running or not progress.ended_ns:
        return 0.0
    return min(max(every_s - (now_ns - progress.ended_ns) / _NS, 0.0), every_s)


def choose(progress: Mapping[int, Progress], now_ns: int, every_s: float) -> tuple[int | None, float]:
    """(the target to go on with, or None, and in how many seconds the next is due).

    A pass that runs is finished before another begins; of those that are due the one whose last pass is oldest.
    """
    waits = {target: due_in_s(one, now_ns, every_s) for target, one in progress.items()}
    due = [target for target, wait_s in waits.items() if wait_s <= 0]
    if not due:
        return None, min(waits.values(), default=every_s)
    return min(due, key=lambda target: (not progress[target].running, progress[target].ended_ns, target)), 0.0
