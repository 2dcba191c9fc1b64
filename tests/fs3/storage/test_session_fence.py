"""The fences of a daemon's targets, on disk and in memory; test_exactly_once.py walks through what they are for."""

from __future__ import annotations

import threading
from collections.abc import Set
from typing import Any, cast

import pytest

from fs3.errors import StaleRouting
from fs3.sessions import SessionTable
from fs3.storage.channel_core import Standing
from fs3.storage.engine_api import ChunkEngine
from fs3.storage.session_fence import FENCE, SessionFence


class Disk:
    """What of an engine is used: results of clients by target, and what is stored of each target."""

    def __init__(self, results: dict[int, set[int]]) -> None:
        self.results = results
        self.stored: dict[int, int] = {}

    def targets(self) -> dict[int, set[int]]:
        return self.results

    def result_clients(self) -> set[int]:
        return {client for clients in self.results.values() for client in clients}

    def get_state(self, target_id: int, key: bytes) -> bytes | None:
        assert key == FENCE
        return self.stored[target_id].to_bytes(8, "little") if target_id in self.stored else None

    def put_state(self, target_id: int, key: bytes, value: bytes) -> None:
        assert key == FENCE
        self.stored[target_id] = int.from_bytes(value, "little")

    def forget_clients(self, clients: Set[int], key: bytes, value: bytes) -> None:
        for target_id, mine in self.results.items():
            if mine & clients:
                mine -= clients
                self.put_state(target_id, key, value)


def daemon(disk: Disk) -> tuple[SessionFence, ChunkEngine]:
    engine: Any = disk
    return SessionFence({0: engine}), cast(ChunkEngine, engine)


def test_a_target_that_was_synced_remembers_it_though_another_on_its_disk_has_forgotten_as_much() -> None:
    disk = Disk({1: {7}, 2: set()})
    fence, engine = daemon(disk)
    fence.adopt(SessionTable(version=2, last_id=9, live=frozenset({8, 9})))
    assert fence.forget(0) is None
    assert disk.stored == {1: 2}
    fence.follow(engine, 2, 2)
    assert disk.stored == {1: 2, 2: 2}
    restarted, engine = daemon(disk)
    assert [restarted.standing(engine, target_id, 7) for target_id in (1, 2)] == [Standing.UNSURE, Standing.UNSURE]


def test_a_fence_never_goes_back() -> None:
    disk = Disk({1: {7}})
    fence, engine = daemon(disk)
    with pytest.raises(StaleRouting):
        fence.follow(engine, 1, 2)
    fence.adopt(SessionTable(version=2, last_id=9, live=frozenset({8, 9})))
    fence.forget(0)
    fence.follow(engine, 1, 1)
    assert disk.stored == {1: 2} and fence.version(engine, 1) == 2


def test_nor_while_a_newer_table_is_followed_at_the_same_time() -> None:
    """Forgetting takes several batches; here it is told of the newer table between the first and the second."""
    disk = Disk({1: {7}, 2: {7}})
    fence, engine = daemon(disk)
    fence.adopt(SessionTable(version=2, last_id=9, live=frozenset({8, 9})))
    put_state = disk.put_state
    following = threading.Thread(target=lambda: fence.follow(engine, 2, 3))

    def put(target_id: int, key: bytes, value: bytes) -> None:
        put_state(target_id, key, value)
        if target_id == 1:
            fence.adopt(SessionTable(version=3, last_id=9, live=frozenset({9})))
            following.start()
            following.join(0.2)

    disk.put_state = put  # type: ignore[method-assign]
    fence.forget(0)
    following.join()
    assert disk.stored == {1: 2, 2: 3}
