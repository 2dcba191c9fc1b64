"""Random transactions on a store, and the check that what they saw equals a serial run.

As a program (`kv_workload.py STORE SEED CLIENTS TRANSACTIONS RESULT`) it is one of several processes that work on one
store, a file of SQLite's or NAME@HOST:PORT,... in etcd: it opens the store, says so, waits for a line, works, and
writes what it did to the file RESULT.
"""

from __future__ import annotations

import asyncio
import pickle
import random
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fs3.clock import deadline_after
from fs3.errors import Conflict
from fs3.kv.api import KVEngine, Transaction, prefix_end
from fs3.kv.etcd import EtcdKV
from fs3.kv.etcd_client import EtcdClient
from fs3.kv.etcd_layout import Layout
from fs3.kv.memory import MemoryKV
from fs3.kv.occ_core import Changes
from fs3.kv.sqlite import SqliteKV
from fs3.pb.etcd import etcd_pb2

KEYS = [f"{folder}/{name}".encode() for folder in "ab" for name in "wxyz"]
Step = tuple[str, Any, Any]


@dataclass(frozen=True)
class Done:
    """A committed transaction; `mark` is a key that nobody else writes."""

    mark: bytes
    seen: list[Step]
    writes: list[Step]


def random_reads(rng: random.Random) -> list[Step]:
    """Reads with `None` where the answer will go."""
    points = [("get", rng.choice(KEYS), None) for _ in range(rng.randrange(3))]
    limit, reverse = rng.randint(1, 5), rng.random() < 0.5
    ranges = [("range", (rng.choice((b"a/", b"b/")), limit, reverse), None) for _ in range(rng.randrange(2))]
    many = [("many", rng.sample(KEYS, rng.randint(1, 4)), None) for _ in range(rng.randrange(2))]
    return rng.sample(points + many + ranges, len(points) + len(many) + len(ranges))


def random_writes(rng: random.Random) -> list[Step]:
    """Up to two changes."""
    writes: list[Step] = []
    for key in rng.sample(KEYS, rng.randint(0, 2)):
        kind = rng.choice(("put", "put", "delete", "delete_range", "add"))
        writes.append((kind, key, {"put": f"{rng.random()}".encode(), "add": rng.randrange(9)}.get(kind)))
    return writes


async def read(txn: Transaction, kind: str, query: Any) -> object:
    if kind == "get":
        return await txn.get(query)
    if kind == "many":
        return await txn.get_many(query)
    prefix, limit, reverse = query
    return await txn.range(prefix, prefix_end(prefix), limit=limit, reverse=reverse)


def write(txn: Transaction, kind: str, key: bytes, value: Any) -> None:
    if kind == "put":
        txn.put(key, value)
    elif kind == "delete":
        txn.delete(key)
    elif kind == "delete_range":
        txn.delete_range(key, prefix_end(key[:2]))
    else:
        txn.add(key, value)


def open_store(store: str) -> KVEngine:
    """The engine for a store as the command line names it."""
    name, at, endpoints = store.partition("@")
    return EtcdKV(endpoints.split(","), name) if at else SqliteKV(store)


async def prepare(kv: KVEngine, rng: random.Random, mark: bytes) -> tuple[Transaction, Done]:
    """A transaction that is ready to commit, and what it did."""
    txn, seen = kv.begin(), []
    for kind, query, _ in random_reads(rng):
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
        seen.append((kind, query, await read(txn, kind, query)))
    writes = [("put", mark, b""), *random_writes(rng)]
    for step in writes:
        write(txn, *step)
    return txn, Done(mark, seen, writes)


async def run_clients(kv: KVEngine, *, seed: int, clients: int, transactions: int) -> tuple[list[Done], int]:
    """What committed, in the order in which this process heard of it, and how many lost."""
    done: list[Done] = []
    lost = 0

    async def client(number: int) -> None:
        nonlocal lost
        rng = random.Random(seed * 100 + number)
        for turn in range(transactions):
            txn, one = await prepare(kv, rng, b"own/%d/%d/%d" % (seed, number, turn))
            try:
                await txn.commit()
            except Conflict:
                lost += 1
            else:
                done.append(one)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return done, lost


def in_commit_order(path: Path, done: list[Done]) -> list[Done]:
    """The order in which the file's log has them; those that were committed together are in their process's order."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT version, changes FROM log").fetchall()
    connection.close()
    version_of = {key: version for version, changes in rows for key in Changes.unpack(changes).keys}
    return sorted(done, key=lambda one: version_of[one.mark])


async def etcd_revisions(endpoints: list[str], name: str, prefix: bytes = b"own/") -> dict[bytes, int]:
    """The revision at which each key that starts with `prefix` was last changed; of a mark, that of its commit."""
    client, layout = EtcdClient(endpoints), Layout(name)
    begin, end = layout.watched(prefix)
    pairs = (await client.range(etcd_pb2.RangeRequest(key=begin, range_end=end), deadline_after(30.0))).kvs
    await client.close()
    return {layout.key_of(pair.key): pair.mod_revision for pair in pairs}


async def in_etcd_order(endpoints: list[str], name: str, done: list[Done]) -> list[Done]:
    """The order in which etcd has them."""
    revisions = await etcd_revisions(endpoints, name)
    return sorted(done, key=lambda one: revisions[one.mark])


async def check_serial(kv: KVEngine, done: list[Done]) -> None:
    """Replay in the given order: every transaction must have seen what it sees now, and the end must be the same."""
    model = MemoryKV()
    for one in done:
        txn = model.begin()
        for kind, query, answer in one.seen:
            assert await read(txn, kind, query) == answer, one
        for step in one.writes:
            write(txn, *step)
        await txn.commit()
    for begin in (b"", b"own/"):
        end = b"own/" if not begin else b"\xff"
        assert await kv.begin().range(begin, end, limit=9_999) == await model.begin().range(begin, end, limit=9_999)


async def main(store: str, seed: int, clients: int, transactions: int) -> bytes:
    kv = open_store(store)
    print("open", flush=True)
    sys.stdin.readline()
    done, _ = await run_clients(kv, seed=seed, clients=clients, transactions=transactions)
    await kv.close()
    return pickle.dumps([vars(one) for one in done])


if __name__ == "__main__":
    Path(sys.argv[5]).write_bytes(asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:5]))))
