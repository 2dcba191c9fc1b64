"""Lets the tests here import `kv_workload`, which also runs as a program of its own, and those of pyarrow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pyarrow.conftest import groups

sys.path.insert(0, str(Path(__file__).parent))


def pytest_configure(config: pytest.Config) -> None:
    """The marks of pyarrow's tests, some of which test_pyarrow.py runs."""
    for group in groups:
        config.addinivalue_line("markers", f"{group}: of pyarrow's tests")
