"""Checkpoints are whole or absent: round trips, pruning, leftovers of crashes, a full disk, damage."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fs3.errors import Corrupt, Fs3Error, NotADirectory, NotFound
from fs3_trainer.model import DeepseekV3
from fs3_trainer.train import range_reader
from fs3_trainer.train.checkpoint import Checkpoints, load_model
from fs3_trainer.train.state import RunState


def state_of(config, step: int) -> RunState:
    return RunState(
        step=step, total_steps=9, model=config.to_dict(), train={}, loader={"at": step}, threads=1, torch="any"
    )


def tensors_of(model: DeepseekV3) -> dict[str, torch.Tensor]:
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_round_trip_gives_the_same_bits(tiny, tmp_path, prefix):
    url = f"{prefix}{tmp_path}/run"
    model = DeepseekV3.fresh(tiny, seed=1)
    checkpoints = Checkpoints(url)
    checkpoints.prepare(tiny, '{"a": 1}')
    saved = checkpoints.save(tensors_of(model), state_of(tiny, 7))
    assert saved.bytes == sum(f.stat().st_size for f in (tmp_path / "run" / "step-000007").iterdir())
    assert names_in(tmp_path / "run") == {"step-000007", "latest.json", "config.json", "tokenizer.json"}
    assert checkpoints.state(7) == state_of(tiny, 7)
    for source in (url, f"{url}/", f"{url}/step-000007"):
        loaded = load_model(source)
        assert loaded.step == 7
        assert loaded.tokenizer_json == '{"a": 1}'
        assert loaded.model.weights_digest() == model.weights_digest()
    assert DeepseekV3.fresh(tiny, seed=2).weights_digest() != model.weights_digest()


def test_only_the_newest_are_kept_and_the_same_step_can_be_saved_again(tiny, tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    for step, seed in ((1, 1), (2, 2), (3, 3), (3, 4)):
        checkpoints.save(tensors_of(DeepseekV3.fresh(tiny, seed=seed)), state_of(tiny, step))
    assert checkpoints.steps() == [2, 3]
    assert names_in(tmp_path) == {"step-000002", "step-000003", "latest.json"}
    assert json.loads((tmp_path / "latest.json").read_text()) == {"step": 3, "path": "step-000003"}
    assert load_model(str(tmp_path)).model.weights_digest() == DeepseekV3.fresh(tiny, seed=4).weights_digest()


CRASH = """
import os, signal, sys
import torch
from fs3_trainer.model import DeepseekV3
from fs3_trainer.run_config import load_run_config
from fs3_trainer.train.checkpoint import Checkpoints
from fs3_trainer.train.state import RunState

config = load_run_config("tiny").model
model = DeepseekV3.fresh(config, seed=1)
checkpoints = Checkpoints(sys.argv[1], keep=1)

def save(step):
    state = RunState(step=step, total_steps=9, model=config.to_dict(), train={}, loader={}, threads=1, torch="any")
    checkpoints.save({f"model.{n}": t for n, t in model.state_dict().items()}, state)

save(1)
die = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "publish":
    type(checkpoints.location).publish = die
else:
    setattr(checkpoints, sys.argv[2], die)
