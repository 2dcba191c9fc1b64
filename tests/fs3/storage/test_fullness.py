"""Nearly full disks: warned of, then no new chunks, then removals only, and back; on a chain a refusal by any replica
leaves nothing changed on the others."""

from __future__ import annotations

import itertools
import logging
import random
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import write_cluster as wc

from fs3 import checksum
from fs3.errors import Invalid, NoSpace
from fs3.storage import disk as disks
from fs3.storage.engine import Engine
from fs3.storage.engine_api import EngineConfig, Staged, Update
from fs3.storage.fullness_core import Fullness, fullness
from fs3.transport.messages import Op, UpdateFlag

LIMITS = {"warn_used": 0.96, "refuse_used": 0.98, "hard_reserve": 1_000}
TARGET, HI = 3, 1 << 56 | 77


def level(before: Fullness, used: int, free: int = 1 << 30, **changed: float) -> Fullness:
    return fullness(before, used=used, total=10_000, disk_free=free, **{**LIMITS, **changed})  # type: ignore[arg-type]


def test_levels_and_the_way_back() -> None:
    normal, nearly, no_new, no_writes = Fullness
    assert [level(normal, used) for used in (0, 9_599, 9_600, 9_799, 9_800, 10_000)] == [
        *(normal, normal, nearly, nearly, no_new, no_new)
    ]
    assert [level(nearly, used) for used in (9_550, 9_500, 9_499)] == [nearly, nearly, normal]
    assert [level(no_new, used) for used in (9_750, 9_700, 9_699, 9_499)] == [no_new, no_new, nearly, normal]
    assert level(normal, 0, 999) is no_writes
    assert [level(no_writes, 0, free) for free in (1_000, 1_249, 1_250)] == [no_writes, no_writes, normal]
    assert level(no_writes, 9_850, 5_000) is no_new
    assert level(normal, 10_000, warn_used=1, refuse_used=1) is normal
    assert fullness(normal, used=0, total=0, disk_free=1 << 30, **LIMITS) is normal  # type: ignore[arg-type]


def test_a_level_does_not_flutter() -> None:
    rng = random.Random(1)
    for edge in (9_600, 9_800):
        now, changes = Fullness.NORMAL, 0
        for _ in range(1_000):
            before, now = now, level(now, edge + rng.randrange(-80, 80))
            changes += now is not before
        assert changes <= 2, edge


def update(lo: int, op: Op, data: bytes = b"", **more: Any) -> Update:
    view = memoryview(data)
    return Update(target_id=TARGET, hi=HI, lo=lo, op=op, data=view, fine=checksum.fine_sums(view), **more)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    config = EngineConfig(file_bytes=64 << 20, group_bytes=64 << 10, reserve_bytes=4 << 20, max_bytes=100 * (64 << 10))
    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=config)
    engine.create_target(TARGET, 1)
    yield engine
    engine.close()


def apply(engine: Engine, *updates: Update) -> list[Any]:
    return [type(one) if not isinstance(one, Staged) else one.version for one in engine.stage_and_commit(updates)]


