"""`use_secret`: filesystems that nobody gave a secret, as torch makes them from a URL, show it to a real mgmtd."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.config import conf

from fs3.filesystem.secret import use_secret
from fs3.kv.memory import MemoryKV
from fs3.mgmtd.config import MgmtdConfig
from fs3.mgmtd.server import serve


@pytest.fixture(autouse=True)
def configuration() -> Iterator[None]:
    before = conf.pop("fs3", None)
    yield
    conf.pop("fs3", None)
    if before is not None:
        conf["fs3"] = before


def test_it_is_shown_where_none_is_given(tmp_path: Path) -> None:
    def cluster_id(url: str, **options: str) -> str:
        fs, _ = fsspec.url_to_fs(url, **options, skip_instance_cache=True)
        return str(fs.fsid).removeprefix("fs3-")

    async def body() -> None:
        config = MgmtdConfig(node_id=2001, data_dir=tmp_path, listen_port=0, secret="open sesame")
        async with serve(config, MemoryKV()) as server:
            url, known = f"fs3://{server.address}/x", server.primary.routing.cluster_id
            with pytest.raises(PermissionError, match="secret is missing or wrong"):
                await asyncio.to_thread(cluster_id, url)
            assert await asyncio.to_thread(cluster_id, url, secret="open sesame") == known
            use_secret("open sesame")
            assert await asyncio.to_thread(cluster_id, url) == known
            use_secret("")
            assert await asyncio.to_thread(cluster_id, url) == known
            with pytest.raises(PermissionError, match="secret is missing or wrong"):
                await asyncio.to_thread(cluster_id, url, secret="guess")

    asyncio.run(body())
