"""A run that is killed with SIGKILL and resumed has, to the bit, the losses of one that was not.

Real processes of the command line on a real data set; the kill comes after a checkpoint and some further steps, which
the resumed run does again.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

STEPS = 16
SAME = ("loss", "mtp_loss", "lr", "grad_norm", "tokens", "expert_load_max_over_mean")


def command(corpus: str, folder: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-u", "-c", "from fs3_trainer.cli.train import main; main()"),
        *("--config", "tiny", "--data", corpus, "--checkpoint", str(folder / "run"), "--steps", str(STEPS)),
        *("--checkpoint-every", "5", "--log-every", "1", "--threads", "1", "--metrics", str(folder / "metrics"), *more),
    ]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics").read_text().splitlines()]


def test_killed_and_resumed_is_bit_identical(corpus, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    subprocess.run(command(corpus, whole), check=True, capture_output=True, timeout=200)
    expected = metrics(whole)
    assert [record["step"] for record in expected] == list(range(1, STEPS + 1))
    assert expected[-1]["loss"] < expected[0]["loss"]

    with subprocess.Popen(command(corpus, broken), stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        for line in victim.stdout:
            if line.startswith("step 8/"):
                break
        victim.send_signal(signal.SIGKILL)
    assert victim.returncode == -signal.SIGKILL
    killed_after = len(metrics(broken))
    assert 8 <= killed_after < STEPS

    resumed = subprocess.run(
        command(corpus, broken, "--resume"), check=True, capture_output=True, timeout=200, text=True
    )
    assert "resumed from" in resumed.stdout
    assert "changed" not in resumed.stdout
    records = metrics(broken)
    again = [record["step"] for record in records[killed_after:]]
    assert again == list(range(again[0], STEPS + 1))
    assert again[0] in (6, 11)
    for record in records:
        reference = expected[record["step"] - 1]
        assert {key: record[key] for key in SAME} == {key: reference[key] for key in SAME}
