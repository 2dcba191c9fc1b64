"""What a daemon knows of single chunks, whatever their target's state: for an operator who compares replicas."""

from __future__ import annotations

import numpy as np

from fs3.ids import chunk_bytes
from fs3.storage.chain_state import ChainState
from fs3.storage.engine_api import ChunkEngine
from fs3.transport.messages import CHUNK_META, META_ABSENT, META_NO_TARGET, Records


def inspect(state: ChainState, ranges: Records) -> Records:
    """CHUNK_META [n] of the chunks that RANGE records [n] name, on this daemon's targets of their chains.

    A chunk that is not there has a flag that says why; of a removed one the tombstone's version is told.
    """
    metas = np.zeros(len(ranges), dtype=CHUNK_META)
    for row, asked in enumerate(ranges):
        hi, lo = int(asked["hi"]), int(asked["lo"])
        role = state.role(int(asked["chain"]))
        if role is None:
            metas["flags"][row] = META_NO_TARGET
        else:
            _look(state.engine(role.target_id), role.target_id, hi, lo, metas[row : row + 1])
        metas["hi"][row], metas["lo"][row] = hi, lo
    return metas


def _look(engine: ChunkEngine, target_id: int, hi: int, lo: int, into: Records) -> None:
    before = (hi << 64 | lo) - 1
    after = chunk_bytes(before >> 64, before & (1 << 64) - 1) if before >= 0 else b""
    page = engine.metas(target_id, after, 1, removals=True)
    if len(page) and (int(page["hi"][0]), int(page["lo"][0])) == (hi, lo):
        into[0] = page[0]
    else:
        into["flags"] = META_ABSENT
