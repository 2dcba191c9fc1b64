"""`fs3 cp|ls|cat|rm|mv|mkdir|stat|du` on a real cluster: what they do, what they print, how they exit."""

from __future__ import annotations

import json
import os
import random
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fsspec.config import conf
from fsspec.registry import known_implementations

from fs3.cli import main as entry
from fs3.cli.files import human

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Small and large files in nested directories; the empty ones count."""
    rng = random.Random(1)
    root = tmp_path / "tree"
    for name, length in [("a.txt", 5), ("empty", 0), ("d/b.bin", 300_000), ("d/e/c.bin", 6_000_000), (".hidden", 1)]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(rng.randbytes(length))
    for i in range(300):
        (root / "d" / f"many-{i}").write_bytes(rng.randbytes(i))
    (root / "nothing-in-here").mkdir()
    return root


def contents(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def test_a_tree_goes_there_and_back(run: Run, at: str, tree: Path, tmp_path: Path) -> None:
    assert run("cp", "-r", str(tree), f"{at}/copy") == (0, "", "")
    assert run("cp", "-r", f"{at}/copy", str(tmp_path / "back")) == (0, "", "")
    assert contents(tmp_path / "back") == contents(tree)
    assert run("cp", "-r", f"{at}/copy", f"{at}/again")[0] == 0
    assert run("du", "-sb", f"{at}/again")[1].split("\t")[0] == run("du", "-sb", f"{at}/copy")[1].split("\t")[0]


def test_cp_goes_into_an_existing_directory(run: Run, at: str, tree: Path) -> None:
    assert run("cp", str(tree / "a.txt"), str(tree / "empty"), at)[0] == 0
    assert run("ls", at) == (0, "a.txt\nempty\n", "")
    assert run("cp", "-r", str(tree / "d" / "e"), at)[0] == 0
    assert run("ls", f"{at}/e")[1] == "c.bin\n"


def test_an_operand_that_fails_does_not_stop_the_others(run: Run, at: str, tree: Path) -> None:
    code, _, err = run("cp", str(tree / "a.txt"), str(tree / "missing"), str(tree / "d"), str(tree / "empty"), at)
    assert code == 1
    assert f"fs3 cp: cannot stat '{tree}/missing': No such file or directory\n" in err
    assert f"fs3 cp: -r not specified; omitting directory '{tree}/d'\n" in err
    assert run("ls", at)[1] == "a.txt\nempty\n"


def test_small_files_fail_alone_and_no_name_is_a_pattern(run: Run, at: str, fs: Any, home: str, tmp_path: Path) -> None:
    names = ("a", "b**", "c", "[d", "e*")
    for name in names:
        (tmp_path / "small" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "small" / name).write_text(name)
    fs.makedirs(f"{home}/small/c")
    (tmp_path / "back" / "small" / "a").mkdir(parents=True)
    code, _, err = run("cp", "-r", str(tmp_path / "small"), at)
    assert (code, err.count("\n")) == (1, 1) and f"/small/c' to '{at}/small/c': " in err
    got = {name: fs.cat_file(f"{home}/small/{name}") for name in names if name != "c"}
    assert got == {name: name.encode() for name in names if name != "c"}
    code, _, err = run("cp", "-r", f"{at}/small", str(tmp_path / "back"))
    assert (code, err.count("\n")) == (1, 1) and f"cannot copy '{at}/small/a' to " in err
    got = contents(tmp_path / "back" / "small")
    assert got == {"a": None, "c": None, "b**": b"b**", "[d": b"[d", "e*": b"e*"}


def test_a_failed_copy_leaves_nothing_half_written(run: Run, at: str, tree: Path, tmp_path: Path) -> None:
    assert run("cp", str(tree / "a.txt"), f"{at}/f")[0] == 0
    code, _, err = run("cp", f"{at}/f", str(tmp_path / "no" / "such" / "folder"))
    assert code == 1 and "No such file or directory" in err
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]
    code, _, err = run("cp", f"{at}/f", f"{at}/no/such")
    assert code == 1 and "no such directory; make it first" in err
    assert run("cp", "-r", f"{at}", f"{at}/inside")[0] == 1


@pytest.mark.parametrize("length", [5, 600_000])
def test_what_stands_at_a_local_target_keeps_its_kind(
    run: Run, at: str, fs: Any, home: str, tmp_path: Path, length: int
) -> None:
    """A device is no file to be replaced, a symlink goes on to lead somewhere, what nobody may read stays so."""
    data = random.Random(2).randbytes(length)
    fs.pipe({f"{home}/link": data, f"{home}/private": data})
    fs.pipe_file(f"{home}/f", data)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there/real")
    (tmp_path / "private").write_bytes(b"old")
    (tmp_path / "private").chmod(0o600)
    with ThreadPoolExecutor(1) as reader:
        got = reader.submit((tmp_path / "pipe").read_bytes)
        assert run("cp", f"{at}/f", str(tmp_path / "pipe")) == (0, "", "")
        assert got.result() == data and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert run("cp", f"{at}/link", f"{at}/private", str(tmp_path)) == (0, "", "")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "real").read_bytes() == data
    assert (tmp_path / "private").read_bytes() == data and (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path / "there") == ["real"]


def test_cat(run: Run, at: str, tree: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    run("cp", str(tree / "d" / "b.bin"), f"{at}/b")
    assert entry.run(["cat", f"{at}/b", str(tree / "a.txt")]) == 0
    assert capfdbinary.readouterr()[0] == (tree / "d" / "b.bin").read_bytes() + (tree / "a.txt").read_bytes()
    code, _, err = run("cat", f"{at}/missing", at)
    assert code == 1 and "no such file or directory" in err and "Is a directory" in err


def test_ls(run: Run, at: str, tree: Path) -> None:
    run("cp", "-r", str(tree), f"{at}/t")
    assert run("ls", f"{at}/t")[1] == "a.txt\nd\nempty\nnothing-in-here\n"
    assert run("ls", "-a", f"{at}/t")[1].startswith(".hidden\n")
    lines = run("ls", "-l", f"{at}/t")[1].splitlines()
    assert lines[0].startswith("-rw-r--r-- 1") and lines[0].endswith("a.txt") and " 5 " in lines[0]
    assert lines[1].startswith("drwxr-xr-x")
    assert run("ls", "-d", f"{at}/t")[1] == f"{at}/t\n"
    assert run("ls", f"{at}/missing")[0] == 2
    assert run("ls", str(tree))[1] == "a.txt\nd\nempty\nnothing-in-here\n"


def test_rm(run: Run, at: str, tree: Path) -> None:
    run("cp", "-r", str(tree), f"{at}/t")
    code, _, err = run("rm", f"{at}/t")
    assert code == 1 and "say -r" in err
    assert run("rm", f"{at}/t/a.txt", f"{at}/t/missing", f"{at}/t/empty")[0] == 1
    assert run("ls", f"{at}/t")[1] == "d\nnothing-in-here\n"
    assert run("rm", "-f", f"{at}/t/missing") == (0, "", "")
    assert run("rm", "-r", f"{at}/t") == (0, "", "")
    assert run("ls", at) == (0, "", "")
    assert run("rm", "-r", at.rsplit("/", 1)[0] + "/")[0] == 1, "the root stays"


def test_mv(run: Run, at: str, tree: Path) -> None:
    run("cp", str(tree / "a.txt"), f"{at}/a")
    run("mkdir", f"{at}/d")
    assert run("mv", f"{at}/a", f"{at}/b") == (0, "", "")
    assert run("mv", f"{at}/b", f"{at}/d") == (0, "", "")
    assert run("ls", at, f"{at}/d")[1] == f"{at}:\nd\n\n{at}/d:\nb\n"
    before = contents(tree)
    assert run("mv", str(tree), f"{at}/moved") == (0, "", "")
    assert not tree.exists()
    assert run("cp", "-r", f"{at}/moved", str(tree))[0] == 0
    assert contents(tree) == before
    assert run("mv", f"{at}/missing", f"{at}/x")[0] == 1


def test_a_cluster_is_the_same_by_another_of_its_addresses(run: Run, at: str, fs: Any, home: str) -> None:
    """It is renamed there: a copy over itself, or into itself, would be removed with the original."""
    other = at.replace("127.0.0.1", "localhost")
    fs.mkdir(f"{home}/d")
    fs.pipe({f"{home}/f": b"1", f"{home}/d/f": b"2"})
    before = fs.info(f"{home}/f")["ino"]
    run("mv", f"{at}/f", f"{other}/f")
    assert run("mv", f"{at}/d", f"{other}/d")[0] == 1 and run("cp", "-r", f"{at}/d", f"{other}/d")[0] == 1
    assert fs.cat(home, recursive=True) == {f"{home}/f": b"1", f"{home}/d/f": b"2"}
    assert run("mv", f"{at}/f", f"{other}/g") == (0, "", "") and fs.info(f"{home}/g")["ino"] == before
    assert run("ln", f"{at}/g", f"{other}/h") == (0, "", "")


def test_a_directory_that_cannot_be_read_is_told_and_stays(
    run: Run, at: str, fs: Any, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.makedirs(f"{home}/d/shut/deep")
    fs.pipe({f"{home}/d/f": b"1", f"{home}/d/shut/g": b"2", f"{home}/d/shut/deep/h": b"3"})
    for name in ("", "/d", "/d/shut", "/d/shut/deep"):
        fs.chown(home + name, uid=2000)
    fs.chmod(f"{home}/d/shut", 0o300)  # its owner may remove what is in it, and cannot see it
    monkeypatch.setitem(conf, "fs3", {"user": "2000:2000"})
    told = f"cannot read directory '{at}/d/shut': "
    for command in (("cp", "-r", f"{at}/d"), ("mv", f"{at}/d")):
        code, _, err = run(*command, str(tmp_path / command[0]))
        assert (code, err.count("\n")) == (1, 1) and told in err
        assert contents(tmp_path / command[0]) == {"f": b"1", "shut": None}
    code, out, err = run("du", "-b", f"{at}/d")
    assert (code, out) == (1, f"0\t{at}/d/shut\n1\t{at}/d\n") and told in err
    assert fs.cat(f"{home}/d", recursive=True).keys() == {f"{home}/d/{name}" for name in ("f", "shut/g", "shut/deep/h")}


def test_of_two_of_one_name_the_second_stays_where_it_is(run: Run, at: str, fs: Any, home: str) -> None:
    fs.makedirs(f"{home}/into")
    fs.pipe({f"{home}/a": b"1"})
    for name in ("b", "c"):
        fs.mkdir(f"{home}/{name}")
        fs.pipe_file(f"{home}/{name}/x", name.encode())
    for command in ("cp", "mv"):
        code, _, err = run(command, f"{at}/a", f"{at}/b/x", f"{at}/c/x", f"{at}/into")
        assert (code, err) == (
            1,
            f"fs3 {command}: will not overwrite just-created '{at}/into/x' with '{at}/c/x'\n",
        )
        assert fs.cat(f"{home}/into", recursive=True) == {f"{home}/into/a": b"1", f"{home}/into/x": b"b"}
    assert fs.cat_file(f"{home}/c/x") == b"c" and not fs.exists(f"{home}/b/x")


def test_mkdir_chooses_the_layout(run: Run, at: str) -> None:
    options = ("--replicas", "2", "--chunk-size", "1MiB", "--durability", "os", "--stripe", "3")
    assert run("mkdir", *options, f"{at}/d") == (0, "", "")
    facts: dict[str, Any] = json.loads(run("stat", "--json", f"{at}/d")[1])
    assert (facts["replicas"], facts["chunk_size"], facts["durability"], facts["stripe"]) == (2, 1 << 20, "os", 3)
    assert run("mkdir", f"{at}/d")[0] == 1
    assert run("mkdir", "-p", f"{at}/d", f"{at}/x/y/z") == (0, "", "")
    assert run("mkdir", f"{at}/p/q")[0] == 1
    for wrong, says in [("--chunk-size", "1000"), ("--replicas", "9")]:
        code, _, err = run("mkdir", wrong, says, f"{at}/w")
        assert code == 1 and says in err
    assert run("ls", at)[1] == "d\nx\n"
    assert run("mkdir", "--durability", "never", f"{at}/w")[0] == 2


def test_stat_and_du(run: Run, at: str, tree: Path) -> None:
    run("cp", "-r", str(tree), f"{at}/t")
    facts = json.loads(run("stat", "--json", f"{at}/t/d/e/c.bin")[1])
    assert (facts["type"], facts["size"], facts["replicas"], facts["durability"]) == ("file", 6_000_000, 3, "sync")
    assert "chunk_size" in run("stat", f"{at}/t")[1]
    total = sum(len(data) for data in contents(tree).values() if data)
    lines = run("du", "-b", f"{at}/t")[1].splitlines()
    assert lines[-1] == f"{total}\t{at}/t" and f"6000000\t{at}/t/d/e" in lines and f"0\t{at}/t/nothing-in-here" in lines
    assert run("du", "-b", str(tree))[1].splitlines()[-1] == f"{total}\t{tree}"
    assert run("stat", f"{at}/missing")[0] == 1


def test_names_are_shown_as_they_are(
    run: Run, at: str, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a console would take for its own markup, and what is longer than its lines."""
    odd, file = f"[bold]{'long ' * 20}:heart: [", "b]"  # together "...[/b]"
    (tmp_path / odd).mkdir()
    (tmp_path / odd / file).write_bytes(b"1")
    monkeypatch.setenv("FORCE_COLOR", "1")  # a progress bar, as on a terminal
    code, _, _ = run("cp", "-r", str(tmp_path / odd), at)
    assert code == 0
    (tmp_path / "[bold]y").write_bytes(b"1")
    code, _, err = run("cp", str(tmp_path / "[bold]y"), at)
    assert code == 0 and "[bold]y" in err
    monkeypatch.delenv("FORCE_COLOR")
    for text in (f"{at}/{odd}/{file}", str(tmp_path / odd)):
        code, out, err = run("stat", text)
        assert (code, err) == (0, "") and out.startswith("path") and f"  {text}\n" in out
    assert run("rm", "--trash", f"{at}/[bold]y")[0] == 0
    (tmp_path / ":heart:").write_bytes(b"1")
    run("cp", str(tmp_path / ":heart:"), at)
    assert run("rm", "--trash", f"{at}/:heart:")[0] == 0
    shown = run("trash", "list", at)[1]
    assert f"{home}/[bold]y " in shown and f"{home}/:heart: " in shown


