"""`fs3-dataset`: import text as a dataset of tokens, and look at one."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from types import FrameType, TracebackType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fs3 import __version__
from fs3.config import parse_bytes
from fs3.errors import Fs3Error, missing_package
from fs3.filesystem.secret import use_secret
from fs3_loader.dataset import Dataset
from fs3_loader.location import as_fs3_error, one_line

PREVIEW_CHARS = 400


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fs3-dataset", message="%(prog)s %(version)s")
def commands() -> None:
    """Make and inspect datasets of tokens, on fs3:// or on a local path."""


@commands.command("import", short_help="Tokenize text files into a dataset.")
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.argument("url", metavar="URL")
@click.option("--tokenizer", required=True, help="bpe:N to learn N tokens from the sources, or file:PATH.")
@click.option("--seq", "seq_len", default=256, show_default=True, help="Tokens that a sample predicts.")
@click.option("--shard-size", default="64MiB", show_default=True, help="Size of a shard file.")
@click.option("--glob", default=None, help="Take files of folders whose name matches, such as '*.py'.")
@click.option("--eod", "end_of_document", default=None, help="End-of-document token of a tokenizer file.")
@click.option("--train-bytes", default="64MiB", show_default=True, help="Text that a tokenizer is learned from.")
@click.option("--overwrite", is_flag=True, help="Replace a dataset that is there.")
def import_command(
    sources: tuple[str, ...],
    url: str,
    tokenizer: str,
    seq_len: int,
    shard_size: str,
    glob: str | None,
    end_of_document: str | None,
    train_bytes: str,
    overwrite: bool,
) -> None:
    """Tokenize the text files SRC... (folders recursively) into a dataset at URL, a fs3:// URL or a local path."""
    from fs3_loader.importer import ImportOptions, import_dataset

    options = ImportOptions(
        sources=sources,
        url=url,
        tokenizer=tokenizer,
        seq_len=seq_len,
        shard_bytes=parse_bytes(shard_size),
        train_bytes=parse_bytes(train_bytes),
        glob=glob,
        end_of_document=end_of_document,
        overwrite=overwrite,
    )
    began = time.monotonic()
    with _Bar() as bar:
        manifest = import_dataset(options, bar)
    took = time.monotonic() - began
    source = manifest.source
    skipped = f", {source.skipped_files} skipped (not UTF-8 text)" if source.skipped_files else ""
    click.echo(
        f"{url}: {manifest.num_samples} samples of {manifest.seq_len} tokens in {len(manifest.shards)} shards, "
        f"vocabulary {manifest.vocab_size}, from {source.files} files{skipped} in {took:.1f} s"
    )


@commands.command("inspect", short_help="Show what a dataset holds.")
@click.argument("url", metavar="URL")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_command(url: str, as_json: bool) -> None:
    """Show what the dataset at URL holds, and how its first sample begins."""
    dataset = Dataset.open(url)
    manifest = dataset.manifest
    text = dataset.tokenizer().decode(dataset.read_tokens([0])[0].tolist(), skip_special_tokens=False)
    facts: dict[str, Any] = {
        "url": dataset.url,
        "samples": manifest.num_samples,
        "tokens": manifest.num_tokens,
        "seq_len": manifest.seq_len,
        "token_bytes": manifest.token_bytes,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "vocab_size": manifest.vocab_size,
        "tokenizer": asdict(manifest.tokenizer),
        "source": asdict(manifest.source),
        "fingerprint": manifest.fingerprint,
        "generation": manifest.generation,
        "sample_0": text[:PREVIEW_CHARS],
    }
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        _print_facts(facts)


def main() -> None:
    """The console script: errors are one line on stderr and exit status 1, wrong usage 2, Ctrl-C 130."""
    signal.signal(signal.SIGTERM, _terminate)
    use_secret(os.environ.get("FS3_SECRET", ""))
    try:
        commands.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; nothing was left behind", 130)
    except ModuleNotFoundError as error:
        _fail(str(missing_package(error, "loader")), 1)
    except Fs3Error as error:
        _fail(one_line(error), 1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _fail(one_line(as_fs3_error(error, str(error.filename or "input or output"))), 1)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds as Ctrl-C does, so that an import removes what it wrote."""
    raise KeyboardInterrupt


def _fail(message: str, status: int) -> None:
    click.echo(f"fs3-dataset: {message}", err=True)
    sys.exit(status)


def _print_facts(facts: dict[str, Any]) -> None:
    table = Table(title=facts["url"], show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    tokenizer, source = facts["tokenizer"], facts["source"]
    rows = {
        "samples": f"{facts['samples']:,} of {facts['seq_len']} + 1 tokens",
        "tokens": f"{facts['tokens']:,}, {facts['token_bytes']} bytes each",
        "shards": f"{facts['shards']:,}",
        "bytes": f"{facts['bytes']:,}",
        "tokenizer": f"{tokenizer['spec']}, vocabulary {facts['vocab_size']:,}, in {tokenizer['file']}",
        "source": f"{source['files']:,} files, {source['bytes']:,} bytes, {source['skipped_files']:,} files skipped",
        "fingerprint": facts["fingerprint"],
        "sample 0": facts["sample_0"],
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console(markup=False, highlight=False).print(table)


class _Bar:
    """The import's progress on stderr, as bars on a terminal and not at all elsewhere."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: Any = None

    def stage(self, name: str, total_bytes: int) -> None:
        """See `importer.Progress.stage`."""
        self._task = self._bars.add_task(name, total=total_bytes)

    def advance(self, num_bytes: int) -> None:
        """See `importer.Progress.advance`."""
        self._bars.advance(self._task, num_bytes)

    def __enter__(self) -> _Bar:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
