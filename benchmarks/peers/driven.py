"""A program beside this process that does as it is told: a JSON object a line, there and back, over its pipes.

For what must not share this process's interpreter, or needs packages of its own. `Driven` is this side, `obey.py` that.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from benchmarks.peers.peer import Missing

_PATIENCE_S = 5.0


class Driven:
    """The program, from when it says that it is ready."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """`log`: what it says besides. Raises: Missing: it has ended before it was ready; with its last words."""
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        try:
            self.ready = self.answer()
        except RuntimeError as error:
            self.close()
            raise Missing(str(error)) from None
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> list[psutil.Process]:
        """None that is a server: what it costs, it says itself."""
        return []

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **what: Any) -> dict[str, Any]:
        """What it answers. Raises: RuntimeError: it has ended; with its last words."""
        self.send(**what)
        return self.answer()

    def send(self, **what: Any) -> None:
        """Begin; `answer` ends it. So that several work at once."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` tells why
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Raises: RuntimeError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(_PATIENCE_S)
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RuntimeError(f"{self._process.args[-1]} ended: {said[-1] if said else 'no word of why'}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """It ends when its input does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Driven:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
