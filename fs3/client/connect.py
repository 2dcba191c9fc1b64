"""From the address of a cluster to everything a process needs to use it, made once and shared."""

from __future__ import annotations

import dataclasses
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from fs3.client.file import FileClient
from fs3.client.meta import MetaClient
from fs3.client.mgmtd import MgmtdClient
from fs3.client.storage import StorageClient
from fs3.url import parse_url
from fs3.user import User, process_user

REFRESH_S = 1.0

_lock = threading.Lock()
_clients: dict[tuple[tuple[str, ...], str, User, bool, bool], Client] = {}


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)  # another thread may have been connecting


@dataclass(frozen=True, slots=True)
class Client:
    """The clients of one cluster and user, shared by everyone in the process who connected to it."""

    addresses: tuple[str, ...]
    user: User
    mgmtd: MgmtdClient
    storage: StorageClient
    meta: MetaClient
    files: FileClient

    def close(self) -> None:
        """Close all of it, for everyone; a later `connect` opens it anew."""
        with _lock:
            for key in [key for key, client in _clients.items() if client is self]:
                del _clients[key]
        self.files.close()
        self.storage.close()
        self.meta.close()
        self.mgmtd.close()


def connect(
    cluster: str | Sequence[str],
    *,
    secret: str = "",
    user: User | None = None,
    timeout_s: float = 5.0,
    same_host: bool = True,
    verify: bool = True,
) -> Client:
    """The process's client of the cluster that a URL ("fs3://HOST:PORT/...") or mgmtd addresses name.

    The first call connects, later ones return the same client; forked children go on with it as clients of their own.
    It calls for `user`, or for whom the process is when `connect` is called: after `os.setuid` connect again. Without
    `same_host` it reads over the network also what daemons of this host and user could show it (docs/operations.md).
    Without `verify` bytes that come over the network are not held against their sums: to measure what that costs.

    Raises:
        Invalid: the URL is not one.
        Unavailable: no mgmtd answered within `timeout_s`; names the addresses.
        PermissionDenied: the secret is missing or wrong.
    """
    addresses = parse_url(cluster)[0] if isinstance(cluster, str) else tuple(cluster)
    user = user or process_user()
    key = (addresses, secret, user, same_host, verify)
    client = _clients.get(key)
    if client is not None:
        return client
    with _lock:
        client = _clients.get(key)
        if client is None:
            client = _clients[key] = _open(addresses, secret, user, timeout_s, same_host=same_host, verify=verify)
        return client


def _open(
    addresses: tuple[str, ...], secret: str, user: User, timeout_s: float, *, same_host: bool, verify: bool
) -> Client:
    mgmtd = MgmtdClient.connect(addresses, secret, timeout_s)
    storage = StorageClient(mgmtd, secret=secret, same_host=same_host, verify=verify)
    meta = MetaClient(
        lambda: mgmtd.routing,
        dataclasses.replace(mgmtd.credentials, user=user.text),
        secrets.randbits(63) | 1,
        refresh=lambda: mgmtd.refresh(mgmtd.routing.version, REFRESH_S),
    )
    return Client(addresses, user, mgmtd, storage, meta, FileClient(storage, meta, mgmtd))
