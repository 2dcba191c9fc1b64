"""The chunk engine: random histories against a plain model, what readers are promised, limits, damage, locks."""

import importlib.util
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fs3 import checksum
from fs3.errors import (
    Conflict,
    Corrupt,
    Exists,
    Fs3Error,
    Invalid,
    NoSpace,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from fs3.storage.engine import Engine
from fs3.storage.engine_api import ChunkEngine, DedupEntry, DedupRecord, EngineConfig, Located, Staged, Update
from fs3.storage.metadata import Metadata
from fs3.transport.messages import META_REMOVED, Op, UpdateFlag

TARGET, HI = 3, 1 << 56 | 77
CONFIG = EngineConfig(file_bytes=64 << 20, group_bytes=1 << 20, reserve_bytes=0, index_chunks=16)


@pytest.fixture(scope="module")
def workload() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_workload", Path(__file__).with_name("engine_workload.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=CONFIG)
    engine.create_target(TARGET, 1)
    yield engine
    engine.close()


def update(lo: int, op: Op, data: bytes = b"", offset: int = 0, **more: object) -> Update:
    view = memoryview(data)
    fine = checksum.fine_sums(view, offset if op is Op.WRITE else 0)
    fields = {"target_id": TARGET, "hi": HI, "lo": lo, "op": op, "offset": offset, "data": view, "fine": fine}
    return Update(**{**fields, **more})  # type: ignore[arg-type]


def done(results: list[Staged | Fs3Error]) -> Staged:
    assert isinstance(results[0], Staged), results
    return results[0]


def located(engine: Engine, *los: int) -> Located:
    n = len(los)
    return engine.lookup(np.full(n, TARGET, np.uint32), np.full(n, HI, np.uint64), np.array(los, dtype=np.uint64))


def content(engine: Engine, lo: int) -> bytes:
    return bytes(engine.read_chunk(TARGET, HI, lo).data)


def reopen(engine: Engine, config: EngineConfig = CONFIG) -> Engine:
    engine.close()
    return Engine.open(engine.path, cluster_id="c", config=config)


def block_of(engine: Engine, lo: int) -> tuple[Path, int]:
    """Where a chunk lies on disk."""
    where = located(engine, lo)
    return Path(engine.file(int(where.file[0])).path), int(where.position[0])


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_it_has_the_port() -> None:
    for name in vars(ChunkEngine):
        if not name.startswith("_"):
            assert callable(getattr(Engine, name)) or isinstance(getattr(ChunkEngine, name), property), name


@pytest.mark.parametrize("seed", range(8))
def test_random_histories_agree_with_the_model(seed: int, tmp_path: Path, workload: ModuleType) -> None:
    rng = random.Random(seed)
    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=workload.CONFIG)
    engine.create_target(TARGET, 1)
    model = workload.Model()
    for seq in range(1, 120):
        call = workload.draw(rng, seq, durable=seq % 10 == 0)
        workload.on_model(model, call)
        workload.on_engine(engine, call)
        if seq % 40 == 0:
            engine.close()
            engine = Engine.open(tmp_path / "disk", cluster_id="c", config=workload.CONFIG)
        if seq % 7 == 0:
            assert workload.read_back(engine) == model
    alive = {lo: value for lo, value in model.committed.items() if value[1] is not None}
    assert engine.target_usage(TARGET)[1] == len(alive)
    metas = engine.metas(TARGET, b"", 100)
    only_pending = {lo for lo in model.pending if lo not in alive}
    assert set(metas["lo"].tolist()) == set(alive) | only_pending
    assert metas["lo"].tolist() == sorted(metas["lo"].tolist())
    for meta in metas:
        lo = int(meta["lo"])
        if lo in alive:
            version, data = alive[lo]
            coarse = [checksum.crc(data[at : at + 262_144]) for at in range(0, len(data), 262_144)]
            assert meta["crc"] == checksum.crc(np.array(coarse, dtype="<u4").tobytes())
            assert (int(meta["version"]), int(meta["length"])) == (version, len(data))
        assert int(meta["pending"]) == (model.pending[lo][0] if lo in model.pending else 0)
    listed = engine.list_chunks(TARGET, HI, 0, 100)
    assert listed.tolist() == [(HI, lo, alive[lo][0], len(alive[lo][1]), 0) for lo in sorted(alive)]
    removed = sorted(lo for lo, value in model.committed.items() if value[1] is None)
    assert engine.tombstones(TARGET, b"", 100)["lo"].tolist() == removed
    stats = engine.stats()
    assert (stats.chunks, stats.tombstones, stats.pending) == (len(alive), len(removed), len(model.pending))
    engine.close()


