"""The simulated disk under the production engine: what was acknowledged survives a power loss, the rest may go."""

from __future__ import annotations

import random

import pytest
from sim_disk import SECTOR, SimDisk, _Image
from sim_kernel import SimProcess, Simulation
from sim_threads import SimRuntime

from fs3 import checksum
from fs3.errors import Corrupt, NoSpace, Unavailable
from fs3.routing import LocalState
from fs3.storage.chain_state import ChainState
from fs3.storage.engine import Engine
from fs3.storage.engine_api import EngineConfig, Update
from fs3.transport.messages import Op

CONFIG = EngineConfig(file_bytes=1 << 20, group_bytes=256 << 10, reserve_bytes=0, index_chunks=16)
TARGET, HI = 3, 1 << 56 | 77


def content(lo: int, version: int) -> bytes:
    chance = random.Random(f"{lo}/{version}")
    return chance.randbytes(chance.choice([100, 5_000, 20_000]))


def replace(lo: int, version: int) -> Update:
    data = content(lo, version)
    return Update(
        target_id=TARGET,
        hi=HI,
        lo=lo,
        op=Op.REPLACE,
        data=memoryview(data),
        fine=checksum.fine_sums(data, 0),
        version=version,
        chunk_bytes=64 << 10,
    )


class Machine:
    """A disk and, one after the other, processes with an engine on it."""

    def __init__(self, seed: int, **disk: int) -> None:
        self.sim = Simulation(seed)
        self.disk = SimDisk(self.sim, "disk", **disk)
        self.starts = 0

    def start(self) -> Engine:
        self.starts += 1
        self.process = SimProcess(self.sim, f"engine-{self.starts}")
        self.runtime = SimRuntime(self.process)
        opened: list[Engine] = []
        self.spawn(lambda: opened.append(Engine(self.disk.attach(self.process), CONFIG, runtime=self.runtime)))
        self.sim.run(stop=lambda: bool(opened))
        if TARGET not in opened[0].targets():
            self.do(lambda: opened[0].create_target(TARGET, 1))
        return opened[0]

    def spawn(self, work) -> None:
        self.runtime.spawn(work, name="work")

    def do(self, work) -> None:
        thread = self.runtime.spawn(work, name="do")
        self.sim.run(stop=lambda: not thread.is_alive())


@pytest.mark.parametrize("seed", range(12))
def test_acknowledged_chunks_survive(seed: int) -> None:
    machine = Machine(seed)
    chance = machine.sim.stream("test")
    acked = dict.fromkeys(range(6), 0)
    tried = dict(acked)
    for _ in range(5):
        engine = machine.start()
        for lo, version in acked.items():
            found = engine.info(TARGET, HI, lo).version
            assert version <= found <= tried[lo]
            if found:
                machine.do(lambda lo=lo, found=found, engine=engine: check(engine, lo, found))
            acked[lo] = tried[lo] = found

        def writes(lo: int, engine=engine) -> None:
            for _ in range(1_000):
                tried[lo] = engine.info(TARGET, HI, lo).version + 1
                (result,) = engine.stage_and_commit([replace(lo, tried[lo])])
                acked[lo] = result.version

        for lo in acked:
            machine.spawn(lambda lo=lo: writes(lo))
        machine.sim.run(machine.sim.now + chance.random() * 0.2)
        machine.process.kill()
        if chance.random() < 0.7:
            machine.disk.lose_power()
    machine.sim.close()
    assert sum(acked.values()) > 20


def check(engine: Engine, lo: int, version: int) -> None:
    assert bytes(engine.read_chunk(TARGET, HI, lo).data) == content(lo, version)


