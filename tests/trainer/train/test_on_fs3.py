"""Checkpoints on a real cluster: whole or absent as on a local disk, and a run that goes on with the same bits."""

from __future__ import annotations

import dataclasses
import json

import pytest
from click.testing import CliRunner

from fs3.errors import Corrupt
from fs3_trainer.cli.train import main
from fs3_trainer.model import DeepseekV3
from fs3_trainer.train.checkpoint import Checkpoints, load_model
from fs3_trainer.train.state import RunState

SAME = ("step", "loss", "mtp_loss", "lr", "grad_norm", "tokens")


@pytest.fixture
def url(cluster_url: str, home: str) -> str:
    return f"{cluster_url}{home}/run"


def save(checkpoints: Checkpoints, model: DeepseekV3, config, step: int) -> None:
    state = RunState(step=step, total_steps=9, model=config.to_dict(), train={}, loader={}, threads=1, torch="any")
    checkpoints.save({f"model.{name}": tensor for name, tensor in model.state_dict().items()}, state)


def test_saved_twice_pruned_and_loaded(tiny, url, fs):
    checkpoints = Checkpoints(url, keep=2)
    checkpoints.prepare(tiny, '{"a": 1}')
    for step, seed in ((1, 1), (2, 2), (3, 3), (3, 4)):
        save(checkpoints, DeepseekV3.fresh(tiny, seed=seed), tiny, step)
    root = checkpoints.location.root
    names = {path.rpartition("/")[2] for path in fs.ls(root, detail=False)}
    assert names == {"step-000002", "step-000003", "latest.json", "config.json", "tokenizer.json"}
    for source, seed in ((url, 4), (f"{url}/step-000002", 2)):
        loaded = load_model(source)
        assert loaded.tokenizer_json == '{"a": 1}'
        assert loaded.model.weights_digest() == DeepseekV3.fresh(tiny, seed=seed).weights_digest()


def test_a_step_of_another_shape_or_cut_short_is_named_with_the_way_out(tiny, url, fs):
    checkpoints = Checkpoints(url)
    model = DeepseekV3.fresh(tiny, seed=1)
    save(checkpoints, model, dataclasses.replace(tiny, hidden_size=2 * tiny.hidden_size), 1)
    with pytest.raises(Corrupt, match=r"step-000001") as caught:
        load_model(url)
    assert "\n" not in str(caught.value)
    save(checkpoints, model, tiny, 2)
    path = f"{checkpoints.location.root}/step-000002/__0_0.distcp"
    fs.pipe_file(path, fs.cat_file(path)[:5000])
    with pytest.raises(Corrupt, match=r"step-000002 cannot be read: .*; restore it from a copy, or remove it"):
        load_model(url)


def test_a_resumed_run_continues_with_the_same_losses(corpus, url, cluster_url, home, fs, tmp_path):
    fs.put(corpus, f"{home}/corpus", recursive=True)

    def train(name: str, where: str, *more: str) -> list[dict]:
        metrics = tmp_path / name
        args = ["--config", "tiny", "--data", f"{cluster_url}{home}/corpus", "--checkpoint", where, "--threads", "1"]
        result = CliRunner().invoke(main, [*args, "--metrics", str(metrics), *more])
        assert result.exit_code == 0, result.output
        return [{key: json.loads(line)[key] for key in SAME} for line in metrics.read_text().splitlines()]

    whole = train("whole", str(tmp_path / "run"), "--steps", "5")
    assert train("on-fs3", url, "--steps", "5", "--checkpoint-every", "3") == whole
    fs.rm(f"{home}/run/step-000005", recursive=True)
    assert train("from-three", url, "--steps", "5", "--resume") == whole[3:]