def test_lookup_sums_and_parts_are_those_of_the_bytes(engine: Engine) -> None:
    data = random.Random(1).randbytes(700_001)
    engine.stage_and_commit([update(5, Op.REPLACE, data, chain_version=8), update(6, Op.REPLACE)])
    where = located(engine, 4, 5, 6)
    assert where.found.tolist() == [False, True, True]
    assert where.length.tolist() == [0, 700_001, 0]
    assert where.version.tolist() == [0, 1, 1]
    assert where.chain_version.tolist() == [0, 8, 0]
    assert where.file.tolist()[::2] == [-1, -1] and (where.block[::2] < 0).all()
    file_no, position = int(where.file[1]), int(where.position[1])
    assert bytes(engine.file(file_no).view[position : position + 700_001]) == data
    for gather, size in ((engine.gather_fine, 4096), (engine.gather_coarse, 262_144)):
        numbers = np.arange(-(-len(data) // size))
        files, positions = np.full(len(numbers), file_no, np.int32), np.full(len(numbers), position)
        expected = [checksum.crc(data[at : at + size]) for at in range(0, len(data), size)]
        assert gather(files, positions, numbers).tolist() == expected
    for offset, length in [(0, 700_001), (1, 4095), (4096, 4096), (8000, 300_000), (700_000, 1), (5, 0)]:
        out = memoryview(bytearray(length + 1))
        for target in (None, out):
            part, crc = engine.read_verified(file_no, position, 700_001, offset, length, target)
            assert bytes(part) == data[offset : offset + length]
            assert crc == checksum.crc(data[offset : offset + length])
        assert bytes(out[:length]) == data[offset : offset + length]


def test_sums_are_gathered_from_several_files(engine: Engine) -> None:
    sizes = [10, 70_000, 300_000, 90_000]
    engine.stage_and_commit([update(lo, Op.REPLACE, bytes([lo]) * size) for lo, size in enumerate(sizes)])
    where = located(engine, 0, 1, 2, 3)
    assert len(set(where.file.tolist())) == 4
    got = engine.gather_fine(where.file, where.position, np.zeros(4, np.int64))
    assert got.tolist() == [checksum.crc(bytes([lo]) * min(4096, size)) for lo, size in enumerate(sizes)]


def test_a_block_stays_as_it_is_while_held_or_pinned(engine: Engine) -> None:
    def overwrite(count: int, byte: bytes = b"x") -> None:
        for _ in range(count):
            engine.stage_and_commit([update(0, Op.REPLACE, byte * 65_536)])

    overwrite(1, b"\0")
    hold = engine.hold()
    where = located(engine, 0)
    file, position = engine.file(int(where.file[0])), int(where.position[0])
    overwrite(4)
    assert file.view[position : position + 65_536] == bytes(65_536)
    pin, again = engine.pin(where.block), engine.pin(where.block)
    engine.release(hold)
    assert engine.stats().quarantined == 1
    overwrite(4)
    assert file.view[position : position + 65_536] == bytes(65_536)
    engine.unpin(pin)
    overwrite(4)
    assert file.view[position : position + 65_536] == bytes(65_536)
    engine.unpin(again)
    overwrite(2)
    assert file.view[position : position + 65_536] != bytes(65_536)
    assert engine.stats().quarantined <= 1


def test_a_wrong_update_is_told_in_its_place_and_the_others_happen(engine: Engine) -> None:
    bad = update(1, Op.WRITE, b"x" * 9000)
    bad.fine[1] ^= 1
    results = engine.stage_and_commit(
        [
            update(0, Op.WRITE, b"a" * 9000),
            bad,
            update(2, Op.WRITE, b"b", target_id=99),
            update(3, Op.WRITE, b"b" * 10, offset=95, chunk_bytes=100),
            update(4, Op.WRITE, b"c"),
        ]
    )
    assert [type(result) for result in results] == [Staged, Corrupt, NotFound, Invalid, Staged]
    assert located(engine, 0, 1, 2, 3, 4).found.tolist() == [True, False, False, False, True]
    assert engine.stats().used_bytes == 2 * 65_536


def test_versions_only_rise_except_in_recovery(engine: Engine) -> None:
    done(engine.stage_and_commit([update(0, Op.REPLACE, b"five", version=5)]))
    for version in (4, 5):
        assert isinstance(engine.stage([update(0, Op.REPLACE, b"x", version=version)])[0], Conflict)
    staged = done(engine.stage([update(0, Op.REPLACE, b"seven", version=7)]))
    assert isinstance(engine.stage([update(0, Op.REPLACE, b"x", version=6)])[0], Conflict)
    again = done(engine.stage([update(0, Op.REPLACE, b"again", version=7)]))
    engine.commit([staged])
    assert content(engine, 0) == b"again"
    engine.commit([again])  # a commit that comes twice
    with pytest.raises(Conflict, match="version 9"):
        engine.commit([Staged(**{**{name: getattr(again, name) for name in Staged.__slots__}, "version": 9})])
    lower = update(0, Op.REPLACE, b"lower", version=2, flags=UpdateFlag.SYNC_REPLACE)
    assert done(engine.stage_and_commit([lower])).version == 2
    assert content(engine, 0) == b"lower"
    same_chunk = engine.stage([update(1, Op.WRITE, b"1"), update(1, Op.WRITE, b"2")])
    assert [type(result) for result in same_chunk] == [Staged, Conflict]


def test_removal_leaves_its_version_until_it_expires(engine: Engine) -> None:
    engine.stage_and_commit([update(0, Op.REPLACE, b"x", version=4)])
    gone = done(engine.stage_and_commit([update(0, Op.REMOVE)]))
    assert (gone.version, gone.applied, gone.removes) == (5, True, True)
    assert isinstance(engine.stage([update(0, Op.REPLACE, b"late", version=5)])[0], Conflict)
    absent = done(engine.stage_and_commit([update(0, Op.REMOVE)]))
    assert (absent.version, absent.applied) == (5, False)
    with pytest.raises(NotFound, match="chunk 0"):
        engine.read_chunk(TARGET, HI, 0)
    engine = reopen(engine)
    assert engine.info(TARGET, HI, 0).version == 5
    engine.stage_and_commit([update(1, Op.REPLACE, b"y")])
    assert engine.metas(TARGET, b"", 9)["lo"].tolist() == [1]
    both = engine.metas(TARGET, b"", 9, removals=True)
    assert both[["lo", "version", "flags", "length"]].tolist() == [(0, 5, META_REMOVED, 0), (1, 1, 0, 1)]
    done(engine.stage([update(0, Op.REPLACE, b"new")]))
    engine.forget_tombstones(TARGET, [(HI, 0, 5)])
    assert engine.info(TARGET, HI, 0)[:3] == (False, 5, 6)
    assert engine.metas(TARGET, b"", 1)[["version", "pending", "flags"]].tolist() == [(0, 6, 0)]
    removed = engine.metas(TARGET, b"", 1, removals=True)
    assert removed[["version", "pending", "flags"]].tolist() == [(5, 6, META_REMOVED)]
    engine.abort([engine.pending_staged(TARGET, HI, 0)])
    engine.forget_tombstones(TARGET, [(HI, 0, 4), (HI, 1, 1)])
    assert engine.info(TARGET, HI, 0).version == 5 and content(engine, 1) == b"y"
    engine.forget_tombstones(TARGET, [(HI, 0, 5)])
    assert engine.info(TARGET, HI, 0).version == 0 and content(engine, 1) == b"y"
    engine.stage_and_commit([update(1, Op.REMOVE, flags=UpdateFlag.SYNC_REMOVE)])
    assert engine.info(TARGET, HI, 1) == (False, 0, 0, 0, 0)
    assert len(engine.tombstones(TARGET, b"", 9)) == 0
    engine.close()
    engine = Engine.open(engine.path, cluster_id="c", config=CONFIG)
    assert (engine.stats().tombstones, engine.stats().chunks, engine.stats().used_bytes) == (0, 0, 0)
    engine.close()


def test_put_if_absent_keeps_what_is_there(engine: Engine) -> None:
    assert done(engine.stage_and_commit([update(0, Op.PUT_IF_ABSENT, b"first")])).version == 1
    second = done(engine.stage_and_commit([update(0, Op.PUT_IF_ABSENT, b"second", client=5, channel=1, seq=9)]))
    assert (second.applied, second.version, second.length) == (False, 0, 5)
    assert content(engine, 0) == b"first"
    assert engine.dedup(TARGET, 5, 1) == DedupEntry(9, 0, 5)


def test_results_and_state_survive_and_a_dropped_target_leaves_nothing(engine: Engine) -> None:
    engine.stage_and_commit([update(0, Op.WRITE, b"abc", client=5, channel=1, seq=7)])
    staged = done(engine.stage([update(0, Op.WRITE, b"d", offset=3, client=5, channel=2, seq=8)]))
    assert staged.length == 4 and engine.dedup(TARGET, 5, 2) is None
    engine.put_dedup(TARGET, [DedupRecord(6, 0, DedupEntry(1, 2, 3, 4))])
    engine.put_state(TARGET, b"sync", b"\1\2")
    with pytest.raises(Exists, match="chain 1"):
        engine.create_target(TARGET, 2)
    engine.create_target(TARGET, 1)
    engine.create_target(4, 9)
    engine.stage_and_commit([update(0, Op.WRITE, b"other", target_id=4)])
    engine = reopen(engine)
    (pending,) = engine.pending_of(TARGET)
    assert pending[2:] == (2, 0, 4, False, 1, 5, 2, 8)
    engine.commit([engine.pending_staged(TARGET, HI, 0)])
    assert sorted(engine.dedup_records(TARGET)) == [
        DedupRecord(5, 1, DedupEntry(7, 1, 3)),
        DedupRecord(5, 2, DedupEntry(8, 2, 4)),
        DedupRecord(6, 0, DedupEntry(1, 2, 3, 4)),
    ]
    assert engine.result_clients() == {5, 6}
    engine.forget_clients({5, 7}, b"fence", b"\7")
    assert [record.client for record in engine.dedup_records(TARGET)] == [6]
    assert (engine.get_state(TARGET, b"fence"), engine.get_state(4, b"fence")) == (b"\7", None)
    assert engine.get_state(TARGET, b"sync") == b"\1\2"
    assert {key: record.chain_id for key, record in engine.targets().items()} == {3: 1, 4: 9}
    engine.stage([update(8, Op.WRITE, b"never committed")])
    engine.drop_target(TARGET)
    assert engine.stats().used_bytes == 65_536
    assert isinstance(engine.stage([update(0, Op.WRITE, b"x")])[0], NotFound)
    engine.create_target(TARGET, 5)
    for again in range(2):
        assert engine.get_state(TARGET, b"sync") is None
        assert engine.dedup_records(TARGET) == engine.pending_of(TARGET) == []
        assert len(engine.metas(TARGET, b"", 9)) == engine.target_usage(TARGET)[1] == 0
        assert bytes(engine.read_chunk(4, HI, 0).data) == b"other"
        if not again:
            engine = reopen(engine)
    engine.close()


def test_pages_of_metas_go_on_where_they_ended(engine: Engine) -> None:
    engine.stage_and_commit([update(lo, Op.WRITE, b"x") for lo in range(10)])
    engine.stage_and_commit([update(lo, Op.REMOVE) for lo in (0, 4, 9)])
    engine.stage([update(lo, Op.WRITE, b"y") for lo in (4, 7, 20)])
    after, seen = b"", []
    while len(page := engine.metas(TARGET, after, 2)):
        assert len(page) <= 2
        seen += [(int(row["lo"]), int(row["version"]), int(row["pending"])) for row in page]
        after = int(page["hi"][-1]).to_bytes(8, "big") + int(page["lo"][-1]).to_bytes(8, "big")
    expected = {lo: (1, 0) for lo in range(10) if lo not in (0, 4, 9)} | {4: (0, 3), 7: (1, 2), 20: (0, 1)}
    assert seen == [(lo, *expected[lo]) for lo in sorted(expected)]
    assert engine.list_chunks(TARGET, HI, 3, 2)["lo"].tolist() == [3, 5]


def test_a_whole_kind_is_listed_in_order_and_in_pages(engine: Engine) -> None:
    ids = [(kind << 56 | digest, lo) for kind in (1, 2, 3) for digest in (5, 9) for lo in (0, 7, 1 << 63)]
    for hi, lo in ids:
        engine.stage_and_commit([Update(target_id=TARGET, hi=hi, lo=lo, op=Op.REPLACE, chain_version=1)])
    pages = engine.list_chunks(TARGET, 2 << 56, 0, 4, whole_kind=True)
    rest = engine.list_chunks(TARGET, int(pages["hi"][-1]), int(pages["lo"][-1]) + 1, 100, whole_kind=True)
    found = [(int(row["hi"]), int(row["lo"])) for row in [*pages, *rest]]
    assert len(pages) == 4 and found == [chunk for chunk in ids if chunk[0] >> 56 == 2]


@pytest.mark.parametrize("where", ["data", "sums"])
def test_damaged_bytes_are_never_handed_out_nor_merged(where: str, engine: Engine) -> None:
    data = random.Random(2).randbytes(20_000)
    engine.stage_and_commit([update(0, Op.REPLACE, data)])
    path, position = block_of(engine, 0)
    file = engine.file(int(located(engine, 0).file[0]))
    flip(path, position + 5000 if where == "data" else 4096 + 4 * (file.fine_at(position) + 1))
    file_no = int(located(engine, 0).file[0])
    with pytest.raises(Corrupt, match=str(path)):
        engine.read_verified(file_no, position, 20_000, 4100, 10)
    assert engine.read_verified(file_no, position, 20_000, 8192, 10)[0] == data[8192:8202]
    (result,) = engine.stage([update(0, Op.WRITE, b"x", offset=6000)])
    assert isinstance(result, Corrupt)
    assert located(engine, 0).version.tolist() == [1]
    if where == "data":
        with pytest.raises(Corrupt, match="chunk 0"):
            engine.read_chunk(TARGET, HI, 0)
        assert engine.stats().corrupt == 2
    assert engine.stats().used_bytes == 65_536
    engine.stage_and_commit([update(0, Op.REPLACE, b"whole")])  # which needs nothing of the old one
    assert content(engine, 0) == b"whole"


def test_a_full_quota_changes_nothing_and_room_can_be_made(tmp_path: Path) -> None:
    config = EngineConfig(file_bytes=64 << 20, group_bytes=128 << 10, reserve_bytes=0, max_bytes=1 << 20)
    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=config)
    engine.create_target(TARGET, 1)
    full = engine.stage_and_commit([update(lo, Op.REPLACE, bytes([lo]) * 65_536) for lo in range(20)])
    assert [isinstance(result, NoSpace) for result in full] == [lo >= 16 for lo in range(20)]
    assert "max_bytes" in str(full[-1])
    assert isinstance(engine.stage([update(3, Op.WRITE, b"x")])[0], NoSpace)
    assert content(engine, 3) == b"\3" * 65_536 and not engine.pending_of(TARGET)
    assert engine.space() == (1 << 20, 0)
    engine.stage_and_commit([update(3, Op.REMOVE, durable=False)])
    assert done(engine.stage_and_commit([update(18, Op.REPLACE, b"now")])).version == 1
    engine.close()


def test_room_that_large_chunks_gave_back_serves_small_ones(tmp_path: Path) -> None:
    """Also far smaller ones: on a full disk nothing can grow, and the room is in blocks of the removed sizes."""
    config = EngineConfig(file_bytes=64 << 20, group_bytes=4 << 20, reserve_bytes=0, max_bytes=10 << 20)
    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=config)
    engine.create_target(TARGET, 1)
    large = bytes(4 << 20)
    stored = 0
    while isinstance(engine.stage_and_commit([update(stored, Op.REPLACE, large)])[0], Staged):
        stored += 1
    assert stored >= 2
    done(engine.stage_and_commit([update(0, Op.REMOVE)]))
    small = done(engine.stage_and_commit([update(100, Op.REPLACE, b"small")]))
    assert small.version == 1 and bytes(engine.read_chunk(TARGET, HI, 100).data) == b"small"
    engine = reopen(engine, config)
    assert bytes(engine.read_chunk(TARGET, HI, 100).data) == b"small"
    engine.close()


