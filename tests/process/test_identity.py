"""Daemons with a wrong identity, or somebody else's data, beside a running cluster: one clear line, nobody harmed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fs3.client.connect import connect
from fs3.cluster.folder import META_NODE, MGMTD_NODE
from fs3.cluster.local import LocalCluster
from fs3.kv import keys
from fs3.kv.sqlite import SqliteKV

_ENDS_S = 60.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    made = LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=1, replicas=1, port=0, lease_s=1.5)
    with made as running:
        yield running


def store_of_another_cluster(folder: Path) -> Path:
    """A meta's data folder that belongs to cluster "another"."""
    folder.mkdir()

    async def run() -> None:
        kv = SqliteKV(folder / "meta.sqlite")
        txn = kv.begin()
        txn.put(keys.CLUSTER, b"another")
        await txn.commit()
        await kv.close()

    asyncio.run(run())
    return folder


def store_of_another_format(folder: Path) -> Path:
    """A meta's data folder that a newer fs3 wrote."""
    store_of_another_cluster(folder)
    with sqlite3.connect(folder / "meta.sqlite") as connection:
        connection.execute("PRAGMA user_version=9")
    connection.close()
    return folder


def start(
    cluster: LocalCluster, file: Path, like: str, *, level: str = "error", **changes: Any
) -> subprocess.Popen[str]:
    """A daemon with the configuration of a running one, on ports of its own and with these changes."""
    values = tomllib.loads(cluster.folder.config(like).read_text(encoding="utf-8"))
    values.update({"listen_port": 0, "metrics_port": 0}, **changes)
    values.pop("unix_dir", None)
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")
    command = [sys.executable, "-m", "fs3.cli.main", like.partition("-")[0], "--config", str(file)]
    return subprocess.Popen([*command, "--log-level", level], stderr=subprocess.PIPE, text=True)


def test_strangers_end_with_one_line_and_harm_nobody(cluster: LocalCluster, tmp_path: Path) -> None:
    another, newer = store_of_another_cluster(tmp_path / "another"), store_of_another_format(tmp_path / "newer")
    new, disk = str(tmp_path / "new"), str(tmp_path / "disk")
    strangers: list[tuple[str, dict[str, Any], str]] = [
        ("meta", {"node_id": 1_050, "data_dir": str(another)}, "holds the names of cluster another, and mgmtd is of"),
        ("meta", {"node_id": 1_051, "data_dir": str(newer)}, "has format 9, this fs3 reads format 2"),
        ("meta", {"node_id": 1}, "node_id 1 belongs to a storage daemon at 127.0.0.1:"),
        ("mgmtd", {"node_id": 2_050}, "another mgmtd is using it"),
        ("mgmtd", {"node_id": META_NODE, "data_dir": new, "kv": str(cluster.folder.path / "mgmtd" / "mgmtd.sqlite")},
         f"node_id {META_NODE} belongs to a meta daemon"),
        ("storage-1", {"node_id": 50}, "in use"),
        ("storage-1", {"node_id": MGMTD_NODE, "disks": [disk]}, f"node_id {MGMTD_NODE} belongs to a mgmtd"),
    ]  # fmt: skip
    with contextlib.closing(connect(cluster.url)) as client:
        client.files.create_batch(["/kept"], [b"kept"])
        started = [
            start(cluster, tmp_path / f"{number}.toml", like, **changes)
            for number, (like, changes, _) in enumerate(strangers)
        ]
        for daemon, (like, changes, said) in zip(started, strangers, strict=True):
            try:
                _, text = daemon.communicate(timeout=_ENDS_S)
            finally:
                daemon.kill()
            lines = [line for line in text.splitlines() if line.startswith("fs3: ")]
            assert daemon.returncode == 1 and len(lines) == 1 and said in lines[0], (like, changes, text)
        assert not cluster.reap(), "who was there before goes on"
        client.files.create_batch(["/new"], [b"new"])
        handles = client.files.open_many(["/kept", "/new"])
        assert [client.files.read(handle) for handle in handles] == [b"kept", b"new"]


def test_a_second_daemon_of_a_node_waits_and_the_first_serves_on(cluster: LocalCluster, tmp_path: Path) -> None:
    new = str(tmp_path / "disk")
    with contextlib.closing(connect(cluster.url)) as client:
        second = start(cluster, tmp_path / "second.toml", "storage-1", level="warning", disks=[new])
        try:
            assert second.stderr is not None
            told = next(line for line in second.stderr if "no mgmtd answers" in line)
            assert "another daemon with this node_id is alive at 127.0.0.1:" in told
            client.files.create_batch(["/beside"], [b"beside"])
            [handle] = client.files.open_many(["/beside"])
            assert client.files.read(handle) == b"beside"
            assert second.poll() is None and not cluster.reap()
            second.terminate()
            assert second.wait(_ENDS_S) == 0
        finally:
            second.kill()
            second.wait()
