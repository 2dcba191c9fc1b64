"""The scrubber on a real engine, and on real daemons asked by an operator: everything is verified once, damage goes to
repair, a pass goes on after a restart and begins anew when asked."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fs3 import checksum
from fs3.client.mgmtd import MgmtdClient
from fs3.client.scrub import scrub as cluster_scrub
from fs3.clock import deadline_after
from fs3.errors import Invalid
from fs3.pb import storage_pb2
from fs3.storage import scrub
from fs3.storage.engine import Engine
from fs3.storage.engine_api import EngineConfig, Update
from fs3.storage.scrub import Scrubber
from fs3.transport.frame_core import Kind
from fs3.transport.messages import Op

HI = 1 << 56 | 7
CONFIG = EngineConfig(file_bytes=64 << 20, group_bytes=1 << 20, reserve_bytes=0, index_chunks=16)


class Looking:
    """Stands for repair: verifies, and notes what it was asked, in order."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.asked: list[tuple[int, int, int]] = []
        self.at: dict[int, Callable[[], None]] = {}  # called at the n-th question

    def look(self, key: tuple[int, int, int]) -> bool:
        self.asked.append(key)
        self.at.pop(len(self.asked), lambda: None)()
        return bool(self.engine.verify(*key).fault)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine.open(tmp_path / "disk", cluster_id="c", create=True, config=CONFIG)
    for target in (1, 2):
        engine.create_target(target, target)
        fill(engine, target, range(10))
    yield engine
    engine.close()


def fill(engine: Engine, target: int, los: range) -> None:
    for lo in los:
        data = memoryview(random.Random(lo).randbytes(5_000 + lo))
        fine = checksum.fine_sums(data)
        engine.stage_and_commit([Update(target_id=target, hi=HI, lo=lo, op=Op.REPLACE, data=data, fine=fine)])


def scrubber(engine: Engine, looking: Looking, **more: Any) -> Scrubber:
    options = {"name": "0", "bytes_s": 1e12, "every_s": 1e6, **more}
    return Scrubber(engine, looking, **options)  # type: ignore[arg-type]


def flip(engine: Engine, target: int, lo: int) -> None:
    where = engine.lookup(np.array([target], np.uint32), np.array([HI], np.uint64), np.array([lo], np.uint64))
    file, position = engine.file(int(where.file[0])), int(where.position[0])
    os.pwrite(file.fd, bytes([os.pread(file.fd, 1, position)[0] ^ 1]), position)


def ended(one: Scrubber, passes: int) -> Callable[[], bool]:
    return lambda: all(progress.passes >= passes and not progress.running for progress in one.progress().values())


def until(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(4_000):
        if condition():
            return
        waiting.wait(0.005)
    raise AssertionError("waited in vain")


def test_everything_is_verified_once_in_order(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "_PAGE", 3)
    engine.stage([Update(target_id=1, hi=HI, lo=50 + n, op=Op.REPLACE) for n in range(7)])  # only pending: skipped
    fill(engine, 1, range(60, 61))
    flip(engine, 2, 4)
    looking = Looking(engine)
    one = scrubber(engine, looking)
    until(ended(one, 1))
    expected = [(1, HI, lo) for lo in [*range(10), 60]] + [(2, HI, lo) for lo in range(10)]
    assert looking.asked == expected
    progress = one.progress()
    assert [(p.chunks, p.damaged, p.passes) for p in progress.values()] == [(11, 0, 1), (10, 1, 1)]
    assert progress[2].read_bytes == sum(5_000 + lo for lo in range(10))
    assert (one.counts.chunks, one.counts.damaged, one.counts.passes) == (21, 1, 2)
    one.start()
    until(ended(one, 2))
    assert looking.asked == expected * 2
    one.close()


def test_a_pass_goes_on_after_a_restart(engine: Engine) -> None:
    looking = Looking(engine)
    first = scrubber(engine, looking, bytes_s=1_000)  # the second chunk would wait for seconds
    until(lambda: len(looking.asked) == 1 and first.progress()[1].chunks == 1)
    first.close()
    second = scrubber(engine, looking)
    until(ended(second, 1))
    second.close()
    assert sorted(looking.asked) == [(target, HI, lo) for target in (1, 2) for lo in range(10)]
    third = scrubber(engine, looking)  # nothing is due
    assert ended(third, 1)()
    third.close()
    assert len(looking.asked) == 20


def test_asking_begins_anew_and_targets_come_and_go(engine: Engine) -> None:
    looking = Looking(engine)
    made: list[Scrubber] = []
    looking.at[5] = lambda: made[0].start()
    looking.at[12] = lambda: engine.drop_target(2)
    one = scrubber(engine, looking, bytes_s=0)  # only when asked
    made.append(one)
    one.start()
    until(lambda: 2 not in engine.targets() and one.progress()[1].passes == 1)
    assert looking.asked[:15] == [(1, HI, lo) for lo in [*range(5), *range(10)]]
    assert all(key[0] == 1 for key in looking.asked)
    engine.create_target(3, 3)
    fill(engine, 3, range(2))
    one.start()
    until(lambda: set(one.progress()) == {1, 3} and one.progress()[3].passes == 1)
    assert looking.asked[-2:] == [(3, HI, 0), (3, HI, 1)]
    one.close()


def test_a_defect_does_not_end_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scrub, "_FAILED_S", 0.001)
    looking = Looking(engine)
    looking.at[5] = lambda: [][0]
    one = scrubber(engine, looking)
    until(ended(one, 1))
    one.close()
    assert looking.asked == [(1, HI, lo) for lo in [*range(5), *range(4, 10)]] + [(2, HI, lo) for lo in range(10)]
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.message.startswith("scrubbing failed") and "IndexError" in str(record.exc_info)


