"""What a user sees who installed the store alone: the commands of the extras name the extra that is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "tokenizers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize(
    ("command", "module", "arguments", "extra"),
    [
        ("fs3-train", "fs3_trainer.cli.train", ["--data", "x", "--steps", "1"], "trainer"),
        ("fs3-generate", "fs3_trainer.cli.generate", ["--checkpoint", "x", "--prompt", "y"], "trainer"),
        ("fs3-dataset", "fs3_loader.cli", ["import", "--tokenizer", "bpe:300", __file__, "out"], "loader"),
    ],
)
def test_a_missing_extra_is_named(command: str, module: str, arguments: list[str], extra: str, tmp_path: Path) -> None:
    code = f"{REFUSE}\nimport sys\nsys.argv = {[command, *arguments]!r}\nfrom {module} import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{command}: the package t") and done.stderr.count("\n") == 1, done.stderr
    assert f"pip install 'fs3-storage[{extra}]'" in done.stderr
    assert not any(tmp_path.iterdir())
