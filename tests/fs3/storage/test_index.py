"""The index against a dict, through doubling and overflow; and readers beside a writer, who see no mixed line."""

import random
import threading

import numpy as np
import pytest

from fs3.storage.index import EMPTY, LINE, Entry, Index


def entry(value: int) -> Entry:
    """An entry all of whose fields follow from one number."""
    return Entry(value & 0xFFFF, value, value * 3, value << 12, value % 7 + 1, value & 0xFFF)


def look(index: Index, keys: list[tuple[int, int, int]]) -> list[Entry | None]:
    target, hi, lo = (np.array(column) for column in zip(*keys, strict=True))
    lines = index.lookup(target.astype(np.uint32), hi.astype(np.uint64), lo.astype(np.uint64))
    fields = lines[["length", "version", "pending", "position", "file", "chain_version"]].tolist()
    return [Entry(*row) if any(row) else None for row in fields]


@pytest.mark.parametrize("seed", range(6))
def test_it_agrees_with_a_dict(seed: int) -> None:
    rng = random.Random(seed)
    index = Index(seed=seed, chunks=1)
    model: dict[tuple[int, int, int], Entry] = {}
    universe = [(rng.randrange(4), 1 << 56 | rng.randrange(3), rng.randrange(2000)) for _ in range(3000)]
    for step in range(4000):
        key = rng.choice(universe)
        if rng.random() < 0.25:
            index.erase(*key)
            model.pop(key, None)
        else:
            model[key] = entry(step + 1)
            index.put(*key, model[key])
    assert len(index) == len(model)
    assert look(index, universe) == [model.get(key) for key in universe]
    assert [index.get(*key) for key in universe] == [model.get(key) for key in universe]
    for target in range(4):
        assert sorted(index.keys_of(target)) == sorted(key[1:] for key in model if key[0] == target)


def test_full_buckets_spill_and_nothing_is_lost() -> None:
    index = Index(chunks=12)  # one bucket, then two, ... : at 12 entries a bucket some overflow
    keys = [(1, 5, lo) for lo in range(20_000)]
    spilled = 0
    for at, key in enumerate(keys):
        index.put(*key, entry(at + 1))
        spilled = max(spilled, len(index._overflow))
    assert spilled > 0
    assert look(index, keys) == [entry(at + 1) for at in range(len(keys))]
    for key in keys[::2]:
        index.erase(*key)
    assert look(index, keys) == [entry(at + 1) if at % 2 else None for at in range(len(keys))]


def test_loading_in_bulk_is_putting_one_by_one() -> None:
    lines = np.zeros(50_000, dtype=LINE)
    lines["target"], lines["hi"], lines["lo"] = 3, 9, np.arange(50_000) * 7
    lines["version"], lines["file"] = np.arange(50_000) + 1, EMPTY
    index = Index(seed=1)
    index.load(lines)
    assert index.get(3, 9, 7 * 49_999) == Entry(version=50_000, file=EMPTY)
    assert index.get(3, 9, 8) is None
    assert look(index, [(3, 9, 7), (3, 9, 8)]) == [Entry(version=2, file=EMPTY), None]
    assert index.nbytes / len(index) <= 220


def test_a_half_written_line_is_not_believed() -> None:
    index = Index()
    index.put(1, 2, 3, entry(5))
    slot = index._slot((1, 2, 3))
    whole = index._table.lines[slot].copy()
    index.put(1, 2, 3, entry(6))
    newer = index._table.lines[slot].copy()
    asked = (np.array([1], np.uint32), np.array([2], np.uint64), np.array([3], np.uint64))
    settled: list[int] = []
    find = index._find

    def repaired(key: tuple[int, int, int]) -> np.ndarray | None:
        settled.append(1)
        index._table.lines[slot] = newer  # the writer is done once the reader has the lock
        return find(key)

    index._find = repaired  # type: ignore[method-assign]
    for mask in range(1, 1 << 8):
        mixed = np.where([mask >> word & 1 for word in range(8)], whole, newer)
        if (mixed == newer).all() or (mixed == whole).all():
            continue
        index._table.lines[slot] = mixed
        settled.clear()
        assert index.lookup(*asked)["version"].tolist() == [6]
        assert settled


def test_readers_beside_a_writer_see_whole_entries_and_never_miss_one() -> None:
    index = Index(chunks=1)
    for lo in range(64):
        index.put(1, 2, lo, entry(1))
    stop = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        target = np.full(64, 1, np.uint32)
        hi, lo = np.full(64, 2, np.uint64), np.arange(64, dtype=np.uint64)
        last = np.zeros(64, dtype=np.uint64)
        while not stop.is_set():
            lines = index.lookup(target, hi, lo)
            version = lines["version"].copy()
            expected = [entry(value) for value in version.tolist()]
            fields = lines[["length", "version", "pending", "position", "file", "chain_version"]].tolist()
            if [Entry(*row) for row in fields] != expected or (version < last).any() or (version == 0).any():
                wrong.append(fields)
                return
            last = version

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for step in range(2, 6000):
        index.put(1, 2, step % 64, entry(step))
        index.put(1, 3, step, entry(step))  # makes it double under the readers
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong
