"""Update channels: whether an update is new, was answered before, or comes too late; and for how long that is known.

A client gives every update in flight a channel to itself and counts the channel's updates; a replica keeps the result
of each channel's last one, written in the same batch as the chunk it changed. So an update that is sent again, to the
same head or to the one that took over, is recognised and answered as the first time. (3FS, update channels.)
The results live as long as the client's session with mgmtd; afterwards nothing of that client is taken any more
(session_fence.py).
"""

from __future__ import annotations

from enum import Enum

from fs3.storage.engine_api import DedupEntry, DedupRecord


class Seen(Enum):
    """What a replica knows of (client, channel, seq)."""

    NEW = "not seen on this channel"
    REPEATED = "the channel's last update, which has a result"
    LATE = "older than the channel's last update: the client has given it up"


class Standing(Enum):
    """What a head knows of a client's session."""

    LIVE = "it goes on, or is newer than what is known here"
    ENDED = "it is over: what was remembered of its updates may have been forgotten"
    UNSURE = "sessions are remembered here that had ended already when results were forgotten here"


def judge(entry: DedupEntry | None, client: int, seq: int) -> Seen:
    """What the update `seq` is on a channel whose last result is `entry`; client 0 takes no part in deduplication."""
    if not client or entry is None or seq > entry.seq:
        return Seen.NEW
    return Seen.REPEATED if seq == entry.seq else Seen.LATE


def newer_results(known: dict[tuple[int, int], DedupEntry], arriving: list[DedupRecord]) -> list[DedupRecord]:
    """Those of `arriving` (from a predecessor, during recovery) that say more than `known`, {(client, channel): entry}.

    A live update may have left a later result than the snapshot that the predecessor sends.
    """
    out = []
    for record in arriving:
        entry = known.get((record.client, record.channel))
        if entry is None or entry.seq < record.entry.seq:
            out.append(record)
    return out
