"""`fs3 admin fsck`: whether the metadata hangs together."""

from __future__ import annotations

import dataclasses
import json

import click

from fs3.cli.admin_show import json_option, secret_option, url_argument
from fs3.client.connect import connect


@click.command("fsck", short_help="Look whether the metadata hangs together.")
@url_argument
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds that it may take.")
@json_option
@secret_option
def fsck(url: str, timeout_s: float, as_json: bool, secret: str) -> int:
    """Have a meta daemon read all of the metadata, as it is at one moment, and compare every record with the others.

    The cluster goes on meanwhile; nothing is changed. Exits 1 if something is wrong.
    """
    health = connect(url, secret=secret).meta.fsck(timeout_s=timeout_s)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(health)))
    else:
        for line in health.findings:
            click.echo(line)
        if health.wrong > len(health.findings):
            click.echo(f"and {health.wrong - len(health.findings):,} more")
        seen = f"{health.inodes:,} inodes, {health.dead:,} that wait to be collected"
        click.echo(f"{seen}: {f'{health.wrong:,} things are wrong' if health.wrong else 'all hangs together'}")
    return 1 if health.wrong else 0


COMMANDS = (fsck,)
