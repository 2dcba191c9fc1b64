"""Config from TOML: sizes as people write them, unknown keys named with the nearest known one, wrong types refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from fs3.config import load_toml, parse_bytes, parse_seconds
from fs3.errors import Invalid


@dataclass(frozen=True, kw_only=True)
class Sample:
    node_id: int
    data_dir: Path
    lease_s: float = 10.0
    mgmtd: tuple[str, ...] = ()
    secret: str | None = None


def load(tmp_path: Path, text: str) -> Sample:
    path = tmp_path / "daemon.toml"
    path.write_text(text)
    return load_toml(path, Sample)


def test_values_take_their_types(tmp_path: Path) -> None:
    sample = load(tmp_path, 'node_id = 3\ndata_dir = "/d"\nlease_s = 3\nmgmtd = ["a:1", "b:2"]\nsecret = "s"\n')
    assert sample == Sample(node_id=3, data_dir=Path("/d"), lease_s=3.0, mgmtd=("a:1", "b:2"), secret="s")
    assert isinstance(sample.lease_s, float)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('node_id = 3\ndata_dir = "/d"\nleese_s = 3', "unknown key 'leese_s'; did you mean 'lease_s'?"),
        ("node_id = 3", "'data_dir' is missing"),
        ('node_id = "3"\ndata_dir = "/d"', "node_id: expected int, found '3'"),
        ('node_id = true\ndata_dir = "/d"', "node_id: expected int, found True"),
        ('node_id = 3\ndata_dir = "/d"\nmgmtd = "a:1"', "mgmtd: expected a list"),
        ("node_id = ", "daemon.toml"),
    ],
)
def test_a_bad_file_gets_one_line_that_names_file_and_key(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(Invalid) as caught:
        load(tmp_path, text)
    assert expected in str(caught.value) and "daemon.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"nowhere\.toml: no such file"):
        load_toml(tmp_path / "nowhere.toml", Sample)


@pytest.mark.parametrize(
    ("text", "value"), [("512", 512), ("64KiB", 65_536), ("1 MiB", 1 << 20), ("2G", 2 << 30), ("1.5kb", 1_500)]
)
def test_sizes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["-1GiB", "-1", "", "MiB", "1XiB", "one", "1e400"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(Invalid, match="write a number"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5h", 5_400), ("45 min", 2_700), ("3d", 259_200), ("2W", 1_209_600), ("0", 0)]
)
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "3 moons", "-1h", "1h30m", "inf", "nan", "1e999"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(Invalid, match="such as 90s"):
        parse_seconds(text)
