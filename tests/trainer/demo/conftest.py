"""Real inputs of the demo's report: a run that lost its last steps, and a sampler's calls on a local folder."""

import io
import json
import shutil
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from fs3_trainer.cli.train import main as fs3_train
from fs3_trainer.demo.narrator import Narrator
from fs3_trainer.demo.sampler import Sampler
from fs3_trainer.demo.stages.crash import Resumed
from fs3_trainer.demo.step_log import StepLog


@pytest.fixture
def narrator() -> Narrator:
    return Narrator(Console(file=io.StringIO(), width=200))


@pytest.fixture
def said(narrator):
    return lambda: narrator.console.file.getvalue()


@pytest.fixture(scope="session")
def step_log(corpus, tmp_path_factory) -> StepLog:
    """Six steps, then the checkpoint of the last three is lost, and the run resumes."""
    folder = tmp_path_factory.mktemp("run")
    url, metrics = folder / "checkpoints", folder / "metrics.jsonl"
    args = ["--config", "tiny", "--data", corpus, "--checkpoint", str(url), "--metrics", str(metrics)]
    args += ["--steps", "6", "--checkpoint-every", "3", "--threads", "1"]
    assert CliRunner().invoke(fs3_train, args).exit_code == 0
    shutil.rmtree(url / "step-000006")
    (url / "latest.json").write_text(json.dumps({"step": 3}))
    resumed = CliRunner().invoke(fs3_train, [*args, "--resume"])
    assert "step-000003" in resumed.output, resumed.output
    log = StepLog(metrics)
    log.look()
    return log


@pytest.fixture(scope="session")
def resumed(step_log) -> Resumed:
    first, second = (tuple(attempt) for attempt in step_log.attempts)
    return Resumed(
        first=first,
        second=second,
        steps=6,
        killed=first[-1].time,
        resumed_from=3,
        resumed_how="",
        back_s=second[0].time - first[-1].time,
    )


@pytest.fixture
def files(tmp_path) -> dict[str, bytes]:
    """Two local files that are large enough to sample."""
    found = {}
    for number in range(2):
        path = tmp_path / f"shard-{number}"
        path.write_bytes(bytes(range(256)) * (512 + number))
        found[str(path)] = path.read_bytes()
    return found


@pytest.fixture
def sampler(files, tmp_path):
    found = Sampler(fsspec.filesystem("file"), files, str(Path(tmp_path) / "scratch"))
    yield found
    found.stop()
