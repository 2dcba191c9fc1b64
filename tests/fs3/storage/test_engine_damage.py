"""Damaged chunks in the engine: found wherever the damage is, marked until a new version or a repair; a repair takes
only the bytes that were recorded. Damage is done to the files behind the engine's back."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fs3 import checksum
from fs3.errors import Conflict, Corrupt, Fs3Error, Invalid, NotFound
from fs3.storage.blocks import HEADER_BYTES
from fs3.storage.engine import Engine
from fs3.storage.engine_api import EngineConfig, Staged, Update
from fs3.transport.messages import META_DAMAGED, Op, UpdateFlag

TARGET, HI = 3, 1 << 56 | 77
CONFIG = EngineConfig(file_bytes=64 << 20, group_bytes=1 << 20, reserve_bytes=0, index_chunks=16)
DATA = random.Random(1).randbytes(700_000)


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


def apply(engine: Engine, one: Update) -> Staged | Fs3Error:
    return engine.stage_and_commit([one])[0]


def put(engine: Engine, lo: int, data: bytes = DATA) -> int:
    done = apply(engine, update(lo, Op.REPLACE, data))
    assert isinstance(done, Staged), done
    return done.version


def flip(engine: Engine, lo: int, at: int, what: str = "data") -> None:
    """Turn one bit of a chunk's data, fine or coarse sums."""
    where = engine.lookup(np.array([TARGET], np.uint32), np.array([HI], np.uint64), np.array([lo], np.uint64))
    file, position = engine.file(int(where.file[0])), int(where.position[0])
    sums = {"fine": file.fine_at, "coarse": file.coarse_at}
    begin = position if what == "data" else HEADER_BYTES + 4 * sums[what](position)
    with Path(file.path).open("r+b") as handle:
        handle.seek(begin + at)
        byte = handle.read(1)[0]
        handle.seek(begin + at)
        handle.write(bytes([byte ^ 1]))


def test_a_pending_version_gets_its_own_bytes_again_and_no_others(engine: Engine) -> None:
    put(engine, 1, b"before")
    (staged,) = engine.stage([update(1, Op.WRITE, DATA, 3, client=7, channel=2, seq=5)])
    assert isinstance(staged, Staged)
    pending = engine._published.pending[TARGET, HI, 1]
    with Path(engine.file(pending.file).path).open("r+b") as handle:
        handle.seek(engine.file(pending.file).position(pending.slot) + 300_000)
        handle.write(b"something else")
    with pytest.raises(Corrupt):
        engine.read_chunk(TARGET, HI, 1, pending=True)
    found = engine.read_as_is(TARGET, HI, 1, pending=True)
    assert bytes(found.data[:300_000]) == b"bef" + DATA[: 300_000 - 3]
    assert (found.version, found.recorded_crc) == (2, pending.crc)

    used = engine.stats().used_bytes
    for wrong in (update(1, Op.WRITE, DATA[:-1] + b"\0", 3), update(1, Op.WRITE, DATA, 3, version=3)):
        with pytest.raises(Conflict):
            engine.restage(wrong)
    assert engine.stats().used_bytes == used
    engine.restage(update(1, Op.WRITE, DATA, 3, version=2))
    assert bytes(engine.read_chunk(TARGET, HI, 1, pending=True).data) == b"bef" + DATA
    assert engine.pending_staged(TARGET, HI, 1) == staged
    with pytest.raises(Conflict):
        engine.restage(update(2, Op.WRITE, DATA))
    engine.commit([staged])
    assert bytes(engine.read_chunk(TARGET, HI, 1).data) == b"bef" + DATA
    assert engine.dedup(TARGET, 7, 2) == (5, 2, len(DATA) + 3, 0)


@pytest.mark.parametrize(
    ("what", "at"), [("data", 0), ("data", 699_999), ("data", 300_000), ("fine", 4), ("fine", 4 * 170), ("coarse", 8)]
)
def test_damage_is_found_and_repaired(engine: Engine, what: str, at: int) -> None:
    version = put(engine, 1)
    put(engine, 2)
    assert engine.verify(TARGET, HI, 1) == (version, len(DATA), "")
    flip(engine, 1, at, what)
    assert engine.verify(TARGET, HI, 1).fault
    assert not engine.verify(TARGET, HI, 2).fault
    with pytest.raises(Corrupt):
        engine.read_chunk(TARGET, HI, 1)
    assert isinstance(apply(engine, update(1, Op.WRITE, b"x", 800_000)), Corrupt)  # it would keep all old bytes

    assert engine.mark_damaged(TARGET, HI, 1, version)
    assert engine.damaged() == {(TARGET, HI, 1): version}
    usage, used = engine.target_usage(TARGET), engine.stats().used_bytes
    engine.repair(TARGET, HI, 1, version, memoryview(DATA), checksum.fine_sums(memoryview(DATA)))
    assert engine.damaged() == {}
    assert engine.verify(TARGET, HI, 1) == (version, len(DATA), "")
    assert bytes(engine.read_chunk(TARGET, HI, 1).data) == DATA
    assert (engine.target_usage(TARGET), engine.stats().used_bytes) == (usage, used)  # the old block is free again
    assert engine.stats().repaired == 1
    path = engine.path
    engine.close()
    again = Engine.open(path, cluster_id="c", config=CONFIG)
    assert again.verify(TARGET, HI, 1) == (version, len(DATA), "")
    assert again.stats().used_bytes == used
    again.close()


