"""Reads of many tasks: answered each with its own bytes or error, and sent together; whatever a daemon does, and
whatever becomes of the loop.

What goes wrong is set once a first read has opened the loop's connections, so that it meets those.
"""

from __future__ import annotations

import asyncio
import os
import threading

import numpy as np
import pytest

from fs3.client.coalesce import AsyncReader
from fs3.client.file import FileClient
from fs3.client.hedge_core import HedgePolicy
from fs3.client.storage import StorageClient
from fs3.errors import Busy, Committing, Fs3Error, Invalid, Unavailable
from fs3.transport.frame_core import Kind

CHUNK = 64 << 10
DATA = np.random.default_rng(4).bytes(5 * CHUNK)


@pytest.fixture
def reader(cluster, meta):
    storage = StorageClient(cluster.mgmtd, timeout_s=20.0, stall_s=0.5)
    files = FileClient(storage, meta, cluster.mgmtd)
    files.create_batch(["/a", "/b"], [DATA, DATA[::-1]])
    made = AsyncReader(files)
    made.files = files  # type: ignore[attr-defined]
    yield made
    made.close()
    files.close()
    storage.close()


def test_each_task_gets_its_bytes_and_a_turn_is_one_request(reader, cluster) -> None:
    a, b = reader.files.open_many(["/a", "/b"])
    before = sum(len(server.asked) for server in cluster.servers)

    async def go() -> None:
        wanted = [(a if at % 2 else b, at * 311, at) for at in range(400)]
        got = await asyncio.gather(*(reader.read(*one) for one in wanted))
        for (handle, offset, length), data in zip(wanted, got, strict=True):
            assert data == (DATA if handle is a else DATA[::-1])[offset : offset + length]

    asyncio.run(go())
    assert sum(len(server.asked) for server in cluster.servers) - before == 1


def test_one_bad_range_fails_its_own_task_only(reader) -> None:
    (a,) = reader.files.open_many(["/a"])

    async def go() -> list[bytes | BaseException]:
        reads = [reader.read(a, offset, 10) for offset in (0, len(DATA) - 5, 20, -3)]
        return await asyncio.gather(*reads, return_exceptions=True)

    got = asyncio.run(go())
    assert [got[0], got[2]] == [DATA[:10], DATA[20:30]]
    assert isinstance(got[1], Invalid) and isinstance(got[3], Fs3Error)


@pytest.mark.parametrize("bad", ["file", "offset", "length"])
@pytest.mark.parametrize("value", ["/a", None, 1.5, [1, 2], np.array([4])])
def test_what_is_no_file_or_number_fails_its_own_task_only(reader, bad: str, value: object) -> None:
    (a,) = reader.files.open_many(["/a"])
    wrong = {"file": a, "offset": 0, "length": 5} | {bad: value}

    async def go() -> list[bytes | BaseException]:
        reads = [reader.read(a, 5, 5), reader.read(*wrong.values()), reader.read(a, np.int64(10), np.uint8(5))]
        async with asyncio.timeout(20.0):
            return await asyncio.gather(*reads, return_exceptions=True)

    got = asyncio.run(go())
    assert [got[0], got[2]] == [DATA[5:10], DATA[10:15]]
    assert isinstance(got[1], Invalid) and bad in str(got[1]) and type(value).__name__ in str(got[1])


def test_a_cancelled_read_leaves_the_others(reader) -> None:
    (a,) = reader.files.open_many(["/a"])

    async def go() -> None:
        one, two = (asyncio.ensure_future(reader.read(a, at, 5)) for at in (0, 5))
        await asyncio.sleep(0)
        one.cancel()
        assert await two == DATA[5:10]
        with pytest.raises(asyncio.CancelledError):
            await one
        assert await reader.read(a, 7, 3) == DATA[7:10]

    asyncio.run(go())


async def warm(reader, handle) -> None:
    """Have a connection to every daemon."""
    for _ in range(200):
        lanes = reader._reads._lanes._lanes if reader._reads is not None else {}
        if len(lanes) == 3 and None not in lanes.values():
            return
        await asyncio.gather(*(reader.read(handle, at * CHUNK, 10) for at in range(5)))
    raise AssertionError("the connections were never opened")


