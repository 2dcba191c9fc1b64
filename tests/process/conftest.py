"""Client processes that a test puts to work while it kills daemons."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_CLIENT = Path(__file__).with_name("failover_client.py")
_WAIT_S = 90.0


class Clients:
    """Two client processes at work in /NAME-0 and -1; leaving the context ends them and sees that all went well."""

    def __init__(self, url: str, name: str) -> None:
        self._children = [
            subprocess.Popen(
                [sys.executable, str(_CLIENT), url, f"/{name}-{number}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]

    def progress(self, rounds: int) -> None:
        """Wait until each has done so many rounds more."""
        for child in self._children:
            assert child.stdout is not None and child.stderr is not None
            for _ in range(rounds):
                assert child.stdout.readline(), child.stderr.read()

    def __enter__(self) -> Clients:
        self.progress(1)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for child in self._children:
            if kind is not None:
                child.kill()
            _, said = child.communicate(timeout=_WAIT_S)
            assert kind is not None or child.returncode == 0, said


@pytest.fixture
def clients_of() -> Callable[[str, str], Clients]:
    """`with clients_of(url, name) as clients`."""
    return Clients
