"""fs3 through fsspec: URLs, files, batches, names and errors, and the libraries that read through it.

Checked against a real cluster, and against what the same calls do to bytes in memory.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fs3.errors import Unavailable
from fs3.filesystem.spec import Fs3FileSystem
from fs3.layout import Durability, LayoutChoice


def random_bytes(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def test_urls_name_the_cluster_and_the_path() -> None:
    strip = Fs3FileSystem._strip_protocol
    assert strip("fs3://a:1,b:2/x/y/") == "/x/y" and strip("fs3://a:1") == "/" and strip("x") == "/x"
    assert Fs3FileSystem._get_kwargs_from_urls("fs3://a:1,b:2/x") == {"mgmtd": "a:1,b:2"}
    assert strip("fs3:///x/y") == "/x/y" and Fs3FileSystem._get_kwargs_from_urls("fs3:///x") == {}
    with pytest.raises(ValueError, match="names no cluster; write"):
        fsspec.url_to_fs("fs3:///x")
    for url in ("fs3:///x/y", "fs3://x/y", "fs3://a:1,b:2/x/y"):
        fs, path = fsspec.url_to_fs(url, mgmtd="a:1,b:2")
        assert (fs.mgmtd, path) == ("a:1,b:2", "/x/y")
    spaced = fsspec.filesystem("fs3", mgmtd=" a:1, b:2 ")
    assert spaced.mgmtd == "a:1,b:2" and spaced.unstrip_protocol("/x") == "fs3://a:1,b:2/x"
    with pytest.raises(ValueError, match="port 'port' is not a number"):
        fsspec.url_to_fs("fs3://host:port/x")


def test_a_fresh_process_finds_the_filesystem(cluster_url: str, fs: Any, home: str) -> None:
    fs.pipe_file(f"{home}/f", b"found")
    code = f"import fsspec; print(fsspec.open({cluster_url + home + '/f'!r}).open().read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "b'found'", done.stderr


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 1 << 20, (4 << 20) + 1, 9_000_001])
def test_what_was_written_is_read(fs: Any, home: str, length: int) -> None:
    data = random_bytes(length, length)
    with fs.open(f"{home}/f", "wb") as file:
        for at in range(0, length, 3_000_000):
            file.write(data[at : at + 3_000_000])
    assert fs.cat_file(f"{home}/f") == data
    assert fs.info(f"{home}/f")["size"] == length
    with fs.open(f"{home}/f") as file:
        assert file.read() == data and file.read() == b""


def test_positions_and_small_reads(fs: Any, home: str) -> None:
    data = random_bytes(1, 5_000_000)
    fs.pipe_file(f"{home}/f", data)
    plain, rng = io.BytesIO(data), random.Random(2)
    with fs.open(f"{home}/f") as file:
        for _ in range(300):
            at, count = rng.randrange(5_100_000), rng.choice([0, 1, 100, 5_000, 1_500_000])
            assert file.seek(at) == plain.seek(at)
            assert file.read(count) == plain.read(count)
            assert file.tell() == plain.tell() or at > len(data)
        file.seek(-10, io.SEEK_END)
        assert file.read() == data[-10:]
        buffer = np.zeros(1_000_000, dtype=np.uint16)
        file.seek(100)
        assert file.readinto(buffer) == 2_000_000 and buffer.tobytes() == data[100:2_000_100]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 3), ()])
def test_arrays_of_any_shape_are_bytes(fs: Any, home: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=np.int64).reshape(shape) + 7
    fs.pipe_file(f"{home}/piped", array)
    for mode in ("wb", "ab", "r+b"):
        with fs.open(f"{home}/f", mode) as file:
            assert file.write(array) == array.nbytes
    assert fs.cat(f"{home}/*") == {f"{home}/f": array.tobytes() * 2, f"{home}/piped": array.tobytes()}
    for mode in ("rb", "r+b"):
        got = np.zeros(shape, dtype=np.int64)
        with fs.open(f"{home}/piped", mode) as file:
            assert file.readinto(got) == array.nbytes and np.array_equal(got, array)


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_a_position_that_cannot_be_is_a_value_error(fs: Any, home: str, mode: str) -> None:
    fs.pipe_file(f"{home}/f", b"123")
    with fs.open(f"{home}/f", mode) as file:
        assert file.seek(1) == 1
        for offset, whence in ((0, 7), (0, -1), (0, "end"), (-1, io.SEEK_SET), (-2, io.SEEK_CUR), (-4, io.SEEK_END)):
            with pytest.raises(ValueError, match=f"{home}/f: cannot seek"):
                file.seek(offset, whence)
        assert file.tell() == 1


def test_a_small_read_that_failed_can_be_tried_again(fs: Any, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_bytes(1, 5_000_000)
    fs.pipe_file(f"{home}/f", data)

    def fail(*_: Any) -> None:
        raise Unavailable("nobody answers")

    with fs.open(f"{home}/f") as file:
        assert file.read(10) == data[:10]
        file.seek(3_000_001)
        with monkeypatch.context() as patch:
            patch.setattr(fs.file_client, "read_batch", fail)
            with pytest.raises(OSError, match="nobody answers"):
                file.read(10)
        assert file.read(10) == data[3_000_001:3_000_011]
        file.seek(5)
        assert file.read(10) == data[5:15]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_ranges_in_one_call_are_slices(data: st.DataObject, fs: Any, home: str) -> None:
    files = {f"{home}/{i}": random_bytes(i, length) for i, length in enumerate([0, 10, 70_000, 4_200_000])}
    if not fs.exists(f"{home}/0"):
        fs.pipe(files)
    bound = st.one_of(st.none(), st.integers(-5_000_000, 5_000_000))
    asked = data.draw(st.lists(st.tuples(st.sampled_from(sorted(files)), bound, bound), min_size=1, max_size=30))
    paths, starts, ends = ([row[i] for row in asked] for i in range(3))
    got = fs.cat_ranges(paths, starts, ends, on_error="raise")
    assert got == [files[path][start:end] for path, start, end in asked]


def test_errors_of_single_ranges_stand_in_their_place(fs: Any, home: str) -> None:
    fs.pipe_file(f"{home}/f", b"0123456789")
    got = fs.cat_ranges([f"{home}/f", f"{home}/missing", home], [2, 0, 0], [5, 1, 1])
    assert got[0] == b"234" and isinstance(got[1], FileNotFoundError) and isinstance(got[2], IsADirectoryError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([f"{home}/missing"], [0], [1], on_error="raise")
    assert fs.cat([f"{home}/f", f"{home}/missing"], on_error="omit") == {f"{home}/f": b"0123456789"}


@pytest.mark.parametrize("what", ["shorter", "gone", "out of reach"])
def test_what_becomes_of_one_file_fails_no_range_of_another(
    cluster_url: str, fs: Any, home: str, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    data = random_bytes(5, 100_000)
    a, b, c = f"{home}/a", f"{home}/d/b", f"{home}/c"
    fs.mkdir(f"{home}/d")
    fs.pipe(dict.fromkeys((a, b, c), data))
    user = fsspec.url_to_fs(cluster_url + "/", user="2000:2000")[0]
    opened = user.file_client.open_many

    def open_many(paths: list[str]) -> Any:
        """It happens to b after all were opened."""
        handles = opened(paths)
        if len(paths) > 1:
            if what == "shorter":
                fs.truncate(b, 10)
                return handles
            fs.rm_file(b)
            fs.client.storage.remove_file_chunks(handles[1].inode_id, handles[1].layout, handles[1].length)
            if what == "out of reach":
                fs.chmod(f"{home}/d", 0o700)
        return handles

    monkeypatch.setattr(user.file_client, "open_many", open_many)
    got = user.cat_ranges([a, b, b, c], [0, 0, 5, 9], None)
    assert [got[0], got[3]] == [data, data[9:]]
    if what == "shorter":
        assert got[1:3] == [data[:10], data[5:10]]
    else:
        kind = FileNotFoundError if what == "gone" else PermissionError
        assert [type(one) for one in got[1:3]] == [kind, kind]


def test_a_file_appears_when_it_is_closed_and_whole(fs: Any, home: str) -> None:
    fs.pipe_file(f"{home}/f", b"old")
    with fs.open(f"{home}/f", "wb") as file:
        file.write(b"new" * 2_000_000)
        assert fs.cat_file(f"{home}/f") == b"old"
    assert fs.info(f"{home}/f")["size"] == 6_000_000


def test_a_writer_that_fails_or_is_forgotten_leaves_nothing(fs: Any, home: str) -> None:
    with pytest.raises(RuntimeError, match="midway"), fs.open(f"{home}/f", "wb") as file:
        file.write(b"half")
        raise RuntimeError("midway")
    forgotten = fs.open(f"{home}/g", "wb")
    forgotten.write(b"half")
    del forgotten
    assert fs.ls(home) == []


def test_a_transaction_publishes_at_its_end_or_never(fs: Any, home: str) -> None:
    with fs.transaction, fs.open(f"{home}/f", "wb") as file:
        file.write(b"data")
    assert fs.cat_file(f"{home}/f") == b"data"
    with pytest.raises(RuntimeError, match="midway"), fs.transaction:
        with fs.open(f"{home}/g", "wb") as file:
            file.write(b"data")
        raise RuntimeError("midway")
    assert fs.ls(home, detail=False) == [f"{home}/f"]


def test_exclusive_creation(fs: Any, home: str) -> None:
    with fs.open(f"{home}/f", "xb") as file:
        file.write(b"first")
    with pytest.raises(FileExistsError), fs.open(f"{home}/f", "xb") as file:
        file.write(b"second")
    assert fs.cat_file(f"{home}/f") == b"first"
    for at_once in ({f"{home}/f": b"second"}, {f"{home}/e": b"new", f"{home}/f": b"second"}):
        with pytest.raises(FileExistsError):
            fs.pipe(at_once, mode="create")
    assert fs.cat_file(f"{home}/f") == b"first" and not fs.exists(f"{home}/e")
    late = fs.open(f"{home}/g", "xb")
    fs.pipe_file(f"{home}/g", b"meanwhile")
    with pytest.raises(FileExistsError):
        late.close()
    assert fs.cat_file(f"{home}/g") == b"meanwhile"


def test_names_move_and_go(fs: Any, home: str) -> None:
    fs.makedirs(f"{home}/a/b/c")
    fs.pipe({f"{home}/a/b/x": b"x", f"{home}/a/b/c/y": b"y", f"{home}/z": b"z"})
    assert fs.find(home) == [f"{home}/a/b/c/y", f"{home}/a/b/x", f"{home}/z"]
    assert fs.du(home) == 3 and fs.glob(f"{home}/**/y") == [f"{home}/a/b/c/y"]
    fs.mv(f"{home}/a", f"{home}/moved")
    assert fs.cat_file(f"{home}/moved/b/x") == b"x" and not fs.exists(f"{home}/a")
    fs.mv(f"{home}/z", f"{home}/moved/")
    assert fs.cat_file(f"{home}/moved/z") == b"z"
    fs.copy(f"{home}/moved", f"{home}/copy", recursive=True)
    assert [name.removeprefix(f"{home}/copy") for name in fs.find(f"{home}/copy")] == ["/b/c/y", "/b/x", "/z"]
    with pytest.raises(IsADirectoryError):
        fs.rm(f"{home}/moved")
    with pytest.raises(OSError, match="not empty") as caught:
        fs.rmdir(f"{home}/moved")
    assert caught.value.errno == errno.ENOTEMPTY
    fs.rm(f"{home}/moved", recursive=True)
    fs.rm([f"{home}/copy/z", f"{home}/copy/b/x"])
    fs.pipe({f"{home}/copy/{name}": b"" for name in ("a1", "a2", "a[1]", "a[12]", "b1")})
    fs.rm(f"{home}/copy/a[1]")  # it is there, and so no pattern
    assert fs.exists(f"{home}/copy/a1")
    fs.mkdir(f"{home}/copy/a3")
    fs.rm(f"{home}/copy/a*", recursive=True)
    assert [name for name in fs.ls(f"{home}/copy", detail=False) if "/copy/a" in name] == []
    fs.rm(f"{home}/copy/b?")
    with pytest.raises(FileNotFoundError):
        fs.rm(f"{home}/copy/b?", recursive=True)
    assert fs.find(home) == [f"{home}/copy/b/c/y"]


def test_errors_are_the_standard_librarys(fs: Any, home: str) -> None:
    fs.pipe_file(f"{home}/f", b"x")
    for call, kind in [
        (lambda: fs.info(f"{home}/nothing"), FileNotFoundError),
        (lambda: fs.open(f"{home}/nothing"), FileNotFoundError),
        (lambda: fs.open(home), IsADirectoryError),
        (lambda: fs.ls(f"{home}/nothing"), FileNotFoundError),
        (lambda: fs.mkdir(home), FileExistsError),
        (lambda: fs.makedirs(home), FileExistsError),
        (lambda: fs.mkdir(f"{home}/f/g"), NotADirectoryError),
        (lambda: fs.rm(f"{home}/nothing"), FileNotFoundError),
        (lambda: fs.rm(f"{home}/nothing", recursive=True), FileNotFoundError),
        (lambda: fs.mv(f"{home}/nothing", f"{home}/g"), FileNotFoundError),
        (lambda: fs.pipe_file(f"{home}/no/where", b""), FileNotFoundError),
    ]:
        with pytest.raises(kind):
            call()
    assert fs.find(home) == [f"{home}/f"]


def test_a_cluster_that_does_not_answer_is_no_empty_one(
    fs: Any, home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fs.makedirs(f"{home}/d/e")
    fs.pipe({f"{home}/d/f": b"", f"{home}/d/e/g": b""})
    list_pages = fs.client.meta.list_pages

    def some(path: str, **more: Any) -> Any:
        if path.endswith("/e"):
            raise Unavailable("nobody answers")
        return list_pages(path, **more)

    monkeypatch.setattr(fs.client.meta, "list_pages", some)
    away = fsspec.filesystem("fs3", mgmtd="127.0.0.1:1")
    for call in (
        lambda: fs.find(f"{home}/d"),
        lambda: fs.glob(f"{home}/**"),
        lambda: list(fs.walk(f"{home}/d")),
        lambda: fs.get(f"{home}/d", str(tmp_path), recursive=True),
        lambda: away.glob("/*"),
        lambda: away.isdir("/"),
        lambda: away.isfile("/f"),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EHOSTUNREACH
    assert fs.find(f"{home}/none") == [] and not fs.isdir(f"{home}/none") and not fs.isfile(f"{home}/d/f/g")
    fs.symlink("loop", f"{home}/loop")
    assert not fs.isfile(f"{home}/loop") and not fs.isdir(f"{home}/loop")


def test_links_and_attributes_look_as_local_ones(fs: Any, home: str, tmp_path: Path) -> None:
    """The same names made on fsspec's local filesystem show the same, but for numbers that are each machine's own."""
    local = fsspec.filesystem("file")
    shown = []
    for at, on in ((home, fs), (str(tmp_path), local)):
        on.mkdir(f"{at}/d")
        on.pipe_file(f"{at}/f", b"12345")
        symlink = fs.symlink if on is fs else os.symlink  # the local filesystem's own makes targets absolute
        symlink("../f", f"{at}/d/to-f")
        symlink("d", f"{at}/to-d")
        symlink("nothing", f"{at}/dangling")
        on.link(f"{at}/f", f"{at}/twin")
        on.chmod(f"{at}/d/to-f", 0o600)
        names = ("f", "twin", "d/to-f", "to-d")
        infos = [on.info(f"{at}/{name}") for name in names]
        infos += sorted(on.ls(at, detail=True), key=lambda info: info["name"])
        for info in infos:
            info["name"] = info["name"].removeprefix(at)
            sized = info["type"] != "directory" and info["name"] != "/to-d"  # a directory has no size of its own here
            kept = ("name", "type", "islink", "destination", *(["size"] if sized else []))
            kept += ("nlink",) if info["type"] == "file" else ()
            facts = {key: info[key] for key in kept if key in info}
            shown.append(facts | {"mode": info["mode"] & 0o7777 if info["type"] != "directory" else 0})
        answers = [
            (on.exists(f"{at}/{n}"), on.lexists(f"{at}/{n}"), on.islink(f"{at}/{n}")) for n in ("dangling", "f", "x")
        ]
        with pytest.raises(FileNotFoundError):
            on.info(f"{at}/dangling")
        assert on.cat_file(f"{at}/d/to-f") == b"12345" and on.isdir(f"{at}/to-d")
        shown.append(answers)
        for name in ("dangling", "to-d", "d/to-f"):
            on.rm(f"{at}/{name}") if on is fs else on.rm_file(f"{at}/{name}")
        assert sorted(on.ls(at, detail=False)) == [f"{at}/d", f"{at}/f", f"{at}/twin"]
    half = len(shown) // 2
    assert shown[:half] == shown[half:]
    fs.chown(f"{home}/f", uid=5)
    info = fs.info(f"{home}/twin")
    assert (info["uid"], info["gid"]) == (5, 0) and abs(fs.modified(f"{home}/f").timestamp() - info["mtime"]) < 1e-3
    assert abs(fs.created(f"{home}/f").timestamp() - info["created"]) < 1e-3


def test_a_directorys_layout_reaches_its_files(fs: Any, home: str) -> None:
    choice = LayoutChoice(replicas=2, chunk_bytes=1 << 20, durability=Durability.OS)
    fs.mkdir(f"{home}/d", layout=choice)
    fs.makedirs(f"{home}/d/deeper")
    data = random_bytes(3, 3_500_000)
    fs.pipe_file(f"{home}/d/deeper/f", data)
    layout = fs.info(f"{home}/d/deeper/f")["layout"]
    assert (layout.chunk_bytes, layout.durability) == (1 << 20, Durability.OS)
    routing = fs.client.mgmtd.routing
    assert routing.table(layout.chain_table, layout.chain_table_version).replicas == 2
    assert fs.cat_file(f"{home}/d/deeper/f") == data


def test_a_file_that_changed_has_another_key(fs: Any, home: str) -> None:
    fs.pipe_file(f"{home}/f", b"1")
    before = fs.ukey(f"{home}/f")
    assert fs.ukey(f"{home}/f") == before
    fs.pipe_file(f"{home}/f", b"2")
    assert fs.ukey(f"{home}/f") != before
    assert fs.modified(f"{home}/f") >= fs.created(f"{home}/f")


def test_instances_travel_by_pickle(fs: Any, home: str) -> None:
    fs.pipe_file(f"{home}/f", b"x")
    again = pickle.loads(pickle.dumps(fs))
    assert again == fs and again.cat_file(f"{home}/f") == b"x"


def test_pandas_reads_and_writes_parquet(cluster_url: str, home: str) -> None:
    table = pd.DataFrame({"x": range(10_000), "name": [f"row {i}" for i in range(10_000)]})
    table.to_parquet(f"{cluster_url}{home}/t.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(f"{cluster_url}{home}/t.parquet"), table)


def test_pyarrow_reads_a_partitioned_dataset(fs: Any, home: str) -> None:
    table = pyarrow.table({"x": list(range(1_000)), "part": [i % 3 for i in range(1_000)]})
    pyarrow.dataset.write_dataset(table, f"{home}/set", filesystem=fs, format="parquet", partitioning=["part"])
    found = pyarrow.dataset.dataset(f"{home}/set", filesystem=fs, partitioning=["part"])
    assert found.count_rows() == 1_000
    assert sum(found.to_table(filter=pyarrow.dataset.field("part") == 1)["x"].to_pylist()) == sum(range(1, 1_000, 3))


def test_torch_saves_and_loads(cluster_url: str, home: str) -> None:
    state = {"w": torch.arange(1_000_000, dtype=torch.float32), "step": 3}
    with fsspec.open(f"{cluster_url}{home}/s.pt", "wb") as file:
        torch.save(state, file)
    with fsspec.open(f"{cluster_url}{home}/s.pt", "rb") as file:
        loaded = torch.load(file)
    assert loaded["step"] == 3 and torch.equal(loaded["w"], state["w"])


def test_append_keeps_what_was_there(fs: Any, home: str) -> None:
    data = random_bytes(3, 20_000_000)
    path = f"{home}/f"
    for begin, end in ((0, 0), (0, 5), (5, 17_000_000), (17_000_000, len(data))):
        with fs.open(path, "ab") as file:
            assert file.tell() == begin
            file.write(data[begin:end])
            assert begin == 0 or fs.info(path)["size"] == begin  # until it is flushed or closed
    assert fs.cat_file(path) == data
    with pytest.raises(RuntimeError), fs.open(path, "ab") as file:
        file.write(b"x")
        raise RuntimeError
    assert fs.info(path)["size"] == len(data)
    with fs.open(f"{home}/log", "a") as text:
        text.write("one\n")
    with fs.open(f"{home}/log", "a") as text:
        text.write("two\n")
    assert fs.cat_file(f"{home}/log") == b"one\ntwo\n"
    with pytest.raises(IsADirectoryError):
        fs.open(home, "ab")
    with pytest.raises(io.UnsupportedOperation, match="is not supported; open fs3 files"):
        fs.open(path, "w+b")


def test_missing_directories_are_made_if_asked_for(cluster_url: str, fs: Any, home: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{home}/a: no such directory; make it first"):
        fs.pipe({f"{home}/f": b"", f"{home}/a/f": b""})
    made = fsspec.url_to_fs(cluster_url, auto_mkdir=True)[0]
    made.pipe({f"{home}/a/b/f": b"1", f"{home}/c/d/f": b"2"})
    with made.open(f"{home}/e/f/g", "wb") as file:
        file.write(b"3")
    assert [fs.cat_file(f"{home}/{path}") for path in ("a/b/f", "c/d/f", "e/f/g")] == [b"1", b"2", b"3"]


def test_directories_move_as_they_are_copied(fs: Any, home: str) -> None:
    fs.makedirs(f"{home}/a/b")
    fs.pipe_file(f"{home}/a/b/f", b"1")
    fs.mv(f"{home}/a/b", f"{home}/new/")
    assert fs.find(f"{home}/new") == [f"{home}/new/f"]
    fs.mv(f"{home}/new", f"{home}/a")
    fs.mv(f"{home}/a/new/f", f"{home}/a/")
    fs.mv(f"{home}/a/f", f"{home}/a/new/")
    assert fs.find(home) == [f"{home}/a/new/f"]
    fs.mkdir(f"{home}/empty")
    fs.mv(f"{home}/a/new/", f"{home}/empty/")
    assert fs.find(home) == [f"{home}/empty/f"]
    with pytest.raises(OSError) as caught:
        fs.mv(f"{home}/a/", f"{home}/empty/")
    assert caught.value.errno == errno.ENOTEMPTY


def test_pyarrow_gets_what_was_read_without_a_copy(fs: Any, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_bytes(4, 3_000_000)
    fs.pipe_file(f"{home}/f", data)
    with fs.open(f"{home}/f") as file:
        monkeypatch.setattr(type(file), "read", lambda *_: pytest.fail("read"))
        arrow = pyarrow.PythonFile(file, mode="r")
        assert arrow.read_buffer(2_000_000).to_pybytes() == data[:2_000_000]
        assert arrow.read_buffer(2_000_000).to_pybytes() == data[2_000_000:]


def test_a_listing_is_one_call(fs: Any, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs.pipe({f"{home}/{number}": b"" for number in range(10)})
    calls: list[str] = []
    meta = fs.client.meta
    for way in ("_asked", "_begin"):
        call = getattr(meta, way)
        monkeypatch.setattr(meta, way, lambda name, *args, call=call: calls.append(name) or call(name, *args))
    assert len(fs.ls(home)) == 10 and calls == ["List"]
    assert fs.ls(f"{home}/3", detail=False) == [f"{home}/3"]
    with pytest.raises(NotADirectoryError):
        fs.ls(f"{home}/3/4")
    with pytest.raises(FileNotFoundError):
        fs.ls(f"{home}/none")
