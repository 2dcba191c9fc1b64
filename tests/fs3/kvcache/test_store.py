"""The store against real daemons: what was put is what comes, and whatever goes wrong is a miss of just that page."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fs3.client.connect import Client
from fs3.client.storage import ChunkUpdate, Op
from fs3.cluster.local import LocalCluster
from fs3.errors import Invalid, NotADirectory, Unavailable
from fs3.kvcache import KVStats, KVStore, Namespace, PageSlab
from fs3.kvcache.admin import holdings
from fs3.kvcache.directory import open_directory
from fs3.kvcache.keys_core import page_chunk
from fs3.layout import Durability, LayoutChoice, page_chain
from fs3.routing import Routing
from fs3.usrbio.reads import RingReads

Keys = Callable[..., list[bytes]]
Noise = Callable[[int], bytes]


def put(store: KVStore, keys: list[bytes], pages: list[bytes]) -> list[bool]:
    return store.put_from(keys, pages, depths=range(len(keys)))


def get(store: KVStore, keys: list[bytes], *, timeout_s: float = 20.0) -> list[bytes | None]:
    buffers = [bytearray(store.page_bytes) for _ in keys]
    hits = store.get_into(keys, buffers, timeout_s=timeout_s)
    for hit, buffer in zip(hits, buffers, strict=True):
        assert hit or buffer == bytes(store.page_bytes), "a missed page's buffer was written to"
    return [bytes(buffer) if hit else None for hit, buffer in zip(hits, buffers, strict=True)]


def place_of(client: Client, url: str, key: bytes) -> tuple[int, int, int]:
    """(hi, lo, chain) of a page."""
    _, directory = open_directory(url, create=False)
    assert directory.layout is not None
    table = client.mgmtd.routing.table(directory.layout.chain_table, directory.layout.chain_table_version)
    hi, lo = page_chunk(directory.inode_id, key)
    return hi, lo, page_chain(lo, table)


def chain_of(client: Client, url: str, key: bytes) -> int:
    return place_of(client, url, key)[2]


def overwrite(client: Client, url: str, key: bytes, data: bytes, op: Op = Op.REPLACE) -> None:
    """Change a page behind the store's back."""
    hi, lo, chain = place_of(client, url, key)
    client.storage.write([ChunkUpdate(hi=hi, lo=lo, chain=chain, op=op, data=data)])


def test_pages_come_back_in_another_store(
    store: KVStore, open_store: Callable[..., KVStore], keys_of: Keys, noise: Noise
) -> None:
    keys, pages = keys_of(store, 30), [noise(i) for i in range(30)]
    assert get(store, keys) == [None] * 30
    assert put(store, keys, pages) == [True] * 30
    other = open_store()
    assert get(other, keys) == pages
    order = np.random.default_rng(1).permutation(30)
    assert get(other, [keys[i] for i in order]) == [pages[i] for i in order]
    assert (store.stats().misses, store.stats().stored, other.stats().hits) == (30, 30, 60)
    assert not store.stats().last_failure and not other.stats().last_failure


def test_rows_of_a_slab_are_filled_in_place(store: KVStore, keys_of: Keys, noise: Noise) -> None:
    keys, slab = keys_of(store, 3), PageSlab(8, store.page_bytes)
    for row, seed in ((5, 0), (1, 1), (6, 2)):
        slab.page(row)[:] = noise(seed)
    assert store.put_rows(keys, slab, [5, 1, 6], depths=[0, 1, 2]) == [True] * 3
    landing = PageSlab(8, store.page_bytes)
    assert store.get_rows([keys[2], keys[0], keys[1]], landing, [0, 7, 3]) == [True] * 3
    assert [bytes(landing.page(row)) for row in (7, 3, 0)] == [noise(0), noise(1), noise(2)]
    assert not any(landing.row(1)) and not any(landing.row(6)), "other rows were written to"


def test_the_first_to_store_a_page_wins(store: KVStore, keys_of: Keys, noise: Noise) -> None:
    keys = keys_of(store, 2)
    assert put(store, keys[:1], [noise(1)]) == [True]
    assert put(store, keys, [noise(2), noise(3)]) == [True, True]
    assert get(store, keys) == [noise(1), noise(3)]


def test_a_page_may_be_named_twice(store: KVStore, keys_of: Keys, noise: Noise) -> None:
    one, two = keys_of(store, 2)
    assert put(store, [one, two, one], [noise(1), noise(2), noise(1)]) == [True] * 3
    assert get(store, [one, one, two, one]) == [noise(1), noise(1), noise(2), noise(1)]
    assert not store.stats().last_failure


