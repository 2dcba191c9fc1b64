"""The examples of docs/usrbio.md, run as they are printed, against the test cluster instead of one on port 7300."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ADDRESS = "127.0.0.1:7300"
PAGE = Path(__file__).resolve().parent.parent / "docs/usrbio.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def directory(fs: Any) -> Iterator[None]:
    """That of the examples."""
    fs.mkdir("/usrbio")
    yield
    fs.rm("/usrbio", recursive=True)


@pytest.mark.usefixtures("directory", "runtime_directory")
@pytest.mark.parametrize("block", BLOCKS, ids=["one batch", "many batches", "writing"])
def test_it_prints_what_stands_beside_it(block: str, cluster_url: str, tmp_path: Path) -> None:
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert expected and ADDRESS in block
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::ResourceWarning",
            "-c",
            block.replace(ADDRESS, cluster_url.removeprefix("fs3://")),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected and not done.stderr