def test_an_unreachable_cluster_is_named(run: Run) -> None:
    code, out, err = run("ls", "fs3://127.0.0.1:1/x")
    assert code == 2 and out == "" and "127.0.0.1:1" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (1023, "1023"), (1024, "1.0K"), (1536, "1.5K"), (20 << 20, "20M"), (3 << 40, "3.0T")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert human(count) == text


def test_a_tree_that_has_nowhere_to_go_is_one_line(run: Run, at: str, tree: Path, fs: Any) -> None:
    url, path = f"{at}/file", at.removeprefix(fs.unstrip_protocol("").rstrip("/")) + "/file"
    fs.pipe_file(path, b"in the way")
    code, _, err = run("cp", "-r", str(tree), url)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"fs3 cp: cannot create directory '{url}': ")
    assert fs.cat_file(path) == b"in the way"


def test_a_package_that_is_missing_is_named(run: Run, cluster_url: str, tree: Path, monkeypatch: Any) -> None:
    for scheme, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        text = f"Install {package} to access {scheme}"
        monkeypatch.setitem(known_implementations, scheme, {"class": f"no_{package}.FileSystem", "err": text})
    for arguments, words in (
        (["cp", "s3://bucket/key", str(tree)], "Install s3fs to access s3"),
        (["mv", str(tree / "a.txt"), "gs://bucket/key"], "Install gcsfs to access gs"),
        (["ls", "s3://bucket"], "Install s3fs to access s3"),
        (["admin", "backup", cluster_url, "s3://bucket/key"], "s3://bucket/key: Install s3fs to access s3"),
        (["admin", "backup", cluster_url, "nothing://x"], "Protocol not known: nothing"),
    ):
        code, out, err = run(*arguments)
        assert code in (1, 2) and out == "" and words in err and err.count("\n") == 1, err
    assert (tree / "a.txt").exists()


