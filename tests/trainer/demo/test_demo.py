"""The demo itself, at tiny sizes, as `make demo` runs it: on real daemons, with both kills."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fs3_trainer.demo.stages import STAGES


def start(out: Path, temporary: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fs3_trainer.demo", "--quick", "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )


@pytest.fixture
def temporary(tmp_path):
    """The demo's temporary folder, found empty at the end, with no process that has to do with it."""
    folder = tmp_path / "t"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []
    left = [
        p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])
    ]
    assert left == []


def test_the_whole_demo(tmp_path, temporary):
    process = start(tmp_path / "out", temporary)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, f"{out}\n{err}"
    assert err == ""
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"All {len(STAGES)} stages passed" in page
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    for line in re.findall(r"^  \$ (.*)$", out, flags=re.MULTILINE):
        assert line.split()[0] in ("fs3", "fs3-dataset", "fs3-train", "fs3-generate", "kill"), line
    assert out.count("$ kill -9 ") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_leaves_nothing(tmp_path, temporary, number):
    process = start(tmp_path / "out", temporary)
    assert process.stdout is not None
    for line in process.stdout:
        if "is ready after" in line:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, f"{out}\n{err}"
    assert "the demo was stopped" in out
    assert (tmp_path / "out" / "log" / "cluster" / "mgmtd.log").is_file()


def test_a_stage_that_falls_short_is_named(tmp_path, temporary):
    """Too few steps to have a storage daemon die and return, or on a slow machine the trainer, before they are done."""
    process = start(tmp_path / "out", temporary, "--steps", "30")
    out, err = process.communicate(timeout=280)
    assert process.returncode == 1, f"{out}\n{err}"
    short = re.search(r"^demo: (outage|crash): .*--steps 120$", err, flags=re.MULTILINE)
    assert short, err
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"{['outage', 'crash'].index(short[1]) + 3} of {len(STAGES)} stages passed" in page
    assert (tmp_path / "out" / "log" / "commands").is_dir()
