"""`fs3 bench URL`: how fast a cluster is from here, as fio would ask a disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from fs3.bench.dataset import Dataset
from fs3.bench.job import Job, Op
from fs3.bench.latency_core import Latencies
from fs3.bench.run import Outcome, run
from fs3.cli.admin_show import json_option, secret_option, url_argument
from fs3.cli.status import size as shown
from fs3.client.connect import connect
from fs3.config import parse_bytes
from fs3.errors import Invalid
from fs3.layout import LayoutChoice
from fs3.url import parse_url

_BARS = " ▁▂▃▄▅▆▇█"
_PERCENTS = (50, 90, 99, 99.9)


@click.command()
@url_argument
@click.option("--op", type=click.Choice([op.value for op in Op]), default="read", show_default=True, help="As in fio.")
@click.option("--size", default="4MiB", show_default=True, help="Of a range, or of a file that is written.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Ranges, or files, in one call.")
@click.option("--clients", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of each process: calls at once.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="How long.")
@click.option("--data", default="1GiB", show_default=True, help="What is read from, all files together.")
@click.option("--file-size", default="64MiB", show_default=True, help="Of each of these files.")
@click.option("--reads", type=float, default=0.7, show_default=True, help="The share of calls that read, of randrw.")
@click.option("--network", is_flag=True, help="Read over the network also from daemons of this host.")
@click.option("--replicas", type=click.IntRange(1), help="Of the files. [default: as the directory has it]")
@json_option
@secret_option
def bench(
    url: str,
    op: str,
    size: str,
    batch: int,
    clients: int,
    threads: int,
    seconds: float,
    data: str,
    file_size: str,
    reads: float,
    network: bool,
    replicas: int | None,
    as_json: bool,
    secret: str,
) -> None:
    """Read from, or write to, the cluster as fast as it goes, and tell how fast that is.

    The files lie in a directory of their own at URL, which is removed at the end. `read` goes through them, `randread`
    anywhere in them; `write` makes whole files, which are durable on every replica when a call returns. Every byte
    read is verified. Reads soon come from the memory of the storage nodes, unless --data is more than that.
    """
    job = Job(
        Op(op),
        _bytes("--size", size),
        batch,
        clients,
        threads,
        seconds,
        _bytes("--data", data),
        _bytes("--file-size", file_size),
        reads,
        not network,
    )
    job.check()
    addresses, path = parse_url(url)
    client = connect(url, secret=secret)
    client.mgmtd.wait_ready(5.0)
    console = Console(stderr=True)
    dataset = Dataset(client, path or "/", job, LayoutChoice(replicas=replicas))
    try:
        _lay_out(dataset, job, console)
        with _live(job, console) as heard:
            outcome = run(tuple(addresses), secret, job, dataset.paths, dataset.path, heard)
    finally:
        dataset.remove()
    if as_json:
        click.echo(json.dumps(_data(job, outcome), indent=2))
    else:
        _print(job, outcome)


def _bytes(option: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except Invalid as error:
        raise Invalid(f"{option}: {error}") from None


def _lay_out(dataset: Dataset, job: Job, console: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("writing what is to be read", total=job.files * job.file_bytes, visible=job.reads)
        dataset.lay_out(lambda count: bar.advance(task, count))


@contextmanager
def _live(job: Job, console: Console) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(job.op.value, total=job.seconds, now="")

        def heard(outcome: Outcome) -> None:
            seen, seconds = outcome.seen, max(outcome.seconds, 1e-9)
            both = Latencies()
            both += seen.reads
            both += seen.writes
            rate = f"{shown(int((seen.read_bytes + seen.written_bytes) / seconds))}/s"
            now = f"{rate}, {len(both) / seconds:,.0f} calls/s, p99 {_ms(both.percentile_ns(99))}"
            bar.update(task, completed=min(outcome.seconds, job.seconds), now=now)

        yield heard


def _print(job: Job, outcome: Outcome) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, 150)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in (
        "bytes/s",
        "of " + shown(job.size) + ", /s",
        "calls/s",
        *(f"p{one:g}" for one in _PERCENTS),
        "longest",
    ):
        table.add_column(name, justify="right")
    for name, count, latencies in _rows(outcome):
        calls = len(latencies) / outcome.seconds
        cells = [_ms(latencies.percentile_ns(one)) for one in _PERCENTS]
        rate = f"{shown(int(count / outcome.seconds))}/s"
        table.add_row(name, rate, f"{calls * job.batch:,.0f}", f"{calls:,.0f}", *cells, _ms(latencies.longest_ns))
    console.print(table)
    moved = outcome.seen.read_bytes + outcome.seen.written_bytes
    rates = [sum(one) / outcome.step_s for one in outcome.timeline]
    if len(rates) > 2:
        console.print(f"\neach second  {_sparkline(rates[:-1])}  up to {shown(int(max(rates)))}/s")
    clients = (
        f"{job.clients} process{'es' if job.clients > 1 else ''} x {job.threads} thread{'s' if job.threads > 1 else ''}"
    )
    cpu = f"{outcome.cpu_s / moved * 1e9:.2f} CPU s a GB in the clients" if moved else "nothing was moved"
    console.print(f"{clients}, {outcome.seconds:.1f} s, {shown(moved)}; {cpu}")


def _rows(outcome: Outcome) -> list[tuple[str, int, Latencies]]:
    seen = outcome.seen
    rows = [("read", seen.read_bytes, seen.reads), ("written, durable", seen.written_bytes, seen.writes)]
    return [row for row in rows if len(row[2])]


def _sparkline(rates: list[float]) -> str:
    most = max(rates) or 1.0
    return "".join(_BARS[round(rate / most * (len(_BARS) - 1))] for rate in rates[-100:])


def _ms(ns: float) -> str:
    ms = ns / 1e6
    return f"{ms:.2f} ms" if ms < 10 else f"{ms:,.0f} ms"


def _data(job: Job, outcome: Outcome) -> dict[str, Any]:
    seen = outcome.seen
    return {
        "job": {**dataclasses.asdict(job), "op": job.op.value},
        "seconds": outcome.seconds,
        "client_cpu_s": outcome.cpu_s,
        **{
            name: {
                "bytes": count,
                "bytes_s": count / outcome.seconds,
                "calls": len(latencies),
                "calls_s": len(latencies) / outcome.seconds,
                "latency_ns": {f"p{one:g}": round(latencies.percentile_ns(one)) for one in _PERCENTS},
                "longest_ns": latencies.longest_ns,
            }
            for name, count, latencies in (
                ("read", seen.read_bytes, seen.reads),
                ("written", seen.written_bytes, seen.writes),
            )
        },
        "timeline": {"step_s": outcome.step_s, "read_bytes": [one for one, _ in outcome.timeline]}
        | {"written_bytes": [one for _, one in outcome.timeline]},
    }
