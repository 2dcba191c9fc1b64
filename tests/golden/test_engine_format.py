"""The bytes of the chunk engine's folder, format 1 (docs/formats.md): records and block files, written and read."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fs3 import checksum
from fs3.block_file import BlockLayout
from fs3.storage import metadata as md
from fs3.storage.allocator_core import CLASS_BYTES, Growth
from fs3.storage.blocks import BlockFile
from fs3.storage.engine import Engine
from fs3.storage.engine_api import DedupEntry, EngineConfig, Update
from fs3.storage.metadata import Version
from fs3.storage.raw_file import SystemFolder
from fs3.transport.messages import Op

CONFIG = EngineConfig(file_bytes=1 << 20, group_bytes=1 << 18, reserve_bytes=0)
VERSION = Version(
    version=0x1122334455667788,
    chain_version=0x01020304,
    length=5000,
    file=3072,
    slot=17,
    crc=0xA1B2C3D4,
    flags=md.FLAG_OS,
    client=0xC1,
    channel=0xC2,
    seq=0xC3,
)
COMMITTED = "0102000004030201887766554433221188130000000c000011000000d4c3b2a1"
PENDING = COMMITTED + "c100000000000000c300000000000000c200000000000000"


def test_records() -> None:
    assert VERSION.pack().hex() == COMMITTED
    assert VERSION.pack_pending().hex() == PENDING
    assert md.unpack_version(bytes.fromhex(COMMITTED)) == VERSION._replace(client=0, channel=0, seq=0)
    assert md.unpack_pending(bytes.fromhex(PENDING)) == VERSION
    as_array = np.frombuffer(bytes.fromhex(PENDING), dtype=md.PENDING_CHUNK)[0]
    for name in Version._fields:
        assert as_array[name] == getattr(VERSION, name)
    assert md.pack_result(7, 8, 9, 10).hex() == "07000000000000000800000000000000090000000a000000"
    assert md.pack_target(5).hex() == "0500000000000000"


def test_keys() -> None:
    key = md.chunk_key(md.COMMITTED, 7, 1 << 56 | 2, 3)
    assert key.hex() == "430000000701000000000000020000000000000003"
    assert np.frombuffer(key, dtype=md.CHUNK_KEY)[0].tolist() == (b"C", 7, 1 << 56 | 2, 3)
    assert md.result_key(7, 8, 9).hex() == "4400000007000000000000000800000009"
    assert md.unpack_result_key(md.result_key(7, 8, 9)) == (7, 8, 9)
    assert (md.PENDING, md.STATE, md.TARGET, md.target_prefix(md.TARGET, 7)) == (b"P", b"S", b"T", b"T\0\0\0\7")


def test_size_classes() -> None:
    assert [size >> 10 for size in CLASS_BYTES[:9]] == [64, 80, 96, 112, 128, 160, 192, 224, 256]
    assert [size >> 20 for size in CLASS_BYTES[-5:]] == [32, 40, 48, 56, 64]


@pytest.mark.parametrize("version", [1, 2])
def test_a_block_file(tmp_path: Path, version: int) -> None:
    path = tmp_path / "00-0001.blk"
    if version == 1:  # is read, and filled further, but not made any more
        layout = BlockLayout(1, 65_536, 16, version=1)
        SystemFolder(tmp_path).create(path.name, layout.file_bytes, layout.pack()).close()
        file = BlockFile.open(SystemFolder(tmp_path), 1)
    else:
        file = BlockFile.create(SystemFolder(tmp_path), 1, 16)
    fine = np.arange(1, 4, dtype=np.uint32)
    file.write(2, [memoryview(b"a" * 9000)], fine, np.array([0xABCDEF01], dtype=np.uint32))
    file.close()
    raw = path.read_bytes()
    head = f"465333424c4b0001{version:02x}0000000100000000000100000000001000000000000000"
    head += f"00100000000000000000{version:x}00000000000"
    assert raw[:48].hex() == head
    assert raw[48:52] == checksum.crc(raw[:48]).to_bytes(4, "little")
    begin = version << 20
    assert len(raw) == begin + 16 * 65_536
    sums = 4096 + 2 * 17 * 4  # slot 2; 16 fine sums and a coarse one each
    assert raw[sums : sums + 12].hex() == "010000000200000003000000"
    assert raw[sums + 64 : sums + 68].hex() == "01efcdab"
    data = begin + 2 * 65_536
    assert raw[data : data + 9000] == b"a" * 9000

    again = BlockFile.open(SystemFolder(tmp_path), 1)
    assert again.position(2) == data and again.slot(data) == 2
    assert again.fine(data, 9000).tolist() == [1, 2, 3]
    assert again.coarse(data, 9000).tolist() == [0xABCDEF01]
    again.close()


@pytest.mark.parametrize(("block", "pitch"), [(1792 << 10, 1792 << 10), (2 << 20, 2 << 20), (5 << 20, 6 << 20)])
def test_large_blocks_begin_at_a_large_page(block: int, pitch: int) -> None:
    layout = BlockLayout(CLASS_BYTES.index(block) * 1024, block, 300)
    assert layout.data_at % (2 << 20) == 0 and layout.file_bytes == layout.data_at + 300 * pitch
    assert layout.position(7) == layout.data_at + 7 * pitch and layout.slot(layout.position(7)) == 7
    assert layout.slot(layout.position(7) + block - 1) == 7
    assert layout.fine_at(layout.position(7)) == 7 * layout.stride
    old = BlockLayout(layout.file_no, block, 300, version=1)
    assert old.position(7) == old.data_at + 7 * block and old.data_at % (1 << 20) == 0
    assert BlockLayout.unpack(old.pack()).position(7) == old.position(7)
    assert BlockLayout.unpack(layout.pack()).position(7) == layout.position(7)


def test_what_lies_between_large_blocks_takes_no_room(tmp_path: Path) -> None:
    file_no = CLASS_BYTES.index(5 << 20) * 1024
    file = BlockFile.create(SystemFolder(tmp_path), file_no, 8)
    file.grow(Growth(file_no, 0, 3))
    used = os.stat(file.path).st_blocks * 512
    assert 3 * (5 << 20) <= used < 3 * (5 << 20) + (1 << 20)
    file.close()


def test_a_folder(tmp_path: Path) -> None:
    engine = Engine.open(tmp_path / "disk", cluster_id="north", create=True, config=CONFIG)
    engine.create_target(7, 5)
    data = memoryview(b"chunk")
    engine.stage_and_commit(
        [
            Update(
                target_id=7,
                hi=1 << 56 | 2,
                lo=3,
                op=Op.REPLACE,
                data=data,
                fine=checksum.fine_sums(data),
                chain_version=6,
                client=8,
                channel=9,
                seq=10,
            )
        ]
    )
    engine.close()
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == [
        "BOOT",
        "CHANGES",
        "ENGINE",
        "LOCK",
        "SYNCED",
        "blocks",
        "metadata",
    ]
    assert json.loads((tmp_path / "disk" / "ENGINE").read_text()) == {"format": 1, "cluster_id": "north", "node_id": 0}
    assert [path.name for path in (tmp_path / "disk" / "blocks").iterdir()] == ["00-0000.blk"]
    note = (3).to_bytes(8, "little")
    assert (tmp_path / "disk" / "SYNCED").read_bytes() == note + checksum.crc(note).to_bytes(4, "little")
    metadata = md.Metadata(tmp_path / "disk" / "metadata", write_buffer_bytes=1 << 20)
    crc = checksum.crc(checksum.crc(b"chunk").to_bytes(4, "little"))
    assert metadata.scan(b"") == [
        (
            md.chunk_key(md.COMMITTED, 7, 1 << 56 | 2, 3),
            bytes.fromhex("01000000060000000100000000000000050000000000000000000000") + crc.to_bytes(4, "little"),
        ),
        (md.result_key(7, 8, 9), md.pack_result(10, 1, 5, 0)),
        (md.target_prefix(md.TARGET, 7), md.pack_target(5)),
    ]
    metadata.close()
    engine = Engine.open(tmp_path / "disk", cluster_id="north", config=CONFIG)
    assert bytes(engine.read_chunk(7, 1 << 56 | 2, 3).data) == b"chunk"
    assert engine.dedup(7, 8, 9) == DedupEntry(10, 1, 5)
    engine.close()
