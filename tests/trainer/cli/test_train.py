"""fs3-train's answers to mistakes: one line that names the thing and the way out, the right status, no leftovers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fs3_trainer.cli.train import main


def fs3_train(*args: str):
    return CliRunner().invoke(main, [*args, "--threads", "1"])


def refused(result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("fs3-train: ")
    return result.stderr


@pytest.fixture
def run(corpus, tmp_path):
    """Three steps of the tiny model, with a checkpoint."""
    url = str(tmp_path / "run")
    result = fs3_train("--config", "tiny", "--data", corpus, "--checkpoint", url, "--steps", "3")
    assert result.exit_code == 0, result.output
    return url


def test_a_run_leaves_what_it_says(corpus, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    url = str(tmp_path / "run")
    args = ("--config", "tiny", "--data", corpus, "--checkpoint", url, "--metrics", str(metrics), "--log-every", "2")
    result = fs3_train(*args, "--steps", "4", "--checkpoint-every", "2", "--keep", "1", "--global-batch", "2")
    assert result.exit_code == 0, result.output
    assert {p.name for p in Path(url).iterdir()} == {"config.json", "tokenizer.json", "latest.json", "step-000004"}
    assert "step 2/4  loss " in result.stdout
    assert "data wait " in result.stdout
    assert "expert load max/mean " in result.stdout
    assert "checkpoint step-000004  " in result.stdout
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all(record["tokens"] == 2 * 32 and 0 <= record["data_wait_s"] <= record["step_s"] for record in records)


def test_a_finished_run_has_nothing_to_resume(corpus, run):
    result = fs3_train("--config", "tiny", "--data", corpus, "--checkpoint", run, "--steps", "3", "--resume")
    assert result.exit_code == 0
    assert "nothing to do" in result.stdout


def test_resume_says_what_changed(corpus, run):
    args = ("--config", "tiny", "--data", corpus, "--checkpoint", run, "--steps", "4", "--resume")
    result = fs3_train(*args)
    assert result.exit_code == 0, result.output
    assert "resumed from" in result.stdout
    assert "steps was 3, is 4" in result.stdout


def test_resume_without_a_checkpoint_begins(corpus, tmp_path):
    url = str(tmp_path / "new")
    result = fs3_train("--config", "tiny", "--data", corpus, "--checkpoint", url, "--steps", "1", "--resume")
    assert result.exit_code == 0, result.output
    assert "no checkpoint at" in result.stdout


def test_checkpoints_are_not_overwritten_by_accident(corpus, run):
    line = refused(fs3_train("--config", "tiny", "--data", corpus, "--checkpoint", run, "--steps", "5"))
    assert "up to step 3" in line
    assert "--resume" in line


def test_another_model_shape_names_both(corpus, run, tmp_path):
    config = tmp_path / "wide.toml"
    config.write_text('preset = "tiny"\n[model]\nhidden_size = 64\n')
    before = sorted(p.name for p in Path(run).rglob("*"))
    args = ("--config", str(config), "--data", corpus, "--checkpoint", run, "--steps", "5", "--resume")
    line = refused(fs3_train(*args))
    assert "3 layers x 32 hidden" in line
    assert "3 layers x 64 hidden" in line
    assert "hidden_size 32/64" in line
    assert sorted(p.name for p in Path(run).rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('preset = "tiny"\n[model]\nhiden_size = 64\n', "unknown key 'hiden_size'; did you mean 'hidden_size'?"),
        ('preset = "tiny"\n[train]\npeak = 1\n', "unknown key 'peak'"),
        ('preset = "tiny"\n[trian]\n', "unknown key 'trian'; did you mean 'train'?"),
        ('preset = "teeny"\n', "no preset 'teeny'"),
        ("[model]\nhidden_size = 64\n", "is missing"),
        ('preset = "tiny"\nmodel = 3\n', "must be a table"),
        ('preset = "tiny"\n[model]\nvocab_size = 100\n', "vocab_size 100 is smaller than the data set's 300"),
        ('preset = "tiny"\n[model]\nmax_position_embeddings = 16\n', "longer than the model's"),
        ("preset = \n", "not TOML"),
    ],
)
def test_config_files_are_checked(corpus, tmp_path, text, message):
    config = tmp_path / "run.toml"
    config.write_text(text)
    url = tmp_path / "run"
    line = refused(fs3_train("--config", str(config), "--data", corpus, "--checkpoint", str(url), "--steps", "1"))
    assert message in line
    assert not url.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--config", "smal"), "did you mean 'small'?"),
        (("--data", "DIR/none"), "none"),
        (("--data", "nosuch://x/y"), "nosuch"),
        (("--checkpoint", "DIR/file"), "is a file"),
        (("--checkpoint", "nosuch://x/y"), "nosuch"),
        (("--metrics", "DIR/none/metrics"), "none/metrics: No such file or directory"),
    ],
)
def test_wrong_places_are_named(corpus, tmp_path, args, message):
    (tmp_path / "file").write_text("x")
    name, value = args[0], args[1].replace("DIR", str(tmp_path))
    options = {"--config": "tiny", "--data": corpus, "--checkpoint": str(tmp_path / "run"), "--steps": "1", name: value}
    line = refused(fs3_train(*(word for pair in options.items() for word in pair)))
    assert message in line
    assert not (tmp_path / "run").exists()


def test_resume_needs_a_place(corpus):
    assert "--checkpoint" in refused(fs3_train("--config", "tiny", "--data", corpus, "--steps", "1", "--resume"))


def test_usage_errors_exit_2(corpus):
    assert fs3_train("--data", corpus).exit_code == 2
    assert fs3_train("--data", corpus, "--steps", "0").exit_code == 2


def test_a_signal_saves_and_stops(corpus, tmp_path, monkeypatch):
    """The signal arrives while the second step's line is printed."""
    import fs3_trainer.train.session as session

    url = str(tmp_path / "run")
    original = session.log_line

    def line_and_signal(window, total_steps):
        if window[-1].step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(window, total_steps)

    monkeypatch.setattr(session, "log_line", line_and_signal)
    args = ("--config", "tiny", "--data", corpus, "--checkpoint", url, "--steps", "50", "--log-every", "1")
    result = fs3_train(*args)
    assert result.exit_code == 128 + signal.SIGTERM, result.output
    assert "stopped after step 2 of 50" in result.stdout
    assert (Path(url) / "step-000002").is_dir()


INTERRUPTED = """
import sys

class CtrlC:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            raise KeyboardInterrupt

sys.meta_path.insert(0, CtrlC())
from fs3_trainer.cli.train import main
main(["--data", "d", "--steps", "1"])
"""


def test_an_interrupt_while_torch_is_loaded_is_130_without_a_word():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_model_too_large_for_the_memory_is_one_line(corpus, tmp_path):
    config = tmp_path / "large.toml"
    config.write_text('preset = "tiny"\n[model]\nintermediate_size = 1000000000000\n')
    line = refused(fs3_train("--config", str(config), "--data", corpus, "--steps", "1"))
    assert "allocate memory" in line
    assert "take a smaller --global-batch or a smaller model" in line
