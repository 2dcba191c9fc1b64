"""`fs3 df` and `fs3 admin quota`, and full quotas as programs meet them, on a real cluster."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]


def test_a_quota_from_the_command_line(run: Run, at: str, home: str, fs: Any, tmp_path: Path) -> None:
    fs.mkdir(f"{home}/q")
    fs.pipe({f"{home}/q/{n}": bytes(100) for n in range(4)})
    quota = ("admin", "quota")
    code, out, _ = run(*quota, "set", f"{at}/q", "--bytes", "1KiB", "--inodes", "6", "--wait")
    assert (code, out) == (0, f"{home}/q may have 1.0 KiB and 6 inodes, and has 400 B in 4 inodes\n")
    rows = [row for row in json.loads(run(*quota, "list", "--json", at)[1]) if row["path"] == f"{home}/q"]
    assert [(row["max_bytes"], row["bytes"], row["max_inodes"], row["inodes"]) for row in rows] == [(1024, 400, 6, 4)]
    assert f"{home}/q" in run(*quota, "list", at)[1]
    told = json.loads(run("df", "--json", f"{at}/q/1")[1])
    assert told["room"] == {
        "total": 1024,
        "used": 400,
        "free": 624,
        "max_inodes": 6,
        "inodes": 4,
        "free_inodes": 2,
    }
    assert len(told["quotas"]) == 1 and told["disks"]["free"] > 624
    lines = run("df", f"{at}/q")[1].splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "disks, all replicas",
        f"quota of {home}/q",
        f"room in {home}/q",
    ]
    big = tmp_path / "big"
    big.write_bytes(bytes(625))
    code, _, err = run("cp", str(big), f"{at}/q/big")
    assert code == 1 and f"the quota of {home}/q allows 1,024 bytes" in err and "fs3 admin quota set" in err
    assert not fs.exists(f"{home}/q/big")
    assert run("mv", f"{at}/q", f"{at}/renamed")[0] == 0
    assert run(*quota, "clear", f"{at}/renamed") == (0, f"{home}/renamed has no quota any more\n", "")
    assert run("cp", str(big), f"{at}/renamed/big")[0] == 0


def test_paths_are_shown_as_they_are(run: Run, at: str, home: str, fs: Any) -> None:
    for name in ("[old]", "[red]x[/red]", ":heart:"):
        fs.mkdir(f"{home}/{name}")
        assert run("admin", "quota", "set", f"{at}/{name}", "--bytes", "1MiB")[0] == 0
        assert f"quota of {home}/{name} " in run("df", f"{at}/{name}")[1]
        assert f"{home}/{name} " in run("admin", "quota", "list", at)[1]


def test_mistakes_with_quotas(run: Run, at: str, home: str, fs: Any) -> None:
    fs.pipe(f"{home}/f", b"1")
    for arguments, code, text in (
        (("set", f"{at}/f", "--bytes", "1"), 1, "is a file"),
        (("set", f"{at}/none", "--bytes", "1"), 1, "no such file"),
        (("set", at), 2, "say a limit"),
        (("set", at, "--bytes", "plenty"), 1, "size 'plenty'"),
        (("set", at, "--bytes", "-1"), 1, "write a number"),
        (("set", at, "--bytes", "-0.5"), 1, "lies between 0"),
        (("set", at, "--bytes", "0.5"), 1, "less than a byte"),
        (("set", at, "--bytes", "16777216TiB"), 1, "lies between 0"),
        (("set", at, "--bytes", f"{1 << 63}"), 1, "lies between 0"),
        (("set", at, "--bytes", "6000000TiB"), 1, "too large"),
        (("set", at, "--inodes", f"{1 << 64}"), 2, "range"),
        (("set", at, "--inodes", "-1"), 2, "-1"),
        (("set", at.removesuffix(home), "--bytes", "1"), 1, "the root has no quota"),
        (("clear", at), 1, "has no quota"),
    ):
        got, _, err = run("admin", "quota", *arguments)
        assert got == code and text in err, err


def test_a_full_quota_is_edquot_and_a_border_exdev(fs: Any, home: str) -> None:
    fs.mkdir(f"{home}/q")
    meta = fs.client.meta
    assert meta.set_quota(f"{home}/q", max_bytes=1_000, max_inodes=100).inodes == 0
    with pytest.raises(OSError, match="allows 1,000 bytes") as failed, fs.open(f"{home}/q/f", "wb") as file:
        file.write(bytes(1_001))
    assert failed.value.errno == errno.EDQUOT and not fs.exists(f"{home}/q/f")
    fs.pipe(f"{home}/q/f", bytes(900))
    with pytest.raises(OSError, match="would take 1,001") as failed, fs.open(f"{home}/q/f", "ab") as file:
        file.write(bytes(101))
    assert failed.value.errno == errno.EDQUOT and fs.size(f"{home}/q/f") == 900
    fs.truncate(f"{home}/q/f", 500)
    assert (fs.room(f"{home}/q").used, fs.room(f"{home}/q").free) == (500, 500)
    fs.pipe(f"{home}/outside", b"1")
    with pytest.raises(OSError, match="other quotas") as failed:
        fs.link(f"{home}/outside", f"{home}/q/linked")
    assert failed.value.errno == errno.EXDEV
    fs.mv(f"{home}/outside", f"{home}/q/inside")
    assert [(one.inodes, one.bytes) for one in meta.quotas(f"{home}/q/inside")] == [(2, 501)]
    with pytest.raises(OSError) as failed, fs.transaction:
        fs.pipe(f"{home}/q/a", bytes(300))
        fs.pipe(f"{home}/q/b", bytes(300))
    assert failed.value.errno == errno.EDQUOT and not fs.exists(f"{home}/q/a") and not fs.exists(f"{home}/q/b")
    fs.rm(f"{home}/q", recursive=True)
    assert all(one.path != f"{home}/q" for page in meta.all_quotas() for one in page)
    assert fs.room("/").free > 0 and fs.room("/").inodes is None
