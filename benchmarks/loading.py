"""The loader alone, from fs3 and from a local folder, and a training run that consumes what it delivers.

The loader is made as `fs3-train` makes it: the preset's global batch, exact shuffle, every sample's checksum verified.
The trainer is `fs3-train` itself, a process of its own reading the same data set from fs3; what counts are the steps
after the first ones, by the records it writes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.context import Context
from benchmarks.rounds import Case, Timed, for_seconds
from benchmarks.rows import Row, make_row
from fs3_loader import Dataset, Loader
from fs3_loader.importer import ImportOptions, import_dataset
from fs3_loader.location import Location
from fs3_trainer.run_config import load_run_config

FS3, LOCAL, TRAINER = "loader, fs3", "loader, local path", "trainer"
AT_LEAST_TIMES = 50.0
_DRAIN_BATCHES = 64  # taken before the clock starts: what was read ahead while other cases ran
_FIRST_STEPS = 3  # not counted: memory is allocated, the loader starts
_PACKAGES = ("asyncio", "concurrent", "email", "http", "importlib", "json", "logging", "unittest", "xml")


def measure(context: Context) -> list[Row]:
    """Samples and tokens a second of the loader; tokens a second of the trainer."""
    local_url, fs3_url = data_sets(context)
    batch = load_run_config(context.sizes.preset).train.global_batch
    seq_len = Dataset.open(local_url).seq_len
    with (
        Loader(Dataset.open(fs3_url), global_batch=batch, seed=1) as remote,
        Loader(Dataset.open(local_url), global_batch=batch, seed=1) as local,
    ):
        runs = context.measure(
            "loader and trainer",
            {FS3: _loader(context, remote), LOCAL: _loader(context, local), TRAINER: _trainer(context, fs3_url)},
            warm=[TRAINER],
        )
    samples = {
        name: [Timed(amount=run.amount / seq_len, seconds=run.seconds) for run in runs[name]] for name in (FS3, LOCAL)
    }
    return [
        make_row(f"loader, batches of {batch}", "samples/s", samples, ours=FS3, limits=[LOCAL]),
        make_row(
            f"loader, batches of {batch} x {seq_len} tokens",
            "tokens/s",
            runs,
            ours=FS3,
            limits=[LOCAL],
            others=[TRAINER],
            at_least_times={TRAINER: AT_LEAST_TIMES},
        ),
        make_row(f"trainer, preset {context.sizes.preset}", "tokens/s", runs, ours=TRAINER),
    ]


def data_sets(context: Context) -> tuple[str, str]:
    """The URLs of one data set, in a local folder and on fs3."""
    context.say("importing the data set")
    local_url, fs3_url = str(context.folder / "corpus"), f"{context.cluster.url}/corpus"
    standard = Path(sysconfig.get_paths()["stdlib"])
    small = context.sizes.corpus == "json"
    import_dataset(
        ImportOptions(
            sources=[str(standard / name) for name in (["json"] if small else _PACKAGES)],
            url=local_url,
            tokenizer="bpe:300" if small else "bpe:4096",
            seq_len=32 if small else 256,
            glob="*.py",
        )
    )
    source, target = Location.parse(local_url), Location.parse(fs3_url)
    target.make()
    for name in source.names():
        target.write(name, source.read(name))
    return local_url, fs3_url


def _loader(context: Context, loader: Loader) -> Case:
    def step(number: int) -> float:
        return next(loader).tokens.numel()

    def run() -> Timed:
        for _ in range(_DRAIN_BATCHES):
            next(loader)
        return for_seconds(step, context.sizes.seconds)

    return run


def _trainer(context: Context, url: str) -> Case:
    steps = context.sizes.train_steps
    total = steps + _FIRST_STEPS
    metrics = context.folder / "metrics.jsonl"
    program = "from fs3_trainer.cli.train import main; main()"
    options = ["--config", context.sizes.preset, "--data", url, "--steps", str(total), "--metrics", str(metrics)]

    def run() -> Timed:
        metrics.unlink(missing_ok=True)
        ended = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"fs3-train ended with status {ended.returncode}: {ended.stderr.strip()}")
        records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()][_FIRST_STEPS:]
        return Timed(amount=sum(one["tokens"] for one in records), seconds=sum(one["step_s"] for one in records))

    return run