def test_a_class_that_cannot_grow_uses_larger_blocks_that_are_free(tmp_path: Path) -> None:
    config = EngineConfig(file_bytes=64 << 20, group_bytes=160 << 10, reserve_bytes=0, max_bytes=160 << 10)
    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=config)
    engine.create_target(TARGET, 1)
    engine.stage_and_commit([update(0, Op.REPLACE, bytes(80 << 10)), update(1, Op.REPLACE, b"small")])
    assert engine.target_usage(TARGET) == (2 * (80 << 10), 2)
    engine.close()


class Faults:
    """Raises what it is told to when the engine comes to a step."""

    def __init__(self) -> None:
        self.at: dict[str, Callable[[], Exception]] = {}

    def __call__(self, what: str, _file: int, _offset: int, _length: int) -> None:
        if what in self.at:
            raise self.at.pop(what)()


@pytest.mark.parametrize(
    ("step", "error", "raised"),
    [
        ("write data", lambda: OSError(28, "full"), None),
        ("write sums", lambda: OSError(28, "full"), None),
        ("fallocate", lambda: OSError(28, "full"), None),
        ("write metadata", lambda: NoSpace("full"), NoSpace),
        ("sync metadata", lambda: NoSpace("full"), None),
    ],
)
def test_a_full_disk_at_any_step_leaves_a_whole_engine(
    step: str, error: Callable[[], Exception], raised: type[Exception] | None, tmp_path: Path
) -> None:
    faults = Faults()
    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=CONFIG, step=faults)
    engine.create_target(TARGET, 1)
    engine.stage_and_commit([update(0, Op.REPLACE, b"before")])
    size = 300_000 if step == "fallocate" else 10
    faults.at[step] = error
    if raised:
        with pytest.raises(raised):
            engine.stage_and_commit([update(0, Op.REPLACE, b"y" * size)])
        expected = b"before"
    else:
        (result,) = engine.stage_and_commit([update(0, Op.REPLACE, b"y" * size)])
        # A log that could be synced after all, or a retry of the growth after a sync, means that it is done.
        expected = b"y" * size if step in ("sync metadata", "fallocate") else b"before"
        assert isinstance(result, Staged if expected != b"before" else NoSpace)
    assert not faults.at
    assert content(engine, 0) == expected
    engine.stage_and_commit([update(1, Op.REPLACE, b"after")])
    assert content(engine, 1) == b"after"
    engine.put_state(TARGET, b"k", b"v")  # syncs: nothing is left in quarantine, and nothing leaked
    assert engine.stats().used_bytes == engine.target_usage(TARGET)[0]
    engine.close()
    engine = Engine.open(tmp_path / "disk", cluster_id="c", config=CONFIG)
    assert content(engine, 0) == expected
    engine.close()


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_a_drop_that_a_full_disk_stops_is_gone_on_with(refused: int, tmp_path: Path) -> None:
    left = 0

    def step(what: str, _file: int, _offset: int, _length: int) -> None:
        nonlocal left
        left -= what == "write metadata"
        if what == "write metadata" and left == 0:
            raise NoSpace("full")

    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=CONFIG, step=step)
    engine.create_target(TARGET, 1)
    engine.stage_and_commit([update(lo, Op.REPLACE, b"gone", client=5) for lo in range(3)])
    left = refused
    with pytest.raises(NoSpace):
        engine.drop_target(TARGET)
    engine.drop_target(TARGET)
    engine.create_target(TARGET, 2)
    engine.put_state(TARGET, b"k", b"v")
    assert (engine.stats().used_bytes, engine.stats().chunks, engine.dedup_records(TARGET)) == (0, 0, [])
    engine.close()


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("fdatasync", lambda: OSError(5, "io")),
        ("fdatasync", lambda: OSError(28, "full")),
        ("fdatasync", lambda: OSError(122, "quota")),
        ("sync metadata", lambda: Unavailable("io")),
    ],
)
def test_a_disk_that_fails_a_sync_takes_no_more_durable_writes(
    step: str, error: Callable[[], Exception], tmp_path: Path
) -> None:
    faults = Faults()
    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=CONFIG, step=faults)
    engine.create_target(TARGET, 1)
    engine.stage_and_commit([update(0, Op.REPLACE, b"before")])
    faults.at[step] = error
    for _ in range(2):
        with pytest.raises(Unavailable):
            engine.stage_and_commit([update(0, Op.REPLACE, b"lost")])
        assert content(engine, 0) == b"before"
    engine.close()


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("step", ["write data", "write sums"])
def test_a_block_that_cannot_be_written_is_not_handed_out_again(step: str, ahead: bool, tmp_path: Path) -> None:
    bad = (-1, -1)
    places: list[tuple[int, int]] = []

    def fails(what: str, file: int, offset: int, _length: int) -> None:
        if what == step:
            places.append((file, offset))
            if places[-1] == bad:
                raise OSError(5, "io")

    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=CONFIG, step=fails)
    engine.create_target(TARGET, 1)

    def written(lo: int) -> Staged | Fs3Error:
        one = update(lo, Op.REPLACE, b"x" * 5_000)
        if ahead:
            one = replace(one, reserved=engine.reserve(5_000))
            assert one.reserved is not None
            try:
                engine.fill(one.reserved, 0, one.data)
                engine.seal(one.reserved, one.fine, durable=True)
            except Fs3Error as error:
                engine.unreserve(one.reserved)
                return error
        return engine.stage_and_commit([one])[0]

    for lo in range(2):
        assert isinstance(written(lo), Staged)
    file, offset = places[-1]
    bad = (file, 2 * offset - places[-2][1])  # the next
    assert isinstance(written(2), Unavailable)
    assert isinstance(written(3), Staged)
    assert engine.stats().used_bytes == 4 * (64 << 10)
    engine.close()
    engine = Engine.open(tmp_path / "disk", cluster_id="c", config=CONFIG)
    assert engine.stats().used_bytes == 3 * (64 << 10), "until the next opening"
    engine.close()


