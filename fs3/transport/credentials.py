"""Who calls, and how asyncio code reaches daemons: what clients and daemons of either door share."""

from __future__ import annotations

import hmac
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from fs3.errors import PermissionDenied
from fs3.pb import storage_pb2
from fs3.user import User, parse_user

PROTOCOL = 1

CLUSTER = "fs3-cluster"  # names in gRPC's call metadata
SECRET = "fs3-secret"
USER = "fs3-user"

CALLER: ContextVar[User | None] = ContextVar("fs3_caller", default=None)  # whose call this task answers, if they said


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a caller shows and a server wants: the cluster it belongs to ("" if not known yet) and its secret.

    `user` is the text of the caller's (fs3/user.py); "" says nothing, as callers of before there were users do.
    """

    cluster_id: str = ""
    secret: str = ""
    user: str = ""

    def metadata(self) -> list[tuple[str, str]]:
        """The call metadata that shows these credentials."""
        pairs = [(CLUSTER, self.cluster_id), (SECRET, self.secret), (USER, self.user)]
        return [(key, value) for key, value in pairs if value]

    def hello(self, *, role: str) -> storage_pb2.Hello:
        """The first frame of a connection that shows these credentials."""
        return storage_pb2.Hello(
            protocol=PROTOCOL, cluster_id=self.cluster_id, secret=self.secret, role=role, user=self.user
        )

    def check(self, cluster_id: str, secret: str) -> None:
        """Refuse a caller of another cluster or with a wrong secret. Raises: PermissionDenied."""
        if self.cluster_id and cluster_id and cluster_id != self.cluster_id:
            raise PermissionDenied(f"this is cluster {self.cluster_id}, the caller belongs to cluster {cluster_id}")
        if self.secret and not hmac.compare_digest(secret.encode(), self.secret.encode()):
            raise PermissionDenied("the cluster's secret is missing or wrong; set `secret` (or FS3SECRET)")


def stated_user(text: str) -> User | None:
    """Whom a caller says to be; None if it does not say. Raises: Invalid."""
    return parse_user(text) if text else None


class ControlCall(Protocol):
    """How asyncio code reaches daemons: one call to one address. A port, so that the simulator carries the messages."""

    async def __call__(
        self, address: str, method: str, request: Any, *, timeout_s: float, credentials: Credentials
    ) -> Any:
        """The reply. Raises: Fs3Error as the daemon raised it, Unavailable if none answered within `timeout_s`."""
        ...
