"""Opens the store that a daemon's file names under `kv`.

PATH                                     a SQLite file, which the daemons of one machine share (sqlite.py)
etcd://HOST:PORT[,HOST:PORT...]/NAME     the store NAME of an etcd cluster, which any machine's share (etcd.py)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fs3.errors import Busy, Invalid, NoSpace, PermissionDenied, Unavailable
from fs3.kv.api import KVEngine
from fs3.kv.etcd import EtcdKV
from fs3.kv.etcd_layout import Grouping
from fs3.kv.sqlite import SqliteKV

_ETCD = "etcd://"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:/@,\[\]]+):[0-9]{1,5}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class EtcdPlace:
    """The store `name` in the cluster whose members serve clients at `endpoints`."""

    endpoints: tuple[str, ...]
    name: str


def parse_place(text: str) -> Path | EtcdPlace:
    """Where the store is that `text` names. Raises: Invalid."""
    if not text.startswith(_ETCD):
        if _SCHEME.match(text):
            raise Invalid(f"kv {text!r}: must be a path, or etcd://HOST:PORT[,HOST:PORT...]/NAME")
        return Path(text)
    addresses, _, name = text.removeprefix(_ETCD).partition("/")
    endpoints = tuple(addresses.split(","))
    for endpoint in endpoints:
        if not _ADDRESS.fullmatch(endpoint) or not 0 < int(endpoint.rpartition(":")[2]) < 65_536:
            raise Invalid(f"kv {text!r}: {endpoint!r} is not HOST:PORT; write etcd://HOST:PORT[,HOST:PORT...]/NAME")
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"kv {text!r}: must end with the store's name of letters, digits, '.', '_' and '-', such as"
            f" {_ETCD}{addresses}/meta"
        )
    return EtcdPlace(endpoints, name)


async def open_store(text: str, grouping: Grouping, *, timeout_s: float = 10.0) -> KVEngine:
    """The store that `text` names, made if it is not there; `grouping` as in `EtcdKV`.

    Raises:
        Invalid: `text` names none, it cannot be used, or is of another format.
        Unavailable: etcd has not answered within `timeout_s`.
        Fs3Error: what else the engine says.
    """
    place = parse_place(text)
    if isinstance(place, Path):
        return SqliteKV(place)
    kv = EtcdKV(place.endpoints, place.name, grouping=grouping)
    try:
        await kv.check(timeout_s)
    except BaseException as error:
        await kv.close()
        if isinstance(error, Invalid | PermissionDenied | NoSpace):
            raise type(error)(f"kv {text}: {error}") from None
        if isinstance(error, Unavailable | Busy):
            raise Unavailable(
                f"kv {text}: no member has carried out a change within {timeout_s:g} s ({error}); see that most of"
                " etcd's members run and reach each other, and that kv in this daemon's file names them"
            ) from None
        raise
    return kv