def test_damaged_metadata_is_refused_with_the_way_out(engine: Engine, tmp_path: Path) -> None:
    for lo in range(50):
        engine.stage_and_commit([update(lo, Op.REPLACE, b"x", durable=lo == 48)])
    shutil.copytree(tmp_path / "disk", tmp_path / "copy")  # as a crash leaves it: closing empties the log
    (log,) = (tmp_path / "copy" / "metadata").glob("*.log")
    flip(log, log.stat().st_size // 2)
    for _ in range(2):
        with pytest.raises(Corrupt, match=r"copy/metadata is damaged .* recovery refills it"):
            Engine.open(tmp_path / "copy", cluster_id="c", config=CONFIG)
    flip(log, log.stat().st_size // 2)
    with log.open("r+b") as file:  # a torn tail is what a crash leaves
        file.truncate(log.stat().st_size - 3)
    shutil.copytree(tmp_path / "copy", tmp_path / "cut")
    whole = Engine.open(tmp_path / "copy", cluster_id="c", config=CONFIG)
    assert located(whole, *range(50)).found.tolist() == [True] * 49 + [False]
    whole.close()
    with (tmp_path / "cut/metadata" / log.name).open("r+b") as file:  # but not in what had been synced
        file.truncate(os.fstat(file.fileno()).st_size // 2)
    with pytest.raises(Corrupt, match=r"ends at update .* had synced"):
        Engine.open(tmp_path / "cut", cluster_id="c", config=CONFIG)


def test_a_damaged_table_is_refused(engine: Engine, tmp_path: Path) -> None:
    engine.stage_and_commit([update(lo, Op.REPLACE, b"", durable=False) for lo in range(2000)])
    engine.close()
    table = max((tmp_path / "disk" / "metadata").glob("*.sst"), key=lambda path: path.stat().st_size)
    flip(table, table.stat().st_size // 3)
    with pytest.raises(Corrupt, match="damaged"):
        Engine.open(tmp_path / "disk", cluster_id="c", config=CONFIG)


def test_metadata_are_opened_again_under_readers_who_wait(tmp_path: Path) -> None:
    metadata = Metadata(tmp_path / "metadata", write_buffer_bytes=32 << 20)
    count, page = 60_000, 200
    metadata.apply((b"C" + number.to_bytes(4, "big"), bytes(40)) for number in range(count))
    failures: list[object] = []
    rounds = [0, 0]
    stop = threading.Event()

    def read(reader: int) -> None:
        after = 0
        while not stop.is_set():
            try:
                found = metadata.scan(b"C", after.to_bytes(4, "big"), page)
                good = len(found) == page and metadata.get(found[-1][0]) == bytes(40)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is not to be
                failures.append(error)
            else:
                failures.extend([] if good else [found])
                after = (after + page) % count
                rounds[reader] += 1

    readers = [threading.Thread(target=read, args=(reader,)) for reader in range(2)]
    for thread in readers:
        thread.start()
    try:
        for again in range(3):
            before = rounds[:]
            while not failures and any(now == then for now, then in zip(rounds, before, strict=True)):
                stop.wait(0.001)
            metadata.apply([(b"S" + number.to_bytes(4, "big"), bytes(400)) for number in range(5_000)])
            metadata.reopen()
            assert metadata.scan(b"S", limit=1), again
    finally:
        stop.set()
        for thread in readers:
            thread.join()
        metadata.close()
    assert not failures
    for read_closed in (lambda: metadata.scan(b"C"), lambda: metadata.get(b"C")):
        with pytest.raises(Unavailable, match=r"metadata in .* cannot be read"):
            read_closed()


def test_what_a_power_loss_took_of_unsynced_chunks_is_dropped(engine: Engine) -> None:
    engine.stage_and_commit([update(lo, Op.REPLACE, bytes([lo]) * 9000, durable=lo == 2) for lo in range(3)])
    for lo in (1, 2):
        path, position = block_of(engine, lo)
        file = engine.file(int(located(engine, lo).file[0]))
        flip(path, 4096 + 4 * file.coarse_at(position))
    engine = reopen(engine)
    assert located(engine, 0, 1, 2).found.tolist() == [True] * 3
    engine.close()
    (Path(engine.path) / "BOOT").write_text("another")
    engine = Engine.open(engine.path, cluster_id="c", config=CONFIG)
    assert located(engine, 0, 1, 2).found.tolist() == [True, False, True]
    engine.close()


def test_what_a_failed_sync_took_of_unsynced_chunks_is_dropped_at_the_restart(tmp_path: Path) -> None:
    """The block's earlier owner is what the disk holds, with sums that agree; the machine has not booted."""
    faults = Faults()
    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=CONFIG, step=faults)
    engine.create_target(TARGET, 1)
    engine.stage_and_commit([update(1, Op.REPLACE, b"a" * 9000)])
    path, position = block_of(engine, 1)
    on_disk = path.read_bytes()
    engine.stage_and_commit([update(1, Op.REMOVE)])
    engine.stage_and_commit([update(2, Op.REPLACE, b"b" * 9000, durable=False)])
    assert block_of(engine, 2) == (path, position)
    faults.at["fdatasync"] = lambda: OSError(5, "io")
    with pytest.raises(Unavailable):
        engine.stage_and_commit([update(3, Op.REPLACE, b"lost")])
    engine.close()
    path.write_bytes(on_disk)
    engine = Engine.open(tmp_path / "disk", cluster_id="c", config=CONFIG)
    assert engine.lost_power and located(engine, 2).found.tolist() == [False]
    engine = reopen(engine)
    assert not engine.lost_power, "it was checked"
    engine.close()


def test_after_a_power_loss_sums_are_read_from_the_disk(engine: Engine) -> None:
    """After a failed sync the page cache may hold what the disk does not."""
    engine.stage_and_commit([update(1, Op.REPLACE, b"x" * 9000)])
    path, position = block_of(engine, 1)
    engine.close()
    (Path(engine.path) / "BOOT").write_text("another")
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.preadv(file.fileno(), [bytearray(4096)], position)
        engine = Engine.open(engine.path, cluster_id="c", config=CONFIG)
        with pytest.raises(BlockingIOError):  # not in the page cache
            os.preadv(file.fileno(), [bytearray(4096)], position, os.RWF_NOWAIT)
    engine.close()


def test_a_folder_is_opened_only_by_who_it_belongs_to(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"in use by process \d+"):
        Engine.open(tmp_path / "disk", cluster_id="c")
    engine.close()
    with pytest.raises(PermissionDenied, match="cluster 'c', not to 'd'"):
        Engine.open(tmp_path / "disk", cluster_id="d")
    with pytest.raises(Invalid, match="no chunk engine"):
        Engine.open(tmp_path / "nothing", cluster_id="c")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(Invalid, match=r"not empty \(cat.jpg"):
        Engine.open(tmp_path / "photos", cluster_id="c", create=True)
    marker = tmp_path / "disk" / "ENGINE"
    marker.write_text(marker.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(Invalid, match="format 2; this fs3 reads format 1"):
        Engine.open(tmp_path / "disk", cluster_id="c")


def test_many_writers_and_readers_at_once(engine: Engine) -> None:
    """Each version of a chunk is one repeated byte, so a reader can tell a mixed one."""
    failures: list[object] = []
    stop = threading.Event()

    def write(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(40):
            los = rng.sample(range(4), 2)
            if rng.random() < 0.2:
                for result in engine.stage([update(lo, Op.REPLACE, bytes([seed]) * 70_000) for lo in los]):
                    if isinstance(result, Staged):
                        engine.abort([result])
            size = rng.choice([9_000, 70_000])
            batch = [update(lo, Op.REPLACE, bytes([rng.randrange(256)]) * size, durable=False) for lo in los]
            failures.extend(result for result in engine.stage_and_commit(batch) if isinstance(result, Fs3Error))

    def read() -> None:
        last = np.zeros(4, dtype=np.uint64)
        while not stop.is_set():
            hold = engine.hold()
            where = located(engine, 0, 1, 2, 3)
            for row in np.flatnonzero(where.found).tolist():
                length = int(where.length[row])
                data, _ = engine.read_verified(int(where.file[row]), int(where.position[row]), length, 0, length)
                if bytes(data) != bytes(data[:1]) * length:
                    failures.append((row, length))
            engine.release(hold)
            if (where.version < last).any():
                failures.append((where.version, last))
            last = where.version

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in [*writers, *readers]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not failures
    engine.stage_and_commit([update(9, Op.REMOVE)])
    engine.put_state(TARGET, b"k", b"v")  # syncs, so that nothing is left in quarantine
    stats = engine.stats()
    assert (stats.pending, stats.quarantined, stats.holds) == (0, 0, 0)
    assert stats.used_bytes == engine.target_usage(TARGET)[0]
    assert stats.groups < stats.updates


def test_a_disk_belongs_to_one_node(tmp_path: Path) -> None:
    Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=CONFIG).close()  # of before nodes were noted
    Engine.open(tmp_path / "disk", cluster_id="c", node_id=7, config=CONFIG).close()
    with pytest.raises(PermissionDenied, match="the disk of node 7, and this daemon has node_id 8"):
        Engine.open(tmp_path / "disk", cluster_id="c", node_id=8, config=CONFIG)
    Engine.open(tmp_path / "disk", cluster_id="c", node_id=7, config=CONFIG).close()
    Engine.open(tmp_path / "disk", cluster_id="c", config=CONFIG).close()  # a tool that names no node
