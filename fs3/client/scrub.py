"""Scrubs and damaged chunks of a whole cluster, for an operator; each storage daemon answers for its disks.

`scrub(mgmtd)` tells, `scrub(mgmtd, begin=True)` begins a pass over everything on every daemon first. Blocking; daemons
that do not answer are told as such and fail nobody else's answer.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from fs3.client.inspection import Inspector
from fs3.client.mgmtd import MgmtdClient
from fs3.errors import Corrupt, Fs3Error
from fs3.pb import storage_pb2
from fs3.routing import Node, NodeKind
from fs3.transport.frame_core import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetScrub:
    """One target: the pass that runs, or the last one. Times are nanoseconds since 1970, 0 for never."""

    node_id: int
    disk: int
    path: str
    target: int
    chain: int
    running: bool
    begun_ns: int
    ended_ns: int
    passes: int
    chunks: int  # verified in the pass
    of_chunks: int  # that the target has now
    read_bytes: int
    damaged: int  # found in the pass


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedChunk:
    """A committed version whose bytes on one target are known to fail their sums; `why` it is not repaired yet."""

    node_id: int
    disk: int
    target: int
    chain: int
    hi: int
    lo: int
    version: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubReport:
    """What the daemons said. `damaged_chunks` counts all; a daemon names at most 1,000 of each disk. `errors` is by
    node id, of those that did not answer."""

    targets: tuple[TargetScrub, ...]
    damaged: tuple[DamagedChunk, ...]
    damaged_chunks: int
    errors: dict[int, str]


def scrub(
    mgmtd: MgmtdClient, *, secret: str = "", begin: bool = False, nodes: Collection[int] | None = None
) -> ScrubReport:
    """Ask the storage daemons (of `nodes` only, if given); with `begin` they start to verify everything anew."""
    targets: list[TargetScrub] = []
    damaged: list[DamagedChunk] = []
    total = 0
    errors: dict[int, str] = {}
    inspector = Inspector(mgmtd, secret)
    try:
        for node_id, node in sorted(mgmtd.routing.nodes.items()):
            if node.kind != NodeKind.STORAGE or (nodes is not None and int(node_id) not in nodes):
                continue
            try:
                disks = _ask(inspector, node, begin=begin)
            except Fs3Error as error:
                errors[int(node_id)] = str(error)
                continue
            for disk in disks:
                where = {"node_id": int(node_id), "disk": disk["disk"]}
                targets += [_target(one, path=disk["path"], **where) for one in disk["targets"]]
                damaged += [DamagedChunk(**one, **where) for one in disk["damaged"]]
                total += disk["damaged_chunks"]
    finally:
        inspector.close()
    return ScrubReport(targets=tuple(targets), damaged=tuple(damaged), damaged_chunks=total, errors=errors)


def _ask(inspector: Inspector, node: Node, *, begin: bool) -> list[dict[str, Any]]:
    """What a node says of its disks. Raises: Fs3Error."""
    with inspector.connected(node) as (connection, deadline_s):
        connection.send(Kind.SCRUB, [b""], count=int(begin), deadline_s=deadline_s)
        _, head = connection.receive_head()
        disks: list[dict[str, Any]] = _said(bytes(head))["disks"]
    return disks


def _said(head: bytes) -> dict[str, Any]:
    reply = storage_pb2.StatsReply()
    try:
        reply.ParseFromString(head)
        said: dict[str, Any] = json.loads(reply.json)
    except (ValueError, TypeError):
        raise Corrupt("a daemon's answer to SCRUB cannot be understood") from None
    return said


def _target(one: dict[str, Any], **where: Any) -> TargetScrub:
    return TargetScrub(**{name: value for name, value in one.items() if name != "after"}, **where)
