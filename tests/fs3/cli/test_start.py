"""Ctrl-C while a command still imports: one quiet end with status 130, whatever is being imported."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# A process in which the import of a module is interrupted, as by Ctrl-C at that moment.
INTERRUPTED = """
import os, signal, sys
command, module, *sys.argv[1:] = sys.argv[1:]
if "ignoring" not in globals():  # a shell's background jobs, and what they start, ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            print("interrupted", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from fs3.cli import start
getattr(start, command)()
"""
STATUS = ("status", "fs3://127.0.0.1:1")
IMPORT = ("import", "--tokenizer", "bpe:300", __file__, "out")
TRAIN = ("--data", "x", "--steps", "1")
GENERATE = ("--checkpoint", "x", "--prompt", "y")


@pytest.mark.parametrize(
    ("command", "module", "arguments"),
    [
        ("fs3", "click", STATUS),
        ("fs3", "fs3.cli.status", STATUS),
        ("fs3", "google.protobuf", STATUS),
        ("fs3_dataset", "click", IMPORT),
        ("fs3_dataset", "numpy", IMPORT),
        ("fs3_dataset", "fs3_loader.importer", IMPORT),
        ("fs3_train", "click", TRAIN),
        ("fs3_train", "torch", TRAIN),
        ("fs3_generate", "click", GENERATE),
        ("fs3_generate", "torch", GENERATE),
    ],
)
def test_ctrl_c_during_an_import(command: str, module: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, command, module, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert ended.stdout == "interrupted\n", "the module is imported, and nothing goes on"
    assert ended.returncode == 130, ended.stderr
    assert len(ended.stderr.strip().splitlines()) <= 1 and "Traceback" not in ended.stderr, ended.stderr
    assert not list(tmp_path.iterdir())


def test_who_ignores_ctrl_c_goes_on(tmp_path: Path) -> None:
    """As `nohup` and a shell's background jobs do."""
    ignoring = "import signal; ignoring = signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + INTERRUPTED
    ended = subprocess.run(
        [sys.executable, "-c", ignoring, "fs3", "click", "--version"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert ended.returncode == 0 and ended.stdout.startswith("interrupted\nfs3 "), ended


def test_the_console_scripts_start_here() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {name: f"fs3.cli.start:{name.replace('-', '_')}" for name in scripts} and len(scripts) == 4
