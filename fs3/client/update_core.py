"""A batch of ranges that are to be written into one file, as updates of its chunks, never two of one at once.

    ranges [n] --pieces--> what becomes of each chunk --inside--> rounds of distinct chunks, within the file's length
                                                      --beyond--> runs that make it longer, one after the other

Ranges that lie side by side in the file become one piece of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fs3.checksum import Bytes
from fs3.client.plan_core import I64


@dataclass(slots=True)
class Piece:
    """Bytes of one chunk, from `begin` to `end` of the file: `parts` of ranges (which, from where, how many bytes)."""

    chunk: int
    begin: int
    end: int
    parts: list[tuple[int, int, int]] = field(default_factory=list)

    def data(self, datas: Sequence[memoryview]) -> Bytes:
        """Its bytes: where they lie, if they are of one range, else a copy."""
        views = [datas[source][first : first + length] for source, first, length in self.parts]
        return views[0] if len(views) == 1 else b"".join(views)


def pieces(offsets: I64, lengths: Sequence[int], chunk_bytes: int) -> list[Piece]:
    """The pieces of ranges [n] that do not overlap, in the order of the file."""
    found: list[Piece] = []
    for source in np.argsort(offsets, kind="stable").tolist():
        begin, first, length = int(offsets[source]), 0, lengths[source]
        while first < length:
            chunk, at = divmod(begin + first, chunk_bytes)
            part = min(length - first, chunk_bytes - at)
            if not found or (found[-1].chunk, found[-1].end) != (chunk, begin + first):
                found.append(Piece(chunk, begin + first, begin + first))
            found[-1].parts.append((source, first, part))
            found[-1].end += part
            first += part
    return found


def inside(found: Sequence[Piece], length: int) -> list[list[Piece]]:
    """Those within a file of `length`, in rounds of distinct chunks."""
    rounds: list[list[Piece]] = []
    turn = 0
    before: Piece | None = None
    for piece in found:
        if piece.end > length:
            continue
        turn = turn + 1 if before is not None and before.chunk == piece.chunk else 0
        before = piece
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(piece)
    return rounds


def beyond(found: Sequence[Piece], length: int) -> Iterator[list[Piece]]:
    """Those that end beyond it, in runs without a gap; each begins where the file ends by then, or behind that."""
    run: list[Piece] = []
    for piece in found:
        if piece.end <= length:
            continue
        if run and piece.begin > run[-1].end:
            yield run
            run = []
        run.append(piece)
    if run:
        yield run
