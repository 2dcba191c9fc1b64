"""The README's examples, run as they are printed: on the test cluster instead of one on port 7300, training in steps of
the tiny model, and without the lines that start, stop and kill daemons, which tests/fs3/cluster and tests/process do.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "127.0.0.1:7300"
SHORTER = {"--config small": "--config tiny", "--steps 100": "--steps 2", "--steps 200": "--steps 3"}
LEFT_OUT = (". .venv/bin/activate", "fs3 up ", "kill -9 ", "fs3 storage ")
DIRECTORIES = ("data", "scratch", "corpus", "run", "kv")


@dataclass(frozen=True, slots=True)
class Example:
    """A line of shell, or a block of Python."""

    text: str
    python: bool


def examples() -> list[Example]:
    """Those of the section "By hand", in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## By hand\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    found = re.finditer(r"^```python\n(.*?)^```|^    (\S[^\n]*)$", section[1], re.MULTILINE | re.DOTALL)
    # A block of Python holds indented lines too, but is matched whole, as it begins before them.
    return [Example(match[1] or match[2], match[1] is not None) for match in found]


@pytest.fixture
def removed_afterwards(fs: Any) -> Iterator[None]:
    assert not [name for name in DIRECTORIES if fs.exists(f"/{name}")]
    yield
    for name in DIRECTORIES:
        if fs.exists(f"/{name}"):
            fs.rm(f"/{name}", recursive=True)


def run(example: Example, address: str) -> subprocess.CompletedProcess[str]:
    text = example.text.replace(ADDRESS, address)
    for printed, shorter in SHORTER.items():
        text = text.replace(printed, shorter)
    command = [sys.executable, "-c", text] if example.python else ["bash", "-c", text]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done


@pytest.mark.usefixtures("removed_afterwards")
def test_every_example_does_what_stands_beside_it(cluster_url: str, fs: Any) -> None:
    address = cluster_url.removeprefix("fs3://")
    found = [example for example in examples() if not example.text.startswith(LEFT_OUT)]
    assert sum(example.python for example in found) == 2
    assert all(ADDRESS in example.text for example in found)
    done = [(example.text, run(example, address)) for example in found]

    def said(command: str) -> list[subprocess.CompletedProcess[str]]:
        return [result for text, result in done if text.startswith(command)]

    assert said("import fsspec")[0].stdout.startswith("499500\n")
    assert said("fs3 cat")[0].stdout.count("\n") == 3
    assert "resumed from" in said("fs3-train")[1].stdout
    first, second = said("fs3-generate")
    assert first.stdout == second.stdout != ""
    assert " 0 pages loaded from the cache" in first.stderr
    pages = re.search(r" (\d+) pages loaded from the cache", second.stderr)
    assert pages is not None
    assert int(pages[1]) >= 2
    assert f"{pages[1]} pages" in said("fs3 kv stats")[0].stdout
    assert "all " in said("fs3 status")[0].stdout
    assert fs.cat_file("/data/hello.txt") == b"hello"
    assert fs.info("/scratch")["layout"].chunk_bytes == 1 << 20
