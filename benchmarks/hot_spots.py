"""`make profile`: where the time goes of a client and of a storage daemon, under the loads of the table's read rows.

    benchmarks/hot_spots.py [--seconds N] [--out DIR]

A cluster of one node, and a client in a process of its own (this file with "load"), which reads batches of 256 x 4 KiB,
then single ranges of 4 MiB, and then of 4 KiB in 32 asyncio tasks, over TCP. Meanwhile py-spy looks at both processes
from outside, a hundred times a second: at the Python stacks of all threads that run, in the interpreter or in the
kernel. Line by line that is what they spend their CPU time on; how much of it the kernel took, and in which threads, is
the kernel's own count.

Writes DIR/profile.txt, and a flame graph of each process under each load, DIR/profile-LOAD-PROCESS.svg.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
import numpy as np
import psutil

from benchmarks.context import REQUEST_BYTES, buffer
from benchmarks.peers.driven import Driven
from benchmarks.peers.environment import python_with
from benchmarks.peers.obey import obey, timed_calls
from benchmarks.peers.peer import Missing
from fs3.client.coalesce import AsyncReader
from fs3.client.connect import connect
from fs3.client.file import FileClient, OpenFile
from fs3.cluster.local import LocalCluster
from fs3.errors import Fs3Error
from fs3.layout import LayoutChoice

PACKAGE = "py-spy==0.4.3"
RATE_HZ = 100
FILE_BYTES = 256 << 20
TOP = 16
_TURNS = 64


@dataclass(frozen=True, slots=True)
class Load:
    """Calls of `batch` random ranges of `size`; or single ranges by so many asyncio `tasks`."""

    name: str
    size: int
    batch: int = 1
    tasks: int = 0


LOADS = (Load("4k-batches", 4 << 10, batch=256), Load("4m-reads", 4 << 20), Load("4k-tasks", 4 << 10, tasks=32))


@dataclass(frozen=True, slots=True)
class Threads:
    """CPU seconds of a process's threads of one name."""

    name: str
    user_s: float
    kernel_s: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What was seen of one process. `stacks`: frames from the outermost in, and how often they were seen."""

    load: str
    process: str
    seconds: float
    rate: float
    threads: Sequence[Threads]
    stacks: Mapping[tuple[str, ...], int]

    def lines(self) -> Iterator[str]:
        """As text."""
        user, kernel = sum(one.user_s for one in self.threads), sum(one.kernel_s for one in self.threads)
        yield f"{self.load}, {self.process}: {self.rate / 1e9:.2f} GB/s while it was watched"
        for one in (Threads("all threads", user, kernel), *self.threads):
            busy_s = one.user_s + one.kernel_s
            share = f"{one.kernel_s / max(busy_s, 1e-9):4.0%}"
            yield f"    {busy_s / self.seconds:5.2f} cores, {share} of it in the kernel: {one.name}"
        yield "  its own time, by line:"
        yield from _ranked(own_time(self.stacks))
        yield "  with what it calls, by function of fs3:"
        yield from _ranked(total_time(self.stacks))


def own_time(stacks: Mapping[tuple[str, ...], int]) -> dict[str, float]:
    """The share of all samples in which each line was the innermost."""
    counts: collections.Counter[str] = collections.Counter()
    for frames, seen in stacks.items():
        counts[frames[-1]] += seen
    return _shares(counts, sum(stacks.values()))


def total_time(stacks: Mapping[tuple[str, ...], int]) -> dict[str, float]:
    """The share of all samples in which each function of fs3 was anywhere."""
    counts: collections.Counter[str] = collections.Counter()
    for frames, seen in stacks.items():
        for function in {f"{frame.rpartition(':')[0]})" for frame in frames if "(fs3/" in frame}:
            counts[function] += seen
    return _shares(counts, sum(stacks.values()))


def parsed(collapsed: str) -> dict[tuple[str, ...], int]:
    """Of "outermost;...;innermost COUNT" lines, as py-spy writes them; without its frames for processes and threads."""
    stacks: collections.Counter[tuple[str, ...]] = collections.Counter()
    for line in collapsed.splitlines():
        text, _, count = line.rpartition(" ")
        frames = tuple(frame for frame in text.split(";") if not frame.startswith(("process ", "thread (")))
        if frames:
            stacks[frames] += int(count)
    return dict(stacks)


def _shares(counts: Mapping[str, int], total: int) -> dict[str, float]:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {name: count / total for name, count in ranked[:TOP]}


def _ranked(shares: Mapping[str, float]) -> Iterator[str]:
    for name, share in shares.items():
        yield f"    {share:6.1%}  {name}"


class PySpy:
    """Watches processes."""

    def __init__(self, program: Path) -> None:
        self._program = program

    @contextlib.contextmanager
    def watching(self, pid: int, output: Path, form: str, seconds: float) -> Iterator[None]:
        """For so long, begun when the block begins. Raises: Missing: it may not, or cannot; with its last words."""
        # A process that is stopped for each look does a third of its work, and wakes threads that wait.
        options = ["--subprocesses", "--threads", "--nonblocking", "--rate", str(RATE_HZ), "--output", str(output)]
        options += ["--format", form, "--duration", str(round(seconds))]
        command = [str(self._program), "record", "--pid", str(pid), *options]
        watcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            yield
            said, _ = watcher.communicate(timeout=seconds + 30)
        except BaseException:
            watcher.kill()
            watcher.communicate()
            raise
        if watcher.returncode or not output.exists():
            words = said.strip().splitlines()
            raise Missing(f"py-spy cannot watch process {pid}: {words[-1] if words else 'no word of why'}")


def watch(
    spy: PySpy, load: Load, client: Driven, processes: Mapping[str, psutil.Process], out: Path, seconds: float
) -> Iterator[Profile]:
    """Twice the same load: once for the samples, once for the flame graphs."""
    for form, suffix in (("flamegraph", "svg"), ("raw", "raw")):
        outputs = {name: out / f"profile-{load.name}-{name}.{suffix}" for name in processes}
        client.send(do="run", size=load.size, batch=load.batch, tasks=load.tasks, seconds=seconds + 3)
        with contextlib.ExitStack() as stack:
            before = {name: _threads(process) for name, process in processes.items()}
            begin_s = time.monotonic()
            for name, process in processes.items():
                stack.enter_context(spy.watching(process.pid, outputs[name], form, seconds))
        after = {name: _threads(process) for name, process in processes.items()}
        elapsed_s = time.monotonic() - begin_s
        answer = client.answer()
    for name, path in outputs.items():
        used = _difference(before[name], after[name])
        stacks = parsed(path.read_text(encoding="utf-8"))
        path.unlink()
        yield Profile(load.name, name, elapsed_s, answer["amount"] / answer["seconds"], used, stacks)


def _threads(process: psutil.Process) -> dict[int, tuple[str, float, float]]:
    """Of a process and its children, by their numbers: name, and seconds in user and kernel mode."""
    found = {}
    for one in (process, *process.children(recursive=True)):
        for thread in one.threads():
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{one.pid}/task/{thread.id}/comm").read_text(encoding="utf-8").strip()
                found[thread.id] = (name, thread.user_time, thread.system_time)
    return found


def _difference(
    before: Mapping[int, tuple[str, float, float]], after: Mapping[int, tuple[str, float, float]]
) -> list[Threads]:
    """Those that did something, the busiest first; threads of one name together."""
    sums: dict[str, tuple[float, float]] = {}
    for number, (name, user, kernel) in after.items():
        _, user_then, kernel_then = before.get(number, (name, 0.0, 0.0))
        user_sum, kernel_sum = sums.get(name, (0.0, 0.0))
        sums[name] = user_sum + user - user_then, kernel_sum + kernel - kernel_then
    used = [Threads(name, user, kernel) for name, (user, kernel) in sums.items() if user + kernel > 0]
    return sorted(used, key=lambda one: -(one.user_s + one.kernel_s))


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", type=click.IntRange(min=1), default=6, show_default=True, help="Of each recording.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("bench-out"), show_default=True)
@click.pass_context
def main(context: click.Context, seconds: int, out: Path) -> None:
    """Where the time goes of a client and of a storage daemon."""
    if context.invoked_subcommand is not None:
        return
    scratch = out / "scratch"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        click.echo(f"looking for {PACKAGE}", err=True)
        python = python_with(out.resolve() / "peers" / "py-spy", (PACKAGE,), install=True)
        profiles = list(_profiles(PySpy(python.parent / "py-spy"), scratch, out, seconds))
    except (Missing, Fs3Error) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{out}: {error.strerror}; choose another folder with --out") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    text = "\n".join(line for profile in profiles for line in (*profile.lines(), ""))
    (out / "profile.txt").write_text(text, encoding="utf-8")
    click.echo(text)
    click.echo(f"written: {out / 'profile.txt'}, and the flame graphs {out}/profile-*.svg")


def _profiles(spy: PySpy, scratch: Path, out: Path, seconds: float) -> Iterator[Profile]:
    click.echo("starting a cluster of one storage node", err=True)
    with LocalCluster(scratch / "cluster", nodes=1, replicas=1, port=0) as cluster, contextlib.ExitStack() as stack:
        path = _written(cluster.url)
        command = [sys.executable, __file__, "load", cluster.url, path]
        client = stack.enter_context(Driven(command, scratch / "client"))
        daemon = next(pid for name, pid in cluster.pids.items() if name.startswith("storage"))
        processes = {"client": psutil.Process(client.pid), "storage": psutil.Process(daemon)}
        for load in LOADS:
            click.echo(f"watching {load.name}", err=True)
            yield from watch(spy, load, client, processes, out, seconds)


def _written(url: str) -> str:
    path, piece = "/profiled", np.random.default_rng(1).bytes(REQUEST_BYTES)
    client = connect(url, same_host=False)
    with client.files.create_writer(path, layout_choice=LayoutChoice(chunk_bytes=REQUEST_BYTES)) as writer:
        for _ in range(FILE_BYTES // REQUEST_BYTES):
            writer.write(piece)
    client.close()
    return path


@main.command(hidden=True)
@click.argument("url")
@click.argument("path")
def load(url: str, path: str) -> None:
    """Be the client."""
    files = connect(url, same_host=False).files
    file = files.open_read(path)

    def run(size: int, batch: int, tasks: int, seconds: float) -> dict[str, Any]:
        if tasks:
            return asyncio.run(_reads_of_tasks(files, file, size, tasks, seconds))
        return timed_calls(_reader(files.read_batch, file, size, batch), seconds)

    obey({"run": run})


def _reader(read_batch: Callable[..., None], file: OpenFile, size: int, batch: int) -> Callable[[int], float]:
    offsets = np.random.default_rng(7).integers(0, file.length // size, (_TURNS, batch)) * size
    first, lengths, out = np.zeros(batch, dtype=np.int64), np.full(batch, size, dtype=np.int64), buffer(size * batch)

    def read(number: int) -> float:
        read_batch([file], first, offsets[number % _TURNS], lengths, out)
        return size * batch

    return read


async def _reads_of_tasks(files: FileClient, file: OpenFile, size: int, tasks: int, seconds: float) -> dict[str, Any]:
    """As `timed_calls` answers."""
    offsets = (np.random.default_rng(7).integers(0, file.length // size, _TURNS * tasks) * size).tolist()
    reader = AsyncReader(files)
    begin_s, done = time.monotonic(), 0

    async def read(slot: int) -> None:
        nonlocal done
        number = slot * _TURNS
        while time.monotonic() < begin_s + seconds:
            await reader.read(file, offsets[number % len(offsets)], size)
            number, done = number + 1, done + 1

    try:
        async with asyncio.TaskGroup() as group:
            for slot in range(tasks):
                group.create_task(read(slot))
    finally:
        reader.close()
    return {"amount": done * size, "seconds": time.monotonic() - begin_s}


if __name__ == "__main__":
    main()
