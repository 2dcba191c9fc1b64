"""The small loop that executes the stages, and the room they run in: folders made before, everything removed behind."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import psutil

from fs3.cluster.folder import Folder
from fs3.cluster.stopping import stop_folder
from fs3.errors import Fs3Error
from fs3_trainer.demo.commands import Commands
from fs3_trainer.demo.daemons import processes_below
from fs3_trainer.demo.demo import Demo, Stage
from fs3_trainer.demo.narrator import Narrator
from fs3_trainer.demo.outcome import FellShort, StageRun
from fs3_trainer.demo.settings import Settings

DOWN_S = 60.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Inside, the signals that end a program raise `Interrupted` in the main thread."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def room(settings: Settings, narrator: Narrator, *, keep: bool) -> Iterator[Demo]:
    """A demo in a temporary folder. However it ends, no process of it is left, nor, without `keep`, the folder."""
    folder = Path(tempfile.mkdtemp(prefix="fs3-demo-"))
    (folder / "log").mkdir()
    demo = Demo(settings=settings, narrator=narrator, commands=Commands(narrator, folder / "log"), folder=folder)
    try:
        yield demo
    finally:
        with _undisturbed():
            end_everything(demo)
            if keep:
                narrator.say(f"kept: {folder} (fs3 up --dir {demo.cluster_dir} starts its cluster again)")
            else:
                shutil.rmtree(folder, ignore_errors=True)


def execute(demo: Demo, stages: Sequence[Stage]) -> list[StageRun]:
    """Run the stages in order. One that cannot go on ends the demo; those behind it, but for the last, are not run."""
    runs: list[StageRun] = []
    for number, stage in enumerate(stages, 1):
        demo.narrator.stage(number, len(stages), f"{stage.title}: {stage.about}")
        if any(run.failure for run in runs):
            runs.append(StageRun(name=stage.name, title=stage.title, about=stage.about))
            demo.narrator.say("not run")
            continue
        runs.append(_run(demo, stage))
    return runs


def _run(demo: Demo, stage: Stage) -> StageRun:
    began_s = time.monotonic()
    outcome, failure = None, ""
    try:
        outcome = stage.run(demo)
    except (FellShort, Fs3Error, OSError) as error:
        failure = str(error)
        demo.narrator.failure(failure)
    else:
        demo.results.append(outcome)
        for check in outcome.checks:
            demo.narrator.check(check)
    seconds = time.monotonic() - began_s
    return StageRun(
        name=stage.name, title=stage.title, about=stage.about, seconds=seconds, outcome=outcome, failure=failure
    )


def save_logs(demo: Demo, destination: Path) -> None:
    """Copy what the commands and the daemons wrote into `destination`, which is made. Raises: OSError."""
    destination.mkdir(parents=True)
    for source, name in ((demo.folder / "log", "commands"), (Folder(demo.cluster_dir).log_dir, "cluster")):
        if source.is_dir():
            shutil.copytree(source, destination / name)
    if demo.metrics_file.is_file():
        shutil.copy(demo.metrics_file, destination / demo.metrics_file.name)


def end_everything(demo: Demo) -> None:
    """End the trainer, the cluster and whatever else still runs; nothing to do after a demo that went through."""
    demo.commands.end_all()
    folder = Folder(demo.cluster_dir)
    if folder.in_use():
        with contextlib.suppress(FellShort):
            demo.commands.run("fs3", "down", str(folder.path), timeout_s=DOWN_S, busy="stopping the daemons")
    if folder.in_use():
        with contextlib.suppress(Fs3Error):
            stop_folder(folder.path, timeout_s=DOWN_S)
    for line in processes_below(demo.folder):
        with contextlib.suppress(psutil.Error):
            psutil.Process(int(line.partition(" ")[0])).kill()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Inside, signals that would end the demo wait: it is ending, and every step of that has a limit of its own."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