def test_match_prefix_stops_at_the_first_hole(store: KVStore, keys_of: Keys, noise: Noise) -> None:
    keys = keys_of(store, 6)
    assert store.match_prefix(keys) == 0
    put(store, keys[:3], [noise(i) for i in range(3)])
    put(store, keys[4:], [noise(i) for i in (4, 5)])
    assert store.match_prefix(keys) == 3
    assert store.match_prefix(keys[:2]) == 2
    assert store.match_prefix([]) == 0
    assert store.exists(keys) == [True, True, True, False, True, True]
    assert get(store, keys) == [noise(i) if i != 3 else None for i in range(6)]


def test_namespaces_do_not_meet(open_store: Callable[..., KVStore], keys_of: Keys, noise: Noise) -> None:
    one, other = open_store("one"), open_store("other")
    put(one, keys_of(one, 2), [noise(1), noise(2)])
    assert get(other, keys_of(other, 2)) == [None, None]
    assert get(other, keys_of(one, 2)) == [None, None], "a page was taken for another namespace's"


def test_a_page_of_another_key_is_a_miss_and_is_replaced(
    store: KVStore, client: Client, url: str, keys_of: Keys, noise: Noise
) -> None:
    keys, slab = keys_of(store, 3), PageSlab(3, store.page_bytes)
    pages = [noise(i) for i in range(3)]
    put(store, keys, pages)
    assert store.get_rows(keys, slab, range(3)) == [True] * 3
    overwrite(client, url, keys[1], bytes(slab.row(2)))
    assert get(store, keys) == [pages[0], None, pages[2]]
    put(store, keys, pages)
    assert get(store, keys) == pages


@pytest.mark.parametrize("length", [0, 1, 127, 128, 20_127, 20_129])
def test_a_chunk_of_another_length_is_a_miss_and_is_replaced(
    store: KVStore, client: Client, url: str, keys_of: Keys, noise: Noise, length: int
) -> None:
    keys = keys_of(store, 2)
    put(store, keys, [noise(0), noise(1)])
    overwrite(client, url, keys[0], b"x" * length)
    assert get(store, keys) == [None, noise(1)]
    assert store.exists(keys) == [False, True]
    assert put(store, keys, [noise(0), noise(1)]) == [True, True]
    assert store.exists(keys) == [True, True]
    assert get(store, keys) == [noise(0), noise(1)]


def test_a_page_damaged_on_disk_costs_no_other(
    cluster: LocalCluster, store: KVStore, keys_of: Keys, noise: Noise
) -> None:
    keys = keys_of(store, 24)
    pages = [noise(int.from_bytes(keys[i][:7])) for i in range(24)]  # that no other test has
    put(store, keys, pages)
    bad = {3, 4, 17}
    flipped = sum(
        flip_bits(path, [pages[i][5_000:5_100] for i in bad])
        for path in cluster.folder.path.rglob("*")
        if path.is_file() and path.stat().st_size > store.page_bytes
    )
    assert flipped == len(bad)
    assert get(store, keys) == [None if i in bad else page for i, page in enumerate(pages)]
    assert "checksum" in store.stats().last_failure
    assert put(store, keys, pages) == [True] * 24
    assert get(store, keys) == pages


def flip_bits(path: Path, contents: list[bytes]) -> int:
    """Damage each of `contents` where the file has it, as a disk would; how many it had."""
    found = 0
    with path.open("r+b") as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            data = os.pread(file.fileno(), at - begin, begin)
            for content in contents:
                place = data.find(content)
                if place >= 0:
                    os.pwrite(file.fileno(), bytes([data[place + 50] ^ 1]), begin + place + 50)
                    found += 1
    return found


