"""`fs3 admin backup` and `restore` on a real cluster: the metadata store is lost, and comes back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fs3.cli import main
from fs3.client.connect import connect
from fs3.cluster.local import LocalCluster
from fs3.errors import NotFound

FILES = {f"/data/{number}": np.random.default_rng(number).bytes(100_000 + number) for number in range(5)}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path / "cluster", nodes=2, replicas=2, port=0, lease_s=1.5) as made:
        yield made


def admin(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit status of `fs3 admin ...`, and what it said."""
    capsys.readouterr()
    status = main.run(["admin", *arguments])
    shown = capsys.readouterr()
    return status, shown.out + shown.err


def test_a_lost_metadata_store_comes_back(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect(cluster.url)
    client.meta.mkdir("/data")
    client.files.create_batch(list(FILES), list(FILES.values()))
    (gone,) = client.files.create_batch(["/data/gone"], [b"removed after the backup"])
    saved = tmp_path / "names.fs3meta"
    status, said = admin(capsys, "backup", cluster.url, str(saved))
    assert status == 0 and "saved to" in said and saved.stat().st_size > 300
    status, said = admin(capsys, "backup", cluster.url, str(saved))
    assert status != 0 and "exists already; name another file" in said
    status, said = admin(capsys, "backup", cluster.url, f"{cluster.url}/backups/names")
    assert status != 0 and "/backups" in said  # no such directory; a URL that fsspec knows is as good as a path
    client.meta.mkdir("/backups")
    assert admin(capsys, "backup", cluster.url, f"{cluster.url}/backups/names")[0] == 0
    client.meta.remove("/data/gone")
    client.storage.remove_file_chunks(gone.inode_id, gone.layout, gone.length)  # as meta will, some time later
    (late,) = client.files.create_batch(["/data/late"], [b"named after the backup"])

    config = cluster.folder.config("meta")
    status, said = admin(capsys, "restore", str(saved), "--config", str(config))
    assert status != 0 and "is alive; stop every meta daemon first" in said
    client.close()
    os.kill(cluster.pids["meta"], signal.SIGTERM)
    while not cluster.reap():
        threading.Event().wait(0.05)
    (store,) = tmp_path.rglob("meta.sqlite")
    status, said = admin(capsys, "restore", str(saved), "--config", str(config))
    assert status != 0 and "holds names already" in said
    for one in store.parent.glob("meta.sqlite*"):
        one.unlink()
    (tmp_path / "half").write_bytes(saved.read_bytes()[: saved.stat().st_size // 2])
    status, said = admin(capsys, "restore", str(tmp_path / "half"), "--config", str(config))
    assert status != 0 and "ends too early" in said
    status, said = admin(capsys, "restore", str(saved), "--config", str(config))
    assert status == 0 and "records restored" in said, said

    cluster.restart("meta")
    cluster.wait_serving()
    client = connect(cluster.url)
    assert client.files.read(client.files.open_read("/data/3")) == FILES["/data/3"]
    for path, data in FILES.items():
        assert client.files.read(client.files.open_read(path)) == data
    with pytest.raises(NotFound):
        client.meta.stat_one("/data/late")
    status, said = admin(capsys, "fsck", cluster.url)
    assert "all hangs together" in said
    # What was removed since is back, without its chunks.
    status, said = admin(capsys, "lost", cluster.url)
    assert status == 1 and "/data/gone" in said and "/data/3" not in said
    # The chunks of what was named later are orphans, and nobody gets their inode's number.
    (made,) = client.files.create_batch(["/data/new"], [b"new"])
    assert made.inode_id > late.inode_id + (1 << 39)
    assert client.files.read(client.files.open_read("/data/new")) == b"new"
    status, said = admin(capsys, "orphans", cluster.url)
    assert str(late.inode_id) in said
    client.close()
