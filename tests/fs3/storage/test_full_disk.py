"""Disks that somebody else fills to the last byte: the metadata cannot be written, nor opened again to be written.

On a real, small filesystem where one can be mounted; else with faults at the engine's steps, and a store that is told
there is no room. What was acknowledged stays, in the engine and for whoever opens the folder as it lies there; what was
refused never comes to be; reads go on; and with room again so do writes, in the same engine.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fs3 import checksum
from fs3.errors import Fs3Error, NoSpace, Unavailable
from fs3.storage.engine import Engine
from fs3.storage.engine_api import EngineConfig, Staged, Update
from fs3.storage.metadata import Metadata
from fs3.transport.messages import Op

CONFIG = EngineConfig(
    file_bytes=1 << 20,
    group_bytes=256 << 10,
    reserve_bytes=0,
    warn_used=1,
    refuse_used=1,
    index_chunks=16,
    write_buffer_bytes=256 << 10,
)
TARGET, HI = 3, 1 << 56 | 77


def update(lo: int, data: bytes, op: Op = Op.REPLACE, *, durable: bool = True) -> Update:
    view = memoryview(data)
    return Update(
        target_id=TARGET, hi=HI, lo=lo, op=op, data=view, fine=checksum.fine_sums(view), client=7, durable=durable
    )


def refusal(engine: Engine, one: Update) -> Fs3Error | None:
    try:
        (result,) = engine.stage_and_commit([one])
    except Fs3Error as error:
        return error
    return None if isinstance(result, Staged) else result


def contents(engine: Engine) -> dict[int, bytes]:
    """By the index, the records and the block files."""
    chunks = [int(lo) for lo in engine.metas(TARGET, b"", 10_000)["lo"].tolist()]
    assert all(not engine.verify(TARGET, HI, lo).fault for lo in chunks)
    return {lo: bytes(engine.read_chunk(TARGET, HI, lo).data) for lo in chunks}


def found_in(folder: Path) -> dict[int, bytes]:
    engine = Engine.open(folder, cluster_id="c", config=CONFIG)
    try:
        return contents(engine)
    finally:
        engine.close()


def until_taken(engine: Engine, one: Update) -> None:
    """The commit thread looks for room now and then."""
    while (error := refusal(engine, one)) is not None:
        assert isinstance(error, NoSpace), error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "fs3-test", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no filesystem can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Ballast:
    """What somebody else has on the disk."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "ballast"

    def fill(self) -> None:
        with self._path.open("ab") as file:
            try:
                while True:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, 4096)
            except OSError:
                pass

    def shrink(self) -> None:
        os.truncate(self._path, 1 << 20)


