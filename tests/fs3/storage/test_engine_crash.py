"""Crashes: a workload ends at any step of the engine, what was not synced is lost or torn, and the engine is reopened.

Even seeds: every call is durable, and the machine loses power: block-file ranges that no fdatasync covered become
garbage piece by piece, and the metadata log is cut anywhere behind its last sync. Odd seeds: nothing is synced, and
only the process dies. The reopened engine must be exactly in a state that the calls left behind at or after the last
synced one (the one that the crash cut short included), and go on from there.
"""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fs3.storage.engine import Engine

SEEDS = 60


@pytest.fixture(scope="module")
def workload() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_workload", Path(__file__).with_name("engine_workload.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory, workload: ModuleType) -> Path:
    folder: Path = tmp_path_factory.mktemp("crashed")
    subprocess.run([sys.executable, str(workload.__file__), str(folder), "0", str(SEEDS)], check=True, timeout=120)
    return folder


def lose_power(path: Path, lines: list[list[str]], rng: random.Random) -> None:
    """Take away what the log shows was written and not synced."""
    unsynced: dict[int, list[tuple[int, int]]] = {}
    syncing: dict[int, int] = {}
    log_bytes = 0
    for what, file, offset, length, size in ([row[0], *map(int, row[1:])] for row in lines):
        if what in ("write data", "write sums"):
            unsynced.setdefault(file, []).append((offset, length))
        elif what == "fdatasync":
            syncing[file] = len(unsynced.get(file, []))
        elif what == "fdatasync done":
            del unsynced.get(file, [])[: syncing[file]]
        elif what == "metadata synced":
            log_bytes = size
    for file, ranges in unsynced.items():
        cls, number = divmod(file, 1024)
        with (path / "blocks" / f"{cls:02d}-{number:04d}.blk").open("r+b") as handle:
            for offset, length in ranges:
                for at in range(offset, offset + length, 4096):
                    if rng.random() < 0.7:
                        handle.seek(at)
                        handle.write(rng.randbytes(min(4096, offset + length - at)))
    logs = sorted(path.glob("metadata/*.log"))
    if logs:
        # Behind the last sync that the workload knew to be over; if one more was, the note of it is lost as well.
        (path / "SYNCED").unlink()
        with logs[-1].open("r+b") as handle:
            handle.truncate(rng.randint(log_bytes, logs[-1].stat().st_size))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_reopened_engine_is_where_an_acknowledged_or_later_call_left_it(
    seed: int, crashed: Path, workload: ModuleType
) -> None:
    path = crashed / str(seed)
    lines = [line.split(",") for line in (crashed / f"{seed}.log").read_text().splitlines()]
    acknowledged = sum(row[0] == "ack" for row in lines) - 1
    durable = seed % 2 == 0
    if durable:
        lose_power(path, lines, random.Random(seed))

    engine = Engine.open(path, cluster_id="crash", create=True, config=workload.CONFIG)
    if acknowledged < 0:  # before the target was made, or known to be
        engine.create_target(workload.TARGET, 1)
        acknowledged = 0
    state = workload.read_back(engine)
    model = workload.Model()
    allowed = [model.copy()]
    calls = workload.steps(seed)
    for number, call in enumerate(calls[: acknowledged + 1]):
        before = model.copy()
        workload.on_model(model, call)
        writes = model != before
        if number < acknowledged and ((writes and call.sync and call.call != "abort") or not durable):
            allowed.clear()
        allowed.append(model.copy())
    assert state in allowed

    model = state.copy()
    rng = random.Random(seed + 1)
    for seq in range(1000, 1025):
        call = workload.draw(rng, seq, durable=False)
        workload.on_model(model, call)
        workload.on_engine(engine, call)
    assert workload.read_back(engine) == model
    used = engine.stats().used_bytes
    engine.close()
    engine = Engine.open(path, cluster_id="crash", config=workload.CONFIG)
    assert workload.read_back(engine) == model
    assert engine.stats().used_bytes <= used  # what was in quarantine is free
    engine.close()