def test_a_misspelt_url_makes_no_local_file(run: Run, tree: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("cp", str(tree / "a.txt"), "fs3:/x")
    assert (code, err.count("\n")) == (1, 1)
    assert "'fs3:/x' is not an fs3 URL; write fs3://HOST:PORT/path" in err
    assert not (tmp_path / "fs3:").exists()


def test_status_cuts_nothing_off_on_a_narrow_terminal(
    run: Run, cluster_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = run("status", cluster_url)
    storage = [line for line in out.splitlines() if " storage " in line]
    assert code == 0
    assert len(storage) == 3
    assert all(line.rstrip().endswith("iB") for line in storage)


def test_ln_chmod_and_chown(run: Run, at: str, home: str, tree: Path) -> None:
    (tree / "a.txt").write_text("text")
    assert run("cp", str(tree / "a.txt"), f"{at}/a.txt")[0] == 0
    assert run("mkdir", f"{at}/d")[0] == 0
    assert run("ln", "-s", "../a.txt", f"{at}/d") == (0, "", "")
    assert run("ln", "-s", f"{at}/a.txt", f"{at}/absolute")[0] == 0
    assert run("ln", "-s", "nothing", f"{at}/dangling")[0] == 0
    assert run("ln", f"{at}/a.txt", f"{at}/twin")[0] == 0
    assert run("cat", f"{at}/d/a.txt", f"{at}/absolute")[1] == "texttext"
    facts = json.loads(run("stat", "--json", f"{at}/absolute")[1])
    assert (facts["leads_to"], facts["links"], facts["type"]) == (f"{home}/a.txt", 2, "file")
    assert " dangling -> nothing\n" in run("ls", "-l", at)[1]
    assert run("chmod", "4640", f"{at}/absolute")[0] == 0
    assert run("chown", "12:34", f"{at}/twin")[0] == 0 and run("chown", ":35", f"{at}/twin")[0] == 0
    facts = json.loads(run("stat", "--json", f"{at}/a.txt")[1])
    assert (facts["mode"], facts["uid"], facts["gid"]) == ("0640", 12, 35)
    assert run("ln", "-s", "a.txt", str(tree / "d"))[0] == 0 and os.readlink(tree / "d" / "a.txt") == "a.txt"
    code, _, err = run("ln", f"{at}/d", f"{at}/d2")
    assert code == 1 and "is a directory" in err
    code, _, err = run("ln", str(tree / "a.txt"), f"{at}/out")
    assert code == 1 and "cannot leave its filesystem" in err
    assert run("chmod", "u+x", f"{at}/a.txt")[0] == 2 and run("chown", "me", f"{at}/a.txt")[0] == 2
    assert run("rm", f"{at}/dangling", f"{at}/d/a.txt", f"{at}/a.txt") == (0, "", "")
    assert run("ls", at)[1] == "absolute\nd\ntwin\n"