async def under_way(reader, count: int) -> None:
    for _ in range(1_000):
        if reader._reads._under_way == count:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{reader._reads._under_way} reads are under way")


def ranges_read(cluster) -> int:
    return sum(header.count for server in cluster.servers for header in server.asked if header.kind == Kind.READ)


async def read_all(reader, handle, count: int = 60) -> None:
    of_any_size = [(at * 5_003 % (len(DATA) - 900), 1 + at * 13) for at in range(count)]
    blocks = [(at * 4_096, 4_096) for at in range(count)]
    for wanted in (of_any_size, blocks):
        got = await asyncio.gather(*(reader.read(handle, *one) for one in wanted))
        assert got == [DATA[offset : offset + length] for offset, length in wanted]


def test_small_reads_need_no_thread_and_no_second_request(reader, cluster) -> None:
    (a,) = reader.files.open_many(["/a"])

    async def go() -> None:
        await warm(reader, a)
        before, running = ranges_read(cluster), threading.active_count()
        wanted = [(at * 4_096, 4_096) for at in range(75)]
        got = await asyncio.gather(*(reader.read(a, *one) for one in wanted))
        assert got == [DATA[offset : offset + length] for offset, length in wanted]
        assert (ranges_read(cluster) - before, threading.active_count()) == (75, running)

    asyncio.run(go())


def stop(cluster) -> None:
    for server in cluster.servers:
        server.goes_on.clear()


def go_on(cluster) -> None:
    for server in cluster.servers:
        server.goes_on.set()


def corrupt(cluster, server) -> None:
    server.corrupt = True


def dies_in_its_reply(cluster, server) -> None:
    server.die_in_reply = 1


def refuses_a_frame(cluster, server) -> None:
    server.frame_status = [Unavailable.code]


def is_committing(cluster, server) -> None:
    node = cluster.servers.index(server) + 1
    chains = cluster.mgmtd.routing.chains.values()
    server.read_status = {one.chain_id: Committing.code for one in chains if one.targets[-1] % 100 != node}


def is_gone(cluster, server) -> None:
    server.stop()


def is_stopped(cluster, server) -> None:
    server.goes_on.clear()


def stops_serving(cluster, server) -> None:
    node = cluster.servers.index(server) + 1
    for chain in range(1, 7):
        cluster.set_chain(chain, [other for other in (1, 2, 3) if other != node])


@pytest.mark.parametrize(
    "fault",
    [corrupt, dies_in_its_reply, refuses_a_frame, is_committing, is_gone, is_stopped, stops_serving],
    ids=lambda fault: fault.__name__,
)
def test_one_daemon_that_fails_costs_no_read_its_bytes(reader, cluster, fault) -> None:
    (a,) = reader.files.open_many(["/a"])

    async def go() -> None:
        await warm(reader, a)
        fault(cluster, cluster.servers[1])
        for _ in range(12):  # some turns ask the others
            await read_all(reader, a)

    asyncio.run(go())


def test_a_daemon_that_is_late_is_hedged_and_its_late_answers_harm_nothing(cluster, meta) -> None:
    # It may be silent for longer than a read may take.
    policy = HedgePolicy(floor_s=0.005, unknown_s=0.02, share=0.1)
    storage = StorageClient(cluster.mgmtd, timeout_s=20.0, stall_s=60.0, hedging=policy)
    files = FileClient(storage, meta, cluster.mgmtd)
    files.create_batch(["/a"], [DATA])
    (a,) = files.open_many(["/a"])
    reader = AsyncReader(files)
    hedges, late = storage.peers.hedges, cluster.servers[1]

    async def go() -> None:
        await warm(reader, a)
        late.goes_on.clear()
        for _ in range(40):
            await read_all(reader, a)
        assert hedges.late[late.endpoint] and 1 <= hedges.sent <= 16 + 0.1 * hedges.requests
        late.goes_on.set()
        before = len(late.asked)
        for _ in range(2_000):
            await read_all(reader, a)
            if len(late.asked) > before + 40:
                break
        assert not hedges.late and len(late.asked) > before + 40

    asyncio.run(go())
    reader.close()
    files.close()
    storage.close()


