"""fsspec's transactions on etcd, which takes few files at once: the one that is too many is refused when opened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from fs3.cluster.etcd import LocalEtcd
from fs3.cluster.local import LocalCluster

NEW_FILES = 40  # what a transaction of 128 operations holds
REPLACED_FILES = 23


@pytest.fixture(scope="module")
def fs(etcd: LocalEtcd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    assert etcd.members  # it is installed
    folder = tmp_path_factory.mktemp("etcd-transaction")
    with LocalCluster(folder, nodes=1, replicas=1, metas=1, mgmtds=1, port=0, kv="etcd") as running:
        yield fsspec.url_to_fs(running.url, skip_instance_cache=True)[0]


def write(fs: Any, home: str, count: int) -> int:
    """Write so many files in one transaction; how many were opened before one was refused."""
    done = 0
    with fs.transaction:
        for number in range(count):
            with fs.open(f"{home}/{number}", "wb") as file:
                file.write(b"%d" % count)
            done += 1
    return done


@pytest.mark.parametrize(("before", "fit", "opened"), [(0, NEW_FILES, NEW_FILES), (30, REPLACED_FILES, 24)])
def test_the_file_that_is_too_many_is_refused_when_it_is_opened(fs: Any, before: int, fit: int, opened: int) -> None:
    home = f"/refused-{before}"
    fs.mkdir(home)
    assert write(fs, home, before) == before
    assert write(fs, home, fit) == fit
    assert fs.cat_file(f"{home}/{fit - 1}") == b"%d" % fit
    names = [f"{home}/{number}" if before else f"{home}/new-{number}" for number in range(1_000)]
    with pytest.raises(OSError, match=f"{names[opened]}: the transaction has {opened} files"), fs.transaction:
        for name in names:
            fs.open(name, "wb").write(b"lost")
    assert fs.cat_file(f"{home}/0") == b"%d" % fit and len(fs.ls(home)) == max(before, fit)


def test_what_turns_out_not_to_fit_is_refused_at_the_end(fs: Any) -> None:
    home = "/end"
    fs.mkdir(home)
    assert write(fs, home, 30) == 30
    with pytest.raises(OSError, match="at most 128 fit"):
        write(fs, home, REPLACED_FILES + 1)
    assert fs.cat_file(f"{home}/0") == b"30"
