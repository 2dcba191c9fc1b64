"""`fs3 mgmtd|meta|storage --config FILE.toml`: one daemon in the foreground, as systemd and containers want it.

The same file starts the same daemon on any machine; nothing is read from the environment. Logs go to standard error.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fs3.config import load_toml
from fs3.errors import Invalid

C = TypeVar("C")

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LEVELS = ("debug", "info", "warning", "error")


def _options(command: Callable[..., int]) -> Callable[..., int]:
    config = click.option(
        "--config",
        "config_file",
        required=True,
        type=click.Path(path_type=Path, dir_okay=False),
        help="The daemon's TOML file; deploy/ has an example.",
    )
    level = click.option(
        "--log-level", type=click.Choice(_LEVELS), default="info", show_default=True, help="What to write to the log."
    )
    return config(level(command))


@click.command()
@_options
def mgmtd(config_file: Path, log_level: str) -> int:
    """Run the cluster manager: who is alive, and which target serves which chain."""
    from fs3.mgmtd import server
    from fs3.mgmtd.config import MgmtdConfig

    return _run(config_file, log_level, MgmtdConfig, server.run)


@click.command()
@_options
def meta(config_file: Path, log_level: str) -> int:
    """Run a metadata daemon: names, directories, attributes."""
    from fs3.meta import server

    return _run(config_file, log_level, server.MetaConfig, server.run)


@click.command()
@_options
@click.option("--worker", type=int, hidden=True, help="Be this worker of the daemon; used by the daemon itself.")
@click.option("--report", type=int, default=-1, hidden=True, help="Descriptor for the worker to report to.")
def storage(config_file: Path, log_level: str, worker: int | None, report: int) -> int:
    """Run a storage daemon: the chunks on this node's disks."""
    from fs3.storage import server, supervisor
    from fs3.storage.config import StorageConfig

    def command(number: int, descriptor: int) -> list[str]:
        own = ["--config", str(config_file), "--log-level", log_level]
        return [sys.executable, "-m", "fs3.cli.main", "storage", *own, f"--worker={number}", f"--report={descriptor}"]

    def run(config: StorageConfig) -> int:
        if worker is not None:
            return supervisor.run_worker(config, worker, report)
        return server.run(config) if config.workers == 1 else supervisor.run(config, command)

    form = _FORMAT if worker is None else f"%(asctime)s %(levelname)s worker {worker} %(name)s: %(message)s"
    return _run(config_file, log_level, StorageConfig, run, form)


def _run(config_file: Path, log_level: str, kind: type[C], run: Callable[[C], Any], form: str = _FORMAT) -> int:
    logging.basicConfig(level=log_level.upper(), format=form)
    where = f"config {config_file}"
    try:
        config = load_toml(config_file, kind)
    except Invalid as error:
        text = str(error)
        raise Invalid(text if text.startswith(where) else f"{where}: {text}") from None
    return int(run(config))