def test_a_dead_node_costs_its_own_pages_until_it_is_back(
    cluster: LocalCluster, client: Client, store: KVStore, url: str, keys_of: Keys, noise: Noise
) -> None:
    keys, pages = keys_of(store, 24), [noise(i) for i in range(24)]
    put(store, keys, pages)
    routing = client.mgmtd.routing
    dead_chains = {chain for chain in routing.chains if one_copy_on(routing, chain, node=1)}
    dead = [chain_of(client, url, key) in dead_chains for key in keys]
    assert any(dead) and not all(dead)
    expected = [None if lost else page for lost, page in zip(dead, pages, strict=True)]
    cluster.kill_node(1)
    try:
        # First nobody knows that it is dead, then mgmtd has said so; neither may cost another node's pages.
        assert get(store, keys, timeout_s=4.0) == expected
        while any(client.mgmtd.routing.serving(chain) for chain in dead_chains):
            client.mgmtd.refresh(client.mgmtd.routing.version, 10.0)
        assert get(store, keys) == expected
        assert store.stats().last_failure
        assert store.exists(keys) == [not lost for lost in dead]
        assert store.match_prefix(keys) == dead.index(True)
        assert holdings(url).pages == dead.count(False)
        assert set(holdings(url).silent) == {chain for chain in dead_chains if chain in table_chains(client, url)}
        more = keys_of(store, 24, seed=1)
        reachable = [chain_of(client, url, key) not in dead_chains for key in more]
        assert put(store, more, pages) == reachable
    finally:
        cluster.restart_node(1)
        cluster.wait_serving(recovered=True)
    client.mgmtd.fetch()
    while not all(client.mgmtd.routing.serving(chain) for chain in dead_chains):
        client.mgmtd.refresh(client.mgmtd.routing.version, 10.0)
    assert get(store, keys) == pages


def table_chains(client: Client, url: str) -> set[int]:
    _, directory = open_directory(url, create=False)
    assert directory.layout is not None
    table = client.mgmtd.routing.table(directory.layout.chain_table, directory.layout.chain_table_version)
    return {int(chain) for chain in table.chains}


def one_copy_on(routing: Routing, chain: int, *, node: int) -> bool:
    targets = routing.chain(chain).targets
    return len(targets) == 1 and routing.targets[targets[0]].node_id == node


def test_a_directory_decides_the_layout(
    cluster: LocalCluster, client: Client, url: str, keys_of: Keys, noise: Noise
) -> None:
    space = Namespace(weights=url, dtype="u8", layout="noise", page_tokens=4, layers=1, shape=(20_000,))
    store = KVStore.open(url, space, page_bytes=20_000)
    _, made = open_directory(url, create=False)
    assert made.layout is not None
    routing = client.mgmtd.routing
    assert routing.table(made.layout.chain_table, made.layout.chain_table_version).replicas == 1
    assert made.layout.durability == Durability.OS

    path = url.removeprefix(cluster.url) + "-two"
    client.meta.mkdir(path, parents=True, layout=LayoutChoice(replicas=2, durability=Durability.SYNC))
    twice = KVStore.open(url + "-two", space, page_bytes=20_000)
    keys = keys_of(store, 5)
    put(store, keys, [noise(9) for _ in keys])
    put(twice, keys, [noise(i) for i in range(5)])
    assert {len(routing.serving(chain_of(client, url + "-two", key))) for key in keys} == {2}
    assert get(twice, keys) == [noise(i) for i in range(5)]
    assert get(store, keys) == [noise(9)] * 5


def bare_store(url: str, ring_reads: Callable[[], RingReads]) -> KVStore:
    """One whose rings `ring_reads` makes."""
    client, directory = open_directory(url, create=True)
    space = Namespace(weights=url, dtype="u8", layout="noise", page_tokens=4, layers=1, shape=(20_000,))
    return KVStore(client, directory, space, 20_000, ring_reads)


def test_without_an_io_process_every_page_is_a_miss(url: str, keys_of: Keys, noise: Noise) -> None:
    def cannot() -> RingReads:
        raise Unavailable("no I/O process could be started")

    store = bare_store(url, cannot)
    keys, slab = keys_of(store, 2), PageSlab(2, 20_000)
    assert get(store, keys) == [None, None]
    assert put(store, keys, [noise(1), noise(2)]) == [False, False]
    assert store.get_rows(keys, slab, range(2)) == store.put_rows(keys, slab, range(2), depths=range(2)) == [False] * 2
    assert store.stats() == KVStats(misses=4, refused=4, last_failure="no I/O process could be started")


def test_a_child_that_is_forked_while_another_thread_opens_opens_by_itself(url: str, keys_of: Keys) -> None:
    opening, go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    def open_rings() -> RingReads:
        if os.getpid() == parent:
            opening.set()
            go_on.wait()
        raise Unavailable(f"none in process {os.getpid()}")

    store = bare_store(url, open_rings)
    keys = keys_of(store, 1)
    context = multiprocessing.get_context("fork")
    heard, answer = context.Pipe(duplex=False)

    def read() -> None:
        answer.send((get(store, keys), store.stats().last_failure))

    child = context.Process(target=read)
    other = threading.Thread(target=get, args=(store, keys))
    other.start()
    try:
        assert opening.wait(60)
        child.start()
        assert heard.poll(60), "the child waits for a thread that it does not have"
        assert heard.recv() == ([None], f"none in process {child.pid}")
    finally:
        go_on.set()
        other.join()
        child.kill()
        child.join()


