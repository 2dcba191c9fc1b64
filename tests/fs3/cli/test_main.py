"""The one error path of the command line, help without imports, and the example files of deploy/."""

from __future__ import annotations

import configparser
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
from rich.console import Console

from fs3 import __version__
from fs3.cli import main
from fs3.cli.status import as_data, healthy, show
from fs3.config import load_toml
from fs3.errors import Unavailable
from fs3.ids import ChainId, NodeId, TargetId
from fs3.meta.server import MetaConfig
from fs3.mgmtd.config import MgmtdConfig
from fs3.routing import Chain, Disk, Node, NodeKind, Routing, Target, TargetState, disk_from_pb, disk_to_pb
from fs3.storage.config import StorageConfig

DEPLOY = Path(__file__).parents[3] / "deploy"


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"fs3 {__version__}\n"
    assert main.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in main.COMMANDS)


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from fs3.cli.main import run; run(['--help']);"
        "bad = [m for m in sys.modules if m.startswith(('grpc', 'numpy', 'fs3.mgmtd', 'fs3.client'))];"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [[], ["bogus"], ["status"], ["status", "--nope", "x"], ["up"], ["mgmtd"]])
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    assert "Usage: fs3" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["drain", "--target", "4294967296"],
        ["drain", "--node", "1", "--disk", "4294967296"],
        ["drain", "--node", "4294967296"],
        ["replace", "--target", "-1"],
        ["create", "--node", "1", "--disk", "0", "--chain", "99999999999999999999"],
        ["rotate-lastsrv", "--chain", "4294967296", "--accept-data-loss"],
        ["rotate-lastsrv", "--chain", "1", "--to", "4294967296", "--accept-data-loss"],
        ["balance", "--most", "4294967296"],
    ],
)
def test_a_number_that_no_request_can_carry_is_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = arguments
    assert main.run(["admin", command, *options, "--", "fs3://127.0.0.1:1"]) == 2
    assert "Error: Invalid value for '--" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Unavailable("nobody there"), 1, "fs3: nobody there\n"),
        (click.ClickException("bad file"), 1, "fs3: bad file\n"),
        (FileNotFoundError(2, "No such file or directory", "/x"), 1, "fs3: /x: No such file or directory\n"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
)
def test_errors_become_one_line(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def fails() -> None:
        raise error

    assert main.run(["fails"], click.Group(commands={"fails": fails})) == code
    assert capsys.readouterr().err == line


def test_a_command_chooses_its_exit_status() -> None:
    group = click.Group(commands={"x": click.Command("x", callback=lambda: 3)})
    assert main.run(["x"], group) == 3


def test_bad_input_is_one_line_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.toml").write_text('node_id = 1\ndata_dir = "d"\nlisten_prot = 3\n')
    (tmp_path / "[" / "b]" / "full").mkdir(parents=True)
    for arguments, words in (
        (["status", "fs3:/typo"], "'fs3:/typo' is not an fs3 URL"),
        (["status", "fs3://127.0.0.1:1"], "no cluster answers at 127.0.0.1:1"),
        (["mgmtd", "--config", str(tmp_path / "no.toml")], "no such file"),
        (["mgmtd", "--config", str(tmp_path / "m.toml")], "unknown key 'listen_prot'; did you mean 'listen_port'?"),
        (["admin", "backup", "fs3://127.0.0.1:1", "nope://x"], "nope://x: Protocol not known: nope; name a path"),
        (["admin", "restore", "nope://x", "--config", str(DEPLOY / "meta.toml")], "nope://x: Protocol not known: nope"),
        (["down", str(tmp_path)], "is not the folder of an fs3 cluster"),
        (["up", "--dir", str(tmp_path)], "is not empty and is not the folder of an fs3 cluster"),
        (["up", "--detach", "--dir", str(tmp_path)], "is not empty and is not the folder of an fs3 cluster"),
        (["up", "--detach", "--dir", str(tmp_path / "[" / "b]")], "[/b] is not empty"),
    ):
        assert main.run(arguments) == 1, arguments
        error = capsys.readouterr().err
        assert words in error and error.startswith("fs3: ") and error.count("\n") == 1, error


def test_a_value_out_of_range_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.toml").write_text('node_id = 1\ndata_dir = "d"\nlease_s = 0\n')
    assert main.run(["mgmtd", "--config", str(tmp_path / "m.toml")]) == 1
    assert f"config {tmp_path}/m.toml: lease_s 0: must be between" in capsys.readouterr().err


def test_the_example_files_are_read() -> None:
    mgmtd = load_toml(DEPLOY / "mgmtd.toml", MgmtdConfig)
    meta = load_toml(DEPLOY / "meta.toml", MetaConfig)
    storage = load_toml(DEPLOY / "storage.toml", StorageConfig)
    assert meta.mgmtd == storage.mgmtd == (f"{mgmtd.listen_host}:{mgmtd.listen_port}",)
    assert meta.secret == mgmtd.secret == storage.secret
    assert len({meta.node_id, mgmtd.node_id, storage.node_id}) == 3


@pytest.mark.parametrize("daemon", ["mgmtd", "meta", "storage"])
def test_units_start_what_exists(daemon: str) -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.read(DEPLOY / f"fs3-{daemon}.service")
    words = unit["Service"]["ExecStart"].split()
    assert words[1:3] == [daemon, "--config"] and Path(words[3]).name == f"{daemon}.toml"
    assert (DEPLOY / f"{daemon}.toml").is_file() and daemon in main.COMMANDS


def routing(*states: TargetState) -> Routing:
    targets = {
        TargetId(index): Target(
            target_id=TargetId(index), node_id=NodeId(index), disk=0, chain_id=ChainId(1), state=state
        )
        for index, state in enumerate(states, 1)
    }
    nodes = {
        NodeId(index): Node(node_id=NodeId(index), kind=NodeKind.STORAGE, endpoints=(f"h:{index}",), alive=index < 3)
        for index in range(1, len(states) + 1)
    }
    chain = Chain(chain_id=ChainId(1), version=4, targets=tuple(targets), replicas=len(states))
    disk = Disk(node_id=NodeId(1), disk=0, path="/d", total_bytes=3 << 40, free_bytes=1536)
    return Routing(
        cluster_id="c",
        version=9,
        nodes=nodes,
        targets=targets,
        chains={chain.chain_id: chain},
        disks=(disk,),
        ready=True,
    )


@pytest.mark.parametrize(
    ("states", "code", "words"),
    [
        ((TargetState.SERVING, TargetState.SERVING), 0, "all 1 chains serve with all replicas"),
        ((TargetState.SERVING, TargetState.SYNCING), 0, "all 1 chains serve, 1 with fewer replicas"),
        ((TargetState.LASTSRV, TargetState.OFFLINE), 1, "1 of 1 chains have no serving target"),
    ],
)
def test_status_shows_and_judges(states: tuple[TargetState, ...], code: int, words: str) -> None:
    known = routing(*states)
    out = io.StringIO()
    assert show(known, Console(file=out, width=200)) == code
    assert words in out.getvalue() and "3.0 TiB" in out.getvalue() and "1.5 KiB" in out.getvalue()
    assert ("1@1" in out.getvalue()) == (code == 1 or "fewer" in words), "chains are listed when a target is missing"
    out = io.StringIO()
    assert show(known, Console(file=out), as_json=True) == code
    assert json.loads(out.getvalue()) == as_data(known)
    assert healthy(known) == (code == 0)


DAMAGED = ((1, 0, 1), (1, 1, 2), (2, 0, 0), (4, 0, 1_200))  # node, disk, chunks


def test_status_counts_damaged_chunks() -> None:
    whole = routing(TargetState.SERVING)
    disks = [
        replace(whole.disks[0], node_id=NodeId(node), disk=disk, damaged_chunks=count) for node, disk, count in DAMAGED
    ]
    assert [disk_from_pb(disk_to_pb(disk)) for disk in disks] == disks
    damaged = replace(whole, disks=tuple(disks))
    for known, words in ((whole, ""), (damaged, "damaged chunks: 3 on node 1, 1,200 on node 4")):
        out = io.StringIO()
        assert show(known, Console(file=out, width=200)) == 0
        assert words in out.getvalue() and ("damaged" in out.getvalue()) == bool(words)
    assert [disk["damaged_chunks"] for disk in as_data(damaged)["disks"]] == [1, 2, 0, 1_200]


def test_status_marks_the_mgmtd_that_decides() -> None:
    mgmtds = {
        NodeId(number): Node(node_id=NodeId(number), kind=NodeKind.MGMTD, endpoints=(f"h:{number}",))
        for number in (2_001, 2_002)
    }
    known = replace(routing(TargetState.SERVING), nodes={**routing(TargetState.SERVING).nodes, **mgmtds})
    out = io.StringIO()
    show(known, Console(file=out, width=200), primary="h:2002")
    lines = {line.split()[0]: line for line in out.getvalue().splitlines() if "alive" in line}
    assert ["primary" in lines[node] for node in ("1", "2001", "2002")] == [False, False, True], out.getvalue()
    marked = {node["node_id"]: node["primary"] for node in as_data(known, primary="h:2002")["nodes"]}
    assert marked == {1: False, 2_001: False, 2_002: True}


def test_status_shows_addresses_as_they_are() -> None:
    known = routing(TargetState.SERVING)
    node = replace(known.nodes[NodeId(1)], endpoints=("[fe80:100::1]:7300",))
    out = io.StringIO()
    show(replace(known, nodes={NodeId(1): node}), Console(file=out, width=200, emoji=False))
    assert "[fe80:100::1]:7300" in out.getvalue()


def test_a_cluster_that_is_not_ready_is_not_healthy() -> None:
    assert not healthy(Routing())
