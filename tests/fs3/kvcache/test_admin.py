"""`fs3 kv` against real daemons: what it counts is what was stored, and what it removes is gone."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fs3.cli.main import run
from fs3.client.connect import Client
from fs3.client.storage import ChunkUpdate
from fs3.cluster.local import LocalCluster
from fs3.errors import Invalid, NotFound
from fs3.ids import KIND_KV_PAGE
from fs3.kvcache import KVStore
from fs3.kvcache.admin import Holding, clear, holdings
from fs3.kvcache.page_core import FOOTER_BYTES

STORED = 20_000 + FOOTER_BYTES

Open = Callable[..., KVStore]
Keys = Callable[..., list[bytes]]
Noise = Callable[[int], bytes]


def fill(store: KVStore, keys: list[bytes], noise: Noise, first_depth: int = 0) -> None:
    depths = range(first_depth, first_depth + len(keys))
    assert all(store.put_from(keys, [noise(depth) for depth in depths], depths=depths))


def test_what_was_stored_is_counted(open_store: Open, url: str, keys_of: Keys, noise: Noise) -> None:
    one, other = open_store("one"), open_store("other")
    assert (holdings(url).pages, holdings(url).namespaces, holdings(url).newest_ns) == (0, {}, 0)
    fill(one, keys_of(one, 12), noise)
    fill(one, keys_of(one, 4, seed=1), noise)
    fill(other, keys_of(other, 5), noise)
    fill(one, keys_of(one, 12), noise)
    found = holdings(url)
    assert (found.pages, found.bytes, found.deepest, found.unreadable) == (21, 21 * STORED, 12, 0)
    assert 0 < found.oldest_ns <= found.newest_ns
    mine, its = (found.namespaces[store.namespace.digest().hex()] for store in (one, other))
    assert (mine.pages, mine.bytes, mine.deepest) == (16, 16 * STORED, 12)
    assert (its.pages, its.deepest) == (5, 5)
    assert sum(chain.pages for chain in found.chains.values()) == 21
    assert len(found.chains) > 1
    assert [held for name, held in found.tables.items() if "(1 replicas)" in name] == [Holding(21, 21 * STORED)]


def test_directories_are_told_apart_and_the_root_is_all(
    cluster: LocalCluster, open_store: Open, url: str, keys_of: Keys, noise: Noise
) -> None:
    clear(cluster.url)
    here, there = open_store(), open_store(where=url + "-b")
    assert here.namespace == there.namespace
    fill(here, keys_of(here, 3), noise)
    fill(there, keys_of(there, 4), noise)
    assert [holdings(where).pages for where in (url, url + "-b", cluster.url)] == [3, 4, 7]
    assert clear(url).removed.pages == 3
    assert [holdings(where).pages for where in (url, url + "-b", cluster.url + "/")] == [0, 4, 4]
    assert there.match_prefix(keys_of(there, 4)) == 4


def test_a_limit_keeps_the_beginnings(store: KVStore, url: str, keys_of: Keys, noise: Noise) -> None:
    keys = keys_of(store, 10)
    fill(store, keys, noise)
    cleared = clear(url, keep_bytes=4 * STORED + STORED // 2)
    assert (cleared.removed, cleared.kept) == (Holding(6, 6 * STORED), Holding(4, 4 * STORED))
    assert store.exists(keys) == [True] * 4 + [False] * 6
    assert clear(url, keep_bytes=4 * STORED).removed == Holding(0, 0)
    fill(store, keys[4:], noise, first_depth=4)
    assert store.match_prefix(keys) == 10


def test_a_namespace_is_cleared_by_its_first_digits(open_store: Open, url: str, keys_of: Keys, noise: Noise) -> None:
    one, other = open_store("one"), open_store("other")
    for store in (one, other):
        fill(store, keys_of(store, 3), noise)
    assert clear(url, namespace=one.namespace.digest().hex()[:9].upper()).removed.pages == 3
    assert (one.match_prefix(keys_of(one, 3)), other.match_prefix(keys_of(other, 3))) == (0, 3)
    with pytest.raises(Invalid, match="first hex digits"):
        clear(url, namespace="xyz")


def test_what_cannot_be_read_is_counted_and_goes_first(
    client: Client, store: KVStore, url: str, keys_of: Keys, noise: Noise
) -> None:
    fill(store, keys_of(store, 3), noise)
    chain = next(iter(holdings(url).chains))
    hi = KIND_KV_PAGE << 56 | 1
    junk = [ChunkUpdate(hi=hi, lo=lo, chain=chain, data=b"j" * size) for lo, size in enumerate((0, 5, 128, 9_000))]
    client.storage.write(junk)
    found = holdings(url)
    assert (found.pages, found.unreadable) == (3, 4)
    assert clear(url, namespace=store.namespace.digest().hex(), keep_bytes=1 << 30).removed.pages == 0
    assert clear(url, keep_bytes=3 * STORED).removed.pages == 4
    assert (holdings(url).pages, holdings(url).unreadable) == (3, 0)


def test_the_command_line(
    store: KVStore, url: str, keys_of: Keys, noise: Noise, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store, keys_of(store, 5), noise)
    assert run(["kv", "stats", url]) == 0
    shown = capsys.readouterr().out
    assert f"{url}: 5 pages, {5 * STORED:,} bytes" in shown
    assert store.namespace.digest().hex()[:16] in shown
    assert run(["kv", "stats", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deepest"] == 5
    assert run(["kv", "clear", url, "--keep", "41KB"]) == 0
    assert capsys.readouterr().out == f"removed 3 pages, {3 * STORED:,} bytes; 2 pages, {2 * STORED:,} bytes stay\n"
    assert run(["kv", "clear", url, "--json"]) == 0
    expected = {"removed_pages": 2, "removed_bytes": 2 * STORED, "kept_pages": 0, "kept_bytes": 0, "silent_chains": 0}
    assert json.loads(capsys.readouterr().out) == expected


def test_mistakes_are_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["stats", url], f"{url}: no such directory"),
        (["stats", "/tmp/kv"], "is not an fs3 URL"),
        (["stats", "fs3://127.0.0.1:1/kv"], "127.0.0.1:1"),
        (["clear", url, "--keep", "much"], "size 'much'"),
    ):
        assert run(["kv", *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("fs3: ") and error.count("\n") == 1
    with pytest.raises(NotFound):
        clear(url)
