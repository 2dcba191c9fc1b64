"""What recovery copies: every combination for one chunk, and random pages in stretches against a plain model."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from fs3.ids import chunk_from_bytes
from fs3.storage.resync_core import Meta, compare, differs, stretch
from fs3.transport.messages import CHUNK_META, META_DAMAGED, META_REMOVED, Records


def page(chunks: dict[tuple[int, int], Meta]) -> Records:
    out = np.zeros(len(chunks), dtype=CHUNK_META)
    for row, (chunk, meta) in enumerate(sorted(chunks.items())):
        out["hi"][row], out["lo"][row] = chunk
        out["version"][row], out["pending"][row], out["length"][row], out["crc"][row], damaged, removed = meta
        out["flags"][row] = META_DAMAGED * damaged | META_REMOVED * removed
    return out


METAS = [
    *(Meta(*values) for values in itertools.product((0, 1, 2), (0, 3), (8, 9), (5, 6), (False, True))),
    *(Meta(version, pending, 0, 0, removed=True) for version, pending in itertools.product((1, 2), (0, 3))),
]


@pytest.mark.parametrize("here", METAS)
@pytest.mark.parametrize("there", METAS)
def test_one_chunk(here: Meta, there: Meta) -> None:
    same = (here.version, here.removed, here.length, here.crc) == (
        there.version,
        there.removed,
        there.length,
        there.crc,
    )
    assert differs(here, there) == (not same or there.pending > 0 or (there.damaged and not here.damaged))
    plan = compare(page({(1, 1): here}), page({(1, 1): there}))
    assert (plan.transfer, plan.remove) == ([(1, 1)] if differs(here, there) else [], [])


def test_only_on_one_side() -> None:
    settled, waiting, removed = Meta(3, 0, 8, 5), Meta(0, 1, 0, 0), Meta(3, 0, 0, 0, removed=True)
    chunks = page({(1, 1): settled, (1, 2): waiting, (1, 3): removed})
    assert compare(chunks, page({})) == ([(1, 1), (1, 3)], [])
    assert compare(page({}), chunks) == ([], [(1, 1), (1, 2), (1, 3)])


@pytest.mark.parametrize("seed", range(20))
def test_pages_cover_everything_once(seed: int) -> None:
    rng = random.Random(seed)
    chunks = [(hi, lo) for hi in (0, 1, 1 << 63) for lo in (0, 1, 255, 256, 1 << 63, (1 << 64) - 1)]
    here = {chunk: rng.choice(METAS) for chunk in chunks if rng.random() < 0.7}
    there = {chunk: rng.choice(METAS) if rng.random() < 0.5 else here.get(chunk, METAS[0]) for chunk in chunks}
    there = {chunk: meta for chunk, meta in there.items() if rng.random() < 0.7}
    whole = compare(page(here), page(there))
    sizes = rng.randrange(1, 5), rng.randrange(1, 5)
    transfer, remove, after = [], [], b""
    rounds = 0
    while after is not None:
        begin = chunk_from_bytes(after) if after else (-1, -1)
        left = dict(itertools.islice(sorted(item for item in here.items() if item[0] > begin), sizes[0]))
        right = dict(itertools.islice(sorted(item for item in there.items() if item[0] > begin), sizes[1]))
        part_here, part_there, after = stretch(page(left), len(left) == sizes[0], page(right), len(right) == sizes[1])
        plan = compare(part_here, part_there)
        transfer += plan.transfer
        remove += plan.remove
        rounds += 1
        assert rounds < 100, f"seed {seed}"
    assert (transfer, remove) == (whole.transfer, whole.remove), f"seed {seed}"
