"""What stands beside fs3 must move the right bytes too, or its speed says nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.bare_pair import BarePair
from benchmarks.context import buffer
from benchmarks.local_files import LocalFile, LocalWrites, Sync

SIZE = 1 << 20


@pytest.fixture
def noise(tmp_path: Path) -> tuple[Path, bytes]:
    data = np.random.default_rng(3).bytes(SIZE)
    (tmp_path / "noise").write_bytes(data)
    return tmp_path / "noise", data


def test_the_bare_pair_sends_what_was_asked_for(noise: tuple[Path, bytes]) -> None:
    path, data = noise
    rng = np.random.default_rng(4)
    with BarePair(path) as pair:
        first, second = pair.connect(), pair.connect()
        for count, longest in ((1, SIZE), (1, 10), (256, 4_096), (1_500, 300), (6, 200_000)):
            lengths = rng.integers(1, longest, count, endpoint=True)
            offsets = rng.integers(0, SIZE - lengths, endpoint=True)
            out = bytearray(int(lengths.sum()))
            for connection in (first, second):
                assert connection.read(offsets, lengths, memoryview(out)) == len(out)
                assert out == b"".join(data[a : a + n] for a, n in zip(offsets.tolist(), lengths.tolist(), strict=True))


def test_the_bare_server_ends_with_the_pair(noise: tuple[Path, bytes]) -> None:
    with BarePair(noise[0]) as pair:
        connection = pair.connect()
    with pytest.raises(OSError):
        connection.read(np.array([0]), np.array([1]), memoryview(bytearray(1)))
    with pytest.raises(OSError):
        pair.connect()


def test_local_reads(noise: tuple[Path, bytes]) -> None:
    path, data = noise
    out = memoryview(bytearray(5_000))
    with LocalFile(path) as file:
        assert file.read(77, out) == 5_000
        assert out == data[77:5_077]
        with pytest.raises(EOFError):
            file.read(SIZE - 10, out)


@pytest.mark.parametrize("sync", Sync)
def test_local_writes_count_one_copy_and_leave_nothing(tmp_path: Path, sync: Sync) -> None:
    piece = buffer(8_192)
    piece[:] = np.random.default_rng(5).bytes(len(piece))
    with LocalWrites(tmp_path) as local:
        for _ in range(2):
            assert local.write(piece, 3, copies=2, sync=sync).amount == 3 * len(piece)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [bytes(piece) * 3] * 4
    assert list(tmp_path.iterdir()) == []
