"""Reads of many tasks: answered each with its own bytes or error, and sent together."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from fs3.client.coalesce import AsyncReader
from fs3.client.file import FileClient
from fs3.client.storage import StorageClient
from fs3.errors import Fs3Error, Invalid

CHUNK = 64 << 10
DATA = np.random.default_rng(4).bytes(5 * CHUNK)


@pytest.fixture
def reader(cluster, meta):
    storage = StorageClient(cluster.mgmtd, timeout_s=20.0)
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
