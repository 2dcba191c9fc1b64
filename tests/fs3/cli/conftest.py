"""The command line as a user has it, and a directory on a real cluster to use it on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fs3.cli import main as entry


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command; its exit status, and what it wrote to standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = entry.run(list(arguments))
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


@pytest.fixture
def at(cluster_url: str, home: str) -> str:
    """The URL of `home`."""
    return cluster_url + home
