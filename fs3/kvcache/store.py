"""Put and get pages by key, in batches: one request per storage node, straight into the runner's memory.

    store = KVStore.open("fs3://host:port/kv", namespace, page_bytes=...)
    keys = page_keys(namespace.digest(), tokens, namespace.page_tokens)
    slab = PageSlab(len(keys), store.page_bytes)
    hits = store.get_rows(keys, slab, range(len(keys)))
    ...                                                             compute the others, into the slab
    store.put_rows(missing_keys, slab, missing_rows, depths=missing_rows)

`get_into` and `put_from` do the same for buffers anywhere, at the price of a copy. A page is immutable: putting it
again changes nothing. Nothing here raises for what the cluster does: a cache that fails is a cache without pages.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fs3.checksum import Bytes
from fs3.client.connect import Client
from fs3.client.storage import LONGEST_S, RANGE, ChunkUpdate, Op
from fs3.clock import deadline_after, wall_now_ns
from fs3.errors import Corrupt, Fs3Error, Invalid
from fs3.inode import Inode
from fs3.kvcache.directory import open_directory
from fs3.kvcache.keys_core import KEY_BYTES, Namespace, page_chunk
from fs3.kvcache.page_core import FOOTER_BYTES, Footer, pack_footer, unpack_footer
from fs3.kvcache.page_read import ChunkReader, PageRead
from fs3.kvcache.slab import PageSlab, bytes_of
from fs3.layout import MAX_CHUNK_BYTES, Durability, page_chain
from fs3.usrbio import open as open_usrbio
from fs3.usrbio.reads import RingReads

DEFAULT_TIMEOUT_S = 5.0
MAX_REMEMBERED_BAD = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class KVStats:
    """What a store has done since it was opened, in pages. `last_failure` says why pages were missed that may be there
    (or were not stored); empty if nothing failed."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    refused: int = 0
    last_failure: str = ""


