"""What recovery must copy: the chunks of a SERVING replica compared with those of the SYNCING one behind it.

    only here                                               transfer
    only there                                              remove
    there something is pending                              transfer
    versions, lengths or sums of sums differ                transfer
    removed on one side (there is a tombstone)              as if it were a version: transfer, or remove there
    same, but written here under a later chain version      nothing: the same bytes, received in another way
    same                                                    nothing, unless it is known to be damaged there, not here

3FS transfers whatever has a later chain version here. With a sum of each chunk's sums on both sides that is not
needed, and a target that was refilled itself does not refill the next one with what that had all along. The comparison
only proposes: each chunk is looked at again under its lock before anything is sent, since writes go on.
"""

from __future__ import annotations

from typing import NamedTuple

from fs3.ids import chunk_bytes
from fs3.transport.messages import META_DAMAGED, META_REMOVED, Records

Chunk = tuple[int, int]  # hi, lo


class Meta(NamedTuple):
    """What CHUNK_META says of one chunk. `version` 0: it is only pending; `removed`: that of a tombstone."""

    version: int
    pending: int
    length: int
    crc: int
    damaged: bool = False
    removed: bool = False


class Plan(NamedTuple):
    """What to do about the chunks of one stretch of chunk ids, each list in chunk-id order."""

    transfer: list[Chunk]
    remove: list[Chunk]


def differs(here: Meta, there: Meta) -> bool:
    """Whether a chunk that both have must be transferred."""
    if there.damaged and not here.damaged:
        return True
    same = here.version == there.version and here.length == there.length and here.crc == there.crc
    return bool(there.pending) or not same or here.removed != there.removed


def compare(here: Records, there: Records) -> Plan:
    """The plan for two pages of CHUNK_META that cover the same stretch of chunk ids."""
    others = _by_chunk(there)
    transfer = []
    for chunk, meta in _by_chunk(here).items():
        other = others.pop(chunk, None)
        # A chunk that is only pending here reaches the successor by the update that made it.
        if differs(meta, other) if other is not None else meta.version:
            transfer.append(chunk)
    return Plan(transfer, list(others))


def stretch(here: Records, here_more: bool, there: Records, there_more: bool) -> tuple[Records, Records, bytes | None]:
    """Cut two pages that began after the same chunk id to the stretch that both cover.

    Returns (here, there, the last chunk id covered), None at the end of both lists.
    """
    ends = [_last(page) for page, more in ((here, here_more), (there, there_more)) if more]
    if not ends:
        return here, there, None
    end = min(ends)
    return here[: _count(here, end)], there[: _count(there, end)], chunk_bytes(*end)


def _last(page: Records) -> Chunk:
    assert len(page), "a page that is not the last has chunks"
    return int(page["hi"][-1]), int(page["lo"][-1])


def _count(page: Records, end: Chunk) -> int:
    """How many records are not beyond `end`."""
    within = (page["hi"] < end[0]) | ((page["hi"] == end[0]) & (page["lo"] <= end[1]))
    return int(within.sum())


def _by_chunk(page: Records) -> dict[Chunk, Meta]:
    names = ("hi", "lo", "version", "pending", "length", "crc")
    columns = [page[name].tolist() for name in names]
    columns += [((page["flags"] & flag) != 0).tolist() for flag in (META_DAMAGED, META_REMOVED)]
    return {(hi, lo): Meta(*rest) for hi, lo, *rest in zip(*columns, strict=True)}
