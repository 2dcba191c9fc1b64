"""fs3-generate as a user runs it: without a cache, with one on a real cluster from two processes, and with mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fs3.client.connect import connect
from fs3.cluster.local import LocalCluster
from fs3.kvcache.admin import holdings
from fs3_trainer.cli.generate import main
from fs3_trainer.cli.train import main as train

PROMPT = Path(json.__file__).read_text(encoding="utf-8")[:400]


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory) -> str:
    """Two steps of the tiny model."""
    url = str(tmp_path_factory.mktemp("trained") / "run")
    args = ["--config", "tiny", "--data", corpus, "--checkpoint", url, "--steps", "2", "--threads", "1"]
    result = CliRunner().invoke(train, args)
    assert result.exit_code == 0, result.output
    return url


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=2, replicas=1, port=0, lease_s=1.5) as made:
        yield made


@pytest.fixture
def generate(checkpoint):
    def go(*args: str, prompt: str = PROMPT):
        words = ["--checkpoint", checkpoint, "--prompt", prompt, "--max-new-tokens", "8", "--threads", "1", *args]
        return CliRunner().invoke(main, words)

    return go


@pytest.fixture
def figures(generate):
    def go(*args: str, **more: str) -> dict:
        result = generate("--json", *args, **more)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return go


def test_text_streams_and_a_line_says_what_it_took(generate, figures):
    result = generate()
    assert result.exit_code == 0, result.output
    found = figures()
    assert result.stdout == found["text"] + "\n"
    assert len(found["tokens"]) == 8
    assert found["prompt_tokens"] > 128
    pages = -(-found["prompt_tokens"] // 64)
    counts = f"0 pages loaded from the cache, {pages} computed, 0 stored"
    assert result.stderr.startswith(f"fs3-generate: prompt {found['prompt_tokens']} tokens: {counts}; 8 new tokens, ")
    assert result.stderr.count("\n") == 1
    assert found["kv_cache"] == "none"
    assert found["first_token_s"] > 0


def test_a_prompt_may_come_from_a_file_or_a_pipe(checkpoint, figures, tmp_path):
    (tmp_path / "prompt").write_text(PROMPT)
    args = ["--checkpoint", checkpoint, "--max-new-tokens", "8", "--threads", "1", "--json", "--prompt-file"]
    from_file = CliRunner().invoke(main, [*args, str(tmp_path / "prompt")])
    from_pipe = CliRunner().invoke(main, [*args, "-"], input=PROMPT)
    assert json.loads(from_file.stdout)["tokens"] == json.loads(from_pipe.stdout)["tokens"] == figures()["tokens"]


def test_a_seed_repeats_a_sample(figures):
    sampled = [figures("--temperature", "1.5", "--top-p", "0.95", "--seed", seed)["tokens"] for seed in ("1", "1", "2")]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_second_process_loads_the_pages_and_writes_the_same(checkpoint, cluster, figures):
    url = f"{cluster.url}/kv/two-processes"
    command = [sys.executable, "-c", "from fs3_trainer.cli.generate import main; main()"]
    args = ["--checkpoint", checkpoint, "--kv-cache", url, "--prompt", PROMPT, "--max-new-tokens", "8"]
    runs = [subprocess.run([*command, *args], capture_output=True, text=True, timeout=120) for _ in range(2)]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    assert runs[0].stdout == runs[1].stdout == figures()["text"] + "\n"
    tokens = figures()["prompt_tokens"]
    full, pages = tokens // 64, -(-tokens // 64)
    assert f"0 pages loaded from the cache, {pages} computed, {full} stored" in runs[0].stderr
    assert f"{full} pages loaded from the cache, {pages - full} computed, 0 stored" in runs[1].stderr
    assert holdings(url).pages == full


def test_pages_are_shared_by_what_they_hold(cluster, figures):
    url = f"{cluster.url}/kv/shared"
    first = figures("--kv-cache", url, "--page-tokens", "16")
    longer = figures("--kv-cache", url, "--page-tokens", "16", prompt=PROMPT + " and so on" * 9)
    assert longer["pages_loaded"] == first["pages_stored"] > 5
    assert longer["pages_stored"] > 0
    for other in (("--page-tokens", "32"), ("--page-tokens", "16", "--cache-dtype", "bfloat16")):
        assert figures("--kv-cache", url, *other)["pages_loaded"] == 0
    assert len(holdings(url).namespaces) == 3


def test_a_limit_bounds_the_cache(cluster, figures):
    url = f"{cluster.url}/kv/bounded"
    found = figures("--kv-cache", url, "--page-tokens", "16", "--kv-limit", "20KiB")
    assert found["kv_removed"] > 0
    assert 0 < holdings(url).bytes <= 20 << 10
    again = figures("--kv-cache", url, "--page-tokens", "16", "--kv-limit", "20KiB")
    assert again["tokens"] == found["tokens"]
    assert again["pages_loaded"] == found["pages_stored"] - found["kv_removed"] > 0


def test_a_cache_that_cannot_be_reached_is_a_warning(generate, figures):
    result = generate("--kv-cache", "fs3://127.0.0.1:1/kv")
    assert result.exit_code == 0, result.output
    assert result.stdout == figures()["text"] + "\n"
    warning, line = result.stderr.splitlines()
    assert warning.startswith("fs3-generate: warning: KV cache fs3://127.0.0.1:1/kv: ")
    assert "going on without it" in warning
    assert "0 pages loaded" in line


def test_a_cache_that_cannot_be_made_is_a_warning(cluster, generate, figures):
    meta = connect(cluster.url).meta
    meta.mkdir("/small")
    meta.set_quota("/small", max_inodes=1)
    meta.mkdir("/small/full")
    url = f"{cluster.url}/small/kv"
    result = generate("--kv-cache", url)
    assert result.exit_code == 0, result.output
    assert result.stdout == figures()["text"] + "\n"
    warning, line = result.stderr.splitlines()
    assert warning.startswith(f"fs3-generate: warning: KV cache {url}: ") and "quota" in warning
    assert "going on without it" in warning
    assert "0 pages loaded" in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--kv-cache", "DIR/kv"), "is not an fs3 URL"),
        (("--kv-cache", "fs3:///kv"), "names no cluster"),
        (("--kv-cache", "fs3://h:p/kv"), "port 'p'"),
        (("--checkpoint", "DIR/none"), "no checkpoint there"),
        (("--checkpoint", "DIR/file"), "is a file"),
        (("--checkpoint", "nosuch://x/y"), "nosuch"),
        (("--checkpoint", "fs3://127.0.0.1:1/run"), "127.0.0.1:1"),
        (("--prompt", ""), "the prompt is empty"),
        (("--max-new-tokens", "1000"), "more than the model's 1024 positions"),
        (("--temperature", "-1"), "temperature -1.0"),
        (("--kv-limit", "lots", "--kv-cache", "fs3://h:1/kv"), "size 'lots'"),
    ],
)
def test_mistakes_are_one_line(generate, tmp_path, args, message):
    (tmp_path / "file").write_text("x")
    result = generate(*(word.replace("DIR", str(tmp_path)) for word in args))
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("fs3-generate: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_a_file_is_no_cache(cluster, generate):
    import fsspec

    with fsspec.open(f"{cluster.url}/plain-file", "wb") as file:
        file.write(b"x")
    result = generate("--kv-cache", f"{cluster.url}/plain-file")
    assert result.exit_code == 1
    assert "plain-file is a file; a KV cache lives in a directory" in result.stderr


def test_prompt_files_that_cannot_be_read(checkpoint, tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for name, message in (("none", "no such file"), ("latin", "not UTF-8 text"), (".", "Is a directory")):
        result = CliRunner().invoke(main, ["--checkpoint", checkpoint, "--prompt-file", str(tmp_path / name)])
        assert result.exit_code == 1
        assert result.stderr == f"fs3-generate: prompt file {tmp_path / name}: {message}\n"


def test_usage_errors_exit_2(checkpoint):
    for args in ([], ["--prompt", "a", "--prompt-file", "b"], ["--prompt", "a", "--kv-limit", "1GiB"]):
        assert CliRunner().invoke(main, ["--checkpoint", checkpoint, *args]).exit_code == 2


def test_a_checkpoint_without_a_tokenizer_says_so(checkpoint, generate, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare)
    (bare / "tokenizer.json").unlink()
    result = generate("--checkpoint", str(bare))
    assert result.exit_code == 1
    assert f"{bare} has no tokenizer.json" in result.stderr