class KVStore:
    """Pages of one namespace in one directory; thread-safe."""

    def __init__(
        self,
        client: Client,
        directory: Inode,
        namespace: Namespace,
        page_bytes: int,
        ring_reads: Callable[[], RingReads] | None = None,
    ) -> None:
        """See `open`; `ring_reads` makes what reads and writes through USRBIO, in each process that uses the store."""
        if not 0 < page_bytes <= MAX_CHUNK_BYTES - FOOTER_BYTES:
            raise Invalid(
                f"KV pages of {page_bytes} bytes: a page and its footer must fit one chunk of {MAX_CHUNK_BYTES} bytes; "
                "choose fewer tokens a page"
            )
        assert directory.layout is not None
        self.page_bytes = page_bytes
        self.namespace = namespace
        self._digest = namespace.digest()
        self._client = client
        self._ring_reads = ring_reads
        self._directory = directory.inode_id
        self._durable = directory.layout.durability == Durability.SYNC
        self._table = (directory.layout.chain_table, directory.layout.chain_table_version)
        self._stats = KVStats()
        self._bad: set[bytes] = set()  # pages found damaged here: the next put of one replaces it
        self.begin_again()
        _living.add(self)

    def begin_again(self) -> None:
        """Let go, in a forked child, of what is the parent's: rings, shared memory, and locks that others may hold."""
        self._rings: RingReads | None = None
        self._spare: PageSlab | None = None
        self._opening = threading.Lock()
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, url: str, namespace: Namespace, *, page_bytes: int, secret: str = "", usrbio: bool = False
    ) -> KVStore:
        """The store in directory `url`, which is made if it is missing (one copy, page cache).

        With `usrbio` pages are read and stored by the host's I/O process (`fs3.usrbio`), however busy this one's
        interpreter is; slabs that `slab` makes then lie in memory that both share.

        Raises: Unavailable, Invalid (not an fs3:// URL), NotADirectory.
        """
        client, directory = open_directory(url, secret=secret, create=True)
        rings = (lambda: RingReads(open_usrbio(url, secret=secret))) if usrbio else None
        store = cls(client, directory, namespace, page_bytes, rings)
        if usrbio:
            store._reader()  # what stands in the way is told here
        return store

    def slab(self, count: int) -> PageSlab:
        """Room for `count` pages, into which they are read without a copy. Raises: NoSpace."""
        if self._ring_reads is None:
            return PageSlab(count, self.page_bytes)
        iov = self._own_rings().iov(max(count * PageSlab.row_size(self.page_bytes), 1))
        return PageSlab(count, self.page_bytes, iov.view, owner=iov)

    def close(self) -> None:
        """Let go of the I/O process, if there is one. The cluster's client is the process's."""
        rings, self._rings = self._rings, None
        if rings is not None:
            rings.close()

    def _reader(self) -> ChunkReader:
        """Raises: Fs3Error: the I/O process cannot be had."""
        return self._client.storage if self._ring_reads is None else self._own_rings()

    def _spare_slab(self, count: int) -> PageSlab | None:
        """One for a call of `get_into`; shared memory is used again, as it takes long to make. None: there is none."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.count >= count:
            return spare
        try:
            return self.slab(count)
        except Fs3Error as error:
            self._failed(error)
            return None

    def _keep(self, slab: PageSlab) -> None:
        if self._ring_reads is not None:
            self._spare = slab

    def _own_rings(self) -> RingReads:
        assert self._ring_reads is not None
        with self._opening:
            if self._rings is None:
                self._rings = self._ring_reads()
            return self._rings

    def stats(self) -> KVStats:
        """Counters so far."""
        return self._stats

    def match_prefix(self, keys: Sequence[bytes], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """How many of `keys`, from the first on, are stored. An unreachable store holds none."""
        found = self.exists(keys, timeout_s=timeout_s)
        return next((i for i, there in enumerate(found) if not there), len(found))

    def exists(self, keys: Sequence[bytes], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> list[bool]:
        """Which of `keys` are stored, with a page of the right size: [n]."""
        deadline_s = _deadline(timeout_s)
        hits = np.zeros(len(keys), dtype=np.bool_)
        ids, chains, served = self._places(keys)
        (asked,) = np.nonzero(served)
        if not len(asked):
            return [bool(hit) for hit in hits]
        try:
            found = self._client.storage.query(ids[asked, 0], ids[asked, 1], chains[asked], deadline_s=deadline_s)
        except Fs3Error as error:
            self._failed(error)
        else:
            hits[asked] = (found["status"] == 0) & (found["chunk_length"] == self.page_bytes + FOOTER_BYTES)
        return [bool(hit) for hit in hits]

    def get_rows(
        self, keys: Sequence[bytes], slab: PageSlab, rows: Sequence[int], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[bool]:
        """Fill row `rows[i]` of `slab` with the page of `keys[i]`; which succeeded: [n].

        A page that is missing, was removed meanwhile, fails its checksum on every replica, or did not come in time is a
        miss; its row's content is then undefined and must not be used.
        """
        self._check(keys, slab, rows)
        deadline_s = _deadline(timeout_s)
        ids, chains, served = self._places(keys)
        ranges = np.zeros(len(keys), dtype=RANGE)
        ranges["hi"], ranges["lo"], ranges["chain"] = ids[:, 0], ids[:, 1], chains
        ranges["length"] = slab.row_bytes
        offsets = np.array([slab.offset(row) for row in rows], dtype=np.int64)
        try:
            call = PageRead(self._reader(), ranges, slab.memory, offsets)
        except Fs3Error as error:
            self._failed(error)
            self._count(misses=len(keys))
            return [False] * len(keys)
        (asked,) = np.nonzero(served)
        call.run(asked, deadline_s)
        for failure in call.errors:
            self._failed(failure)
        hits = []
        for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
            hit = bool(call.whole[i]) and self._is_page(slab.footer(row), key)
            if (call.whole[i] and not hit) or call.corrupt[i]:
                self._remember_bad(key)
            hits.append(hit)
        self._count(hits=sum(hits), misses=len(hits) - sum(hits))
        return hits

    def put_rows(
        self,
        keys: Sequence[bytes],
        slab: PageSlab,
        rows: Sequence[int],
        *,
        depths: Sequence[int],
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> list[bool]:
        """Store row `rows[i]` of `slab` under `keys[i]`; which are stored now, by this call or an earlier one: [n].

        `depths[i]` is the page's place in its chain. The rows' footers are written here; nothing else may change the
        rows until the call returns.
        """
        self._check(keys, slab, rows)
        deadline_s = _deadline(timeout_s)
        ids, chains, served = self._places(keys)
        now_ns = wall_now_ns()
        updates: dict[bytes, ChunkUpdate] = {}  # a page that is named twice is written once
        for i, (key, row, depth) in enumerate(zip(keys, rows, depths, strict=True)):
            slab.footer(row)[:] = pack_footer(
                Footer(
                    payload_bytes=self.page_bytes,
                    created_ns=now_ns,
                    directory=self._directory,
                    depth=depth,
                    namespace=self._digest,
                    key=key,
                )
            )
            if served[i] and key not in updates:
                updates[key] = ChunkUpdate(
                    hi=int(ids[i, 0]),
                    lo=int(ids[i, 1]),
                    chain=int(chains[i]),
                    op=Op.REPLACE if key in self._bad else Op.PUT_IF_ABSENT,
                    data=slab.row(row),
                    durable=self._durable,
                )
        errors = self._write(list(updates.values()), deadline_s)
        written = {key for key, error in zip(updates, errors, strict=True) if error is None}
        stored = [key in written for key in keys]
        for error in errors:
            if error is not None:
                self._failed(error)
        with self._lock:
            self._bad.difference_update(key for key, done in zip(keys, stored, strict=True) if done)
        self._count(stored=sum(stored), refused=len(stored) - sum(stored))
        return stored

    def get_into(
        self, keys: Sequence[bytes], buffers: Sequence[Bytes], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[bool]:
        """As `get_rows`, into `buffers[i]` (`page_bytes` each, writable); a missed page's buffer is left as it was."""
        views = self._views(keys, buffers, filled=True)
        slab = self._spare_slab(len(keys))
        if slab is None:
            self._count(misses=len(keys))
            return [False] * len(keys)
        hits = self.get_rows(keys, slab, range(len(keys)), timeout_s=timeout_s)
        for row, view in enumerate(views):
            if hits[row]:
                view[:] = slab.page(row)
        self._keep(slab)
        return hits

    def put_from(
        self,
        keys: Sequence[bytes],
        buffers: Sequence[Bytes],
        *,
        depths: Sequence[int],
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> list[bool]:
        """As `put_rows`, from `buffers[i]` (`page_bytes` each)."""
        views = self._views(keys, buffers)
        slab = self._spare_slab(len(keys))
        if slab is None:
            self._count(refused=len(keys))
            return [False] * len(keys)
        for row, view in enumerate(views):
            slab.page(row)[:] = view
        stored = self.put_rows(keys, slab, range(len(keys)), depths=depths, timeout_s=timeout_s)
        self._keep(slab)
        return stored

    def _write(self, updates: list[ChunkUpdate], deadline_s: float) -> Sequence[Exception | None]:
        try:
            if self._ring_reads is not None:
                return self._own_rings().try_write(updates, deadline_s=deadline_s)
            return self._client.storage.try_write(updates, deadline_s=deadline_s)[1]
        except Fs3Error as error:
            return [error] * len(updates)

    def _is_page(self, raw: memoryview, key: bytes) -> bool:
        try:
            footer = unpack_footer(raw)
        except Corrupt as error:
            self._failed(error)
            return False
        found = (footer.key, footer.namespace, footer.directory, footer.payload_bytes)
        return found == (key, self._digest, self._directory, self.page_bytes)

    def _places(self, keys: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.bool_]]:
        """(hi, lo) of each page [n, 2], its chain [n], and whether that has a replica that serves [n].

        A chain without one is known not to answer: its pages are missed at once, instead of at the deadline.
        """
        ids = np.array([page_chunk(self._directory, key) for key in keys], dtype=np.uint64).reshape(len(keys), 2)
        routing = self._client.mgmtd.routing
        try:
            table = routing.table(*self._table)
        except Fs3Error as error:
            self._failed(error)
            return ids, np.zeros(len(keys), dtype=np.uint32), np.zeros(len(keys), dtype=np.bool_)
        chains = np.array([page_chain(int(lo), table) for lo in ids[:, 1]], dtype=np.uint32)
        serves = {chain: bool(routing.serving(chain)) for chain in set(chains.tolist())}
        for chain, does in serves.items():
            if not does:
                self._failed(Fs3Error(f"chain {chain} has no serving target"))
        return ids, chains, np.array([serves[chain] for chain in chains.tolist()], dtype=np.bool_)

    def _check(self, keys: Sequence[bytes], slab: PageSlab, rows: Sequence[int]) -> None:
        if len(keys) != len(rows):
            raise Invalid(f"{len(keys)} keys and {len(rows)} places for pages: the numbers must agree")
        if slab.page_bytes != self.page_bytes:
            raise Invalid(f"a slab for pages of {slab.page_bytes} bytes, and the store's have {self.page_bytes}")
        for key in keys:
            if len(key) != KEY_BYTES:
                raise Invalid(f"a KV page has a key of {KEY_BYTES} bytes, got {len(key)}")
        if len(set(rows)) < len(rows):
            raise Invalid("a row of the slab is named twice: give each page one of its own")

    def _views(self, keys: Sequence[bytes], buffers: Sequence[Bytes], *, filled: bool = False) -> list[memoryview]:
        views = [bytes_of(buffer) for buffer in buffers]
        for view in views:
            if len(view) != self.page_bytes:
                raise Invalid(f"a KV page has {self.page_bytes} bytes here, got a buffer of {len(view)}")
            if filled and view.readonly:
                raise Invalid("a KV page's buffer is read-only; give a bytearray, or a writable array")
        if len(keys) != len(views):
            raise Invalid(f"{len(keys)} keys and {len(views)} buffers: the numbers must agree")
        return views

    def _remember_bad(self, key: bytes) -> None:
        with self._lock:
            if len(self._bad) < MAX_REMEMBERED_BAD:
                self._bad.add(key)

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self._stats = replace(self._stats, last_failure=str(error))

    def _count(self, *, hits: int = 0, misses: int = 0, stored: int = 0, refused: int = 0) -> None:
        with self._lock:
            old = self._stats
            self._stats = replace(
                old,
                hits=old.hits + hits,
                misses=old.misses + misses,
                stored=old.stored + stored,
                refused=old.refused + refused,
            )


def _deadline(timeout_s: float) -> float:
    """Raises: Invalid."""
    if not timeout_s <= LONGEST_S:  # nor if it is not a number
        raise Invalid(f"a timeout of {timeout_s} s: name seconds, at most {LONGEST_S:,.0f}")
    return deadline_after(timeout_s)


_living: weakref.WeakSet[KVStore] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_living):
        store.begin_again()


os.register_at_fork(after_in_child=_after_fork_in_child)
