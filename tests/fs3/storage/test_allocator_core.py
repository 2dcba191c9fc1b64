"""The allocator against a set of blocks; the quarantine against its three conditions, over random histories."""

import itertools
import random

import numpy as np
import pytest

from fs3.errors import Corrupt
from fs3.storage.allocator_core import CLASS_BYTES, Allocator, Block, Quarantine, class_of


def test_size_classes_are_four_a_doubling_with_a_fifth_of_slack_at_most() -> None:
    assert len(CLASS_BYTES) == 41
    assert (CLASS_BYTES[0], CLASS_BYTES[-1]) == (64 << 10, 64 << 20)
    for small, large in itertools.pairwise(CLASS_BYTES):
        assert small < large <= small * 5 // 4
        assert large % 4096 == 0
        assert class_of(small) + 1 == class_of(small + 1) == class_of(large)
    assert class_of(1) == 0


def grow(allocator: Allocator, cls: int) -> None:
    growth = allocator.growth(cls)
    assert growth is not None
    if growth.first == 0:
        allocator.add_file(growth.file, allocator.slots_of_new_file(cls))
    allocator.grown(growth)


@pytest.mark.parametrize("seed", range(20))
def test_no_block_is_given_twice_and_the_lowest_comes_first(seed: int) -> None:
    rng = random.Random(seed)
    allocator = Allocator(file_bytes=2 << 20, group_bytes=rng.choice([1 << 16, 1 << 19, 1 << 30]))
    used: set[Block] = set()
    freed: set[Block] = set()
    for _ in range(400):
        if used and rng.random() < 0.45:
            block = rng.choice(sorted(used))
            used.remove(block)
            freed.add(block)
            allocator.free(block)
            continue
        cls = rng.randrange(3)
        block = allocator.allocate(cls)
        if block is None:
            assert not [old for old in freed if old.file // 1024 == cls]
            grow(allocator, cls)
            block = allocator.allocate(cls)
            assert block is not None
        assert block not in used and block.file // 1024 == cls
        reusable = [old for old in freed if old.file // 1024 == cls]
        assert not reusable or block <= min(reusable)
        freed.discard(block)
        used.add(block)
    assert allocator.used_bytes == sum(CLASS_BYTES[block.file // 1024] for block in used)

    again = Allocator(file_bytes=2 << 20, group_bytes=1 << 18)
    for file in {block.file for block in used}:
        again.add_file(file, allocator.slots_of_new_file(file // 1024))
        again.rebuild(file, np.array([block.slot for block in used if block.file == file]), 0)
    assert again.used_bytes == allocator.used_bytes
    for cls in range(3):
        while (block := again.allocate(cls)) is not None:
            assert block not in used
            used.add(block)


def test_a_block_with_two_owners_and_one_outside_the_file_are_corruption() -> None:
    for slots, text in [([1, 2, 1], "two chunk records"), ([1, 99], "names block 99")]:
        allocator = Allocator(file_bytes=1 << 20, group_bytes=1 << 18)
        allocator.add_file(0, 16)
        with pytest.raises(Corrupt, match=text):
            allocator.rebuild(0, np.array(slots), 0)


def test_freeing_a_free_block_is_a_programming_error() -> None:
    allocator = Allocator(file_bytes=1 << 20, group_bytes=1 << 18)
    grow(allocator, 0)
    block = allocator.allocate(0)
    assert block is not None
    allocator.free(block)
    with pytest.raises(AssertionError, match="twice"):
        allocator.free(block)


@pytest.mark.parametrize("seed", range(40))
def test_a_retired_block_comes_back_once_and_only_when_nothing_needs_it(seed: int) -> None:
    rng = random.Random(seed)
    quarantine = Quarantine()
    holds: dict[int, set[int]] = {}  # token -> blocks that were alive when it began
    pins: dict[int, list[int]] = {}
    alive = set(range(200))
    retired: dict[int, int] = {}
    back: list[int] = []
    batch = synced = 0

    def check(freed: list[int]) -> None:
        for block in freed:
            assert retired.pop(block) <= synced
            assert not any(block in covered for covered in holds.values())
            assert not any(block in pinned for pinned in pins.values())
            back.append(block)

    for _ in range(300):
        move = rng.randrange(7)
        if move == 0:
            holds[quarantine.hold()] = set(alive)
        elif move == 1 and holds:
            token = rng.choice(sorted(holds))
            del holds[token]
            quarantine.release(token)
        elif move == 2 and holds:
            blocks = rng.sample(sorted(alive), min(3, len(alive)))
            pins[quarantine.pin(blocks)] = blocks
        elif move == 3 and pins:
            token = rng.choice(sorted(pins))
            del pins[token]
            check(quarantine.unpin(token))
        elif move in (4, 5) and alive:
            batch += 1
            block = rng.choice(sorted(alive))
            alive.remove(block)
            retired[block] = batch
            quarantine.retire([block], batch)
        else:
            synced = rng.randint(synced, batch)
            quarantine.synced(synced)
        check(quarantine.reclaim())

    for token in sorted(holds):
        quarantine.release(token)
    holds.clear()
    for token in sorted(pins):
        del pins[token]
        check(quarantine.unpin(token))
    synced = batch
    quarantine.synced(batch)
    check(quarantine.reclaim())
    assert not retired
    assert len(set(back)) == len(back) == 200 - len(alive)
    assert quarantine.counts == (0, 0, 0)
