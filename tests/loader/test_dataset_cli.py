"""`fs3-dataset` as a user runs it: a process of its own, exit statuses, and one line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from fs3_loader.cli import main; main()"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a rose is a rose is a rose [bold]not markup[/bold]\n" * 50)
    return tmp_path / "text"


def test_imports_and_inspects(tmp_path: Path, text: Path) -> None:
    url = str(tmp_path / "corpus")
    done = run("import", "--tokenizer", "bpe:300", "--seq", "32", "--shard-size", "1KiB", str(text), url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "samples of 32 tokens" in done.stdout
    shown = run("inspect", url)
    assert (shown.returncode, shown.stderr) == (0, "")
    for word in ("samples", "tokens", "shards", "bytes", "bpe:300", "sha256:", "a rose is a rose", "[bold]not"):
        assert word in shown.stdout, word
    facts = json.loads(run("inspect", "--json", url).stdout)
    assert facts["seq_len"] == 32
    assert facts["sample_0"].startswith("a rose is a rose")
    again = run("import", "--tokenizer", "bpe:300", str(text), url)
    assert again.returncode == 1
    assert "--overwrite" in again.stderr


def test_starts_without_torch(tmp_path: Path, text: Path) -> None:
    script = (
        "import sys, fs3_loader.cli as cli\n"
        f"sys.argv = ['fs3-dataset', 'import', '--tokenizer', 'bpe:300', {str(text)!r}, {str(tmp_path / 'c')!r}]\n"
        "cli.main()\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inspect", "{tmp}/nothing"), "no such dataset"),
        (("inspect", "{tmp}/text"), "no manifest.json"),
        (("inspect", "{tmp}/text/a.txt"), "is a file"),
        (("inspect", "{tmp}/damaged"), "damaged/manifest.json is damaged"),
        (("inspect", "nosuch://host/x"), "nosuch"),
        (("inspect", "fs3:/corpus"), "'fs3:/corpus' is not an fs3 URL; write fs3://HOST:PORT/path"),
        (("import", "--tokenizer", "bpe:300", "{tmp}/text", "fs3:/c"), "write fs3://HOST:PORT/path"),
        (("inspect", "fs3://127.0.0.1:1/x"), "no cluster answers at 127.0.0.1:1 (connection refused); check the URL"),
        (("inspect", "fs3://nosuchhost.invalid:1/x"), "no cluster answers at nosuchhost.invalid:1 (unknown host)"),
        (("import", "--tokenizer", "bpe:300", "{tmp}/nothing", "{tmp}/c"), "nothing does not exist"),
        (("import", "--tokenizer", "bpe:300", "{tmp}/empty", "{tmp}/c"), "no file with text in it"),
        (("import", "--tokenizer", "bpe:x", "{tmp}/text", "{tmp}/c"), "'bpe:x' is not understood"),
        (("import", "--tokenizer", "bpe:300", "--shard-size", "big", "{tmp}/text", "{tmp}/c"), "size 'big'"),
        (("import", "--tokenizer", "bpe:300", "{tmp}/text", "{tmp}/text/a.txt/c"), "a.txt"),
        (("import", "--tokenizer", "bpe:300", "{tmp}/text", "/proc/nothing/c"), "/proc/nothing"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    done = run(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert done.returncode == 1
    assert done.stderr.startswith("fs3-dataset: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("arguments", [(), ("import",), ("import", "--tokenizer"), ("nosuch",)])
def test_wrong_usage_is_status_two(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
