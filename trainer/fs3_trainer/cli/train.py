"""`fs3-train`: the command line of a training run.

Exit status: 0 done, 1 it failed (one line on standard error says why), 2 wrong usage, 130 or 143 stopped by a signal,
with a checkpoint saved.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

import click

from fs3 import __version__
from fs3.errors import Fs3Error, missing_package
from fs3.filesystem.secret import use_secret

DETERMINISTIC = {"MKL_CBWR": "AUTO,STRICT", "MKL_DYNAMIC": "FALSE", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

# Threads that wait for each other spin for some microseconds and then give up their core, which a storage daemon or
# another job may want. Seconds a step of the small preset, two threads on two cores, left alone and beside two busy
# loops: 0.46 and 1.4 so, 0.57 and 2.4 when they never spin; 0.45 when they spin on, and 3.1 to 5.6 among other jobs.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--config", default="small", show_default=True, help="A preset (tiny, small) or a TOML file.")
@click.option("--data", required=True, metavar="URL", help="The data set: an fs3:// URL or a local folder.")
@click.option("--checkpoint", metavar="URL", help="Where checkpoints go: an fs3:// URL or a local folder.")
@click.option("--steps", required=True, type=click.IntRange(min=1), help="Steps of the whole run.")
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint, if there is one.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--global-batch", type=click.IntRange(min=1), help="Sequences a step; the config's unless given.")
@click.option("--seed", type=click.IntRange(min=0), help="Of weights and shuffle; the config's unless given.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all, or those of the checkpoint.")
@click.option(
    "--checkpoint-every", type=click.IntRange(min=0), default=100, show_default=True, help="Steps; 0: only at the end."
)
@click.option("--keep", type=click.IntRange(min=1), default=3, show_default=True, help="Checkpoints to keep.")
@click.option("--log-every", type=click.IntRange(min=1), default=10, show_default=True, help="Steps between lines.")
@click.option(
    "--metrics", type=click.Path(dir_okay=False, path_type=Path), help="Append one JSON line a step to this file."
)
@click.version_option(__version__, prog_name="fs3-train", message="%(prog)s %(version)s")
def main(
    config: str,
    data: str,
    checkpoint: str | None,
    steps: int,
    resume: bool,
    device: str,
    global_batch: int | None,
    seed: int | None,
    threads: int | None,
    checkpoint_every: int,
    keep: int,
    log_every: int,
    metrics: Path | None,
) -> None:
    """Train a DeepSeek-V3-shaped model on a data set, with checkpoints that survive anything."""
    # Sums in a fixed order, whatever the load of the machine and where memory lies; the libraries read these when they
    # are loaded. Measured on two cores: no slower.
    for name, value in (DETERMINISTIC | PATIENT).items():
        os.environ.setdefault(name, value)
    use_secret(os.environ.get("FS3_SECRET", ""))
    try:
        # Imported here, so that --help and usage errors need not wait for torch.
        from fs3_trainer.train.session import Options, train
    except ModuleNotFoundError as error:
        click.echo(f"fs3-train: {missing_package(error, 'trainer')}", err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None

    caught: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        # The second signal ends the process at once.
        signal.signal(signum, signal.SIG_DFL)

    previous = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    options = Options(
        config=config,
        data=data,
        checkpoint=checkpoint,
        steps=steps,
        resume=resume,
        device=device,
        global_batch=global_batch,
        seed=seed,
        threads=threads,
        checkpoint_every=checkpoint_every,
        keep=keep,
        log_every=log_every,
        metrics=metrics,
    )
    try:
        done = train(options, click.echo, lambda: bool(caught))
    except Fs3Error as error:
        click.echo(f"fs3-train: {error}", err=True)
        raise SystemExit(1) from None
    except RuntimeError as error:  # also torch.OutOfMemoryError; the CPU's allocator has no class of its own
        if "memory" not in str(error):
            raise
        first, _, _ = str(error).partition("\n")
        click.echo(f"fs3-train: {first[:200]}; take a smaller --global-batch or a smaller model", err=True)
        raise SystemExit(1) from None
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if not done:
        raise SystemExit(128 + caught[0])
