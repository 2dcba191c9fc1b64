"""Folders whose files are damaged or gone while no daemon runs: one clear error that names the folder, every time that
it is opened, and what is left of it stays."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fs3 import checksum
from fs3.errors import Corrupt
from fs3.storage.blocks import HEADER_BYTES
from fs3.storage.engine import Engine
from fs3.storage.engine_api import EngineConfig, Staged, Update
from fs3.storage.raw_file import SystemFile
from fs3.transport.messages import Op

CONFIG = EngineConfig(file_bytes=1 << 20, group_bytes=256 << 10, reserve_bytes=0, index_chunks=16)
TARGET, HI, CHUNKS = 3, 1 << 56 | 77, 40


def opened(folder: Path) -> Engine:
    return Engine.open(folder, cluster_id="c", node_id=1, create=True, config=CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An engine with chunks, closed."""
    engine = opened(tmp_path / "disk")
    engine.create_target(TARGET, 1)
    fill(engine, range(CHUNKS))
    engine.close()
    return tmp_path / "disk"


def fill(engine: Engine, chunks: range, *, durable: bool = True) -> None:
    for lo in chunks:
        data = memoryview(random.Random(lo).randbytes(5_000))
        fine = checksum.fine_sums(data)
        update = Update(target_id=TARGET, hi=HI, lo=lo, op=Op.REPLACE, data=data, fine=fine, durable=durable)
        assert isinstance(engine.stage_and_commit([update])[0], Staged)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """As a daemon leaves it that was killed: the last chunks are in RocksDB's log only."""
    engine = opened(tmp_path / "disk")
    engine.create_target(TARGET, 1)
    fill(engine, range(CHUNKS // 2))
    shutil.copytree(tmp_path / "disk/metadata", tmp_path / "earlier")
    fill(engine, range(CHUNKS // 2, CHUNKS))
    shutil.copytree(tmp_path / "disk", tmp_path / "killed")
    engine.close()
    return tmp_path / "killed"


def only(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[-1]


def flip(file: Path, at: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[at] ^= 0x10
    file.write_bytes(raw)


BREAKS: dict[str, Callable[[Path], None]] = {
    "CURRENT flipped": lambda folder: flip(folder / "metadata/CURRENT", 3),
    "CURRENT gone": lambda folder: (folder / "metadata/CURRENT").unlink(),
    "MANIFEST flipped": lambda folder: flip(only(folder, "metadata/MANIFEST*"), 40),
    "MANIFEST gone": lambda folder: only(folder, "metadata/MANIFEST*").unlink(),
    "table flipped": lambda folder: flip(only(folder, "metadata/*.sst"), 100),
    "table gone": lambda folder: only(folder, "metadata/*.sst").unlink(),
    "metadata gone": lambda folder: shutil.rmtree(folder / "metadata"),
    "block file gone": lambda folder: only(folder, "blocks/*").unlink(),
    "block files gone": lambda folder: shutil.rmtree(folder / "blocks"),
    "block file cut": lambda folder: only(folder, "blocks/*").write_bytes(b"short"),
    "ENGINE flipped": lambda folder: flip(folder / "ENGINE", 0),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_folder_is_refused_each_time_with_its_name(folder: Path, what: str) -> None:
    BREAKS[what](folder)
    kept = {path.name for path in folder.glob("*/*") if path.suffix in (".sst", ".blk")}
    for _ in range(2):
        with pytest.raises(Corrupt) as raised:
            opened(folder)
        text = str(raised.value)
        assert str(folder) in text and "\n" not in text and ("refill" in text or "restore" in text), text
    assert kept <= {path.name for path in folder.glob("*/*")}, "nothing that may be of use is removed"


def test_a_damaged_note_of_the_last_boot_only_costs_a_check(folder: Path) -> None:
    (folder / "BOOT").write_bytes(b"\xff\xfe")
    engine = opened(folder)
    assert engine.lost_power and engine.stats().chunks == CHUNKS
    engine.close()


def test_after_a_power_loss_an_unreadable_sector_costs_one_chunk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(folder)
    fill(engine, range(CHUNKS, CHUNKS + 2), durable=False)
    place = engine.place(TARGET, HI, CHUNKS)
    assert place is not None
    file = engine.file(place.file)
    bad = HEADER_BYTES + 4 * file.coarse_at(place.position)
    engine.close()
    (folder / "BOOT").write_text("another")
    read = SystemFile.read

    def fails(self: SystemFile, out: memoryview, position: int) -> int:
        if self.path == file.path and position <= bad < position + len(out):
            raise OSError(errno.EIO, "io")
        return read(self, out, position)

    monkeypatch.setattr(SystemFile, "read", fails)
    engine = opened(folder)
    assert engine.place(TARGET, HI, CHUNKS) is None and engine.place(TARGET, HI, CHUNKS + 1) is not None
    assert engine.stats().chunks == CHUNKS + 1
    engine.close()


def test_after_a_power_loss_a_block_file_that_is_gone_is_told_as_ever(folder: Path) -> None:
    engine = opened(folder)
    fill(engine, range(CHUNKS, CHUNKS + 1), durable=False)
    engine.close()
    (folder / "BOOT").write_text("another")
    shutil.rmtree(folder / "blocks")
    with pytest.raises(Corrupt, match=r"block file \d+ is missing.* restore"):
        opened(folder)


def test_records_that_go_bad_while_the_engine_runs_are_its_failure(folder: Path) -> None:
    """So that its targets leave their chains; else it would serve, and its neighbours ask it for ever."""
    engine = opened(folder)
    engine._metadata.reopen()  # nothing of the tables is in memory
    assert engine.failure() is None
    table = only(folder, "metadata/*.sst")
    with table.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)[0]
        file.seek(100)
        file.write(bytes([byte ^ 0x10]))
    with pytest.raises(Corrupt) as raised:
        engine.metas(TARGET, b"", CHUNKS + 1)
    failure = engine.failure()
    assert isinstance(failure, Corrupt) and str(failure) == str(raised.value)
    engine.close()


def chunks_in(folder: Path) -> int:
    engine = opened(folder)
    try:
        return engine.stats().chunks
    finally:
        engine.close()


def remove_logs(folder: Path) -> None:
    logs = list(folder.glob("metadata/*.log"))
    assert logs
    for log in logs:
        log.unlink()


def bring_back_the_earlier(folder: Path) -> None:
    shutil.rmtree(folder / "metadata")
    shutil.copytree(folder / "../earlier", folder / "metadata")


@pytest.mark.parametrize("breaks", [remove_logs, bring_back_the_earlier])
def test_records_that_end_before_what_was_synced_are_refused(killed: Path, breaks: Callable[[Path], None]) -> None:
    """RocksDB itself opens without a word where a log is gone, and without what it held."""
    breaks(killed)
    for _ in range(2):
        with pytest.raises(Corrupt, match=r"a log is gone.*refills it"):
            opened(killed)
    (killed / "SYNCED").unlink()
    assert chunks_in(killed) < CHUNKS, "it was the note that told"


@pytest.mark.parametrize("note", [None, b"", b"short", bytes(range(12))])
def test_a_note_that_is_gone_or_damaged_condemns_nothing(killed: Path, note: bytes | None) -> None:
    (killed / "SYNCED").unlink() if note is None else (killed / "SYNCED").write_bytes(note)
    assert chunks_in(killed) == CHUNKS
    assert len((killed / "SYNCED").read_bytes()) == 12, "it is begun anew"
