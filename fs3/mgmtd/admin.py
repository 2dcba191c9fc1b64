"""What an operator asks of mgmtd: each request is a pure edit of the routing (admin_core.py, grow_core.py), committed
as one decision of the primary. One method per call of proto/fs3/pb/admin.proto; `AdminDoor` is its gRPC side.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fs3.errors import Invalid
from fs3.mgmtd import admin_core, grow_core
from fs3.mgmtd.draft_core import Disks, Edit
from fs3.mgmtd.election import Election
from fs3.mgmtd.intent_core import waits
from fs3.pb import admin_pb2, admin_pb2_grpc
from fs3.routing import Routing
from fs3.transport import rpc
from fs3.transport.credentials import Credentials

_Servicer: Any = admin_pb2_grpc.AdminServicer
add_to_server: Any = admin_pb2_grpc.add_AdminServicer_to_server


class AdminService:
    """Answers only on the mgmtd that decides. Every method raises NotPrimary, and Fs3Error of the edit or the store."""

    def __init__(self, election: Election) -> None:
        self._election = election

    async def drain(self, request: admin_pb2.PlaceRequest) -> admin_pb2.AdminReply:
        place = _place(request.place)
        return await self._change(lambda routing, disks: admin_core.drain(routing, disks, **place))

    async def undrain(self, request: admin_pb2.PlaceRequest) -> admin_pb2.AdminReply:
        place = _place(request.place)
        return await self._change(lambda routing, _: admin_core.undrain(routing, **place))

    async def replace(self, request: admin_pb2.ReplaceRequest) -> admin_pb2.AdminReply:
        place = _place(request.place)
        if request.elsewhere:
            return await self._change(lambda routing, disks: admin_core.replace_elsewhere(routing, disks, **place))
        if not place["target"] and place["disk"] is None:
            raise Invalid("name a target, or a node and one of its disks")
        return await self._change(lambda routing, _: admin_core.replace_targets(routing, **place))

    async def remove(self, request: admin_pb2.PlaceRequest) -> admin_pb2.AdminReply:
        place = _place(request.place)
        if place["disk"] is not None:
            raise Invalid("name a node or a target to remove")
        if place["target"]:
            return await self._change(lambda routing, _: admin_core.remove_target(routing, place["target"]))
        return await self._change(lambda routing, _: admin_core.remove_node(routing, place["node"]))

    async def offline(self, request: admin_pb2.PlaceRequest) -> admin_pb2.AdminReply:
        target = request.place.target_id
        return await self._change(lambda routing, _: admin_core.set_offline(routing, target))

    async def online(self, request: admin_pb2.PlaceRequest) -> admin_pb2.AdminReply:
        target = request.place.target_id
        return await self._change(lambda routing, _: admin_core.set_online(routing, target))

    async def create_replica(self, request: admin_pb2.CreateReplicaRequest) -> admin_pb2.AdminReply:
        return await self._change(
            lambda routing, disks: grow_core.create_replica(
                routing, disks, node=request.node_id, disk=request.disk, chain=request.chain_id
            )
        )

    async def grow(self, request: admin_pb2.GrowRequest) -> admin_pb2.AdminReply:
        return await self._change(grow_core.grow)

    async def balance(self, request: admin_pb2.BalanceRequest) -> admin_pb2.AdminReply:
        return await self._change(lambda routing, disks: grow_core.balance(routing, disks, most=request.most))

    async def upload_table(self, request: admin_pb2.UploadTableRequest) -> admin_pb2.AdminReply:
        return await self._change(
            lambda routing, _: grow_core.upload_table(
                routing, table_id=request.table_id, replicas=request.replicas, chains=list(request.chains)
            )
        )

    async def rotate_last_serving(self, request: admin_pb2.RotateLastServingRequest) -> admin_pb2.AdminReply:
        return await self._change(
            lambda routing, disks: admin_core.rotate_last_serving(
                routing, disks, chain=request.chain_id, to=request.target_id
            )
        )

    async def waits(self, request: admin_pb2.WaitsRequest) -> admin_pb2.WaitsReply:
        routing = self._election.deciding().with_figures()
        return admin_pb2.WaitsReply(lines=[wait.reason for wait in waits(routing, _disks(routing))])

    async def _change(self, edit: Callable[[Routing, Disks], Edit]) -> admin_pb2.AdminReply:
        primary = self._election.deciding()
        lines: tuple[str, ...] = ()

        def edit_and_keep(routing: Routing) -> Edit:
            nonlocal lines
            edited, lines = edit(routing, _disks(primary.with_figures()))
            return edited, lines

        routing = await primary.change(edit_and_keep)
        return admin_pb2.AdminReply(lines=lines, routing_version=routing.version)


class AdminDoor(_Servicer):  # type: ignore[misc]  # generated code has no types
    """The gRPC servicer of `service`, for callers who show `credentials`."""

    def __init__(self, service: AdminService, credentials: Credentials) -> None:
        self.credentials = credentials
        self.service = service


def _handler_of(method: str) -> Any:
    async def handle(self: AdminDoor, request: Any) -> Any:
        return await getattr(self.service, re.sub(r"(?<!^)([A-Z])", r"_\1", method).lower())(request)

    return rpc.handler(handle)


for _method in admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods:
    setattr(AdminDoor, _method.name, _handler_of(_method.name))


def _disks(routing: Routing) -> Disks:
    """What the nodes have reported of their disks, by node."""
    return {node_id: [disk for disk in routing.disks if disk.node_id == node_id] for node_id in routing.nodes}


def _place(place: admin_pb2.Place) -> dict[str, Any]:
    """The arguments of an edit that name a node, a disk or a target. Raises: Invalid."""
    if bool(place.node_id) == bool(place.target_id):
        raise Invalid("name either a node or a target")
    if place.HasField("disk") and not place.node_id:
        raise Invalid("name the node of the disk")
    return {
        "node": place.node_id,
        "disk": place.disk if place.HasField("disk") else None,
        "target": place.target_id,
    }
