"""The text that an import reads: which files, and their text in pieces of bounded size.

A source is a file or a folder, local or behind an fsspec URL. Folders are walked in sorted order, so that the same tree
always makes the same dataset; hidden names (.git and the like) are left out, and links to folders not followed. A file
that is not UTF-8, or holds a NUL, is not text.
"""

from __future__ import annotations

import codecs
import fnmatch
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from fs3.errors import Invalid, NotFound
from fs3_loader.location import as_fs3_error, filesystem_of, one_line, protocols

PIECE_BYTES = 4 * 1024 * 1024


class NotText(Exception):
    """The file is not UTF-8 text."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read."""

    fs: Any
    path: str
    bytes: int


def find_sources(sources: Sequence[str], glob: str | None) -> list[SourceFile]:
    """The files of `sources` in order, each once; `glob`, such as *.py, chooses by name among those in folders.

    Raises: NotFound if a source does not exist; Invalid if no file with anything in it is left.
    """
    found: dict[tuple[int, str], SourceFile] = {}
    for source in sources:
        fs, root = filesystem_of(source)
        try:
            files = list(_walk(fs, root, source, glob))
        except OSError as error:
            raise as_fs3_error(error, source) from None
        except (ValueError, ImportError) as error:
            raise Invalid(f"cannot open source {source}: {one_line(error)}") from None
        for file in files:
            found.setdefault((id(fs), file.path), file)
    result = [file for file in found.values() if file.bytes]
    if not result:
        what = f"no file that matches {glob}" if glob else "no file with text in it"
        raise Invalid(f"{' '.join(sources)}: {what}; give other sources or another --glob")
    return result


def read_text(source: SourceFile) -> Iterator[str]:
    """The text of `source`, in pieces of about `PIECE_BYTES` that end with a line where the text has lines.

    Raises: NotText before the first piece if the file is no text; NotFound and its kin.
    """
    try:
        with source.fs.open(source.path, "rb") as file:
            decoded = _decoded(file)
            begin = list(islice(decoded, 2))
            pieces: Iterable[str] = begin
            if len(begin) == 2:  # there may be more: all of it is looked at before any is given
                for _ in decoded:
                    pass
                file.seek(0)
                pieces = _decoded(file)
            rest = ""
            for text in pieces:
                cut = text.rfind("\n") + 1 or len(text)
                yield rest + text[:cut]
                rest = text[cut:]
            if rest:
                yield rest
    except OSError as error:
        raise as_fs3_error(error, source.path) from None


def _decoded(file: BinaryIO) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    while True:
        data = file.read(PIECE_BYTES)
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError:
            raise NotText from None
        if "\0" in text:
            raise NotText
        if text:
            yield text
        if not data:
            return


def _walk(fs: Any, root: str, source: str, glob: str | None) -> Iterator[SourceFile]:
    if not fs.exists(root):
        raise NotFound(f"source {source} does not exist")
    if fs.isfile(root):
        yield _sized(fs, fs.info(root) | {"name": root}, source)
        return
    if "file" in protocols(fs):
        yield from _walk_local(fs, root, glob)
        return
    yield from sorted(_walk_listings(fs, root, source, glob), key=lambda file: file.path)


def _walk_local(fs: Any, root: str, glob: str | None) -> Iterator[SourceFile]:
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if _wanted(name, glob) and os.path.isfile(path):
                yield SourceFile(fs, path, os.path.getsize(path))


def _walk_listings(fs: Any, root: str, source: str, glob: str | None) -> Iterator[SourceFile]:
    """Over `ls`: fsspec's own `walk` and `find` leave out a folder that they cannot list."""
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = fs.ls(folder, detail=True)
        except OSError as error:
            below = folder[len(root) :].strip("/")
            raise as_fs3_error(error, f"{source.rstrip('/')}/{below}".rstrip("/")) from None
        for entry in entries:
            path = entry["name"].rstrip("/")
            name = path.rsplit("/", 1)[-1]
            if entry["type"] != "directory":
                if _wanted(name, glob):
                    yield _sized(fs, entry, source)
            elif not name.startswith(".") and path != folder.rstrip("/"):  # some list the folder itself
                folders.append(path)


def _sized(fs: Any, info: dict[str, Any], source: str) -> SourceFile:
    """Raises: Invalid: how many bytes there are is not known, as of many a page on the web."""
    if info.get("size") is None:
        raise Invalid(f"source {source}: the size of {info['name']} is not known; copy it to a local folder first")
    return SourceFile(fs, info["name"], int(info["size"]))


def _refuse(error: OSError) -> None:
    """A folder cannot be looked into: left out, nobody would miss it."""
    raise as_fs3_error(error, str(error.filename)) from None


def _wanted(name: str, glob: str | None) -> bool:
    return not name.startswith(".") and (glob is None or fnmatch.fnmatch(name, glob))
