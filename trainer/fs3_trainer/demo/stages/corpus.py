"""Import the standard library's source into token shards on fs3, and see that it can be read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fs3_trainer.demo.demo import Demo
from fs3_trainer.demo.outcome import Check, Figure
from fs3_trainer.demo.stdlib import copy_standard_library
from fs3_trainer.demo.units import count, duration, size

IMPORT_S = 240.0
INSPECT_S = 60.0
SAMPLE_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusImported:
    """The data set, as `fs3-dataset inspect` shows it, and what it was made from."""

    files: int
    text_bytes: int
    import_s: float
    files_imported: int
    files_skipped: int
    samples: int
    tokens: int
    seq_len: int
    vocab_size: int
    shards: int
    sample_file: str
    """the source file that the first sample is the beginning of, "" if there is none"""

    @property
    def checks(self) -> tuple[Check, ...]:
        return (
            Check(
                "every file was imported",
                f"{self.files_imported:,} of {count(self.files, 'file')}, {self.files_skipped} skipped",
                self.files_imported == self.files,
            ),
            Check(
                "the first sample decodes to the text it was made from",
                self.sample_file or "it begins no file",
                bool(self.sample_file),
            ),
        )

    @property
    def figures(self) -> tuple[Figure, ...]:
        return (
            Figure("text", f"{size(self.text_bytes)} in {count(self.files, 'file')}"),
            Figure("tokens", f"{self.tokens:,}, vocabulary {self.vocab_size:,}"),
            Figure("samples", f"{self.samples:,} of {self.seq_len} tokens"),
            Figure("import", duration(self.import_s)),
        )


def import_corpus(demo: Demo) -> CorpusImported:
    """The stage."""
    settings, url = demo.settings, demo.place("corpus")
    copied = copy_standard_library(demo.text_dir, settings.packages)
    demo.narrator.say(f"{count(copied.files, 'file')} of the standard library, {size(copied.bytes)}")
    options = ("--tokenizer", settings.tokenizer, "--seq", str(settings.seq_len))
    done = demo.commands.run(
        "fs3-dataset", "import", *options, str(demo.text_dir), url, timeout_s=IMPORT_S, busy="tokenizing"
    )
    demo.narrator.say(done.stdout.strip())
    shown = demo.commands.run("fs3-dataset", "inspect", "--json", url, timeout_s=INSPECT_S, busy="reading it back")
    facts: dict[str, Any] = json.loads(shown.stdout)
    return CorpusImported(
        files=copied.files,
        text_bytes=copied.bytes,
        import_s=done.seconds,
        files_imported=facts["source"]["files"],
        files_skipped=facts["source"]["skipped_files"],
        samples=facts["samples"],
        tokens=facts["tokens"],
        seq_len=facts["seq_len"],
        vocab_size=facts["vocab_size"],
        shards=facts["shards"],
        sample_file=_file_that_begins(facts["sample_0"][:SAMPLE_CHARS], demo.text_dir),
    )


def _file_that_begins(sample: str, folder: Path) -> str:
    """The file below `folder` whose text begins with `sample`, or "" if none does."""
    for path in sorted(folder.rglob("*.py")):
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            if sample and file.read(len(sample)) == sample:
                return str(path.relative_to(folder))
    return ""
