"""The examples of docs/ecosystem.md, run as they are printed, against the test cluster instead of one on port 7300."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "127.0.0.1:7300"


def examples() -> Iterator[Any]:
    """The blocks of Python, by the heading above them."""
    text = (ROOT / "docs/ecosystem.md").read_text(encoding="utf-8")
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)):
            yield pytest.param(block, id=f"{title} {number}" if number else title)


@pytest.fixture
def eco(fs: Any) -> Iterator[None]:
    """The directory of the examples."""
    fs.mkdir("/eco")
    yield
    fs.rm("/eco", recursive=True)


@pytest.mark.usefixtures("eco")
@pytest.mark.parametrize("block", list(examples()))
def test_it_prints_what_stands_beside_it(block: str, cluster_url: str, tmp_path: Path) -> None:
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert expected and ADDRESS in block
    code = block.replace(ADDRESS, cluster_url.removeprefix("fs3://"))
    caches = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code],
        env={**os.environ, **caches},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected
