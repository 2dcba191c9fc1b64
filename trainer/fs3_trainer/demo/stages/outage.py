"""Kill a storage daemon with SIGKILL under load and bring it back: no call fails, and the trainer does not notice.

The daemon dies after the first checkpoint and stays away until mgmtd has seen it go and the trainer has written
another checkpoint without it. Then it is started again, and its targets are brought up to date under load.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import fsspec

from fs3.client.connect import connect
from fs3.cluster.folder import Folder, storage_name
from fs3_trainer.demo.daemons import daemon_pid
from fs3_trainer.demo.demo import Demo
from fs3_trainer.demo.outcome import Check, Figure
from fs3_trainer.demo.sampler import Sampled, Sampler
from fs3_trainer.demo.settings import checkpoint_every
from fs3_trainer.demo.stages.cluster import read_status
from fs3_trainer.demo.training_run import TrainingRun
from fs3_trainer.demo.units import count, duration, size
from fs3_trainer.demo.waiting import wait_until
from fs3_trainer.demo.watch import Seen, Watch

NODE = 2
BEFORE_S = 4.0
"""how long the load runs before the kill and after the recovery, so that the picture has two sides"""
NOTICED_S = 30.0
NEXT_CHECKPOINT_S = 240.0
RECOVERED_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """What happened when; times are seconds since 1970."""

    daemon: str
    killed: float
    noticed: float
    returned: float
    recovered: float
    sampled: Sampled
    seen: tuple[Seen, ...]
    lost_writes: tuple[str, ...]
    status_serving: int
    """targets that serve at the end, as `fs3 status` counts them"""
    status_targets: int
    trainer_runs: bool
    steps_without: int
    """training steps that ended while the daemon was away"""
    checkpoints_without: tuple[int, ...]

    @property
    def checks(self) -> tuple[Check, ...]:
        calls = len(self.sampled.reads) + len(self.sampled.writes)
        failures = self.sampled.failures
        down = min((seen.serving for seen in self.seen), default=0)
        return (
            Check(
                "no call failed, and every byte read is the byte written",
                f"{len(failures)} failed, the first: {failures[0]}" if failures else f"{calls:,} calls, 0 failed",
                calls > 0 and not failures,
            ),
            Check(
                "every acknowledged write is there",
                f"lost: {self.lost_writes[0]}" if self.lost_writes else f"all {len(self.sampled.writes):,} read back",
                not self.lost_writes,
            ),
            Check(
                "the trainer did not notice",
                f"{count(self.steps_without, 'step')} and checkpoint {', '.join(map(str, self.checkpoints_without))}"
                " without the daemon",
                self.trainer_runs and self.steps_without > 0 and bool(self.checkpoints_without),
            ),
            Check(
                "every chain serves with all replicas again",
                f"{down}, then {self.status_serving} of {self.status_targets} targets",
                down < self.status_targets == self.status_serving,
            ),
        )

    @property
    def figures(self) -> tuple[Figure, ...]:
        reads, writes = self.sampled.reads, self.sampled.writes
        return (
            Figure("marked offline after", duration(self.noticed - self.killed)),
            Figure("away for", duration(self.returned - self.killed)),
            Figure("serving again after", duration(self.recovered - self.returned)),
            Figure("read beside the training", f"{size(sum(c.bytes for c in reads))} in {len(reads):,} calls"),
            Figure("written beside it", f"{size(sum(c.bytes for c in writes))} in {len(writes):,} calls"),
            Figure("slowest read", duration(max((c.ended - c.began for c in reads), default=0.0))),
            Figure("slowest write", duration(max((c.ended - c.began for c in writes), default=0.0))),
        )


def lose_a_daemon(demo: Demo) -> Outage:
    """The stage."""
    run = demo.trainer
    assert run is not None
    fs, root = fsspec.url_to_fs(demo.place("corpus"))
    shards = {path: fs.cat_file(path) for path in fs.find(root) if not path.endswith(".json")}
    client = connect(demo.url)
    watch, sampler = Watch(client), Sampler(fs, shards, f"{root.rpartition('/')[0]}/scratch")
    try:
        watch.start()
        sampler.start()
        demo.narrator.say(f"a reader and a writer run beside the trainer, over {size(sum(map(len, shards.values())))}")
        killed, noticed, returned, without = _kill_and_return(demo, run, watch, sampler)
        recovered = _recover(demo, run, watch, sampler)
    finally:
        sampled, seen = sampler.stop(), watch.stop()
    status = read_status(demo)
    lost = sampler.lost_writes()
    run.look()
    return Outage(
        daemon=storage_name(NODE),
        killed=killed,
        noticed=noticed,
        returned=returned,
        recovered=recovered,
        sampled=sampled,
        seen=seen,
        lost_writes=tuple(lost),
        status_serving=sum(target["state"] == "serving" for target in status["targets"]),
        status_targets=len(status["targets"]),
        trainer_runs=run.running.poll() in (None, 0),
        steps_without=sum(killed < step.time < returned for step in run.log.all_steps),
        checkpoints_without=tuple(without),
    )


def _kill_and_return(
    demo: Demo, run: TrainingRun, watch: Watch, sampler: Sampler
) -> tuple[float, float, float, list[int]]:
    """When the daemon was killed, was missed and was started again, and the checkpoints that were written meanwhile."""
    folder, name = Folder(demo.cluster_dir), storage_name(NODE)
    with demo.narrator.bar("training", run.steps) as bar:
        look = _looking(run, bar.update)
        early = checkpoint_every(run.steps) / 2  # soon after a checkpoint, so that many steps lie before the next
        wait_until(
            lambda: sampler.last_ended - sampler.first_began >= BEFORE_S and run.step - max(run.saved) <= early,
            what="calls before the kill, and a checkpoint",
            timeout_s=NEXT_CHECKPOINT_S,
            on_look=look,
        )
        before = set(run.saved)
        demo.commands.kill(daemon_pid(folder, name))
        killed = time.time()
        demo.narrator.event(f"{name} was killed at step {run.step}")
        wait_until(lambda: not watch.now.whole, what=f"mgmtd missing {name}", timeout_s=NOTICED_S, on_look=look)
        noticed = watch.now.time
        demo.narrator.say(
            f"mgmtd missed it after {duration(noticed - killed)}:"
            f" {watch.now.serving} of {watch.now.targets} targets serve"
        )
        wait_until(
            lambda: bool(set(run.saved) - before),
            what="a checkpoint without it",
            timeout_s=NEXT_CHECKPOINT_S,
            on_look=look,
        )
        without = sorted(set(run.saved) - before)
        demo.narrator.say(f"the trainer has written checkpoint {without[-1]} without it")
        demo.commands.start("fs3", "storage", "--config", str(folder.config(name)), log=folder.log(name))
        returned = time.time()
        demo.narrator.event(f"{name} is back after {duration(returned - killed)}, at step {run.step}")
    return killed, noticed, returned, without


def _recover(demo: Demo, run: TrainingRun, watch: Watch, sampler: Sampler) -> float:
    """Wait until every target serves, and a while longer; when it was."""
    with demo.narrator.bar("training", run.steps) as bar:
        look = _looking(run, bar.update)
        took_s = wait_until(
            lambda: watch.now.whole, what="every chain serving with all replicas", timeout_s=RECOVERED_S, on_look=look
        )
        recovered = watch.now.time
        demo.narrator.event(f"every chain serves with all replicas again, {duration(took_s)} after its return")
        wait_until(
            lambda: sampler.last_ended - recovered >= BEFORE_S,
            what="calls after the recovery",
            timeout_s=NOTICED_S,
            on_look=look,
        )
    return recovered


def _looking(run: TrainingRun, update: Callable[[int, str], None]) -> Callable[[], None]:
    def look() -> None:
        run.look_and_insist()
        update(run.step, run.note)

    return look
