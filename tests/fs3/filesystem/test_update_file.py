"""Writing in place, "r+b" and "ab": on a real cluster, beside a local file or bytes in memory that get the same."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fs3.ids import file_chunk
from fs3.layout import LayoutChoice

CHUNK = 64 << 10
SETTINGS = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
PLACES = st.one_of(
    st.integers(0, 5 * CHUNK),
    st.builds(lambda chunk, by: max(0, chunk * CHUNK + by), st.integers(0, 4), st.integers(-2, 2)),
)
LENGTHS = st.sampled_from([0, 1, 100, 4_096, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK, 4 * CHUNK + 9])


@pytest.fixture
def small(fs: Any, home: str) -> str:
    """A directory whose files have chunks of 64 KiB on a stripe of two."""
    fs.mkdir(f"{home}/small", layout=LayoutChoice(chunk_bytes=CHUNK, stripe=2))
    return f"{home}/small"


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def contents(fs: Any, path: str) -> bytes:
    return bytes(fs.cat_file(path))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), LENGTHS),
        st.tuples(st.just("seek"), PLACES),
        st.tuples(st.just("seek from the end"), st.integers(-3, 3)),
        st.tuples(st.just("read"), LENGTHS),
        st.tuples(st.just("truncate"), PLACES),
        st.tuples(st.just("flush"), st.just(0)),
    ),
    max_size=14,
)


@SETTINGS
@given(LENGTHS, STEPS)
@example(0, [("write", 100), ("truncate", 100)])  # to the length it has, of which nobody else knows yet
def test_a_file_open_for_updating_does_what_a_local_one_does(
    fs: Any, small: str, tmp_path: Path, length: int, steps: list[tuple[str, int]]
) -> None:
    path, local = f"{small}/same", tmp_path / "same"
    fs.pipe_file(path, noise(1, length))
    local.write_bytes(noise(1, length))
    with fs.open(path, "r+b") as ours, local.open("r+b") as theirs:
        for number, (what, value) in enumerate(steps):
            for file in (ours, theirs):
                if what == "write":
                    assert file.write(noise(number, value)) == value
                elif what == "seek":
                    assert file.seek(value) == value
                elif what == "truncate":
                    assert file.truncate(value) == value
                elif what == "flush":
                    file.flush()
            if what == "read":
                assert ours.read(value) == theirs.read(value)
            elif what == "seek from the end":
                place = max(0, theirs.seek(0, io.SEEK_END) + value)
                assert ours.seek(place) == theirs.seek(place)
            if what in ("flush", "truncate"):
                theirs.flush()
                assert contents(fs, path) == local.read_bytes(), "whoever opens it now sees all of it"
            assert ours.tell() == theirs.tell()
    assert contents(fs, path) == local.read_bytes()
    assert fs.info(path)["size"] == local.stat().st_size


DEATHS = st.lists(
    st.tuples(
        st.sampled_from(["write", "truncate"]),
        PLACES,
        LENGTHS,
        st.booleans(),
        st.sampled_from(["close", "die", "sync and die"]),
    ),
    min_size=2,
    max_size=6,
)


@SETTINGS
@given(LENGTHS, DEATHS)
def test_what_a_dead_writer_left_behind_the_end_is_never_seen(
    fs: Any, small: str, length: int, lives: list[tuple[str, int, int, bool, str]]
) -> None:
    """Writers write and die; each successor makes the file longer first, and must find zeros there."""
    path = f"{small}/left"
    fs.pipe_file(path, noise(1, length))
    told = bytearray(noise(1, length))
    for number, (what, place, count, grow, ending) in enumerate(lives):
        updater = fs.file_client.open_update(path)
        assert updater.length == len(told)
        if grow:
            updater.truncate(len(told) + count)
            told += bytes(count)
            assert contents(fs, path) == told
        if what == "truncate":
            updater.truncate(min(place, len(told)))
            del told[min(place, len(told)) :]
        else:
            begin = max(place, len(told))  # behind the end: inside of it a writer that dies may have written or not
            updater.write(begin, noise(number, count))
            updater.flush()
            if ending != "die" and count:
                told += bytes(begin - len(told)) + noise(number, count)
        if ending == "sync and die":
            updater.sync()
        if ending == "close":
            updater.close()
        else:
            updater.abandon()
        assert contents(fs, path) == told


@pytest.mark.parametrize("piece", [1, 1_000, CHUNK, 5 * CHUNK])
def test_appending_writes_only_what_is_new(fs: Any, small: str, piece: int) -> None:
    path = f"{small}/log"
    fs.pipe_file(path, noise(1, 3 * CHUNK // 2))
    before = fs.info(path)
    for number in range(3):
        with fs.open(path, "ab") as file:
            assert file.tell() == before["size"] + number * piece and not file.seekable()
            assert file.write(noise(number, piece)) == piece
            with pytest.raises(io.UnsupportedOperation):
                file.read(1)
    after = fs.info(path)
    assert after["ino"] == before["ino"] and fs.ukey(path) != f"{before['ino']:x}-{before['version']:x}"
    assert contents(fs, path) == noise(1, 3 * CHUNK // 2) + b"".join(noise(number, piece) for number in range(3))


@pytest.mark.parametrize("length", [0, 3, 10, CHUNK + 5])
def test_what_is_appended_goes_to_the_end_also_of_what_was_cut(
    fs: Any, small: str, tmp_path: Path, length: int
) -> None:
    path, local = f"{small}/log", tmp_path / "log"
    fs.pipe_file(path, b"0123456789")
    local.write_bytes(b"0123456789")
    for file in (fs.open(path, "ab"), local.open("ab")):
        with file:
            file.truncate(length)
            file.write(b"and")
            file.write(b" more")
    assert contents(fs, path) == local.read_bytes()


def test_readers_see_a_file_grow_while_it_is_written(fs: Any, small: str) -> None:
    """With each renewal of its session: a log of hours is not invisible until its writer ends."""
    path = f"{small}/log"
    fs.pipe_file(path, noise(1, 100))
    with fs.open(path, "ab") as file:
        file.write(noise(2, 3 * CHUNK))
        seen = 0
        for _ in range(10_000):  # the last piece may still be under way when `write` returns
            file.write(b"")
            fs.file_client.renew()
            seen = fs.info(path)["size"]
            assert seen % CHUNK == 0 or seen == 100
            assert contents(fs, path) == (noise(1, 100) + noise(2, 3 * CHUNK))[:seen]
            if seen == 3 * CHUNK:
                break
        assert seen == 3 * CHUNK, "the rest is not sent yet"
    assert contents(fs, path) == noise(1, 100) + noise(2, 3 * CHUNK)


def test_text_is_appended_and_changed_in_place(fs: Any, small: str) -> None:
    path = f"{small}/text"
    fs.pipe_file(path, b"one\n")
    with fs.open(path, "a") as file:
        file.write("zwei\n")
    with fs.open(path, "r+") as file:
        assert file.read(4) == "one\n"
        file.seek(0)
        file.write("uno")
    assert contents(fs, path) == b"uno\nzwei\n"
    with fs.open(f"{small}/new", "ab") as file:
        file.write(b"a file that was not there")
    assert contents(fs, f"{small}/new") == b"a file that was not there"


def test_one_writer_at_a_time(fs: Any, small: str) -> None:
    path = f"{small}/f"
    fs.pipe_file(path, b"here")
    with fs.open(path, "r+b") as file:
        for mode in ("r+b", "ab"):
            with pytest.raises(OSError, match="is being written") as raised:
                fs.open(path, mode)
            assert raised.value.errno == errno.EBUSY
        with pytest.raises(OSError, match="is being written"):
            fs.truncate(path, 3)
        file.write(b"HE")
        assert contents(fs, path)[2:] == b"re"
    fs.truncate(path, 3)
    assert contents(fs, path) == b"HEr"
    with fs.transaction, pytest.raises(io.UnsupportedOperation, match="in a transaction"):
        fs.open(path, "r+b")
    for missing, kind in ((f"{small}/none", FileNotFoundError), (small, IsADirectoryError)):
        with pytest.raises(kind):
            fs.open(missing, "r+b")


def test_of_two_that_begin_the_same_file_neither_loses_what_it_wrote(
    fs: Any, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{small}/log"
    with fs.open(path, "ab") as first:
        with pytest.raises(OSError, match="is being written"):
            fs.open(path, "ab")
        first.write(b"first\n")
    with fs.open(path, "ab") as second:
        second.write(b"second\n")
    assert contents(fs, path) == b"first\nsecond\n"
    make = fs.file_client.create_batch

    def create_batch(paths: list[str], *args: Any, **options: Any) -> Any:
        """Another client makes it a moment earlier."""
        make(paths, [b"theirs\n"])
        return make(paths, *args, **options)

    monkeypatch.setattr(fs.file_client, "create_batch", create_batch)
    with fs.open(f"{small}/other", "ab") as file:
        assert file.tell() == 7
        file.write(b"ours\n")
    assert contents(fs, f"{small}/other") == b"theirs\nours\n"
    fs.touch(f"{small}/touched", truncate=False)
    assert contents(fs, f"{small}/touched") == b"theirs\n"


def test_a_file_removed_while_it_is_written_can_be_written_on(fs: Any, small: str) -> None:
    path = f"{small}/f"
    fs.pipe_file(path, noise(1, 100))
    with fs.open(path, "r+b") as file:
        fs.rm(path)
        file.seek(50)
        file.write(noise(2, 3 * CHUNK))
        file.flush()
        file.seek(0)
        assert file.read() == noise(1, 100)[:50] + noise(2, 3 * CHUNK)
        assert not fs.exists(path)
    assert not fs.exists(path)


def test_readers_of_before_are_told_that_the_file_was_made_shorter(fs: Any, small: str) -> None:
    path = f"{small}/f"
    fs.pipe_file(path, noise(1, 3 * CHUNK))
    with fs.open(path, "rb") as reader:
        fs.truncate(path, CHUNK)
        with pytest.raises(FileNotFoundError, match="made shorter while it was read; open it again"):
            reader.read()
    assert contents(fs, path) == noise(1, 3 * CHUNK)[:CHUNK]
    fs.truncate(path, 2 * CHUNK + 1)
    assert contents(fs, path) == noise(1, 3 * CHUNK)[:CHUNK] + bytes(CHUNK + 1)
    for bad in (-1, 1 << 63):
        with pytest.raises(OSError, match="a file has from 0 to") as raised:
            fs.truncate(path, bad)
        assert raised.value.errno == errno.EINVAL
    assert contents(fs, path) == noise(1, 3 * CHUNK)[:CHUNK] + bytes(CHUNK + 1)


def test_a_part_of_a_chunk_that_is_lost_is_not_made_up(fs: Any, small: str) -> None:
    """Zeros would stand where bytes were."""
    path = f"{small}/f"
    fs.pipe_file(path, noise(1, 3 * CHUNK + 100))
    lose(fs, path, 1)
    with pytest.raises(OSError, match=r"chunk 1 on chain .* has 0 bytes") as raised, fs.open(path, "r+b") as file:
        file.seek(CHUNK + 10)
        file.write(b"part")
    assert raised.value.errno == errno.EIO
    with pytest.raises(OSError, match="chunk 1 on chain"):
        fs.truncate(path, CHUNK + 10)
    with fs.open(path, "r+b") as file:
        file.seek(CHUNK)
        file.write(noise(2, CHUNK))
    assert contents(fs, path)[CHUNK : 2 * CHUNK] == noise(2, CHUNK), "written whole, it is there again"
    lose(fs, path, 3)
    with pytest.raises(OSError, match="chunk 3 on chain"):
        fs.open(path, "ab")
    with pytest.raises(OSError, match="chunk 3 on chain"):
        contents(fs, path)


def lose(fs: Any, path: str, chunk: int) -> None:
    """Remove a chunk behind the file's back."""
    handle = fs.file_client.open_read(path)
    hi, lo = file_chunk(handle.inode_id, chunk)
    chain = int(handle.chains[chunk % len(handle.chains)])
    fs.file_client.storage.remove(
        np.array([hi], dtype=np.uint64), np.array([lo], dtype=np.uint64), np.array([chain], dtype=np.uint32)
    )