@pytest.mark.parametrize("taken", ["before", "meanwhile"])
def test_a_disk_that_somebody_fills_comes_back_by_itself(
    small_disk: Path, tmp_path: Path, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`taken`: whether the room was there when it was looked for."""
    if taken == "meanwhile":
        monkeypatch.setattr(Metadata, "_has_room", lambda metadata: True)
    rng, ballast = random.Random(1), Ballast(small_disk)
    engine = Engine.open(small_disk / "disk", cluster_id="c", create=True, config=CONFIG)
    engine.create_target(TARGET, 1)
    expected: dict[int, bytes] = {}
    for turn in range(2):
        for lo in range(50):
            expected[lo] = rng.randbytes(rng.randrange(5_000))
            assert refusal(engine, update(lo, expected[lo], durable=lo % 3 > 0)) is None
        ballast.fill()
        for number in itertools.count():
            lo = 50 + number % 100  # records alone, for which no block file must grow
            error = refusal(engine, update(lo, b"", durable=number % 3 > 0))
            if error is not None:
                break
            expected[lo] = b""
        for one in (update(1, b"other"), update(2, b"", Op.REMOVE), update(500, b"new")):
            assert isinstance(error, NoSpace), error
            error = refusal(engine, one)
        with pytest.raises(NoSpace):
            engine.put_state(TARGET, b"k", b"v")
        assert contents(engine) == expected and engine.failure() is None
        assert engine.get_state(TARGET, b"k") == (b"%d" % turn if turn else None)
        shutil.copytree(small_disk / "disk", tmp_path / f"killed-{turn}")
        assert found_in(tmp_path / f"killed-{turn}") == expected
        ballast.shrink()
        monkeypatch.undo()
        until_taken(engine, update(1, b"now"))
        expected[1] = b"now"
        engine.put_state(TARGET, b"k", b"%d" % (turn + 1))
        assert contents(engine) == expected
    assert engine.stats().used_bytes == engine.target_usage(TARGET)[0]
    engine.close()
    assert found_in(small_disk / "disk") == expected


class Full:
    """Fails at the steps that are told, as a full disk does; until there is `room` the store is open to be read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = False
        self.at: dict[str, Callable[[], Exception]] = {}
        monkeypatch.setattr(Metadata, "_has_room", lambda metadata: self.room)

    def __call__(self, what: str, _file: int, _offset: int, _length: int) -> None:
        if what in self.at:
            raise self.at.pop(what)()


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    return Full(monkeypatch)


@pytest.fixture
def engine(full: Full, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=CONFIG, step=full)
    engine.create_target(TARGET, 1)
    assert refusal(engine, update(0, b"before")) is None
    yield engine
    engine.close()


def test_what_is_not_in_the_log_was_refused_and_its_blocks_are_free(engine: Engine, full: Full) -> None:
    assert refusal(engine, update(1, b"unsynced", durable=False)) is None
    syncs = engine.stats().wal_syncs
    full.at["write metadata"] = lambda: NoSpace("full")
    assert isinstance(refusal(engine, update(0, b"after")), NoSpace)
    for lo in range(3):
        assert isinstance(refusal(engine, update(lo, b"after")), NoSpace)
    assert contents(engine) == {0: b"before", 1: b"unsynced"} and engine.stats().wal_syncs == syncs
    assert engine.stats().used_bytes == engine.target_usage(TARGET)[0]
    full.room = True
    until_taken(engine, update(0, b"after"))
    assert contents(engine) == {0: b"after", 1: b"unsynced"}


def test_what_is_in_the_log_all_the_same_counts(
    engine: Engine, full: Full, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply, synced = Metadata.apply, list[str]()
    sync_logs = Metadata._sync_logs

    def applied_and_failed(metadata: Metadata, puts: Any) -> None:
        apply(metadata, puts)
        monkeypatch.undo()
        monkeypatch.setattr(Metadata, "_has_room", lambda metadata: full.room)
        monkeypatch.setattr(Metadata, "_sync_logs", lambda metadata: (synced.append("logs"), sync_logs(metadata)))
        raise NoSpace("full")

    monkeypatch.setattr(Metadata, "apply", applied_and_failed)
    assert refusal(engine, update(0, b"after")) is None
    assert contents(engine) == {0: b"after"} and synced == ["logs"], "only what is durable may be told"
    assert isinstance(refusal(engine, update(0, b"later")), NoSpace)
    shutil.copytree(tmp_path / "disk", tmp_path / "killed")
    assert found_in(tmp_path / "killed") == {0: b"after"}
    full.room = True
    until_taken(engine, update(0, b"later"))
    assert contents(engine) == {0: b"later"}


def test_a_sync_that_fails_where_the_log_cannot_be_written_anew_is_final(engine: Engine, full: Full) -> None:
    """What the kernel has dropped of the log may look whole, and be gone with the power."""
    full.at["sync metadata"] = lambda: NoSpace("full")
    assert isinstance(refusal(engine, update(0, b"after")), Unavailable)
    full.room = True
    assert isinstance(refusal(engine, update(0, b"after")), Unavailable)
    assert isinstance(engine.failure(), Unavailable) and contents(engine).keys() == {0}


def test_a_sync_that_nobody_waits_for_may_fail_if_the_log_can_be_written_anew(engine: Engine, full: Full) -> None:
    full.room = True
    assert refusal(engine, update(0, b"after", durable=False)) is None
    full.at["sync metadata"] = lambda: NoSpace("full")
    engine._committer.lazy_sync()
    until_taken(engine, update(1, b"more"))
    assert not full.at and engine.failure() is None
    assert contents(engine) == {0: b"after", 1: b"more"}


def test_updates_that_went_with_a_full_disk_end_all_changes(engine: Engine, full: Full) -> None:
    full.room = True
    engine._metadata._applied += 1  # as if one more had been acknowledged
    full.at["write metadata"] = lambda: NoSpace("full")
    error = refusal(engine, update(0, b"after"))
    assert isinstance(error, Unavailable) and "lost its last 1 updates" in str(error)
    assert isinstance(engine.failure(), Unavailable) and contents(engine) == {0: b"before"}
