"""An operator's side of mgmtd: requests that change the cluster, and a look at what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from fs3.client.control import ControlService
from fs3.client.mgmtd import MgmtdClient
from fs3.pb import admin_pb2
from fs3.routing import Routing

ADMIN = admin_pb2.DESCRIPTOR.services_by_name["Admin"]
_ANSWER_S = 15.0


class AdminClient:
    """Blocking; `mgmtd` follows the routing. Make it with `connect`, and close it."""

    def __init__(self, mgmtd: MgmtdClient) -> None:
        self.mgmtd = mgmtd
        self._service = ControlService(mgmtd.addresses, ADMIN)

    @classmethod
    def connect(cls, addresses: Sequence[str], secret: str = "", timeout_s: float = 5.0) -> AdminClient:
        """Raises: Unavailable, PermissionDenied, as `MgmtdClient.connect`."""
        return cls(MgmtdClient.connect(addresses, secret, timeout_s))

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def change(self, method: str, request: Any) -> list[str]:
        """What mgmtd did, in lines; `method` is one of proto/fs3/pb/admin.proto that answers so.

        Raises:
            Invalid, NotFound, Exists: mgmtd refuses, and has changed nothing.
            MaybeApplied: it may have been done; the routing tells.
            Unavailable: no mgmtd that decides answered.
        """
        reply = self._call(method, request)
        assert isinstance(reply, admin_pb2.AdminReply)
        self.mgmtd.refresh(reply.routing_version - 1, _ANSWER_S)
        return list(reply.lines)

    def waits(self) -> list[str]:
        """Why drains do not go on, a line for each reason. Raises: Unavailable."""
        return list(self._call("Waits", admin_pb2.WaitsRequest()).lines)

    def fetch(self) -> Routing:
        """The routing with the figures of now. Raises: Unavailable."""
        return self.mgmtd.fetch()

    def close(self) -> None:
        self._service.close()
        self.mgmtd.close()

    def _call(self, method: str, request: Any) -> Any:
        self._service.learn(self.mgmtd.addresses)
        return self._service.call(method, request, timeout_s=_ANSWER_S, credentials=self.mgmtd.credentials)


def place(*, node: int | None = None, disk: int | None = None, target: int | None = None) -> admin_pb2.Place:
    """A node, one of its disks, or a target, as requests name them."""
    return admin_pb2.Place(node_id=node or 0, disk=disk, target_id=target or 0)
