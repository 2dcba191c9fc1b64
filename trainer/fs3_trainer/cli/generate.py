"""`fs3-generate`: the command line of inference.

The text goes to standard output as it comes, one line of figures to standard error at the end. Exit status: 0 done, 1
it failed (one line on standard error says why), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys

import click

from fs3 import __version__
from fs3.config import parse_bytes
from fs3.errors import Fs3Error, Invalid, NotFound, missing_package
from fs3.filesystem.secret import use_secret
from fs3_trainer.cli.train import DETERMINISTIC, PATIENT


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--checkpoint", required=True, metavar="URL", help="Where fs3-train saved; the newest step, or one of them."
)
@click.option("--kv-cache", metavar="URL", help="A directory on fs3 that keeps the prompts' pages; made if missing.")
@click.option("--kv-limit", metavar="SIZE", help="Remove the cache's oldest pages beyond this size, such as 2GiB.")
@click.option("--prompt", metavar="TEXT", help="What to continue.")
@click.option("--prompt-file", metavar="FILE", help="A UTF-8 file with what to continue; - for standard input.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--page-tokens", type=click.IntRange(min=1, max=4096), default=64, show_default=True)
@click.option("--cache-dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: always the likeliest token.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Draw from the likeliest of this mass.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draws.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all unless given.")
@click.option("--secret", envvar="FS3_SECRET", default="", help="The cluster's secret, if it has one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with text and figures, instead of a stream.")
@click.version_option(__version__, prog_name="fs3-generate", message="%(prog)s %(version)s")
def main(
    checkpoint: str,
    kv_cache: str | None,
    kv_limit: str | None,
    prompt: str | None,
    prompt_file: str | None,
    max_new_tokens: int,
    page_tokens: int,
    cache_dtype: str,
    temperature: float,
    top_p: float,
    seed: int,
    device: str,
    threads: int | None,
    secret: str,
    as_json: bool,
) -> None:
    """Continue a text with a trained model; prompts that begin alike share their pages in the KV cache."""
    if (prompt is None) == (prompt_file is None):
        raise click.UsageError("give either --prompt or --prompt-file")
    if kv_limit is not None and kv_cache is None:
        raise click.UsageError("--kv-limit bounds a --kv-cache; give one")
    # The libraries read these when they are loaded: sums in a fixed order, so that a page has the same bits everywhere.
    for name, value in (DETERMINISTIC | PATIENT).items():
        os.environ.setdefault(name, value)
    use_secret(secret)
    try:
        # Imported here, so that --help and usage errors need not wait for torch.
        from fs3_trainer.infer.session import Options, generate

        options = Options(
            checkpoint=checkpoint,
            prompt=prompt if prompt is not None else _read(prompt_file or "-"),
            kv_cache=kv_cache,
            kv_limit_bytes=parse_bytes(kv_limit) if kv_limit is not None else None,
            max_new_tokens=max_new_tokens,
            page_tokens=page_tokens,
            cache_dtype=cache_dtype,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            device=device,
            threads=threads,
            secret=secret,
            math_mode=os.environ["MKL_CBWR"],
        )
        result = generate(options, _ignore if as_json else _stream, _warn)
    except ModuleNotFoundError as error:
        click.echo(f"fs3-generate: {missing_package(error, 'trainer')}", err=True)
        raise SystemExit(1) from None
    except Fs3Error as error:
        click.echo(f"fs3-generate: {error}", err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Nobody reads on: leave nothing for the interpreter to flush into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    click.echo(json.dumps(result.as_data(), ensure_ascii=False) if as_json else "")
    click.echo(f"fs3-generate: {result.line()}", err=True)


def _read(path: str) -> str:
    """The text of the file `path`. Raises: NotFound, Invalid."""
    try:
        with click.open_file(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        raise NotFound(f"prompt file {path}: no such file") from None
    except UnicodeDecodeError:
        raise Invalid(f"prompt file {path}: not UTF-8 text") from None
    except OSError as error:
        raise Invalid(f"prompt file {path}: {error.strerror}") from None


def _stream(piece: str) -> None:
    click.echo(piece, nl=False)
    sys.stdout.flush()


def _ignore(piece: str) -> None:
    """With --json the text comes at the end."""


def _warn(line: str) -> None:
    click.echo(f"fs3-generate: warning: {line}", err=True)
