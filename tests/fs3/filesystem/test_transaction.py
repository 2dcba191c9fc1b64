"""fsspec's transactions: the files written in one appear together, or none of them."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest


def random_bytes(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def test_a_transaction_publishes_all_or_nothing(fs: Any, home: str, tmp_path: Path, monkeypatch: Any) -> None:
    fs.pipe_file(f"{home}/old", b"old")
    (tmp_path / "local").write_bytes(b"put")
    published: list[int] = []
    publish = fs.client.meta.publish_files
    monkeypatch.setattr(
        fs.client.meta, "publish_files", lambda files, **more: published.append(len(files)) or publish(files, **more)
    )
    with fs.transaction:
        with fs.open(f"{home}/big", "wb") as file:
            file.write(random_bytes(1, 5_000_000))
        fs.pipe({f"{home}/a": b"1", f"{home}/old": b"first"})
        fs.pipe_file(f"{home}/old", b"new")
        fs.put_file(str(tmp_path / "local"), f"{home}/put")
        with fs.open(f"{home}/text", "w") as text:
            text.write("words")
        with pytest.raises(RuntimeError), fs.open(f"{home}/given-up", "wb") as file:
            raise RuntimeError
        assert fs.ls(home, detail=False) == [f"{home}/old"] and fs.cat_file(f"{home}/old") == b"old"
    assert published == [5]
    names = ("a", "big", "old", "put", "text")
    assert fs.ls(home, detail=False) == [f"{home}/{name}" for name in names]
    assert fs.cat_file(f"{home}/big") == random_bytes(1, 5_000_000)
    assert [fs.cat_file(f"{home}/{name}") for name in names[2:]] == [b"new", b"put", b"words"]
    fs.pipe_file(f"{home}/after", b"")  # no longer deferred
    assert fs.exists(f"{home}/after")


def test_what_a_transaction_has_written_is_not_appended_to(fs: Any, home: str) -> None:
    """It could not be read yet: the later file would not have it, and take its place."""
    fs.pipe_file(f"{home}/log", b"0")
    with fs.transaction:
        with pytest.raises(RuntimeError), fs.open(f"{home}/log", "ab") as file:
            raise RuntimeError
        with fs.open(f"{home}/log", "ab") as file:
            file.write(b"1")
        fs.pipe_file(f"{home}/new", b"2")
        for name in ("log", "new"):
            with pytest.raises(io.UnsupportedOperation, match=f"/{name}: this transaction has written it already"):
                fs.open(f"{home}/{name}", "ab")
    assert fs.cat(f"{home}/*") == {f"{home}/log": b"01", f"{home}/new": b"2"}
    with fs.transaction, fs.open(f"{home}/log", "ab") as file:
        file.write(b"3")
    assert fs.cat_file(f"{home}/log") == b"013"


def test_a_transaction_that_fails_publishes_nothing(fs: Any, home: str) -> None:
    with pytest.raises(RuntimeError), fs.transaction:
        fs.pipe_file(f"{home}/a", b"1")
        raise RuntimeError
    fs.mkdir(f"{home}/d")
    with pytest.raises(FileNotFoundError), fs.transaction:
        fs.pipe_file(f"{home}/a", b"1")
        fs.pipe_file(f"{home}/d/b", b"2")
        fs.rmdir(f"{home}/d")
    with pytest.raises(FileExistsError), fs.transaction:
        fs.pipe_file(f"{home}/a", b"1")
        with fs.open(f"{home}/c", "xb"):
            fs.file_client.create_batch([f"{home}/c"], [b"somebody else's"])
    with pytest.raises(OSError, match=f"{home}/512: the transaction has 512 files"), fs.transaction:
        fs.pipe({f"{home}/{number}": b"" for number in range(600)})
    assert fs.ls(home, detail=False) == [f"{home}/c"]
    with fs.transaction:
        pass
    fs.start_transaction()
    fs.pipe_file(f"{home}/e", b"")
    assert not fs.exists(f"{home}/e")
    fs.end_transaction()
    assert fs.exists(f"{home}/e")