def test_a_writer_whose_session_is_over_stops(fs: Any, small: str) -> None:
    path = f"{small}/f"
    fs.pipe_file(path, noise(1, 100))
    file = fs.open(path, "r+b")
    inode_id = fs.info(path)["ino"]
    fs.client.meta.abandon([inode_id])  # as the collector does when nobody renews
    fs.file_client.renew()
    file.write(b"late")
    with pytest.raises(FileNotFoundError, match="write session is over"):
        file.flush()
    with fs.open(path, "ab") as successor:
        successor.write(b"!")
    with pytest.raises(FileNotFoundError):
        file.close()
    assert contents(fs, path) == noise(1, 100) + b"!"


def test_a_new_file_whose_session_is_over_is_written_no_more(fs: Any, small: str) -> None:
    path = f"{small}/f"
    file = fs.open(path, "wb")
    file.write(noise(1, 2 * CHUNK))
    inode_id = file.writer.inode_id
    fs.client.meta.abandon([inode_id])  # as the collector does when nobody renews
    fs.file_client.renew()
    with pytest.raises(OSError, match="the write session is over") as failed:
        file.write(noise(2, 40 * CHUNK))
    assert failed.value.errno == errno.EIO and file.writer.length == 2 * CHUNK
    file.close()
    assert not fs.exists(path)
    fs.pipe_file(path, b"again")
    assert contents(fs, path) == b"again"


