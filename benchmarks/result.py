"""bench.json: all that a run found, and what it needs to be understood elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, row_from_json, row_to_json
from benchmarks.sweep import Found

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`other_cores`: how many cores something else kept busy, on average; `memory`: anonymous bytes by process."""

    command: str
    quick: bool
    rounds: int
    machine: dict[str, Any]
    other_cores: float
    memory: dict[str, int]
    profiles: dict[str, list[str]]
    rows: Sequence[Row]
    sweep: Sequence[Found] = ()

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        table = {
            "version": VERSION,
            **{name: getattr(self, name) for name in self.__slots__ if name not in ("rows", "sweep")},
            "rows": [row_to_json(row) for row in self.rows],
            "sweep": [one.to_json() for one in self.sweep],
        }
        draft = path.with_suffix(".json.new")
        draft.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Raises: ValueError, if it is not what `save` writes; OSError."""
        table = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(table, dict) or table.pop("version", None) != VERSION:
            raise ValueError(f"{path} is no result of benchmarks/run.py, version {VERSION}")
        rows = [row_from_json(row) for row in table.pop("rows")]
        sweep = tuple(Found.from_json(one) for one in table.pop("sweep", ()))
        return cls(rows=rows, sweep=sweep, **table)
