"""`fs3 bench` on a real cluster: it does what it says, and leaves nothing behind."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from fs3.bench.job import Job, Op
from fs3.bench.run import Outcome, run
from fs3.cluster.local import LocalCluster
from fs3.errors import Unavailable

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--data", "2MiB", "--file-size", "1MiB", "--seconds", "0.5")


@pytest.fixture
def call(run: Run) -> Run:
    return lambda *arguments: run("bench", *arguments)


@pytest.mark.parametrize("op", ["read", "randread", "write", "randrw"])
def test_every_kind_of_load(call: Run, cluster_url: str, home: str, fs: Any, op: str) -> None:
    arguments = ("--op", op, "--size", "16KiB", "--batch", "4", "--clients", "2", "--threads", "2", "--replicas", "2")
    code, out, err = call(f"{cluster_url}{home}", *arguments, *SMALL, "--json")
    assert (code, err) == (0, ""), err
    told = json.loads(out)
    for name, does in (("read", op != "write"), ("written", op in ("write", "randrw"))):
        one = told[name]
        assert (one["calls"] > 0) == does and one["bytes"] == one["calls"] * 4 * 16_384, name
        assert sum(told["timeline"][f"{name}_bytes"]) == one["bytes"]
        if does:
            latency = one["latency_ns"]
            assert 0 < latency["p50"] <= latency["p99"] <= latency["p99.9"] <= one["longest_ns"]
    assert told["client_cpu_s"] > 0 and told["seconds"] >= 0.5
    assert fs.find(home) == [] and fs.ls(home, detail=False) == []


def test_what_is_shown(call: Run, cluster_url: str, home: str, fs: Any) -> None:
    code, out, err = call(f"{cluster_url}{home}", "--op", "write", "--size", "1000", *SMALL[4:])
    assert (code, err) == (0, "")
    header, row = out.splitlines()[:2]
    assert header.split()[:2] == ["bytes/s", "of"] and row.startswith("written, durable")
    assert "1 process x 1 thread" in out and "CPU s a GB" in out
    assert fs.ls(home, detail=False) == []


@pytest.mark.parametrize("options", [(), ("--network",)])
def test_what_this_host_serves_is_read_over_the_network_if_asked_for(
    call: Run, cluster: LocalCluster, home: str, options: tuple[str, ...]
) -> None:
    before = located_bytes(cluster)
    load = ("--op", "randread", "--size", "256KiB", *SMALL, *options)
    code, out, _ = call(f"{cluster.url.rstrip('/')}{home}", *load, "--json")
    assert code == 0 and json.loads(out)["job"]["same_host"] == (not options)
    assert (located_bytes(cluster) > before) == (not options)


def located_bytes(cluster: LocalCluster) -> float:
    """How much the daemons have shown to clients that read by themselves."""
    total = 0.0
    shape = cluster.folder.remembered()
    for name, ports in shape.ports.items():
        if name.startswith("storage"):
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/metrics") as answer:
                lines = answer.read().decode().splitlines()
            total += sum(float(line.split()[1]) for line in lines if line.startswith("fs3_storage_located_bytes_total"))
    return total


def test_mistakes(call: Run, cluster_url: str, home: str, fs: Any) -> None:
    at = f"{cluster_url}{home}"
    for arguments, code, text in (
        ((f"{at}/nothing",), 1, "does not exist"),
        ((at, "--size", "lots"), 1, "--size"),
        ((at, "--size", "128MiB"), 1, "--file-size"),
        ((at, "--replicas", "99"), 1, "99 replicas"),
        ((at, "--op", "fast"), 2, "fast"),
    ):
        got, _, err = call(*arguments)
        assert got == code and text in err, err
    assert fs.ls(home, detail=False) == []


def test_a_client_that_fails_ends_it(cluster_url: str, home: str, fs: Any) -> None:
    fs.pipe(f"{home}/short", bytes(100_000))
    address = (cluster_url.removeprefix("fs3://"),)
    job = Job(Op.RANDREAD, 1_000, data_bytes=1 << 20, file_bytes=1 << 20, seconds=30.0, clients=2)
    heard: list[Outcome] = []
    with pytest.raises(Unavailable, match=r"could not go on: Invalid: .*not within the file"):
        run(address, "", job, [f"{home}/short"], home, heard.append)
    with pytest.raises(Unavailable, match="could not go on: NotFound"):
        run(address, "", job, [f"{home}/none"], home, heard.append)