def test_without_syncs_a_power_loss_takes_something() -> None:
    """The disk is worth its name: were the engine not to sync, this would lose data."""
    lost = 0
    for seed in range(10):
        sim = Simulation(seed)
        disk = SimDisk(sim, "disk")
        process = SimProcess(sim, "a")
        port = disk.attach(process)
        files = []
        SimRuntime(process).spawn(
            lambda port=port, files=files: files.append(port.folder.create("f", 1 << 20, b"x")), name="t"
        )
        sim.run()
        for number in range(8):
            files[0].write([memoryview(bytes([number + 1]) * 2 * SECTOR)], number * 2 * SECTOR)
        process.kill()
        disk.lose_power()
        lost += sum(disk.files["f"].data[number * SECTOR] == 0 for number in range(1, 16))
        sim.close()
    assert 15 < lost < 135


def test_a_sync_makes_durable_what_an_earlier_one_of_the_same_place_is_still_at() -> None:
    """Be it of a process that has ended, on a disk that was slow then: the kernel waits for what is being written."""
    image = _Image("f", 4 * SECTOR)
    image.write(memoryview(b"1" * 2 * SECTOR), 0)
    earlier = image.begin_sync()
    image.write(memoryview(b"2" * SECTOR), SECTOR)
    image.end_sync(image.begin_sync(), failed=False)
    assert image.is_unsynced(0, SECTOR) and not image.is_unsynced(SECTOR, SECTOR)
    image.end_sync(earlier, failed=True)
    image.lose_power(random.Random(1))
    assert bytes(image.data) == bytes(SECTOR) + b"2" * SECTOR + bytes(2 * SECTOR)


def test_a_failed_sync_has_lost_its_pages_and_the_engine_stops() -> None:
    machine = Machine(1)
    engine = machine.start()
    machine.do(lambda: engine.stage_and_commit([replace(1, 1)]))
    machine.disk.fail_syncs = 1
    seen: list[object] = []

    def work() -> None:
        for version in (2, 3):
            with pytest.raises(Unavailable):
                engine.stage_and_commit([replace(1, version)])
        seen.append(bytes(engine.read_chunk(TARGET, HI, 1).data))

    machine.do(work)
    assert seen == [content(1, 1)]
    machine.process.kill()
    machine.disk.lose_power()
    again = machine.start()
    machine.do(lambda: check(again, 1, 1))
    machine.sim.close()


def test_whoever_met_it_the_targets_of_a_failed_disk_go_offline() -> None:
    machine = Machine(1)
    engine = machine.start()
    machine.disk.fail_syncs = 1
    said: list[list[int]] = []

    def work() -> None:
        state = ChainState(
            {0: engine},
            node_id=1,
            generation=1,
            poke=lambda: None,
            ask=lambda kind, number: None,
            runtime=SimRuntime(machine.process),
        )
        said.append([one.state for one in state.local_targets()])
        with pytest.raises(Unavailable):
            engine.put_state(TARGET, b"scrubbed", b"1")
        said.append([one.state for one in state.local_targets()])

    machine.do(work)
    assert said == [[], [LocalState.OFFLINE]], "held back, then offline"
    machine.sim.close()


def test_a_full_disk_refuses_and_comes_back() -> None:
    machine = Machine(1, capacity_bytes=1 << 20)
    engine = machine.start()
    seen: list[object] = []

    def fill() -> None:
        for lo in range(40):
            (result,) = engine.stage_and_commit([replace(lo, 1)])
            if isinstance(result, NoSpace):
                seen.append(lo)
                return

    machine.do(fill)
    assert len(seen) == 1
    machine.disk.capacity_bytes = 64 << 20
    machine.do(lambda: seen.append(engine.stage_and_commit([replace(100, 1)])[0]))
    assert seen[1].version == 1
    machine.sim.close()


def test_a_changed_byte_is_found() -> None:
    machine = Machine(3)
    engine = machine.start()
    machine.do(lambda: engine.stage_and_commit([replace(1, 1)]))
    assert machine.disk.corrupt(machine.sim.stream("corrupt"))

    def work() -> None:
        with pytest.raises(Corrupt):
            engine.read_chunk(TARGET, HI, 1)

    machine.do(work)
    machine.sim.close()