def test_to_verify_a_chunk_leaves_the_page_cache_as_it_is(engine: Engine) -> None:
    """Or the next reader finds it gone, or in small pages."""
    put(engine, 1)
    where = engine.lookup(np.array([TARGET], np.uint32), np.array([HI], np.uint64), np.array([1], np.uint64))
    file, position = engine.file(int(where.file[0])), int(where.position[0])
    os.fsync(file.fd)
    os.posix_fadvise(file.fd, position, len(DATA), os.POSIX_FADV_DONTNEED)
    assert not engine.verify(TARGET, HI, 1).fault
    with pytest.raises(BlockingIOError):  # not in the page cache
        os.preadv(file.fd, [bytearray(4096)], position + (256 << 10), os.RWF_NOWAIT)


def test_a_repair_takes_only_the_recorded_bytes_of_the_committed_version(engine: Engine) -> None:
    version = put(engine, 1)
    other = DATA[:-1] + b"?"
    good, bad = checksum.fine_sums(memoryview(DATA)), checksum.fine_sums(memoryview(other))
    used = engine.stats().used_bytes
    for wrong, data, fine, error in (
        (version + 1, DATA, good, Conflict),
        (version, other, bad, Conflict),
        (version, DATA[:-1], checksum.fine_sums(memoryview(DATA[:-1])), Conflict),
        (version, other, good, Corrupt),
        (version, DATA, good[:-1], Invalid),
    ):
        with pytest.raises(error):
            engine.repair(TARGET, HI, 1, wrong, memoryview(data), fine)
    with pytest.raises(Conflict):
        engine.repair(TARGET, HI, 9, 1, memoryview(DATA), good)
    assert engine.stats().used_bytes == used
    assert not engine.mark_damaged(TARGET, HI, 1, version + 1)
    assert not engine.mark_damaged(TARGET, HI, 9, 1)
    assert engine.damaged() == {}
    with pytest.raises(NotFound):
        engine.verify(TARGET, HI, 9)


def test_a_repair_leaves_pending_version_and_results_alone(engine: Engine) -> None:
    assert isinstance(apply(engine, update(1, Op.REPLACE, DATA, client=8, channel=2, seq=5)), Staged)
    (staged,) = engine.stage([update(1, Op.REPLACE, b"next", client=8, channel=2, seq=6)])
    assert isinstance(staged, Staged)
    flip(engine, 1, 7)
    engine.mark_damaged(TARGET, HI, 1, 1)
    engine.repair(TARGET, HI, 1, 1, memoryview(DATA), checksum.fine_sums(memoryview(DATA)))
    assert engine.info(TARGET, HI, 1) == (True, 1, 2, len(DATA), 0)
    assert engine.dedup(TARGET, 8, 2) == (5, 1, len(DATA), 0)
    assert bytes(engine.read_chunk(TARGET, HI, 1, pending=True).data) == b"next"
    engine.commit([staged])
    assert bytes(engine.read_chunk(TARGET, HI, 1).data) == b"next"


def test_marks_last_over_a_restart_and_end_with_the_version(engine: Engine) -> None:
    for lo in range(1, 6):
        put(engine, lo)
        assert engine.mark_damaged(TARGET, HI, lo, 1)
    put(engine, 2, b"new bytes")
    engine.stage_and_commit([update(3, Op.REMOVE)])
    (staged,) = engine.stage([update(4, Op.REPLACE, b"pending")])
    engine.clear_damage(TARGET, HI, 5)
    left = {(TARGET, HI, 1): 1, (TARGET, HI, 4): 1}
    assert engine.damaged() == left
    assert [bool(flags & META_DAMAGED) for flags in engine.metas(TARGET, b"", 9)["flags"]] == [True, False, True, False]
    engine.close()
    again = Engine.open(engine.path, cluster_id="c", config=CONFIG)
    assert again.damaged() == left
    assert isinstance(staged, Staged)
    again.commit([staged])
    assert again.damaged() == {(TARGET, HI, 1): 1}
    again.drop_target(TARGET)
    assert again.damaged() == {}
    again.create_target(TARGET, 1)
    again.close()
    once_more = Engine.open(engine.path, cluster_id="c", config=CONFIG)
    assert once_more.damaged() == {}
    once_more.close()


def test_damaged_bytes_are_taken_over_as_they_are_and_can_be_repaired(engine: Engine) -> None:
    """What a predecessor sends if nobody has better bytes."""
    put(engine, 1)
    flip(engine, 1, 5_000)
    there = engine.read_as_is(TARGET, HI, 1)
    assert (there.version, len(there.data), there.durable) == (1, len(DATA), True)
    assert bytes(there.data) != DATA
    engine.create_target(4, 1)
    copy = Update(
        target_id=4,
        hi=HI,
        lo=1,
        op=Op.REPLACE,
        data=there.data,
        fine=there.fine,
        version=there.version,
        flags=UpdateFlag.SYNC_REPLACE | UpdateFlag.DAMAGED,
        recorded_crc=there.recorded_crc,
    )
    assert isinstance(engine.stage([copy])[0], Invalid)  # it is for the end of the chain
    assert isinstance(apply(engine, copy), Staged)
    assert engine.damaged() == {(4, HI, 1): 1}
    assert engine.metas(4, b"", 9)["crc"] == engine.metas(TARGET, b"", 9)["crc"]
    with pytest.raises(Corrupt):
        engine.read_chunk(4, HI, 1)
    engine.repair(4, HI, 1, 1, memoryview(DATA), checksum.fine_sums(memoryview(DATA)))
    assert bytes(engine.read_chunk(4, HI, 1).data) == DATA
    assert engine.damaged() == {}