def test_an_operator_asks_a_daemon(start: Callable[..., Any]) -> None:
    with start(disks=2, scrub_bytes_s=0) as daemon:
        connection = daemon.connect()
        data = random.Random(1).randbytes(100_000)
        daemon.put(connection, {index: data for index in range(8)})

        def ask(begin: int) -> dict[str, Any]:
            connection.send(Kind.SCRUB, [b""], count=begin, deadline_s=deadline_after(10))
            _, head = connection.receive_head()
            reply = storage_pb2.StatsReply()
            reply.ParseFromString(bytes(head))
            said: dict[str, Any] = json.loads(reply.json)
            return said

        assert all(one["passes"] == 0 for disk in ask(0)["disks"] for one in disk["targets"])
        engine, located = daemon.located(5)
        file, position = engine.file(int(located.file[0])), int(located.position[0])
        os.pwrite(file.fd, bytes([data[0] ^ 1]), position)
        ask(1)
        daemon.until(
            lambda: all(one["passes"] == 1 for disk in ask(0)["disks"] for one in disk["targets"]), "the pass ends"
        )
        disks = ask(0)["disks"]
        assert sum(one["chunks"] for disk in disks for one in disk["targets"]) == 8
        (damaged,) = [one for disk in disks for one in disk["damaged"]]
        assert (damaged["hi"], damaged["lo"], damaged["version"]) == (HI & ~6, 5, 1)
        assert [disk["damaged_chunks"] for disk in disks] in ([0, 1], [1, 0])
        daemon.until(lambda: any(one["why"] for disk in ask(0)["disks"] for one in disk["damaged"]), "a reason")
        mgmtd = MgmtdClient.connect(daemon.server.config.mgmtd)
        report = cluster_scrub(mgmtd)
        assert report.damaged_chunks == 1 and not report.errors
        assert [(one.node_id, one.hi, one.lo, one.version) for one in report.damaged] == [(1, HI & ~6, 5, 1)]
        assert sum(one.chunks for one in report.targets) == sum(one.of_chunks for one in report.targets) == 8
        assert cluster_scrub(mgmtd, nodes=[77]).targets == ()
        cluster_scrub(mgmtd, begin=True)
        daemon.until(lambda: all(one.passes == 2 for one in cluster_scrub(mgmtd).targets), "another pass ends")
        mgmtd.close()
        with pytest.raises(Invalid, match="SCRUB"):
            connection.send(Kind.SCRUB, [b"x"], count=1, deadline_s=deadline_after(10))
            connection.receive_head()
        stats = json.loads(daemon.server.figures.stats_json())
        assert sum(one["damaged"] for one in stats["scrub"]) == 2  # in each of two passes
        assert sum(disk["damaged"] for disk in stats["disks"]) == 1
