"""Generate text in several processes that share a prompt: the pages that one computed, the next ones load from fs3."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fs3_trainer.demo.demo import Demo
from fs3_trainer.demo.outcome import Check, Figure
from fs3_trainer.demo.settings import thread_options
from fs3_trainer.demo.units import count, duration

GENERATE_S = 120.0
STATS_S = 30.0
SHOWN_LINES = 5
SOURCE = "asyncio/queues.py"
"""whose beginning is the prompt: in the corpus, and long enough for many pages"""
DRAW = ("--temperature", "0.7", "--seed", "7")
"""drawn, not the likeliest: a small model repeats itself, and a draw would tell the smallest difference in a page"""
OTHER_END = "\n\ndef main():\n    "


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRun:
    """One process of `fs3-generate`, as its JSON tells it."""

    name: str
    prompt_end: str
    text: str
    prompt_tokens: int
    pages_loaded: int
    pages_computed: int
    pages_stored: int
    first_token_s: float
    """from the prompt's tokens to the first new one, the loading of pages included"""
    tokens_per_s: float
    new_tokens: int

    @property
    def pages(self) -> int:
        """Of the prompt."""
        return self.pages_loaded + self.pages_computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Three processes in order: cold, the same prompt again, another prompt with the same prefix."""

    runs: tuple[GenerateRun, GenerateRun, GenerateRun]

    @property
    def checks(self) -> tuple[Check, ...]:
        cold, warm, other = self.runs
        return (
            Check(
                "the first process computes and stores",
                f"{cold.pages_computed} computed, {cold.pages_stored} stored",
                cold.pages_loaded == 0 < cold.pages_stored,
            ),
            Check(
                "the second loads what the first stored",
                f"{warm.pages_loaded} loaded, {warm.pages_computed} computed",
                0 < cold.pages_stored <= warm.pages_loaded + 1 and warm.pages_computed < cold.pages_computed,
            ),
            Check(
                "it writes the same text for the same prompt",
                f"{count(warm.new_tokens, 'token')}" if warm.text == cold.text else f"{warm.text!r}, not {cold.text!r}",
                warm.text == cold.text and bool(cold.text),
            ),
            Check(
                "another prompt with the same prefix loads the pages of the prefix",
                f"{other.pages_loaded} loaded, {other.pages_computed} computed",
                other.pages_loaded > 0,
            ),
        )

    @property
    def figures(self) -> tuple[Figure, ...]:
        cold, warm, _ = self.runs
        return (
            Figure("prompt", f"{cold.prompt_tokens:,} tokens, {count(cold.pages, 'page')}"),
            Figure("first token, pages computed", duration(cold.first_token_s)),
            Figure("first token, pages loaded", duration(warm.first_token_s)),
            Figure("tokens a second", f"{cold.tokens_per_s:,.0f}"),
        )


def generate_twice(demo: Demo) -> Generated:
    """The stage."""
    prefix = (demo.text_dir / SOURCE).read_text(encoding="utf-8")[: demo.settings.prompt_chars]
    prefix = prefix[: prefix.rindex("\n") + 1]
    runs = tuple(
        _generate(demo, name, file, prompt)
        for name, file, prompt in (
            ("first process", "prompt.txt", prefix),
            ("same prompt again", "prompt.txt", prefix),
            ("same prefix, other end", "other.txt", prefix + OTHER_END),
        )
    )
    stats = demo.commands.run("fs3", "kv", "stats", demo.place("kv"), timeout_s=STATS_S, busy="stats").stdout
    demo.narrator.say(stats.partition("\n")[0])
    return Generated(runs=runs)  # type: ignore[arg-type]


def _generate(demo: Demo, name: str, file: str, prompt: str) -> GenerateRun:
    path = demo.folder / file
    path.write_text(prompt, encoding="utf-8")
    done = demo.commands.run(
        "fs3-generate",
        *("--checkpoint", demo.place("run")),
        *("--kv-cache", demo.place("kv")),
        *("--prompt-file", str(path)),
        *("--max-new-tokens", str(demo.settings.new_tokens)),
        *DRAW,
        *thread_options(demo.settings),
        "--json",
        timeout_s=GENERATE_S,
        busy="generating",
    )
    facts: dict[str, Any] = json.loads(done.stdout)
    run = GenerateRun(
        name=name,
        prompt_end="".join(prompt.splitlines(keepends=True)[-SHOWN_LINES:]),
        text=facts["text"],
        prompt_tokens=facts["prompt_tokens"],
        pages_loaded=facts["pages_loaded"],
        pages_computed=facts["pages_computed"],
        pages_stored=facts["pages_stored"],
        first_token_s=facts["first_token_s"],
        tokens_per_s=facts["tokens_per_s"],
        new_tokens=len(facts["tokens"]),
    )
    demo.narrator.say(
        f"{name}: {run.pages_loaded} pages loaded, {run.pages_computed} computed, {run.pages_stored} stored"
    )
    return run
