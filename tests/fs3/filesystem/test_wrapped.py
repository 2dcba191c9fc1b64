"""Text and compressed files, on a real cluster: published when they are closed, and given up as binary ones are."""

from __future__ import annotations

import gzip
import io
from typing import Any

import pytest
from fsspec.compression import compr

COMPRESSIONS = [name for name in ("gzip", "bz2", "xz", "zstd") if name in compr]
WRITTEN = [("w", None), ("wt", "gzip"), ("wb", None), *(("wb", compression) for compression in COMPRESSIONS)]


def some(mode: str) -> Any:
    """More than any layer keeps to itself, in the type that a file of this mode takes."""
    return b"some bytes" * 100_000 if "b" in mode else "ein paar Wörter\n" * 100_000


@pytest.mark.parametrize("mode", ["wb", "w", "xb", "xt"])
@pytest.mark.parametrize("compression", [*COMPRESSIONS, "zip"])
def test_what_is_compressed_appears_when_it_is_closed(fs: Any, home: str, mode: str, compression: str) -> None:
    path, data = f"{home}/f", some(mode)
    options = {} if "b" in mode else {"encoding": "utf-8"}
    with fs.open(path, mode, compression=compression, **options) as file:
        assert file.writable() and file.write(data) == len(data)
        assert not fs.exists(path)
    assert file.closed
    file.close()
    with fs.open(path, "rb" if "b" in mode else "r", compression=compression, **options) as file:
        assert file.read() == data
    assert fs.info(path)["size"] < len(data) / 10 or compression == "zip"


def test_compression_is_told_from_the_name(fs: Any, home: str) -> None:
    for name in ("f.gz", "f.txt"):
        with fs.open(f"{home}/{name}", "wb", compression="infer") as file:
            file.write(b"hello")
    assert gzip.decompress(fs.cat_file(f"{home}/f.gz")) == b"hello" and fs.cat_file(f"{home}/f.txt") == b"hello"
    with fs.open(f"{home}/f.gz", "a", compression="infer") as file:
        file.write(" again")
    assert gzip.decompress(fs.cat_file(f"{home}/f.gz")) == b"hello again"
    with pytest.raises(ValueError, match="not supported"):
        fs.open(f"{home}/g", "ab", compression="none such")
    assert not fs.exists(f"{home}/g")


@pytest.mark.parametrize(("mode", "compression"), [*WRITTEN, ("a", None), ("at", "gzip"), ("ab", "gzip")])
def test_a_block_that_fails_leaves_the_old_file(fs: Any, home: str, mode: str, compression: str | None) -> None:
    path = f"{home}/f"
    fs.pipe_file(path, b"the old one, whole")
    for data in (some(mode), some(mode)[:10]):
        with pytest.raises(RuntimeError, match="midway"), fs.open(path, mode, compression=compression) as file:
            file.write(data)
            raise RuntimeError("midway")
        assert file.closed
    assert fs.cat_file(path) == b"the old one, whole"


def test_text_that_was_not_changed_in_place_yet_is_not_changed(fs: Any, home: str) -> None:
    fs.pipe_file(f"{home}/f", b"the old one")
    with pytest.raises(RuntimeError, match="midway"), fs.open(f"{home}/f", "r+") as file:
        file.write("new")
        raise RuntimeError("midway")
    assert fs.cat_file(f"{home}/f") == b"the old one"


@pytest.mark.parametrize(("mode", "compression"), WRITTEN)
def test_a_writer_that_is_forgotten_leaves_nothing(fs: Any, home: str, mode: str, compression: str | None) -> None:
    for data in (some(mode), some(mode)[:10]):
        file = fs.open(f"{home}/f", mode, compression=compression)
        file.write(data)
        del file
    assert fs.ls(home) == []


class Broken(io.BytesIO):
    """A compressor that cannot write its end."""

    def __init__(self, file: Any, mode: str) -> None:
        super().__init__()
        self._file = file

    def write(self, data: Any) -> int:
        return int(self._file.write(data))

    def close(self) -> None:
        super().close()
        raise OSError("no end")


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_what_has_no_end_is_given_up(fs: Any, home: str, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setitem(compr, "broken", Broken)
    file = fs.open(f"{home}/f", mode, compression="broken")
    file.write(some(mode))
    with pytest.raises(OSError, match="no end"):
        file.close()
    assert file.closed and fs.ls(home) == []


def test_they_are_part_of_a_transaction(fs: Any, home: str) -> None:
    with fs.transaction:
        for name, mode, compression in (("text", "w", None), ("gz", "wb", "gzip"), ("text.gz", "w", "gzip")):
            with fs.open(f"{home}/{name}", mode, compression=compression) as file:
                file.write("words" if mode == "w" else b"words")
            with pytest.raises(RuntimeError), fs.open(f"{home}/no", mode, compression=compression) as file:
                raise RuntimeError
        fs.open(f"{home}/open", "w").write("words")
        fs.open(f"{home}/open.gz", "wb", compression="gzip").write(b"words")
        assert fs.ls(home) == []
    got = {name.removeprefix(f"{home}/"): data for name, data in fs.cat(f"{home}/*").items()}
    assert {name: gzip.decompress(data) if "gz" in name else data for name, data in got.items()} == dict.fromkeys(
        ["gz", "open", "open.gz", "text", "text.gz"], b"words"
    )