save(2)
"""


@pytest.mark.parametrize(("dies_at", "latest"), [("_write", 1), ("_move", 1), ("publish", 2), ("_remove_folder", 2)])
def test_a_writer_killed_at_any_point_leaves_a_whole_checkpoint_newest(tiny, tmp_path, dies_at, latest):
    script = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path), dies_at], timeout=120, check=False)
    assert script.returncode == -signal.SIGKILL
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.latest() == latest
    assert load_model(str(tmp_path)).step == latest
    checkpoints.prepare(tiny, None)
    assert {n for n in names_in(tmp_path) if not n.startswith("step-")} <= {"config.json", "latest.json"}
    assert load_model(str(tmp_path)).step == latest


def test_a_disk_that_refuses_leaves_nothing_behind(tiny, tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    tensors = tensors_of(DeepseekV3.fresh(tiny, seed=1))
    checkpoints.save(tensors, state_of(tiny, 1))
    before = names_in(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(Fs3Error, match=r"step-000002: File too large"):
            checkpoints.save(tensors, state_of(tiny, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(tmp_path) == before
    assert checkpoints.latest() == 1


def truncate(folder: Path) -> None:
    (folder / "__0_0.distcp").write_bytes((folder / "__0_0.distcp").read_bytes()[:5000])


def flip(folder: Path) -> None:
    data = bytearray((folder / "__0_0.distcp").read_bytes())
    middle = slice(len(data) // 3, len(data) // 3 + 2000)
    data[middle] = bytes(b ^ 0xFF for b in data[middle])
    (folder / "__0_0.distcp").write_bytes(data)


def scribble_metadata(folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"not a pickle")


def lose_tensors(folder: Path) -> None:
    (folder / "__0_0.distcp").unlink()


def scribble_state(folder: Path) -> None:
    (folder / "state.json").write_text('{"version": 1, "step": "x"}')


@pytest.mark.parametrize("damage", [truncate, flip, scribble_metadata, scribble_state])
def test_damage_is_corrupt_and_says_where(tiny, tmp_path, damage):
    Checkpoints(str(tmp_path)).save(tensors_of(DeepseekV3.fresh(tiny, seed=1)), state_of(tiny, 5))
    damage(tmp_path / "step-000005")
    with pytest.raises(Corrupt, match="step-000005") as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tiny, tmp_path):
    Checkpoints(str(tmp_path)).save(tensors_of(DeepseekV3.fresh(tiny, seed=1)), state_of(tiny, 5))
    lose_tensors(tmp_path / "step-000005")
    with pytest.raises(NotFound, match="step-000005"):
        load_model(str(tmp_path))


def test_where_nothing_is(tmp_path):
    assert Checkpoints(str(tmp_path / "none")).steps() == []
    for url in (tmp_path / "none", tmp_path, tmp_path / "step-000003"):
        with pytest.raises(NotFound, match="no checkpoint"):
            load_model(str(url))
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectory, match="is a file"):
        Checkpoints(str(tmp_path / "file")).latest()


def test_a_filesystem_without_rename_trusts_latest_json(tiny):
    url = "memory://fs3-trainer-test/run"
    checkpoints = Checkpoints(url)
    model = DeepseekV3.fresh(tiny, seed=1)
    checkpoints.prepare(tiny, None)
    for step in (1, 2):
        checkpoints.save(tensors_of(model), state_of(tiny, step))
    assert checkpoints.steps() == [1, 2]
    checkpoints.location.publish("latest.json", b'{"step": 1}')
    assert checkpoints.latest() == 1
    assert load_model(url).model.weights_digest() == model.weights_digest()
    checkpoints.location.fs.rm(checkpoints.location.root, recursive=True)


def test_readonly_folders_are_refused_by_name(tiny, tmp_path):
    if os.geteuid() == 0:
        shutil.rmtree(tmp_path)
        (tmp_path.parent / tmp_path.name).write_text("a file in the way")
        with pytest.raises(Fs3Error, match=tmp_path.name):
            Checkpoints(str(tmp_path / "run")).prepare(tiny, None)
    else:
        tmp_path.chmod(0o500)
        with pytest.raises(Fs3Error, match=tmp_path.name):
            Checkpoints(str(tmp_path / "run")).prepare(tiny, None)


def test_windows_smaller_than_the_checkpoint_read_the_same_bits(tiny, tmp_path, monkeypatch):
    model = DeepseekV3.fresh(tiny, seed=1)
    Checkpoints(str(tmp_path)).save(tensors_of(model), state_of(tiny, 5))
    monkeypatch.setattr(range_reader, "WINDOW_BYTES", 20_000)
    assert load_model(str(tmp_path)).model.weights_digest() == model.weights_digest()