def test_damage_is_reported_to_the_daemon_that_sent_it(reader, cluster) -> None:
    (a,) = reader.files.open_many(["/a"])
    bad = cluster.servers[2]

    async def go() -> None:
        await warm(reader, a)
        bad.corrupt = True
        for _ in range(100):
            await read_all(reader, a, 10)
            if bad.reported:
                return
        raise AssertionError("nothing was reported")

    asyncio.run(go())
    assert not any(server.reported for server in cluster.servers if server is not bad)


async def begun(reader, cluster, handle) -> list[asyncio.Future[bytes]]:
    """40 reads that the servers have, and do not answer until `go_on`."""
    await warm(reader, handle)
    stop(cluster)
    tasks = [asyncio.ensure_future(reader.read(handle, at, 50)) for at in range(40)]
    await under_way(reader, 40)
    return tasks


def test_a_read_that_is_cancelled_under_way_leaves_the_others(reader, cluster) -> None:
    (a,) = reader.files.open_many(["/a"])

    async def go() -> None:
        tasks = await begun(reader, cluster, a)
        for task in tasks[::2]:
            task.cancel()
        go_on(cluster)
        got = await asyncio.gather(*tasks, return_exceptions=True)
        assert got[1::2] == [DATA[at : at + 50] for at in range(1, 40, 2)]
        assert all(isinstance(one, asyncio.CancelledError) for one in got[::2])

    asyncio.run(go())


def test_a_reader_that_is_closed_leaves_no_read_unanswered(reader, cluster) -> None:
    (a,) = reader.files.open_many(["/a"])

    async def go() -> None:
        tasks = await begun(reader, cluster, a)
        tasks += [asyncio.ensure_future(reader.read(a, at, 50)) for at in range(30)]  # which wait for these
        await asyncio.sleep(0)
        tasks[3].cancel()
        reader.close()
        async with asyncio.timeout(20.0):
            got = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(got.pop(3), asyncio.CancelledError)
        assert all(isinstance(one, Unavailable) for one in got)
        go_on(cluster)
        await read_all(reader, a)

    asyncio.run(go())


def test_a_loop_closed_while_reads_are_under_way_leaves_the_reader_to_the_next(reader, cluster) -> None:
    (a,) = reader.files.open_many(["/a"])
    loop = asyncio.new_event_loop()
    loop.run_until_complete(warm(reader, a))
    stop(cluster)
    tasks = [loop.create_task(reader.read(a, at, 50)) for at in range(40)]
    loop.run_until_complete(under_way(reader, 40))
    for task in tasks:
        assert not task.done()
        task._log_destroy_pending = False
    loop.close()
    go_on(cluster)
    asyncio.run(read_all(reader, a))


def test_a_reader_is_for_one_running_loop(reader) -> None:
    (a,) = reader.files.open_many(["/a"])

    async def other() -> None:
        with pytest.raises(Invalid, match="another event loop"):
            await reader.read(a, 0, 10)

    async def go() -> None:
        await read_all(reader, a)
        await asyncio.to_thread(asyncio.run, other())
        await read_all(reader, a)

    asyncio.run(go())


def test_a_forked_child_reads_on_its_own(reader) -> None:
    (a,) = reader.files.open_many(["/a"])
    loop = asyncio.new_event_loop()
    loop.run_until_complete(warm(reader, a))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.run(read_all(reader, a))
            code = 0
        finally:
            os._exit(code)
    loop.run_until_complete(read_all(reader, a))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    loop.run_until_complete(read_all(reader, a))
    reader.close()
    loop.close()


def test_no_more_than_so_many_reads_wait(reader) -> None:
    (a,) = reader.files.open_many(["/a"])
    few = AsyncReader(reader.files, max_waiting=50)

    async def go() -> None:
        got = await asyncio.gather(*(few.read(a, at, 5) for at in range(60)), return_exceptions=True)
        assert got[:50] == [DATA[at : at + 5] for at in range(50)]
        assert all(isinstance(one, Busy) for one in got[50:])
        await read_all(few, a, 50)
        few.close()

    asyncio.run(go())