def test_an_engine_warns_refuses_and_comes_back(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fs3.storage")
    engine._space._looked_s = float("-inf")
    seen = {}
    for lo in itertools.count():
        engine._space._looked_s = float("-inf")
        (done,) = apply(engine, update(lo, Op.REPLACE, b"x"))
        seen.setdefault(engine.fullness(), lo)
        if done is NoSpace:
            break
    assert seen == {Fullness.NORMAL: 0, Fullness.NEARLY: 95, Fullness.NO_NEW: 97} and lo == 98
    assert engine.stats().fullness == 2
    # What is there can be changed, however often; new chunks cannot be made in any way.
    for _ in range(5):
        assert apply(engine, update(3, Op.WRITE, b"yy", offset=0)) != [NoSpace]
    assert apply(engine, update(200, Op.WRITE, b"x"), update(201, Op.TRUNCATE, offset=5)) == [NoSpace, NoSpace]
    assert apply(engine, update(202, Op.PUT_IF_ABSENT, b"x"), update(5, Op.PUT_IF_ABSENT, b"x")) == [NoSpace, 0]
    assert isinstance(engine.stage([update(203, Op.REPLACE, b"x")])[0], NoSpace)
    # Recovery puts back what was there before.
    assert apply(engine, update(204, Op.REPLACE, b"x", version=7, flags=UpdateFlag.SYNC_REPLACE)) == [7]
    for gone in range(5):
        assert apply(engine, update(gone, Op.REMOVE)) != [NoSpace]
    engine._drain()
    assert engine.fullness() is Fullness.NORMAL
    assert apply(engine, update(205, Op.REPLACE, b"x")) == [1]
    said = [record.message for record in caplog.records if "bytes are free" in record.message]
    assert [re.sub(r".*free: ", "", line) for line in said] == [
        "the disk is nearly full",
        "the disk is so full that no new chunks are taken",
        "there is room again",
    ]


def removals_of(engine: Engine, chunks: range) -> list[Staged]:
    """Pending, to be committed without a sync as a replica in front of the tail does: far less than would be synced for
    its own sake."""
    return [one for one in engine.stage([update(lo, Op.REMOVE) for lo in chunks]) if isinstance(one, Staged)]


@pytest.fixture(params=[1, 100])
def filled(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine that has just refused a chunk; its disk is grown by 1 or 100 blocks at once."""
    block = 64 << 10
    config = EngineConfig(
        file_bytes=64 << 20, group_bytes=request.param * block, reserve_bytes=0, max_bytes=100 * block
    )
    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=config)
    engine.create_target(TARGET, 1)
    for lo in itertools.count():
        engine._space._looked_s = float("-inf")
        if apply(engine, update(lo, Op.REPLACE, b"x")) == [NoSpace]:
            break
    yield engine
    engine.close()


@pytest.mark.parametrize("reserves", [False, True])
def test_what_was_removed_without_a_sync_is_room_for_a_new_chunk(filled: Engine, reserves: bool) -> None:
    space = filled._space
    space._fullness = Fullness.NORMAL  # nobody has looked
    space._looked_s = float("inf")
    filled.commit(removals_of(filled, range(10)), sync=False)
    assert filled.stats().quarantined == 10, "nobody was to sync them"
    space._looked_s = float("-inf")
    assert filled.fullness() is Fullness.NO_NEW
    if reserves:
        filled.unreserve(filled.reserve(1))
    else:
        assert isinstance(filled.stage([update(200, Op.REPLACE, b"x")])[0], Staged)
    assert filled.fullness() is Fullness.NORMAL and filled.stats().quarantined == 0


def test_a_full_disk_is_seen_to_have_room_though_nobody_writes(filled: Engine) -> None:
    assert filled.fullness() is Fullness.NO_NEW
    synced = threading.Event()
    space_synced = filled._committer._synced

    def told(batch: int) -> None:
        space_synced(batch)
        synced.set()

    removals = removals_of(filled, range(10))
    filled._committer._synced = told
    filled.commit(removals, sync=False)
    assert synced.wait(10), "nobody asked for a sync"
    assert filled.fullness() is Fullness.NORMAL


def test_a_full_disk_from_which_nothing_was_removed_is_not_synced_for_each_refusal(filled: Engine) -> None:
    groups, syncs = filled.stats().groups, filled.stats().wal_syncs
    filled._committer.submit = None  # type: ignore[method-assign, assignment]
    for lo in range(300, 310):
        assert apply(filled, update(lo, Op.REPLACE, b"x")) == [NoSpace]
    assert (filled.stats().groups, filled.stats().wal_syncs) == (groups, syncs)


def test_engines_that_share_a_disk_are_full_together_and_tell_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, reserve, engines = 64 << 10, 4 << 20, list[Engine]()
    monkeypatch.setattr(
        disks, "_free_bytes", lambda path: reserve + 200 * block - sum(one._space.grown_bytes for one in engines)
    )
    config = EngineConfig(file_bytes=64 << 20, group_bytes=block, reserve_bytes=reserve)
    for folder in (tmp_path / "disk", tmp_path / "disk" / "worker-1"):
        made = Engine.open(folder, cluster_id="c", create=True, config=config, shared_by=2)
        made.create_target(TARGET, 1)
        engines.append(made)

    def level_of(engine: Engine) -> Fullness:
        engine._space._looked_s = float("-inf")
        return engine.fullness()

    refused = dict[int, int]()
    seen = [dict[Fullness, int](), dict[Fullness, int]()]
    for lo in itertools.count():
        for number, engine in enumerate(engines):
            seen[number].setdefault(level_of(engine), lo)
            if number not in refused and apply(engine, update(lo, Op.REPLACE, b"x")) == [NoSpace]:
                refused[number] = lo
        total, free = (sum(figures) for figures in zip(*(engine.space() for engine in engines), strict=True))
        assert 198 * block <= total <= 200 * block and free >= 0
        if len(refused) == 2:
            break
    # At 96 and 98 of 100 blocks each: as one engine with all of the disk would be.
    for levels in seen:
        assert levels.keys() == {Fullness.NORMAL, Fullness.NEARLY, Fullness.NO_NEW}
        assert 92 <= levels[Fullness.NEARLY] <= 97 and 95 <= levels[Fullness.NO_NEW] <= 99, seen
    for lo in range(20):
        apply(engines[0], update(lo, Op.REMOVE))
    engines[0]._drain()
    assert level_of(engines[0]) is Fullness.NORMAL and level_of(engines[1]) is Fullness.NO_NEW, "its blocks are its own"
    for engine in engines:
        engine.close()


def test_below_the_hard_reserve_only_removals_are_taken(engine: Engine) -> None:
    assert apply(engine, update(1, Op.REPLACE, b"x"), update(2, Op.REPLACE, b"x")) == [1, 1]
    free, engine._space._free_bytes = engine._space._free_bytes, lambda: (4 << 20) - 1  # less than the reserve
    engine._space._looked_s = float("-inf")
    assert apply(engine, update(1, Op.REPLACE, b"y"), update(2, Op.WRITE, b"y"), update(3, Op.REPLACE, b"y")) == (
        [NoSpace] * 3
    )
    assert apply(engine, update(4, Op.REPLACE, b"x", version=7, flags=UpdateFlag.SYNC_REPLACE)) == [NoSpace]
    assert apply(engine, update(2, Op.REMOVE)) == [2]
    (pending,) = engine.stage([update(1, Op.REMOVE)])
    assert isinstance(pending, Staged)
    engine.commit([pending])
    assert engine.fullness() is Fullness.NO_WRITES
    engine._space._free_bytes = free
    assert apply(engine, update(3, Op.REPLACE, b"y")) == [1]
    assert engine.fullness() is Fullness.NORMAL


def test_an_old_disk_with_less_free_than_its_reserve_says_so_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = EngineConfig(file_bytes=64 << 20, reserve_bytes=0)
    for reserve_bytes, lines in ((0, 0), (1 << 62, 1)):
        engine = Engine.open(
            tmp_path / "disk", cluster_id="c", create=True, config=replace(config, reserve_bytes=reserve_bytes)
        )
        engine.close()
        said = [record.message for record in caplog.records if "(reserve_bytes)" in record.message]
        assert len(said) == lines, said
    (line,) = said
    assert line.startswith(f"{tmp_path / 'disk'}: its disk has ") and "no chunks are taken beyond the 0 MiB" in line


def test_a_disk_smaller_than_its_reserve_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "_free_bytes", lambda path: 100 << 20)
    with pytest.raises(NoSpace, match=r"disk has 100 MiB free, and 256 MiB are kept"):
        Engine.open(tmp_path / "a" / "disk", cluster_id="c", create=True)
    assert list(tmp_path.iterdir()) == []
    config = EngineConfig(reserve_bytes=50 << 20)
    Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=config).close()
    Engine.open(tmp_path / "disk", cluster_id="c", create=True).close()  # what is there is opened, however full


@pytest.mark.parametrize(
    "wrong", [{"warn_used": 0.99}, {"refuse_used": 1.1}, {"warn_used": 0.0}, {"reserve_bytes": -1}, {"max_bytes": -1}]
)
def test_thresholds_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        replace(EngineConfig(), **wrong)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def cluster(**options: int) -> Any:
        made.append(wc.Cluster(tmp_path / str(len(made)), **options))
        return made[-1]

    yield cluster
    for one in made:
        one.close()


@pytest.mark.parametrize("full", [1, 2, 3])
def test_a_full_replica_fails_the_write_on_the_whole_chain(make: Callable[..., Any], full: int) -> None:
    """Head, middle and tail: with the disk below its reserve, and with one that says ENOSPC in the middle of it."""
    cluster = make()
    client = wc.Client(cluster, 7)
    for lo in range(3):
        client.write(1, (HI, lo), Op.REPLACE, bytes([lo]) * 70_000)
    before = {node_id: cluster.contents(node, 1) for node_id, node in cluster.nodes.items()}
    used = {node_id: node.raw.stats().used_bytes for node_id, node in cluster.nodes.items()}
    space = cluster.nodes[full].raw._space

    def unchanged() -> None:
        for node_id, node in cluster.nodes.items():
            assert cluster.contents(node, 1) == before[node_id]
            node.raw._drain()
            assert node.raw.stats().used_bytes == used[node_id]

    writes = [
        ((HI, 9), Op.REPLACE, b"new"),
        ((HI, 1), Op.REPLACE, b"other bytes"),
        ((HI, 1), Op.WRITE, b"some"),
        ((HI, 1), Op.TRUNCATE, b""),
    ]
    free, space._free_bytes = space._free_bytes, lambda: 0
    space._looked_s = float("-inf")
    for chunk, op, data in writes:
        with pytest.raises(NoSpace):
            client.write(1, chunk, op, data, 5 if op in (Op.WRITE, Op.TRUNCATE) else 0)
    unchanged()
    space._free_bytes = free
    space.fullness()

    def no_block(length: int, drain: Callable[[], None]) -> Any:
        raise NoSpace("the disk is full")

    allocate, space.allocate = space.allocate, no_block
    for chunk, op, data in writes:
        with pytest.raises(NoSpace):
            client.write(1, chunk, op, data, 5 if op in (Op.WRITE, Op.TRUNCATE) else 0)
    unchanged()
    client.write(1, (HI, 2), Op.REMOVE)  # which is what one does about it
    space.allocate = allocate
    for chunk, op, data in writes:
        client.write(1, chunk, op, data, 5 if op in (Op.WRITE, Op.TRUNCATE) else 0)
    cluster.check_replicas()
