"""Which chunks' frames to a successor got no answer, and may therefore still arrive.

A replica refuses frames of any version of the chain but its own, so a new version ends all doubt.
"""

from __future__ import annotations

from collections.abc import Iterable

Chunk = tuple[int, int]  # hi, lo
MOST = 65_536  # chunks of one target that are told apart; beyond that all are doubtful


class Doubts:
    """For the targets of one daemon. Not thread-safe."""

    def __init__(self, *, most: int = MOST) -> None:
        self._most = most
        self._of: dict[int, tuple[int, set[Chunk] | None]] = {}  # target -> (chain version, chunks; None: all)

    def add(self, target_id: int, chain_version: int, chunks: Iterable[Chunk]) -> None:
        """Frames with updates of `chunks`, sent for `chain_version` by this target, went unanswered."""
        version, known = self._of.get(target_id, (0, set()))
        if chain_version < version:
            return
        if chain_version > version:
            known = set()
        if known is not None:
            known.update(chunks)
            if len(known) > self._most:
                known = None
        self._of[target_id] = (chain_version, known)

    def has(self, target_id: int, chain_version: int, chunk: Chunk) -> bool:
        """Whether a frame with an update of `chunk` may still arrive at the target's successor."""
        version, known = self._of.get(target_id, (0, set()))
        return version == chain_version and (known is None or chunk in known)
