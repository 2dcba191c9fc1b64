"""The daemon as it is deployed: registered with a real mgmtd, refusing bad set-ups in one line, ending on a signal."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import grpc
import pytest

from fs3.client.node_agent import NodeAgent
from fs3.config import from_mapping, load_toml
from fs3.errors import Invalid, Unavailable
from fs3.ids import NodeId
from fs3.kv.memory import MemoryKV
from fs3.meta.server import MetaConfig, MetaServer
from fs3.mgmtd import server as mgmtd
from fs3.mgmtd.config import MgmtdConfig
from fs3.pb import meta_pb2, meta_pb2_grpc, mgmtd_pb2
from fs3.routing import LocalState, Node, NodeKind
from fs3.transport import rpc
from fs3.transport.credentials import Credentials

_DAEMON = """
import logging, sys
from pathlib import Path
from fs3.meta.server import MetaConfig, run
logging.basicConfig(level=logging.INFO)
sys.exit(run(MetaConfig(node_id=2, mgmtd=(sys.argv[1],), data_dir=Path(sys.argv[2]))))
"""


class StorageNode:
    """A storage node as mgmtd sees one: it registers a disk, and has every target that mgmtd asks it to create."""

    def __init__(self, address: str) -> None:
        self.targets: dict[int, mgmtd_pb2.LocalTarget] = {}
        node = Node(node_id=NodeId(11), kind=NodeKind.STORAGE, endpoints=("127.0.0.1:1",), generation=1)
        disk = mgmtd_pb2.DiskInfo(node_id=11, disk=0, path="/disk", total_bytes=1 << 40, free_bytes=1 << 40)
        self.agent = NodeAgent(
            [address],
            Credentials(),
            node,
            local_targets=lambda: list(self.targets.values()),
            disks=lambda: [disk],
            on_routing=lambda routing: None,
            on_create=self.create,
        )

    def create(self, wanted: list[mgmtd_pb2.CreateTarget]) -> None:
        for target in wanted:
            state = LocalState.UPTODATE
            self.targets[target.target_id] = mgmtd_pb2.LocalTarget(target_id=target.target_id, state=int(state))
        self.agent.poke()


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def test_it_registers_waits_for_chain_tables_and_serves(tmp_path: Path) -> None:
    async def run() -> None:
        config = MgmtdConfig(node_id=1, data_dir=tmp_path, listen_port=0, lease_s=2.0)
        async with mgmtd.serve(config, MemoryKV()) as manager:
            address = manager.address
            stop = asyncio.Event()
            async with MetaServer(MetaConfig(node_id=2, mgmtd=(address,), data_dir=tmp_path / "meta")) as meta:
                serving = asyncio.ensure_future(meta.serve(stop))
                await meta.agent.wait_registered()
                stub = meta_pb2_grpc.MetaStub(rpc.aio_channel(meta.address))
                with pytest.raises(grpc.RpcError) as failed:
                    await stub.Stat(meta_pb2.StatRequest(paths=["/"]))
                error = rpc.error_of(failed.value, meta.address)
                assert isinstance(error, Unavailable) and "no chain tables yet" in str(error)
                storage = StorageNode(address)
                joined = asyncio.ensure_future(storage.agent.run())
                await meta.agent.wait_ready()
                await until(lambda: meta.agent.routing.nodes[NodeId(2)].endpoints == (meta.address,))
                reply = await stub.Stat(meta_pb2.StatRequest(paths=["/"]))
                assert reply.results[0].inode.layout.chain_table_version >= 1
                joined.cancel()
                stop.set()
                await serving
                await until(lambda: not manager.primary.routing.nodes[NodeId(2)].alive)

    asyncio.run(run())


def test_sigterm_ends_it_cleanly_also_without_any_mgmtd(tmp_path: Path) -> None:
    async def run() -> None:
        arguments = [sys.executable, "-c", _DAEMON, "127.0.0.1:1", str(tmp_path / "meta")]
        child = await asyncio.create_subprocess_exec(*arguments, stderr=asyncio.subprocess.PIPE)
        assert child.stderr is not None
        said = b""
        while b"serves on" not in said:
            line = await child.stderr.readline()
            assert line, said.decode()
            said += line
        child.send_signal(signal.SIGTERM)
        _, rest = await asyncio.wait_for(child.communicate(), 30)
        assert child.returncode == 0, rest.decode()
        assert b"meta 2 stopped" in rest and b"Traceback" not in rest

    asyncio.run(run())


def test_the_example_configuration_is_one() -> None:
    example = load_toml(Path(__file__).parents[3] / "deploy" / "meta.toml", MetaConfig)
    assert example.secret and example.session_lease_s == 60.0


def test_bad_set_ups_are_refused_in_one_line(tmp_path: Path) -> None:
    good = {"node_id": 2, "mgmtd": ["127.0.0.1:7300"], "data_dir": str(tmp_path / "meta")}
    for changed, said in (
        ({"node_id": 0}, "node_id 0"),
        ({"mgmtd": []}, "name at least one mgmtd"),
        ({"listen_port": 70_000}, "listen_port 70000"),
        ({"gc_delay": 1.0}, "did you mean 'gc_delay_s'"),
        ({"gc_delay_s": -1.0}, "gc_delay_s at least 0"),
    ):
        with pytest.raises(Invalid, match=said):
            from_mapping({**good, **changed}, MetaConfig, where="config meta.toml")

    async def start(**changed: object) -> None:
        async with MetaServer(from_mapping({**good, **changed}, MetaConfig, where="config")):
            pass

    with pytest.raises(Invalid, match="can be reached from other machines"):
        asyncio.run(start(listen_host="0.0.0.0"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Invalid, match=r"data_dir .*file/x"):
        asyncio.run(start(data_dir=str(tmp_path / "file" / "x")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Invalid, match=f"listen on 127.0.0.1:{port}"):
            asyncio.run(start(listen_port=port))
        with pytest.raises(Invalid, match=f"metrics port 127.0.0.1:{port}"):
            asyncio.run(start(metrics_port=port))
    asyncio.run(start())
