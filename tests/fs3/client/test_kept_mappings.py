"""Mappings that are handed out again: of the newest version only, verified only, and not many at a time."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fs3 import checksum
from fs3.block_file import HEADER_BYTES, BlockLayout
from fs3.client import kept_mappings
from fs3.client.kept_mappings import KeptMappings, Mapped
from fs3.client.kept_places import BlockFile
from fs3.client.plan_core import Asked
from fs3.client.verified_core import Verified
from fs3.clock import lease_now_s
from fs3.runtime import SYSTEM
from fs3.transport.change_counters import ChangeCounters, CounterView, word_of

SIZE = 1 << 16
HI, CHAIN, WHOLE = 1 << 56 | 7, 3, (1 << SIZE // 4096) - 1


class Engine:
    """Change counters as a daemon has them, and a block file of which each chunk is one piece."""

    def __init__(self, folder: Path) -> None:
        self.counters = ChangeCounters(folder / "CHANGES")
        self.counters.rely_until(lease_now_s() + 60)
        fd = self.counters.share()
        self.view = CounterView(fd)
        os.close(fd)
        layout = BlockLayout(0, SIZE, 64)
        self.position, self.path = layout.position, folder / "blocks"
        data = [bytes([lo]) * SIZE for lo in range(64)]
        sums = b"".join(self._sums(layout, one) for one in data)
        head = (layout.pack().ljust(HEADER_BYTES, b"\0") + sums).ljust(layout.data_at, b"\0")
        self.path.write_bytes(head + b"".join(data))
        with self.path.open("rb") as file:
            self.file = BlockFile(file.fileno())
        self.verified = Verified()

    def _sums(self, layout: BlockLayout, data: bytes) -> bytes:
        fine = checksum.fine_sums(memoryview(data))
        sums = np.concatenate([fine, checksum.coarse_from_fine(fine, len(data))])
        assert len(sums) == layout.stride
        return sums.astype("<u4").tobytes()

    def mapped(self, lo: int, *, blocks: int = WHOLE) -> Mapped:
        position = self.position(lo)
        with self.path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_READ, offset=position)
        identity, place = (HI, lo, 1), ("daemon", 1, 0, position)
        if blocks:
            self.verified.add(place, identity, blocks, SYSTEM.now_s())
        view = memoryview(memory)
        state = self.counters.state(HI, lo)
        return Mapped(memory, view, place, identity, self.file, self.view, word_of(HI, lo), state)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


@pytest.fixture
def mappings(engine: Engine) -> Iterator[KeptMappings]:
    made = KeptMappings(engine.verified, SYSTEM)
    yield made
    made.close()


def asked(lo: int, offset: int = 0, length: int = SIZE) -> Asked:
    return Asked(HI, lo, offset, length, CHAIN)


def keep(mappings: KeptMappings, engine: Engine, *los: int) -> None:
    for lo in los:
        mappings.keep((HI, lo, CHAIN), engine.mapped(lo))


def test_any_part_of_a_chunk_is_handed_out_until_it_changes(mappings: KeptMappings, engine: Engine) -> None:
    keep(mappings, engine, 5)
    for offset, length in ((0, SIZE), (1, 1), (4095, 2), (SIZE - 1, 1)):
        found = mappings.of(asked(5, offset, length), SYSTEM.now_s())
        assert found is not None and not found.matched
        assert found.view.readonly and found.view == bytes([5]) * length
    assert mappings.of(asked(5, 0, 0), SYSTEM.now_s()) is None
    assert mappings.of(asked(5, 1, SIZE), SYSTEM.now_s()) is None, "more than the chunk has"
    assert mappings.of(asked(6), SYSTEM.now_s()) is None
    engine.counters.begin(HI, 5)
    assert mappings.of(asked(5), SYSTEM.now_s()) is None, "while it is being changed"
    engine.counters.end(HI, 5)
    assert mappings.of(asked(5), SYSTEM.now_s()) is None
    assert found.view == bytes([5]), "a view that was handed out stays"


def test_nothing_is_relied_on_once_the_daemon_may_be_gone(mappings: KeptMappings, engine: Engine) -> None:
    keep(mappings, engine, 5)
    engine.counters.rely_until(lease_now_s() - 0.001)
    assert mappings.of(asked(5), SYSTEM.now_s()) is None


def test_blocks_that_were_not_verified_are_compared_with_their_sums(mappings: KeptMappings, engine: Engine) -> None:
    mappings.keep((HI, 5, CHAIN), engine.mapped(5, blocks=0b110))
    now_s = SYSTEM.now_s()
    known, cut, whole = (mappings.of(one, now_s) for one in (asked(5, 4096, 8192), asked(5, 4095, 2), asked(5)))
    assert known is not None and cut is not None and whole is not None
    assert (known.matched, cut.matched, whole.matched) == (0, 0b11, WHOLE)
    with engine.path.open("r+b") as file:
        file.seek(engine.position(5) + 3 * 4096)
        file.write(b"x")
    assert mappings.of(asked(5), now_s) is None
    assert mappings.of(asked(5, 3 * 4096 + 5, 1), now_s) is None
    assert mappings.of(asked(5, 0, 3 * 4096), now_s) is not None


def test_there_are_not_many_and_the_oldest_goes(
    mappings: KeptMappings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_mappings, "MOST_BYTES", 8 * SIZE)
    keep(mappings, engine, *range(20), 19, 19)
    assert len(mappings) == 8
    assert [mappings.of(asked(lo), SYSTEM.now_s()) is not None for lo in range(20)] == [False] * 12 + [True] * 8
    monkeypatch.setattr(kept_mappings, "MOST_BYTES", 2 * SIZE)
    mappings.keep((HI, 30, CHAIN), engine.mapped(30))
    assert mappings.of(asked(30), SYSTEM.now_s()) is None, "one that would take the place of many"


def test_what_is_not_asked_for_or_does_not_hold_is_let_go(engine: Engine) -> None:
    mappings = KeptMappings(engine.verified, SYSTEM, idle_s=0.05)
    keep(mappings, engine, 1, 2, 3)
    engine.counters.begin(HI, 2)
    engine.counters.end(HI, 2)
    end_s = time.monotonic() + 20
    while len(mappings) != 1:  # the first time all were used, when they were kept
        assert mappings.of(asked(3), SYSTEM.now_s()) is not None
        assert time.monotonic() < end_s
    assert mappings.of(asked(3), SYSTEM.now_s()) is not None
    wait = threading.Event().wait
    while len(mappings):
        assert not wait(0.01) and time.monotonic() < end_s
    keep(mappings, engine, 1)  # and another thread looks again
    while len(mappings):
        assert not wait(0.01) and time.monotonic() < end_s


def test_nothing_is_kept_by_one_that_was_closed(mappings: KeptMappings, engine: Engine) -> None:
    keep(mappings, engine, 1)
    mappings.close()
    assert len(mappings) == 0
    keep(mappings, engine, 1)
    assert len(mappings) == 0
