"""Listings that are kept: on a real cluster what `ls` shows is what there is, and of the cache itself what it keeps.

That a validator tells all that it must is tested in tests/fs3/meta/test_listing.py.
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
import pytest

from fs3.client.meta import Page
from fs3.errors import NotFound
from fs3.filesystem.listings import Listings, may_keep
from fs3.filesystem.spec import Fs3FileSystem
from fs3.ids import InodeId
from fs3.inode import Entry, Inode, InodeType


class Directories:
    """What meta would tell: a version for each path, and how often entries were sent."""

    def __init__(self, **sizes: int) -> None:
        self.version = dict.fromkeys(sizes, 1)
        self.sizes = sizes
        self.sent = 0
        self.after_first: Callable[[], None] = lambda: None

    def pages(self, path: str, *, validator: bytes) -> Iterator[Page]:
        if path not in self.version:
            raise NotFound(path)
        if validator == self.validator(path):
            yield Page([], validator, same=True)
            return
        self.sent += 1
        for begin in range(0, max(self.sizes[path], 1), 10):
            inodes = [self.inode(path, number) for number in range(begin, min(begin + 10, self.sizes[path]))]
            yield Page([Entry(f"{inode.inode_id}", inode) for inode in inodes], self.validator(path))
            self.after_first()

    def validator(self, path: str) -> bytes:
        return b"%d" % self.version[path]

    def inode(self, path: str, number: int) -> Inode:
        return Inode(InodeId(number), InodeType.FILE, 0o644, version=self.version[path])


def names(listed: tuple[Any, bool]) -> list[str]:
    return [entry["name"] for entry in listed[0]]


def test_entries_are_sent_again_only_after_a_change() -> None:
    there, kept = Directories(d=25, e=0), Listings()
    first = kept.listed("d", there.pages)
    assert len(first[0]) == 25 and names(first)[-1] == "d/24" and first[1]
    assert kept.listed("d", there.pages) == first and there.sent == 1
    assert kept.listed("e", there.pages) == ([], True) == kept.listed("e", there.pages) and there.sent == 2
    there.version["d"] += 1
    assert [entry["version"] for entry in kept.listed("d", there.pages)[0]] == [2] * 25 and there.sent == 3
    kept.listed("d", there.pages, refresh=True)
    assert there.sent == 4
    kept.forget("d")
    kept.listed("d", there.pages)
    assert there.sent == 5 and len(kept) == 2
    kept.forget()
    assert len(kept) == 0


def test_a_directory_that_changes_between_its_pages_is_not_kept() -> None:
    there, kept = Directories(d=25), Listings()
    kept.listed("d", there.pages)

    def change() -> None:
        there.version["d"] += 1

    there.version["d"] += 1
    there.after_first = change
    assert not kept.listed("d", there.pages)[1] and len(kept) == 0
    there.after_first = lambda: None
    assert kept.listed("d", there.pages)[1]


def test_what_a_validator_does_not_cover_is_not_kept() -> None:
    file = Inode(InodeId(2), InodeType.FILE, 0o644)
    assert may_keep(file) and may_keep(file._replace(type=InodeType.SYMLINK))
    for fields in ({"nlink": 2}, {"rewritten": True}, {"type": InodeType.DIRECTORY, "nlink": 2}):
        assert not may_keep(file._replace(**fields))
    kept = Listings()
    for inode, validator in ((file, b""), (file._replace(nlink=2), b"v")):
        pages = [Page([Entry("f", inode)], validator)]
        assert not kept.listed("d", lambda path, validator, pages=pages: iter(pages))[1] and len(kept) == 0


def test_those_used_last_are_kept_within_bounds() -> None:
    there, kept = Directories(a=4, b=4, c=4, big=11), Listings(max_entries=10)
    for path in ("a", "b", "a", "c", "a"):
        kept.listed(path, there.pages)
    assert there.sent == 3 and len(kept) == 2, "b went for c"
    assert not kept.listed("big", there.pages)[1] and len(kept) == 2
    for path in ("a", "c"):
        kept.listed(path, there.pages)
    assert there.sent == 4
    few = Listings(max_paths=1)
    for path in ("a", "b", "b", "a"):
        few.listed(path, there.pages)
    assert there.sent == 7 and len(few) == 1
    nothing = Listings(max_entries=0)
    assert [nothing.listed("a", there.pages)[1] for _ in range(2)] == [False, False] and there.sent == 9
    with pytest.raises(NotFound):
        kept.listed("gone", there.pages)


def test_threads_share_it() -> None:
    there = Directories(**{f"d{number}": number for number in range(12)})
    kept = Listings(max_entries=30, max_paths=6)

    def some(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(400):
            path = f"d{draw.randrange(12)}"
            assert len(kept.listed(path, there.pages, refresh=draw.random() < 0.1)[0]) == there.sizes[path]
            if draw.random() < 0.1:
                kept.forget(path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(some, range(8)))
    assert len(kept) <= 6 and kept._entries == sum(len(one.entries) for one in kept._kept.values()) <= 30


def test_ls_shows_what_others_did(cluster_url: str, fs: Any, home: str) -> None:
    other = Fs3FileSystem(fs.mgmtd, skip_instance_cache=True)
    other.pipe({f"{home}/{name}": b"12345" for name in "abc"})
    fs.symlink("c", f"{home}/way")
    first = fs.ls(home)
    assert first == fs.ls(home) == other.ls(home, refresh=True) and len(fs._listings) >= 1
    first[0]["size"], first[1:] = 77, []
    assert [entry["size"] for entry in fs.ls(home)] == [5, 5, 5, 5], "a caller's changes are its own"
    other.pipe_file(f"{home}/c", b"1234567")
    assert [entry["size"] for entry in fs.ls(home)] == [5, 5, 7, 7], "what a symlink leads to is asked for"
    other.chmod(f"{home}/a", 0o600)
    assert fs.ls(home)[0]["mode"] == 0o600
    other.rm_file(f"{home}/b")
    assert fs.ls(home, detail=False) == [f"{home}/{name}" for name in ("a", "c", "way")]
    assert fs.find(home) == fs.ls(home, detail=False) and fs.glob(f"{home}/[ab]") == [f"{home}/a"]
    other.mkdir(f"{home}/sub")
    other.pipe_file(f"{home}/sub/f", b"1")
    before = [(entry["name"], entry["mtime"]) for entry in fs.ls(home)]
    other.pipe_file(f"{home}/sub/g", b"1")
    assert [(entry["name"], entry["mtime"]) for entry in fs.ls(home)] != before, "a subdirectory's time is its own"
    fs.invalidate_cache(home)
    fs.invalidate_cache(cluster_url + home)
    fs.invalidate_cache()
    assert len(fs._listings) == 0 and len(fs.ls(home)) == 4
    other.rm(home, recursive=True)
    with pytest.raises(FileNotFoundError):
        fs.ls(home)
    fs.pipe_file(home, b"a file")
    with pytest.raises(NotADirectoryError):
        fs.ls(f"{home}/x")
    assert [entry["size"] for entry in fs.ls(home)] == [6]


def test_a_symlink_that_leads_elsewhere_lists_what_is_there(fs: Any, home: str) -> None:
    for name in "ab":
        fs.mkdir(f"{home}/{name}")
        fs.pipe_file(f"{home}/{name}/{name}", b"1")
    fs.symlink("a", f"{home}/way")
    assert fs.ls(f"{home}/way", detail=False) == [f"{home}/way/a"] == fs.ls(f"{home}/way", detail=False)
    fs.rm_file(f"{home}/way")
    fs.symlink("b", f"{home}/way")
    assert fs.ls(f"{home}/way", detail=False) == [f"{home}/way/b"]


def test_options_pickles_and_forks(fs: Any, home: str) -> None:
    fs.pipe({f"{home}/{name}": b"1" for name in "abc"})
    plain = fsspec.filesystem("fs3", mgmtd=fs.mgmtd, use_listings_cache=False)
    assert plain.ls(home) == plain.ls(home) and len(plain._listings) == 0
    few = Fs3FileSystem(fs.mgmtd, max_entries=2, listings_expiry_time=1.0, skip_instance_cache=True)
    assert len(few.ls(home)) == 3 and len(few._listings) == 0
    one = Fs3FileSystem(fs.mgmtd, max_paths=1, skip_instance_cache=True)
    fs.mkdir(f"{home}-2")
    assert one.ls(home) and one.ls(f"{home}-2") == [] and len(one._listings) == 1
    assert pickle.loads(pickle.dumps(one)).ls(home) == fs.ls(home)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            told = len(fs.ls(home)), len(fs.ls(home)), len(fs._listings)
            status = 0 if told == (3, 3, 1) else 2
        finally:
            os._exit(status)
    assert len(fs.ls(home)) == 3
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
