"""The asyncio face: the same answers as the sync methods, what is asked for together done together, forks, loops."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import threading
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from fsspec.asyn import sync

from fs3.errors import Unavailable
from fs3.filesystem.asynchronous import AsyncFile
from fs3.filesystem.spec import Fs3FileSystem


@pytest.fixture
def afs(cluster_url: str) -> Any:
    return fsspec.url_to_fs(cluster_url, asynchronous=True)[0]


class Counted:
    """How often some methods of a filesystem are called."""

    def __init__(self, fs: Any, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.calls: list[tuple[str, int]] = []
        for name in names:
            monkeypatch.setattr(fs, name, self._counted(name, getattr(fs, name)), raising=True)

    def _counted(self, name: str, call: Any) -> Any:
        def counted(first: Any, *args: Any, **options: Any) -> Any:
            self.calls.append((name, len(first)))
            return call(first, *args, **options)

        return counted


@pytest.fixture
def counted(afs: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    client = afs.file_client
    counted = Counted(client, monkeypatch, "open_many", "create_batch")
    stats = Counted(client.meta, monkeypatch, "stat")
    stats.calls = counted.calls
    yield counted


def test_a_thousand_at_once_are_one_batch(afs: Any, home: str, counted: Counted) -> None:
    files = {f"{home}/{number}": str(number).encode() * 100 for number in range(600)}

    async def body() -> None:
        await asyncio.gather(*(afs._pipe_file(path, data) for path, data in files.items()))
        assert counted.calls == [("create_batch", 600)]
        counted.calls.clear()
        assert await asyncio.gather(*map(afs._cat_file, files)) == list(files.values())
        assert counted.calls == [("open_many", 600), ("stat", 600)]
        counted.calls.clear()
        infos = await asyncio.gather(*map(afs._info, files))
        assert [info["size"] for info in infos] == list(map(len, files.values()))
        assert counted.calls == [("stat", 600)]

    asyncio.run(body())


def test_what_fails_fails_alone(afs: Any, home: str) -> None:
    async def body() -> None:
        made = await asyncio.gather(
            afs._pipe_file(f"{home}/a", b"1"),
            afs._pipe_file(f"{home}/none/b", b"2"),
            afs._pipe_file(f"{home}/c", b"3"),
            return_exceptions=True,
        )
        assert [type(one) for one in made] == [type(None), FileNotFoundError, type(None)]
        read = await asyncio.gather(
            *(afs._cat_file(f"{home}/{name}") for name in ("a", "none/b", "c", "d")), return_exceptions=True
        )
        assert read[0] == b"1" and read[2] == b"3"
        assert isinstance(read[1], FileNotFoundError) and isinstance(read[3], FileNotFoundError)
        assert f"{home}/d" in str(read[3])
        found = await asyncio.gather(*(afs._exists(f"{home}/{name}") for name in ("a", "a/x", "d")))
        assert found == [True, False, False]
        with pytest.raises(FileExistsError):
            await afs._pipe_file(f"{home}/a", b"", mode="create")

    asyncio.run(body())


def test_lost_bytes_fail_only_those_who_ask_for_them(afs: Any, home: str) -> None:
    afs.pipe({f"{home}/{name}": name.encode() * 1_000 for name in "abc"})
    lost = afs.client.meta.stat_one(f"{home}/b")
    afs.client.storage.remove_file_chunks(lost.inode_id, lost.layout, lost.length)

    async def body() -> None:
        read = await asyncio.gather(*(afs._cat_file(f"{home}/{name}") for name in "abc"), return_exceptions=True)
        assert read[0] == b"a" * 1_000 and read[2] == b"c" * 1_000
        assert isinstance(read[1], OSError) and "too few for a file of 1000" in str(read[1])

    asyncio.run(body())
    with pytest.raises(OSError, match="too few"):
        afs.cat_ranges([f"{home}/a", f"{home}/b"], 0, 10, on_error="raise")


def test_a_cluster_that_is_away_is_asked_once(afs: Any, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{home}/{number}" for number in range(50)]
    afs.pipe(dict.fromkeys(names, b"1"))
    calls: list[str] = []

    def nobody(*_: Any, **__: Any) -> Any:
        calls.append("call")
        raise Unavailable("nobody answers")

    meta = afs.client.meta
    for name in ("stat", "create_files"):
        monkeypatch.setattr(meta, name, nobody)

    async def body() -> None:
        for ask in (afs._cat_file, lambda name: afs._pipe_file(name, b"2"), afs._info):
            calls.clear()
            found = await asyncio.gather(*map(ask, names), return_exceptions=True)
            assert calls == ["call"] and {one.errno for one in found} == {errno.EHOSTUNREACH}

    asyncio.run(body())
    calls.clear()
    told = afs.cat_ranges(names, 0, 1, on_error="return")
    assert calls == ["call"] and [error.filename for error in told] == names
    with pytest.raises(OSError, match="nobody answers"):
        afs.cat_ranges(names, 0, 1, on_error="raise")
    assert calls == ["call"] * 2


def test_a_question_that_makes_no_sense_fails_alone(afs: Any, home: str, counted: Counted) -> None:
    names = [f"{home}/{number}" for number in range(300)]

    async def body() -> None:
        values: list[Any] = [b"1"] * 300
        values[100] = "text"
        made = await asyncio.gather(*map(afs._pipe_file, names, values), return_exceptions=True)
        assert isinstance(made[100], TypeError) and made.count(None) == 299
        infos = await asyncio.gather(*map(afs._info, [*names, "/\udcff"]), return_exceptions=True)
        assert isinstance(infos[100], FileNotFoundError) and infos[300].errno == errno.EINVAL
        assert [info["size"] for info in infos[:100] + infos[101:300]] == [1] * 299
        read = await asyncio.gather(afs._cat_file(names[0]), afs._cat_file(names[1], "0"), return_exceptions=True)
        assert read[0] == b"1" and isinstance(read[1], TypeError)

    asyncio.run(body())
    assert len(counted.calls) < 100  # not each for itself


def test_the_last_of_two_writes_of_one_file_counts(afs: Any, home: str) -> None:
    async def body() -> None:
        await asyncio.gather(*(afs._pipe_file(f"{home}/f", bytes([n])) for n in range(20)))
        assert await afs._cat_file(f"{home}/f") == bytes([19])

    asyncio.run(body())


def test_it_answers_as_the_sync_methods_do(afs: Any, fs: Any, home: str, tmp_path: Any) -> None:
    async def body() -> None:
        await afs._makedirs(f"{home}/d/e", exist_ok=True)
        await afs._pipe({f"{home}/d/a": b"123", f"{home}/d/e/b": b"4"})
        assert await afs._find(home) == fs.find(home) == [f"{home}/d/a", f"{home}/d/e/b"]
        assert await afs._ls(f"{home}/d", detail=False) == fs.ls(f"{home}/d", detail=False)
        assert await afs._info(f"{home}/d/a") == fs.info(f"{home}/d/a")
        assert await afs._glob(f"{home}/**/b") == [f"{home}/d/e/b"]
        assert await afs._du(home) == 4 and await afs._size(f"{home}/d/a") == 3
        assert [names async for names in afs._walk(home)] == list(fs.walk(home))
        assert await afs._isdir(home) and await afs._isfile(f"{home}/d/a") and not await afs._isfile(f"{home}/x")
        assert await afs._cat_file(f"{home}/d/a", start=-2) == b"23"
        assert await afs._cat_ranges([f"{home}/d/a"] * 2, [0, 1], [1, 3]) == [b"1", b"23"]
        assert await afs._cat([f"{home}/d/a", f"{home}/d/e/b"]) == {f"{home}/d/a": b"123", f"{home}/d/e/b": b"4"}
        await afs._get(f"{home}/d", str(tmp_path), recursive=True)
        assert (tmp_path / "d/e/b").read_bytes() == b"4"
        await afs._put(str(tmp_path / "d"), f"{home}/new", recursive=True)
        await afs._copy(f"{home}/new/a", f"{home}/copy")
        await afs._mv(f"{home}/copy", f"{home}/moved")
        assert await afs._cat_file(f"{home}/moved") == b"123"
        await afs._rm(f"{home}/d", recursive=True)
        await afs._rm_file(f"{home}/moved")
        assert fs.ls(home, detail=False) == [f"{home}/new"]

    asyncio.run(body())


def test_files_with_coroutines(afs: Any, home: str) -> None:
    async def body() -> None:
        async with await afs.open_async(f"{home}/f", "wb") as file:
            assert await file.write(b"123456") == 6
        async with await afs.open_async(f"{home}/f") as file:
            assert file.size == 6 and await file.seek(2) == 2 and await file.read(3) == b"345"
            buffer = bytearray(4)
            assert await file.readinto(buffer) == 1 and await file.tell() == 6
        with pytest.raises(RuntimeError):
            async with await afs.open_async(f"{home}/f", "wb") as file:
                raise RuntimeError
        assert await afs._cat_file(f"{home}/f") == b"123456"
        with pytest.raises(ValueError, match="binary"):
            await afs.open_async(f"{home}/f", "r")

    asyncio.run(body())


def test_the_sync_methods_use_no_event_loop(cluster_url: str, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: Any) -> None:
        raise AssertionError("an event loop")

    for place in ("fsspec.asyn.get_loop", "fs3.filesystem.asynchronous.get_loop", "fsspec.asyn.sync"):
        monkeypatch.setattr(place, nobody)
    fs = fsspec.url_to_fs(cluster_url, skip_instance_cache=True)[0]
    fs.pipe({f"{home}/a": b"1", f"{home}/b": b"2"})
    fs.copy(f"{home}/a", f"{home}/c")
    fs.mv(f"{home}/c", f"{home}/d")
    assert fs.cat(fs.glob(f"{home}/*")) == {f"{home}/a": b"1", f"{home}/b": b"2", f"{home}/d": b"1"}
    assert fs.find(home) == fs.expand_path(f"{home}/*") and fs.du(home) == 3
    fs.rm(home, recursive=True)
    assert not fs.exists(home)


def test_others_may_run_the_coroutines_on_fsspecs_loop(fs: Any, home: str) -> None:
    fs.pipe_file(f"{home}/f", b"1")
    assert sync(fs.loop, fs._cat_file, f"{home}/f") == b"1"


def _read_in_a_child(fs: Fs3FileSystem, path: str, answers: Any) -> None:
    async def body() -> bytes:
        return b"".join(await asyncio.gather(*(fs._cat_file(path) for _ in range(3))))

    answers.put(asyncio.run(body()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_works_in_a_child(afs: Any, home: str, method: str) -> None:
    async def body() -> None:
        await afs._pipe_file(f"{home}/f", b"1")
        assert await afs._cat_file(f"{home}/f") == b"1"

    asyncio.run(body())
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=_read_in_a_child, args=(afs, f"{home}/f", answers))
    child.start()
    assert answers.get(timeout=60) == b"111"
    child.join(30)


class Slow:
    """A file whose writes wait for whoever leaves it meanwhile, for a moment."""

    def __init__(self) -> None:
        self.writing, self.left = threading.Event(), threading.Event()
        self.order: list[str] = []

    def write(self, data: bytes) -> int:
        self.writing.set()
        self.left.wait(0.2)
        self.order.append("written")
        return len(data)

    def __exit__(self, *error: object) -> None:
        self.left.set()
        self.order.append("left")


def test_a_call_that_was_cancelled_ends_before_the_next_of_its_file() -> None:
    """A writer is for one thread at a time: chunks sent after it was given up are nobody's."""
    slow = Slow()

    async def write() -> None:
        async with AsyncFile(slow) as file:
            await file.write(b"half")

    async def body() -> None:
        task = asyncio.create_task(write())
        await asyncio.to_thread(slow.writing.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(body())
    assert slow.order == ["written", "left"]
