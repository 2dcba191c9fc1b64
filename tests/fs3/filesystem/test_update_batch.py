"""`FileUpdater.write_batch` on a real cluster, beside bytes in memory that get the same; and what stops it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fs3.clock import deadline_after
from fs3.errors import Corrupt, Fs3Error, InUse, Invalid, MaybeApplied, Unavailable
from fs3.ids import file_chunk
from fs3.layout import MAX_FILE_BYTES, LayoutChoice

CHUNK = 64 << 10
SETTINGS = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
GAPS = st.sampled_from([0, 0, 1, 4_096, CHUNK - 1, CHUNK, 2 * CHUNK + 5])
LENGTHS = st.sampled_from([0, 1, 100, 4_096, CHUNK - 1, CHUNK, 3 * CHUNK + 1])
BATCHES = st.lists(st.lists(st.tuples(GAPS, LENGTHS), min_size=1, max_size=5), min_size=1, max_size=4)


@pytest.fixture
def small(fs: Any, home: str) -> str:
    """A directory whose files have chunks of 64 KiB on a stripe of two."""
    fs.mkdir(f"{home}/small", layout=LayoutChoice(chunk_bytes=CHUNK, stripe=2))
    return f"{home}/small"


@SETTINGS
@given(st.sampled_from([0, 1, CHUNK, 2 * CHUNK + 777]), BATCHES, st.integers(0, 1_000))
def test_a_file_has_what_was_written_in_batches(
    fs: Any, small: str, length: int, batches: list[list[tuple[int, int]]], seed: int
) -> None:
    path, chance = f"{small}/same", np.random.default_rng(seed)
    model = bytearray(chance.bytes(length))
    fs.pipe_file(path, bytes(model))
    memory = memoryview(chance.bytes(4 * CHUNK))
    with fs.file_client.open_update(path) as updater:
        for batch in batches:
            gaps, lengths = np.array(batch, dtype=np.int64).T
            offsets = np.cumsum(gaps + lengths) - lengths
            order = chance.permutation(len(batch))
            offsets, lengths = offsets[order], lengths[order]
            datas = [memory[int(chance.integers(0, len(memory) - size + 1)) :][:size] for size in lengths.tolist()]
            assert updater.write_batch(offsets, datas) == [None] * len(batch)
            for offset, data in zip(offsets.tolist(), datas, strict=True):
                if len(data):
                    model.extend(bytes(max(offset + len(data) - len(model), 0)))
                    model[offset : offset + len(data)] = data
            assert updater.length == len(model)
        piece = int(chance.integers(0, len(model) + 1))
        updater.write(piece, b"among them")  # a buffered piece between batches is kept, too
        model[piece : piece + 10] = b"among them"
        updater.write_batch(np.array([piece + 3]), [memory[:2]])
        model[piece + 3 : piece + 5] = memory[:2]
    assert fs.cat_file(path) == bytes(model)


def test_what_was_left_beyond_the_end_is_never_seen(fs: Any, small: str) -> None:
    """A batch that failed, or a writer that died, may leave chunks behind a file's end."""
    path, memory = f"{small}/left", memoryview(b"x" * CHUNK * 4)
    fs.pipe_file(path, b"begin")
    updater = fs.file_client.open_update(path)
    updater.write_batch(np.array([0]), [memory])
    updater.abandon()
    assert fs.cat_file(path) == b"xxxxx"
    with fs.file_client.open_update(path) as updater:
        updater.write_batch(np.array([2 * CHUNK + 10]), [memory[:1]])
    assert fs.cat_file(path) == b"xxxxx" + bytes(2 * CHUNK + 5) + b"x"


def test_a_chunk_that_was_lost_is_not_taken_for_zeros(fs: Any, small: str) -> None:
    path, memory = f"{small}/lost", memoryview(b"x" * CHUNK)
    fs.pipe_file(path, b"a" * (3 * CHUNK))
    with fs.file_client.open_update(path) as updater:
        inode = updater.inode
        hi, lo = file_chunk(inode.inode_id, 1)
        chain = fs.file_client.opened(updater).chains[1 % 2]
        fs.file_client.storage.remove(*(np.array([one]) for one in (hi, lo)), np.array([chain]))
        errors = updater.write_batch(np.array([10, CHUNK + 10, 2 * CHUNK]), [memory[:10], memory[:10], memory])
        assert all(isinstance(error, Corrupt) and path in str(error) for error in errors)
        with pytest.raises(Corrupt, match="chunk 1 on chain"):
            updater.write_batch(np.array([10]), [memory[:10]])
        updater.abandon()


def test_a_deadline_that_has_passed(fs: Any, small: str) -> None:
    path, one = f"{small}/late", np.ones(1, dtype=np.int64)
    fs.pipe_file(path, b"abc")
    updater = fs.file_client.open_update(path)
    with updater.until(deadline_after(-1)):
        (error,) = updater.write_batch(one, [memoryview(b"y")])
        assert isinstance(error, Unavailable | MaybeApplied)
    updater.abandon()
    assert fs.cat_file(path) in (b"abc", b"ayc")
    with pytest.raises(Fs3Error) as failure:
        fs.file_client.open_update(path, deadline_s=deadline_after(-1))
    assert not isinstance(failure.value, InUse | Invalid)


def test_more_than_a_file_can_have_and_what_lies_before_it_changes_nothing(fs: Any, small: str) -> None:
    path, one = f"{small}/long", np.ones(1, dtype=np.int64)
    fs.pipe_file(path, b"abc")
    with fs.file_client.open_update(path) as updater:
        with pytest.raises(Invalid, match="a file has from 0 to"):
            updater.write_batch(one * MAX_FILE_BYTES, [memoryview(b"y")])
        for offset, length in ((MAX_FILE_BYTES, 1), (-1, 2), (-CHUNK, 6 * CHUNK)):
            with pytest.raises(Invalid, match="a file has from 0 to"):
                updater.write(offset, bytes(length))
        assert updater.write_batch(one, [memoryview(b"y")]) == [None]
    assert fs.cat_file(path) == b"ayc"
