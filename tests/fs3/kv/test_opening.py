"""What a daemon's file may name as its store, and what is said when that cannot be used."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

from fs3.clock import deadline_after
from fs3.cluster.etcd import LocalEtcd
from fs3.cluster.folder import free_port
from fs3.errors import Fs3Error, Invalid, Unavailable
from fs3.kv.etcd import EtcdKV
from fs3.kv.etcd_client import EtcdClient
from fs3.kv.etcd_layout import Layout, by_kind
from fs3.kv.opening import EtcdPlace, open_store, parse_place
from fs3.kv.sqlite import SqliteKV
from fs3.meta.config import MetaConfig
from fs3.mgmtd.config import MgmtdConfig
from fs3.pb.etcd import etcd_pb2


def test_what_is_named() -> None:
    assert parse_place("/x/meta.sqlite") == Path("/x/meta.sqlite")
    assert parse_place("etcd://10.0.0.1:2379/meta") == EtcdPlace(("10.0.0.1:2379",), "meta")
    assert parse_place("etcd://a:1,[::1]:2/ops-1.meta") == EtcdPlace(("a:1", "[::1]:2"), "ops-1.meta")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fdb://a:1/x", r"kv 'fdb://a:1/x': must be a path, or etcd://HOST:PORT\[,HOST:PORT...\]/NAME"),
        ("etcd://a/x", "'a' is not HOST:PORT"),
        ("etcd://a:1,/x", "'' is not HOST:PORT"),
        ("etcd://a:70000/x", "'a:70000' is not HOST:PORT"),
        ("etcd://user@a:1/x", "is not HOST:PORT"),
        ("etcd://a:1", "must end with the store's name"),
        ("etcd://a:1/", "must end with the store's name"),
        ("etcd://a:1/x/y", "must end with the store's name"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said) as caught:
        parse_place(text)
    assert "\n" not in str(caught.value)


def test_a_daemon_has_a_file_of_its_own_unless_told_otherwise(tmp_path: Path) -> None:
    there = ("10.0.0.1:7300",)
    assert MetaConfig(node_id=1, mgmtd=there, data_dir=tmp_path).store == str(tmp_path / "meta.sqlite")
    assert MetaConfig(node_id=1, mgmtd=there, kv="etcd://a:1/meta").store == "etcd://a:1/meta"
    assert MgmtdConfig(node_id=1, data_dir=tmp_path).store == str(tmp_path / "mgmtd.sqlite")
    assert MgmtdConfig(node_id=1, data_dir=tmp_path, kv="etcd://a:1/mgmtd").store == "etcd://a:1/mgmtd"
    with pytest.raises(Invalid, match="data_dir: name the folder"):
        MetaConfig(node_id=1, mgmtd=there)


def test_a_file_is_opened(tmp_path: Path) -> None:
    async def run() -> None:
        kv = await open_store(str(tmp_path / "x.sqlite"), by_kind)
        assert isinstance(kv, SqliteKV)
        await kv.close()

    asyncio.run(run())


def test_stores_of_one_etcd_are_apart(etcd: LocalEtcd) -> None:
    async def run() -> None:
        where = f"etcd://{','.join(etcd.endpoints)}/{secrets.token_hex(4)}"
        kvs = [await open_store(f"{where}-{kind}", by_kind) for kind in ("meta", "mgmtd", "meta")]
        assert all(isinstance(kv, EtcdKV) for kv in kvs)
        txn = kvs[0].begin()
        txn.put(b"key", b"value")
        await txn.commit()
        assert [await kv.begin().get(b"key") for kv in kvs] == [b"value", None, b"value"]
        for kv in kvs:
            await kv.close()

    asyncio.run(run())


def test_an_etcd_that_cannot_be_used_is_one_line(etcd: LocalEtcd) -> None:
    name = secrets.token_hex(4)

    async def fails(where: str) -> Fs3Error:
        with pytest.raises(Fs3Error) as caught:
            await open_store(where, by_kind, timeout_s=0.5)
        assert "\n" not in str(caught.value) and str(caught.value).startswith(f"kv {where}: ")
        return caught.value

    async def run() -> None:
        down = await fails(f"etcd://127.0.0.1:{free_port(set())}/{name}")
        assert isinstance(down, Unavailable)
        assert "within 0.5 s" in str(down) and "see that most of etcd's members run" in str(down)
        where = f"etcd://{','.join(etcd.endpoints)}/{name}"
        kv = EtcdKV(etcd.endpoints, name)
        await kv.check(5.0)
        await put_raw(etcd, Layout(name).format, b"9")
        newer = await fails(where)
        assert isinstance(newer, Invalid) and "has format '9', this fs3 uses '1'; use the fs3 that made it" in str(
            newer
        )
        await kv.close()

    asyncio.run(run())


async def put_raw(etcd: LocalEtcd, key: bytes, value: bytes) -> None:
    """Write beside every store."""
    client = EtcdClient(etcd.endpoints)
    put = etcd_pb2.RequestOp(request_put=etcd_pb2.PutRequest(key=key, value=value))
    await client.repeat(etcd_pb2.TxnRequest(success=[put]), deadline_after(5.0))
    await client.close()