@pytest.mark.parametrize("mode", ["wb", "ab", "r+b"])
def test_a_forked_child_leaves_the_files_of_its_parent_alone(fs: Any, small: str, mode: str) -> None:
    path = f"{small}/f"
    fs.pipe_file(path, b"")
    files = [fs.open(path, mode)]
    files[0].write(noise(1, CHUNK + 9))
    for way in ("dropped", "closed", "left by an exception"):
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            code = 1
            try:
                if way == "closed":
                    with pytest.raises(OSError, match=f"process {os.getppid()} opened it for writing"):
                        files[0].close()
                elif way != "dropped":
                    with pytest.raises(KeyError), files[0]:
                        raise KeyError("the child's own")
                files.clear()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, way
        fs.file_client.renew()
    files[0].write(noise(2, 5 * CHUNK))
    files[0].close()
    assert contents(fs, path) == noise(1, CHUNK + 9) + noise(2, 5 * CHUNK)


def kept(fs: Any, path: str) -> int:
    """The bytes of all chunks that a file has, on every chain of its stripe."""
    handle = fs.file_client.open_read(path)
    hi, _ = file_chunk(handle.inode_id, 0)
    pages = [page for chain in handle.chains.tolist() for page in fs.client.storage.list_chunks(hi, chain)]
    return sum(int(page["chunk_length"].sum()) for page in pages)


