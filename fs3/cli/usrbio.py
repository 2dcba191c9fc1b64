"""`fs3 usrbio URL`: the I/O process of this user and host, in the foreground, as systemd and containers want it.

Without it the first application that opens USRBIO starts one, which ends by itself.
"""

from __future__ import annotations

import logging

import click

from fs3.cli.admin_show import secret_option, url_argument
from fs3.url import parse_url


@click.command()
@url_argument
@click.option("--workers", type=click.IntRange(1, 64), help="Batches read at once. [default: 2 to 4, by the cores]")
@click.option("--idle", type=float, metavar="SECONDS", help="End when nobody has used it for so long. [default: never]")
@secret_option
def usrbio(url: str, workers: int | None, idle: float | None, secret: str) -> None:
    """Read and write for the applications of this user on this host (`fs3.usrbio`), until it is stopped.

    There is one for each user and cluster. It logs to standard error.
    """
    from fs3.usrbio.process import serve
    from fs3.usrbio.start import default_workers

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    addresses, _ = parse_url(url)
    serve(
        addresses,
        secret=secret,
        workers=workers or default_workers(),
        idle_s=idle,
        ready=lambda: click.echo(f"reading for {url}"),
    )
