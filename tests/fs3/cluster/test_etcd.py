"""An etcd cluster in a folder: it starts, survives deaths, moves its leader, and is the same when started again."""

from __future__ import annotations

from pathlib import Path

import pytest

from fs3.cluster.etcd import LocalEtcd
from fs3.errors import Invalid, Unavailable


def test_members_die_and_come_back_and_the_folder_remembers(etcd: LocalEtcd, tmp_path: Path) -> None:
    assert etcd.members  # it is installed
    with LocalEtcd(tmp_path) as cluster:
        endpoints, leader = cluster.endpoints, cluster.leader()
        assert len(set(endpoints)) == 3 and leader in cluster.members
        other = leader % 3 + 1
        cluster.move_leader(other)
        assert cluster.leader() == other
        cluster.kill(other)
        assert not cluster.runs(other)
        with pytest.raises(Unavailable):
            cluster.move_leader(other)
        cluster.restart(other)
        cluster.wait_healthy()
        assert cluster.runs(other)
    with LocalEtcd(tmp_path, members=1) as again:
        assert again.endpoints == endpoints
        assert again.leader() in again.members


def test_a_machine_without_etcd_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Invalid, match="apt-get install etcd-server"):
        LocalEtcd(tmp_path / "etcd").start()


def test_a_folder_of_a_newer_fs3_is_refused(etcd: LocalEtcd, tmp_path: Path) -> None:
    assert etcd.members
    (tmp_path / "etcd.json").write_text('{"format": 9}')
    with pytest.raises(Invalid, match="format 9"):
        LocalEtcd(tmp_path).start()


@pytest.mark.parametrize("saved", ["[]", '{"format": 1}', '{"format": 1, "token": "x", "ports": [[1], 2]}'])
def test_what_the_folder_remembers_of_no_etcd_is_named(etcd: LocalEtcd, tmp_path: Path, saved: str) -> None:
    assert etcd.members  # it is installed
    (tmp_path / "etcd.json").write_text(saved)
    with pytest.raises(Invalid, match=r"etcd\.json: (format|expected a token)"):
        LocalEtcd(tmp_path).start()
