"""A cluster's folder: what it refuses, remembers and writes; ports."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from pathlib import Path

import pytest

from fs3.cluster.folder import (
    FAVOURITE_PORT,
    HOST,
    MARKER,
    Folder,
    Shape,
    choose_ports,
    port_is_free,
    without_taken_ports,
)
from fs3.cluster.local import LocalCluster, last_line
from fs3.cluster.stopping import stop_folder
from fs3.config import load_toml
from fs3.errors import Invalid
from fs3.meta.server import MetaConfig
from fs3.mgmtd.config import MgmtdConfig
from fs3.storage.config import StorageConfig


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(Invalid, match="is not empty and is not the folder of an fs3 cluster"):
        Folder(tmp_path).hold()
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(Invalid, match="is a file; name a new folder"):
        Folder(tmp_path / "thesis.tex").hold()
    with pytest.raises(Invalid, match="is not the folder of an fs3 cluster"):
        stop_folder(tmp_path)


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = Folder(tmp_path / "new" / "c"), Folder(tmp_path / "new" / "c")
    first.hold()
    assert second.in_use()
    with pytest.raises(Invalid, match=rf"in use by a running cluster; stop it with: fs3 down {first.path}"):
        second.hold()
    first.release()
    assert not second.in_use()
    second.hold()
    second.release()


def test_a_start_that_fails_early_leaves_no_folder(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken, pytest.raises(Invalid, match="is taken by another process"):
        LocalCluster(tmp_path / "c", port=taken.getsockname()[1]).start()
    assert not (tmp_path / "c").exists()


def test_a_shape_is_remembered_and_configs_are_what_the_daemons_read(tmp_path: Path) -> None:
    folder = Folder(tmp_path / 'c "quoted" é')
    folder.hold()
    shape = Shape(nodes=2, replicas=2, lease_s=1.5)
    shape = Shape(nodes=2, replicas=2, lease_s=1.5, ports=choose_ports(shape, 0))
    folder.remember(shape)
    assert folder.remembered() == shape
    folder.write_configs(shape)
    mgmtd = load_toml(folder.config("mgmtd"), MgmtdConfig)
    assert (mgmtd.lease_s, mgmtd.bootstrap_nodes, mgmtd.bootstrap_replicas) == (1.5, 2, 2)
    assert mgmtd.data_dir == folder.path / "mgmtd"
    meta = load_toml(folder.config("meta"), MetaConfig)
    assert meta.mgmtd == (f"{HOST}:{mgmtd.listen_port}",) == (shape.address,)
    storage = load_toml(folder.config("storage-2"), StorageConfig)
    assert (storage.node_id, storage.disks) == (2, (folder.path / "storage-2" / "disk",))
    ports = [port for pair in shape.ports.values() for port in pair]
    assert len(set(ports)) == len(ports) == 2 * len(shape.names)
    folder.release()


def test_further_mgmtds_and_metas_share_the_stores_of_the_first(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.hold()
    shape = Shape(nodes=1, replicas=1, mgmtds=2, metas=3)
    shape = dataclasses.replace(shape, ports=choose_ports(shape, 0))
    assert shape.names == ("mgmtd", "mgmtd-2", "meta", "meta-2", "meta-3", "storage-1")
    folder.remember(shape)
    assert folder.remembered() == shape
    folder.write_configs(shape)
    mgmtds = [load_toml(folder.config(name), MgmtdConfig) for name in shape.mgmtd_names]
    metas = [load_toml(folder.config(name), MetaConfig) for name in shape.meta_names]
    assert {mgmtd.store for mgmtd in mgmtds} == {str(folder.path / "mgmtd" / "mgmtd.sqlite")}
    assert [mgmtd.data_dir.name for mgmtd in mgmtds] == ["mgmtd", "mgmtd-2"]
    assert {meta.data_dir for meta in metas} == {folder.path / "meta"}
    assert {meta.mgmtd for meta in metas} == {shape.addresses} and len(shape.addresses) == 2
    assert len({daemon.node_id for daemon in [*mgmtds, *metas]}) == 5
    folder.release()


def test_workers_listen_on_ports_in_a_row_that_nobody_else_has(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.hold()
    shape = Shape(nodes=3, replicas=2, workers=4)
    shape = dataclasses.replace(shape, ports=choose_ports(shape, 0))
    folder.remember(shape)
    assert folder.remembered() == shape
    folder.write_configs(shape)
    ports = [port for name in shape.names for port in shape.ports_of(name)]
    assert len(set(ports)) == len(ports) == 2 * (2 + 3 * 4)
    config = load_toml(folder.config("storage-2"), StorageConfig)
    listening = [config.of_worker(worker) for worker in range(4)]
    assert config.workers == 4
    assert [one.listen_port for one in listening] == shape.ports_of("storage-2")[:4]
    assert [one.metrics_port for one in listening] == shape.ports_of("storage-2")[4:]
    with pytest.raises(Invalid, match=r"--workers 65: must be between 1 and 64"):
        Shape(nodes=1, replicas=1, workers=65)
    folder.release()


def test_a_port_of_any_worker_that_is_taken_is_said(tmp_path: Path) -> None:
    shape = Shape(nodes=1, replicas=1, workers=2)
    shape = dataclasses.replace(shape, ports=choose_ports(shape, 0))
    second = shape.ports["storage-1"][0] + 1
    with socket.create_server((HOST, second)):
        with pytest.raises(Invalid, match=rf"port {second} \(for storage-1\) is taken"):
            choose_ports(shape, 0)
        moved = without_taken_ports(shape, "storage-1")
    assert second not in dataclasses.replace(shape, ports=moved).ports_of("storage-1")
    assert moved["storage-1"][1] == shape.ports["storage-1"][1], "what is free stays"


def test_with_etcd_the_stores_are_names_in_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "c")
    folder.hold()
    shape = Shape(nodes=1, replicas=1, mgmtds=2, metas=2, kv="etcd")
    shape = dataclasses.replace(shape, ports=choose_ports(shape, 0))
    folder.remember(shape)
    assert folder.remembered() == shape
    folder.write_configs(shape, ["127.0.0.1:1", "127.0.0.1:2"])
    stores = [load_toml(folder.config(name), MgmtdConfig).store for name in shape.mgmtd_names]
    stores += [load_toml(folder.config(name), MetaConfig).store for name in shape.meta_names]
    assert stores == ["etcd://127.0.0.1:1,127.0.0.1:2/mgmtd"] * 2 + ["etcd://127.0.0.1:1,127.0.0.1:2/meta"] * 2
    folder.release()


def test_a_folder_of_the_format_before_has_one_mgmtd_and_one_meta(tmp_path: Path) -> None:
    ports = {name: [20_000 + at, 20_100 + at] for at, name in enumerate(("mgmtd", "meta", "storage-1"))}
    marker = {"format": 1, "nodes": 1, "replicas": 1, "lease_s": 3.0, "ports": ports}
    (tmp_path / MARKER).write_text(json.dumps(marker))
    shape = Folder(tmp_path).remembered()
    assert shape is not None and (shape.mgmtds, shape.metas, shape.format) == (1, 1, 4)
    assert shape.kv == "sqlite"
    assert shape.names == tuple(shape.ports) and shape.address == f"{HOST}:20000"


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("{", "Expecting"),
        ('{"format": 9}', "format 9, this fs3 reads format 4"),
        ("3", "format 4"),
        ('{"format": 4}', f"{MARKER}: 'nodes' is missing"),
        ('{"format": 4, "nodes": "x", "replicas": 1}', f"{MARKER}: nodes: expected int, found 'x'"),
        ('{"format": 4, "nodes": 1, "replica": 1}', f"{MARKER}: unknown key 'replica'; did you mean 'replicas'?"),
        ('{"format": 4, "nodes": 1, "replicas": 1, "ports": []}', f"{MARKER}: ports: expected a service and a metrics"),
        ('{"format": 4, "nodes": 1, "replicas": 1, "ports": {"meta": [1]}}', f"{MARKER}: ports: expected"),
    ],
)
def test_a_marker_that_cannot_be_read_is_named(tmp_path: Path, marker: str, message: str) -> None:
    (tmp_path / MARKER).write_text(marker)
    with pytest.raises(Invalid, match=message):
        Folder(tmp_path).remembered()


def test_ports_that_are_taken_are_named() -> None:
    with socket.create_server((HOST, 0)) as listening:
        port = listening.getsockname()[1]
        assert not port_is_free(port)
        with pytest.raises(Invalid, match=rf"port {port} \(for mgmtd\) is taken by another process; choose another"):
            choose_ports(Shape(nodes=1, replicas=1), port)
        free = choose_ports(Shape(nodes=1, replicas=1), 0)
        known = Shape(nodes=1, replicas=1, ports={**free, "meta": (port, free["meta"][1])})
        with pytest.raises(Invalid, match=rf"port {port} \(for meta\)"):
            choose_ports(known, None)
    assert choose_ports(known, None)["storage-1"] == free["storage-1"], "the same ports at every start"
    assert choose_ports(known, free["meta"][1] + 1)["mgmtd"][0] == free["meta"][1] + 1
    for name, place in (("meta", 0), ("mgmtd", 1)):
        own = free[name][place]
        with pytest.raises(Invalid, match=rf"port {own} \(for mgmtd\) is a port of {name}; choose another with --port"):
            choose_ports(Shape(nodes=1, replicas=1, ports=free), own)
    assert choose_ports(Shape(nodes=1, replicas=1, ports=free), free["mgmtd"][0]) == free
    if port_is_free(FAVOURITE_PORT):
        assert choose_ports(Shape(nodes=1, replicas=1), None)["mgmtd"][0] == FAVOURITE_PORT


def test_other_options_at_a_second_start_are_refused(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text(json.dumps({"format": 1, "nodes": 2, "replicas": 2, "lease_s": 3.0, "ports": {}}))
    with pytest.raises(Invalid, match="was made with --nodes 2, not 3; leave --nodes out"):
        LocalCluster(tmp_path, nodes=3).start()
    with pytest.raises(Invalid, match="was made with --replicas 2, not 1"):
        LocalCluster(tmp_path, replicas=1).start()
    with pytest.raises(Invalid, match="--replicas 4: must be between 1 and the number of nodes"):
        LocalCluster(tmp_path / "new", nodes=3, replicas=4).start()
    with pytest.raises(Invalid, match="was made with --kv sqlite, not etcd"):
        LocalCluster(tmp_path, kv="etcd").start()
    with pytest.raises(Invalid, match="--metas 10: must be between 1 and 9"):
        LocalCluster(tmp_path / "new", metas=10).start()


def test_down_without_a_running_cluster(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.hold()
    folder.remember(Shape(nodes=1, replicas=1))
    folder.release()
    assert not stop_folder(tmp_path)


def test_the_last_line_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_line(log) == ""
    log.write_bytes(b"a" * 9_000 + b"\nfs3: port taken\n\n")
    assert last_line(log) == "fs3: port taken"