class AsAnotherReads(KVStore):
    """One in whose calls, once its rows are read, `meanwhile` is done."""

    meanwhile: Callable[[], None] | None = None

    def get_rows(self, *args: Any, **options: Any) -> list[bool]:
        hits = super().get_rows(*args, **options)
        if self.meanwhile is not None:
            self.meanwhile()
        return hits


def test_a_forked_child_reads_into_memory_of_its_own(
    open_store: Callable[..., KVStore], keys_of: Keys, noise: Noise
) -> None:
    store = open_store(kind=AsAnotherReads)
    assert isinstance(store, AsAnotherReads)
    keys, pages = keys_of(store, 2), [noise(1), noise(2)]
    assert put(store, keys, pages) == [True, True]
    assert get(store, keys[:1]) == pages[:1]
    context = multiprocessing.get_context("fork")
    (told, tell), (heard, answer) = context.Pipe(duplex=False), context.Pipe(duplex=False)

    def read() -> None:
        told.recv()
        answer.send(get(store, keys[1:]))
        store.close()

    child = context.Process(target=read)
    child.start()
    answers = []

    def have_it_read() -> None:
        tell.send(None)
        answers.append(heard.recv())

    store.meanwhile = have_it_read
    assert get(store, keys[:1]) == pages[:1], "the child's page came"
    assert answers == [pages[1:]]
    child.join()
    assert child.exitcode == 0


def test_a_buffer_that_cannot_be_filled_is_refused_before_any_is(store: KVStore, keys_of: Keys, noise: Noise) -> None:
    keys = keys_of(store, 2)
    put(store, keys, [noise(1), noise(2)])
    first = bytearray(20_000)
    with pytest.raises(Invalid, match="buffer is read-only"):
        store.get_into(keys, [first, bytes(20_000)])
    assert not any(first)


def test_what_cannot_be_is_refused(cluster: LocalCluster, client: Client, store: KVStore, keys_of: Keys) -> None:
    keys = keys_of(store, 2)
    with pytest.raises(Invalid, match="2 keys and 1 buffers"):
        store.get_into(keys, [bytearray(20_000)])
    with pytest.raises(Invalid, match="20000 bytes here, got a buffer of 19999"):
        store.get_into(keys[:1], [bytearray(19_999)])
    for wrong in (np.zeros((200, 200), dtype=np.uint8)[:, :100], np.zeros((100, 200), order="F"), "text", None):
        for call in (store.get_into, functools.partial(store.put_from, depths=[0])):
            with pytest.raises(Invalid, match="contiguous memory"):
                call(keys[:1], [wrong])  # type: ignore[list-item]
        with pytest.raises(Invalid, match="contiguous memory"):
            PageSlab(0, 100, memory="text" if wrong is None else wrong)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="key of 32 bytes"):
        store.put_from([b"short"], [bytes(20_000)], depths=[0])
    with pytest.raises(Invalid, match="slab for pages of 100 bytes"):
        store.get_rows(keys, PageSlab(2, 100), [0, 1])
    for call in (store.get_rows, functools.partial(store.put_rows, depths=[0, 1])):
        with pytest.raises(Invalid, match="row of the slab is named twice"):
            call(keys, PageSlab(2, 20_000), [1, 1])
    for timeout_s in (float("inf"), float("nan"), 1e7):
        for ask in (store.match_prefix, lambda keys, **options: get(store, keys, **options)):
            with pytest.raises(Invalid, match="name seconds, at most 1,000,000"):
                ask(keys, timeout_s=timeout_s)
        with pytest.raises(Invalid, match="name seconds, at most 1,000,000"):
            store.put_from(keys, [bytes(20_000)] * 2, depths=[0, 1], timeout_s=timeout_s)
    with pytest.raises(Invalid, match="writable"):
        PageSlab(1, 100, memory=bytes(300))
    with pytest.raises(Invalid, match="fewer tokens a page"):
        KVStore.open(f"{cluster.url}/caches", store.namespace, page_bytes=64 << 20)
    with pytest.raises(Invalid, match="not an fs3 URL"):
        KVStore.open("/tmp/cache", store.namespace, page_bytes=100)
    with client.files.create_writer("/a-file") as writer:
        writer.write(b"x")
    with pytest.raises(NotADirectory, match="a-file is a file; a KV cache lives in a directory"):
        KVStore.open(f"{cluster.url}/a-file", store.namespace, page_bytes=100)
