"""`fs3 rm --trash` and `fs3 trash`, and the same through fsspec, on a real cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec

from fs3.cli.copy import Plan, plan_tree
from fs3.cli.places import Failures, Place

Run = Callable[..., tuple[int, str, str]]
DAY_S = 86_400


def test_away_and_back(run: Run, at: str, home: str, fs: Any) -> None:
    fs.mkdir(f"{home}/d/e")
    fs.pipe({f"{home}/f": b"12345", f"{home}/d/e/g": b"deep"})
    fs.symlink("f", f"{home}/s")
    code, _, err = run("rm", "--trash", f"{at}/d")
    assert code == 1 and "say -r" in err
    assert run("rm", "--trash", "-r", "--keep", "2w", f"{at}/d") == (0, "", "")
    assert run("rm", "--trash", f"{at}/f", f"{at}/s") == (0, "", "")
    assert run("rm", "--trash", "-f", f"{at}/f") == (0, "", "") and run("rm", "--trash", f"{at}/f")[0] == 1
    assert run("ls", at) == (0, "", "")
    rows = json.loads(run("trash", "list", "--json", at)[1])
    assert [(row["path"], row["type"], row["size"]) for row in rows] == [
        (f"{home}/f", "file", 5),
        (f"{home}/s", "symlink", None),
        (f"{home}/d", "directory", None),
    ]
    kept = [round((row["expires"] - row["removed"]) / DAY_S, 2) for row in rows]
    assert kept == [3, 3, 14]
    shown = run("trash", "list", at)[1].splitlines()
    assert shown[0].split() == ["path", "type", "size", "removed", "expires", "name"] and len(shown) == 4
    assert "5 B" in shown[1] and rows[2]["name"] in shown[3]
    assert run("trash", "list", f"{at}/nothing")[1] == "nothing from there is in the trash\n"
    url = at.removesuffix(home)
    assert run("cat", f"{url}{rows[2]['name']}/e/g")[1] == "deep"
    assert run("trash", "restore", f"{at}/f", f"{url}{rows[2]['name']}") == (
        0,
        f"restored {home}/f\nrestored {home}/d\n",
        "",
    )
    assert fs.cat_file(f"{home}/f") == b"12345" and fs.cat_file(f"{home}/d/e/g") == b"deep"
    assert run("trash", "restore", "--to", f"{at}/d/s", f"{at}/s")[0] == 0 and fs.islink(f"{home}/d/s")
    code, _, err = run("trash", "restore", f"{at}/f", "--to", f"{at}/d")
    assert code == 1 and "nothing in the trash was there" in err
    assert fs.trashed(home) == []


def test_of_several_the_last_comes_back_and_never_over_something(run: Run, at: str, home: str, fs: Any) -> None:
    for text in (b"one", b"two", b"three"):
        fs.pipe_file(f"{home}/f", text)
        fs.trash(f"{home}/f")
    assert run("trash", "restore", f"{at}/f")[0] == 0 and fs.cat_file(f"{home}/f") == b"three"
    code, _, err = run("trash", "restore", f"{at}/f")
    assert code == 1 and "exists already; move it away, or restore to another path" in err
    assert run("trash", "restore", f"{at}/f", "--to", f"{at}/no/such")[0] == 1
    assert (
        run("trash", "restore", f"{at}/f", "--to", f"{at}/second")[0] == 0 and fs.cat_file(f"{home}/second") == b"two"
    )
    assert [one["was"] for one in fs.trashed(home)] == [f"{home}/f"]


def test_emptying(run: Run, at: str, home: str, fs: Any, cluster_url: str) -> None:
    fs.pipe({f"{home}/{name}": b"x" for name in "abcde"})
    for name in "abcd":
        fs.trash(f"{home}/{name}")
    one = fs.trash(f"{home}/e", keep_s=60)
    code, _, err = run("trash", "empty", at)
    assert code == 2 and "Say --yes" in err
    assert run("trash", "empty", "--yes", "--older-than", "1h", at)[1].startswith("0 removed for good")
    assert run("trash", "empty", "--yes", f"{cluster_url}{one}")[1].startswith("1 removed for good")
    assert run("trash", "empty", "--yes", f"{at}/a")[1].startswith("1 removed for good")
    assert sorted(entry["was"] for entry in fs.trashed(home)) == [f"{home}/{name}" for name in "bcd"]
    assert run("trash", "empty", "--yes", at)[1].startswith("3 removed for good") and fs.trashed(home) == []
    code, _, err = run("trash", "empty", "--yes", f"{cluster_url}{one}")
    assert code == 1 and "fs3 trash list" in err


def test_what_has_no_trash_says_so(run: Run, at: str, tmp_path: Path, cluster_url: str) -> None:
    (tmp_path / "f").write_bytes(b"local")
    code, _, err = run("rm", "--trash", str(tmp_path / "f"))
    assert code == 1 and "only clusters have a trash" in err and (tmp_path / "f").exists()
    assert run("trash", "list", str(tmp_path))[0] == 1 and run("trash", "restore", str(tmp_path / "f"))[0] == 1
    assert run("rm", "--keep", "1d", f"{at}/x")[0] == 2
    code, _, err = run("rm", "--trash", "--keep", "3 moons", f"{at}/x")
    assert code == 1 and "such as 90s, 45m, 12h, 3d or 2w" in err
    assert run("trash", "restore", "--to", f"{at}/y", f"{at}/x", f"{at}/z")[0] == 2


def test_the_trash_is_a_directory_that_whole_copies_leave_out(
    run: Run, at: str, home: str, fs: Any, cluster_url: str, tmp_path: Path
) -> None:
    fs.pipe({f"{home}/f": b"kept", f"{home}/g": b"thrown away"})
    there = fs.trash(f"{home}/g")
    assert fs.isdir("/.trash") and there in fs.find("/") and "/.trash" in fs.ls("/", detail=False)
    assert ".trash" not in run("ls", f"{cluster_url}/")[1].split() and ".trash" in run("ls", "-a", f"{cluster_url}/")[1]
    assert fs.info("/.trash")["mode"] == 0o1777
    code, _, err = run("rm", "-r", f"{cluster_url}/.trash")
    assert code == 1 and "is the trash, and stays" in err
    assert run("cp", "-r", f"{cluster_url}/.trash", str(tmp_path / "trash"))[0] == 0
    assert (tmp_path / "trash" / there.rpartition("/")[2]).read_bytes() == b"thrown away"
    assert run("admin", "fsck", cluster_url)[0] == 0
    run("rm", f"{cluster_url}{there}")
    assert fs.trashed(home) == []


def test_a_whole_cluster_is_copied_without_its_trash(home: str, fs: Any, tmp_path: Path) -> None:
    fs.pipe({f"{home}/f": b"kept", f"{home}/g": b"thrown away"})
    fs.trash(f"{home}/g")
    plan = Plan()
    target = Place(fsspec.filesystem("file"), str(tmp_path / "all"), "all")
    plan_tree(Place(fs, "/", "fs3://x/"), target, recursive=True, failures=Failures("cp"), plan=plan)
    files = {source.path: there.path for source, there, _ in plan.files}
    assert files[f"{home}/f"] == f"{tmp_path}/all{home}/f"
    assert not [path for path in files if path.startswith("/.trash")]
    assert not [one for one in plan.directories if ".trash" in one.path]
