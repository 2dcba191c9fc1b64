"""Several users on one real cluster, through fsspec, forks, pickles and the command line."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import fsspec
import pytest
from fsspec.config import conf

from fs3.cli.main import run
from fs3.client.connect import connect
from fs3.errors import Unavailable
from fs3.user import User, process_user

ANNA, BERT = "1000:1000,500", "2000:2000,500"


@pytest.fixture
def anna(cluster_url: str) -> Any:
    return fsspec.url_to_fs(cluster_url + "/", user=ANNA)[0]


@pytest.fixture
def bert(cluster_url: str) -> Any:
    return fsspec.url_to_fs(cluster_url + "/", user=BERT)[0]


@pytest.fixture
def shared(fs: Any, home: str) -> str:
    """A directory of the group that both are in."""
    fs.mkdir(f"{home}/shared")
    fs.chown(f"{home}/shared", 0, 500)
    fs.chmod(f"{home}/shared", 0o3770)
    return f"{home}/shared"


def test_a_file_is_its_writers_and_read_by_whom_they_let(fs: Any, anna: Any, bert: Any, home: str, shared: str) -> None:
    with pytest.raises(PermissionError, match="uid 1000 may not write and search"):
        anna.pipe_file(f"{home}/f", b"x")
    anna.pipe({f"{shared}/f": b"hers", f"{shared}/g": b"too"})
    found = anna.info(f"{shared}/f")
    assert (found["uid"], found["gid"], found["mode"]) == (1_000, 500, 0o644)
    assert bert.cat_file(f"{shared}/f") == b"hers" and bert.access(f"{shared}/f", os.R_OK)
    anna.chmod(f"{shared}/f", 0o600)
    assert anna.access(f"{shared}/f", os.R_OK | os.W_OK) and fs.access(f"{shared}/f", os.R_OK)
    assert not bert.access(f"{shared}/f", os.R_OK) and bert.access(f"{shared}/f")
    for reading in (bert.cat_file, bert.open):
        with pytest.raises(PermissionError, match=r"/f: uid 2000 may not read here \(mode 0600, owner 1000:500\)"):
            reading(f"{shared}/f")
    got = bert.cat([f"{shared}/f", f"{shared}/g"], on_error="return")
    assert isinstance(got[f"{shared}/f"], PermissionError) and got[f"{shared}/g"] == b"too"
    assert fs.cat_file(f"{shared}/f") == b"hers"
    with pytest.raises(PermissionError, match="sticky") as told:
        bert.rm_file(f"{shared}/f")
    assert told.value.errno == 1
    with pytest.raises(PermissionError):
        bert.pipe_file(f"{shared}/f", b"his")
    with pytest.raises(PermissionError):
        bert.chown(f"{shared}/f", 2_000)
    with bert.open(f"{shared}/h", "wb") as file:
        file.write(b"his")
    for mode, may in ((0o620, "ab"), (0o660, "r+b")):
        anna.chmod(f"{shared}/g", mode)
        with bert.open(f"{shared}/g", may) as file:
            file.write(b"-")
    anna.chmod(f"{shared}/g", 0o620)
    with pytest.raises(PermissionError, match="may not read and write here"):
        bert.open(f"{shared}/g", "r+b")
    anna.chmod(f"{shared}/g", 0o640)
    for changing in (lambda: bert.open(f"{shared}/g", "ab"), lambda: bert.truncate(f"{shared}/g", 0)):
        with pytest.raises(PermissionError, match="uid 2000 may not write here"):
            changing()
    assert bert.cat_file(f"{shared}/g") == b"-oo-"
    anna.mv(f"{shared}/f", f"{shared}/moved")
    assert bert.ls(shared, detail=False) == [f"{shared}/{name}" for name in ("g", "h", "moved")]
    fs.chmod(shared, 0o3700)
    for looking in (bert.ls, bert.info, anna.du):
        path = shared if looking != bert.info else f"{shared}/h"
        with pytest.raises(PermissionError):
            looking(path)


def in_child(body: Callable[[], None], user: User | None = None) -> int:
    """The exit status of a forked child that has become `user`: 0 if `body` went through."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        if user is not None:
            os.setgroups(list(user.gids))
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
        body()
        status = 0
    finally:
        os._exit(status)


def test_forked_children_and_pickles_keep_the_user(anna: Any, shared: str) -> None:
    anna.pipe_file(f"{shared}/f", b"hers")
    again = pickle.loads(pickle.dumps(anna))
    assert again is anna and again.user == User(1_000, (1_000, 500))

    def child() -> None:
        for number, fs in enumerate((anna, pickle.loads(pickle.dumps(anna)))):
            fs.pipe_file(f"{shared}/{number}", b"hers as well")
            assert fs.info(f"{shared}/{number}")["uid"] == 1_000
            assert fs.cat_file(f"{shared}/f") == b"hers"

    assert in_child(child) == 0
    assert anna.info(f"{shared}/1")["uid"] == 1_000


def test_a_child_that_was_forked_while_another_thread_connected_connects(cluster_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"

        def connecting() -> None:
            with pytest.raises(Unavailable):
                connect([address], timeout_s=2.0)

        thread = threading.Thread(target=connecting)
        thread.start()
        accepted, _ = silent.accept()  # it is inside, and stays there

        def child() -> None:
            signal.alarm(20)
            connect(cluster_url, user=User(3_000, (3_000,)))  # which nobody in this process has asked for

        assert in_child(child) == 0
        thread.join()
        accepted.close()


def test_a_child_that_becomes_somebody_else_calls_as_them(fs: Any, shared: str, cluster_url: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user wants root")
    fs.pipe_file(f"{shared}/roots", b"secret")
    fs.chmod(f"{shared}/roots", 0o600)

    def child() -> None:
        assert connect(cluster_url).user == process_user() == User(2_000, (2_000, 500))
        fs.pipe_file(f"{shared}/his", b"his")
        assert fs.info(f"{shared}/his")["uid"] == 2_000
        assert fs.cat_file(f"{shared}/his") == b"his"
        with pytest.raises(PermissionError):
            fs.cat_file(f"{shared}/roots")

    assert in_child(child, User(2_000, (2_000, 500))) == 0
    assert fs.info(f"{shared}/his")["uid"] == 2_000 and fs.cat_file(f"{shared}/roots") == b"secret"


def test_a_wrong_user_is_told_at_once(cluster_url: str) -> None:
    with pytest.raises(ValueError, match="user 'anna': expected UID:GID"):
        fsspec.url_to_fs(cluster_url + "/", user="anna")


def test_the_command_line_shows_and_changes_who_may(
    fs: Any, home: str, shared: str, cluster_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    at = f"{cluster_url}{shared}"
    fs.pipe_file(f"{shared}/f", b"x")
    assert run(["chown", "1000:500", f"{at}/f"]) == 0 and run(["chmod", "2640", f"{at}/f"]) == 0
    assert run(["ls", "-l", at]) == 0
    assert capsys.readouterr().out.split()[:4] == ["-rw-r-S---", "1", "1000", "500"]
    before = conf.get("fs3", {})
    conf["fs3"] = {**before, "user": BERT}  # as FSSPEC_FS3_USER does
    try:
        assert run(["cat", f"{at}/f"]) == 0
        assert run(["chmod", "666", f"{at}/f"]) == 1
    finally:
        conf["fs3"] = before
    shown = capsys.readouterr()
    assert shown.out == "x"
    assert "only the owner changes permission bits, and uid 2000 is neither the owner, 1000, nor" in shown.err