def test_what_a_quota_has_no_room_for_is_not_left_behind(fs: Any, small: str) -> None:
    """Neither what was appended, nor what renewals had made visible of it before there was no room any more."""
    path, most = f"{small}/f", 10 * CHUNK
    fs.client.meta.set_quota(small, max_bytes=most)
    before = noise(1, 2 * CHUNK + 50)
    fs.pipe_file(path, before)
    with pytest.raises(OSError, match="allows") as failed, fs.open(path, "ab") as file:
        file.write(noise(2, 20 * CHUNK))
    assert failed.value.errno == errno.EDQUOT
    assert contents(fs, path) == before and kept(fs, path) == len(before)
    with pytest.raises(OSError, match="allows"), fs.open(path, "ab") as file:
        file.write(noise(3, 4 * CHUNK))
        file.flush()
        fs.file_client.renew()
        seen = fs.info(path)["size"]
        file.write(noise(4, 20 * CHUNK))
        file.flush()
    assert len(before) <= seen <= most
    whole = before + noise(3, 4 * CHUNK)
    assert contents(fs, path) == whole[: fs.info(path)["size"]] and kept(fs, path) == fs.info(path)["size"] >= seen
    with pytest.raises(OSError, match="allows"):
        fs.truncate(path, 11 * CHUNK)
    fs.client.meta.set_quota(small, max_bytes=0)
    with fs.open(path, "ab") as file:
        file.write(b"and on")
    assert contents(fs, path) == whole[: fs.info(path)["size"] - 6] + b"and on"
