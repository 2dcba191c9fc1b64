"""For whom the commands that read and change metadata call: FSSPEC_FS3_USER names them, as for those on files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.config import conf

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("command", "rest"),
    [
        (("admin", "fsck"), ()),
        (("admin", "backup"), ("names.fs3meta",)),
        (("admin", "quota", "set"), ("--inodes", "9")),
    ],
)
def test_a_command_calls_for_who_is_named(
    command: tuple[str, ...], rest: tuple[str, ...], run: Run, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(conf, "fs3", {**conf.get("fs3", {}), "user": "4711:4711"})  # as FSSPEC_FS3_USER does
    status, _, error = run(*command, at, *rest)
    assert status == 1 and "superuser" in error and "4711" in error, error
    assert not list(tmp_path.iterdir())
