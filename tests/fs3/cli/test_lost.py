"""Files that lack chunks are found, with which chunks; those that change or go meanwhile are not taken for them.

On a real cluster, whose chunks are removed behind meta's back.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fs3.cli import main
from fs3.client.connect import Client, connect
from fs3.client.lost import Losses, LostChunk, files_below
from fs3.client.meta import LayoutChoice
from fs3.client.storage import ChunkUpdate
from fs3.errors import NotFound, Unavailable
from fs3.ids import file_chunk
from fs3.inode import Inode
from fs3.layout import stripe_chains
from fs3.transport.messages import Op

CHUNK = 64 << 10


@pytest.fixture
def client(cluster_url: str, home: str) -> Client:
    made = connect(cluster_url)
    made.meta.mkdir(f"{home}/d/e", parents=True)
    made.meta.mkdir(f"{home}/small", layout=LayoutChoice(chunk_bytes=CHUNK, replicas=2, stripe=3))
    return made


def write(client: Client, path: str, length: int) -> Inode:
    (made,) = client.files.create_batch([path], [np.arange(length, dtype=np.uint8).tobytes()])
    return client.meta.find([made.inode_id])[0].inode


def chain_of(client: Client, inode: Inode, index: int) -> int:
    assert inode.layout is not None
    table = client.mgmtd.routing.table(inode.layout.chain_table, inode.layout.chain_table_version)
    chains = stripe_chains(inode.layout, table)
    return int(chains[index % len(chains)])


def damage(client: Client, inode: Inode, index: int, *, left: int | None = None) -> int:
    """A chunk goes, or all but `left` bytes of it; on which chain."""
    chain = chain_of(client, inode, index)
    hi, lo = file_chunk(inode.inode_id, index)
    if left is None:
        client.storage.remove(np.array([hi], np.uint64), np.array([lo], np.uint64), np.array([chain], np.uint32))
    else:
        client.storage.write([ChunkUpdate(hi=hi, lo=lo, chain=chain, op=Op.REPLACE, data=memoryview(bytes(left)))])
    return chain


def losses(client: Client, home: str, **options: Any) -> Losses:
    return Losses(lambda: client.mgmtd.routing, client.storage, client.meta, home, **options)


@pytest.mark.parametrize("at_once", [1, 2, 7, 10_000])
def test_missing_and_short_chunks_are_found_and_nothing_else(client: Client, home: str, at_once: int) -> None:
    whole = [write(client, f"{home}/small/whole{number}", number * 30_000) for number in range(8)]
    gaps = write(client, f"{home}/small/gaps", 10 * CHUNK + 1)
    empty, gone, short = (write(client, f"{home}/d/e/{name}", size) for name, size in (("0", 0), ("1", 9), ("2", 9)))
    client.meta.symlink(f"{home}/d/link", "e/1")
    chains = [damage(client, gaps, index) for index in (0, 3, 10)]
    one = damage(client, gone, 0)
    two = damage(client, short, 0, left=8)
    damage(client, whole[7], 3, left=20_000)  # which has 13,392 bytes: too much is not too little
    looked: list[int] = []
    search = losses(client, home, at_once=at_once, on_files=looked.append)
    found = {lost.path: lost for lost in search}
    assert set(found) == {f"{home}/small/gaps", f"{home}/d/e/1", f"{home}/d/e/2"}
    told = found[f"{home}/small/gaps"]
    assert (told.inode_id, told.of_chunks, told.length) == (gaps.inode_id, 11, gaps.length)
    assert told.chunks == (
        LostChunk(0, chains[0], None, CHUNK),
        LostChunk(3, chains[1], None, CHUNK),
        LostChunk(10, chains[2], None, 1),
    )
    assert found[f"{home}/d/e/1"].chunks == (LostChunk(0, one, None, 9),)
    assert found[f"{home}/d/e/2"].chunks == (LostChunk(0, two, 8, 9),)
    total = sum(-(-made.length // CHUNK) for made in whole) + 11 + 2
    assert (search.search.files, search.search.chunks, search.search.left_out) == (12, total, 0)
    assert sum(looked) == 12 and empty.length == 0
    assert [lost.path for lost in losses(client, f"{home}/d/e/1")] == [f"{home}/d/e/1"]
    assert list(losses(client, f"{home}/small/whole7")) == []


class Meanwhile:
    """The storage client, before whose answers something else happens: one thing before each, while there are any."""

    def __init__(self, client: Client, events: list[Callable[[], None]]) -> None:
        self._client, self.events = client, events

    def query(self, *args: Any, **options: Any) -> Any:
        if self.events:
            self.events.pop(0)()
        return self._client.storage.query(*args, **options)


def test_what_changes_meanwhile_is_no_loss(client: Client, home: str) -> None:
    """Removed, replaced, moved, and written under the same inode, at the first look and at the second."""
    replaced, removed, moved = (write(client, f"{home}/d/{name}", 3) for name in ("replaced", "removed", "moved"))

    def collected(inode: Inode) -> None:
        assert inode.layout is not None
        client.storage.remove_file_chunks(inode.inode_id, inode.layout, inode.length)

    def all_go() -> None:
        write(client, f"{home}/d/replaced", 4)
        client.meta.remove(f"{home}/d/removed")
        client.meta.rename(f"{home}/d/moved", f"{home}/moved")
        collected(replaced)
        collected(removed)

    search = Losses(lambda: client.mgmtd.routing, Meanwhile(client, [all_go]), client.meta, home)
    assert list(search) == [] and search.search.files == 3
    (at_last,) = (write(client, f"{home}/d/{name}", 3) for name in ("late",))
    damage(client, at_last, 0)

    def goes() -> None:
        client.meta.remove(f"{home}/d/late")

    def changes() -> None:
        client.meta.set_attributes(f"{home}/d/late", mode=0o600)

    def comes_back() -> None:
        changes()
        chain = chain_of(client, at_last, 0)
        hi, lo = file_chunk(at_last.inode_id, 0)
        client.storage.write([ChunkUpdate(hi=hi, lo=lo, chain=chain, op=Op.REPLACE, data=memoryview(b"new"))])

    def on(*events: Callable[[], None]) -> list[str]:
        storage = Meanwhile(client, list(events))
        return [lost.path for lost in Losses(lambda: client.mgmtd.routing, storage, client.meta, f"{home}/d/late")]

    nothing = list
    assert on() == [f"{home}/d/late"]
    assert on(nothing, changes) == [f"{home}/d/late"], "a look later"
    assert on(*[changes] * 20) == [], "nobody can tell"
    assert on(nothing, changes, comes_back) == []
    damage(client, at_last, 0)
    assert on(nothing, goes) == []
    assert moved.inode_id == client.meta.stat_one(f"{home}/moved").inode_id


def test_chains_that_do_not_answer_are_left_out_and_named(client: Client, home: str) -> None:
    made = write(client, f"{home}/small/f", 3 * CHUNK)
    dead = chain_of(client, made, 1)
    lost_chain = damage(client, made, 0)

    class Silent:
        """A chain of which nothing is heard, in front of the storage client."""

        def __init__(self) -> None:
            self.asked = 0

        def query(self, hi: Any, lo: Any, chain: Any, **options: Any) -> Any:
            if dead in chain:
                self.asked += 1
                raise Unavailable("no answer")
            return client.storage.query(hi, lo, chain, **options)

    storage = Silent()
    search = Losses(lambda: client.mgmtd.routing, storage, client.meta, home, at_once=3)
    (found,) = search
    assert found.chunks == (LostChunk(0, lost_chain, None, CHUNK),)
    assert (search.search.silent, search.search.left_out, storage.asked) == ((dead,), 1, 2)


def test_the_walk_goes_over_a_tree_that_changes(client: Client, home: str) -> None:
    for number in range(5):
        client.meta.mkdir(f"{home}/t{number}")
        write(client, f"{home}/t{number}/f", 1)
    seen = []
    for path, _ in files_below(client.meta, home):
        seen.append(path)
        if len(seen) == 1:
            client.meta.remove(f"{home}/t1", recursive=True)
            client.meta.remove(f"{home}/t2", recursive=True)
            client.files.create_batch([f"{home}/t2"], [b"now a file"])
    assert seen == [f"{home}/t{number}/f" for number in (0, 3, 4)]
    with pytest.raises(NotFound):
        next(files_below(client.meta, f"{home}/nothing"))


def test_the_command(client: Client, home: str, cluster_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = write(client, f"{home}/small/f", 6 * CHUNK)
    assert main.run(["admin", "lost", f"{cluster_url}{home}"]) == 0
    assert capsys.readouterr().out == "nothing is lost of 1 files with 6 chunks\n"
    chains = {damage(client, made, index) for index in (1, 2)} | {damage(client, made, 4, left=1)}
    assert main.run(["admin", "lost", f"{cluster_url}{home}"]) == 1
    heads, row = capsys.readouterr().out.splitlines()
    assert heads.split() == ["path", "size", "lost", "missing", "too", "short", "on", "chains"]
    assert "384.0 KiB  3 of 6" in row and " 1-2 " in row
    assert main.run(["admin", "lost", f"{cluster_url}{home}", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["files"], data["chunks"], data["left_out"], data["silent"]) == (1, 6, 0, [])
    (lost,) = data["lost"]
    assert (lost["path"], lost["inode_id"]) == (f"{home}/small/f", made.inode_id)
    assert [(one["chunk"], one["has"]) for one in lost["chunks"]] == [(1, None), (2, None), (4, 1)]
    assert {one["chain"] for one in lost["chunks"]} == chains
    assert main.run(["admin", "lost", f"{cluster_url}{home}/nothing"]) == 1
    assert "no such file" in capsys.readouterr().err
