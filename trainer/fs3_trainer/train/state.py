"""What a resumed run needs to know besides the tensors: `state.json` in each checkpoint."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from fs3.errors import Corrupt

VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """`step` steps are done, of `total_steps` planned: with the train config, that is the scheduler's state.

    `model`, `train` and `loader` are what their owners' `to_dict`, `asdict` and `state_dict` gave. `threads` and
    `torch` are recorded because sums round differently under others.
    """

    step: int
    total_steps: int
    model: dict[str, Any]
    train: dict[str, Any]
    loader: dict[str, Any]
    threads: int
    torch: str

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: bytes, where: str) -> RunState:
        """Raises: Corrupt, when it is not what `to_json` writes."""
        try:
            table = json.loads(text)
        except ValueError as error:
            raise Corrupt(f"{where}: not JSON: {error}") from None
        if not isinstance(table, dict):
            raise Corrupt(f"{where}: not a JSON object")
        if table.get("version") != VERSION:
            raise Corrupt(f"{where}: version {table.get('version')!r}; this fs3 reads version {VERSION}")
        kinds = {"step": int, "total_steps": int, "threads": int, "torch": str}
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            value = table.get(field.name)
            if not isinstance(value, kinds.get(field.name, dict)):
                raise Corrupt(f"{where}: {field.name} is {'missing' if value is None else 'of a wrong type'}")
            values[field.name] = value
        return cls(**values)
