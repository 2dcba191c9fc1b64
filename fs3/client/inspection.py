"""What single daemons know: an operator's questions, asked of each replica by itself instead of whoever serves.

One that does not answer keeps nobody from seeing the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from fs3.client.mgmtd import MgmtdClient
from fs3.clock import deadline_after
from fs3.errors import Corrupt, Fs3Error, Unavailable
from fs3.ids import NodeId, node_name
from fs3.pb import storage_pb2
from fs3.routing import Node, Target
from fs3.transport.connection import Connection
from fs3.transport.credentials import PROTOCOL
from fs3.transport.frame_core import Kind
from fs3.transport.messages import (
    CHUNK_META,
    META_ABSENT,
    META_DAMAGED,
    META_NO_TARGET,
    META_REMOVED,
    RANGE,
    Records,
    records,
)
from fs3.transport.pool import ConnectionPool

_ANSWER_S = 5.0
_AT_ONCE = 256
_Asked = tuple[int, int, Target]  # (hi, lo, target)
_TOLD = ("version", "pending", "chain_version", "length", "crc", "flags")


@dataclass(frozen=True, slots=True)
class Copy:
    """One target's word on one chunk; `error` instead if its daemon did not answer."""

    hi: int
    lo: int
    target: Target
    version: int = 0
    pending: int = 0
    chain_version: int = 0
    length: int = 0
    sum: int = 0
    flags: int = 0
    error: str = ""

    @property
    def there(self) -> bool:
        return not self.error and not self.flags & (META_ABSENT | META_REMOVED | META_NO_TARGET)

    @property
    def remark(self) -> str:
        """What is special about it, in a word."""
        if self.error:
            return self.error
        words = {META_DAMAGED: "damaged", META_ABSENT: "absent", META_REMOVED: "removed", META_NO_TARGET: "no target"}
        return ", ".join(word for flag, word in words.items() if self.flags & flag)


class Inspector:
    """Asks daemons one by one; close it at the end."""

    def __init__(self, mgmtd: MgmtdClient, secret: str = "") -> None:
        self._mgmtd = mgmtd
        hello = storage_pb2.Hello(
            protocol=PROTOCOL, cluster_id=mgmtd.routing.cluster_id, secret=secret, role="client", client_id=0
        )
        self._pool = ConnectionPool(hello)

    def close(self) -> None:
        self._pool.close()

    def copies(self, chunks: Sequence[tuple[int, int, int]]) -> list[Copy]:
        """What every target of its chain knows of each chunk (hi, lo, chain), chunk by chunk in chain order."""
        routing = self._mgmtd.routing
        wanted = [
            (hi, lo, routing.targets[target_id])
            for hi, lo, chain in chunks
            for target_id in routing.chain(chain).targets
        ]
        answers = {(copy.hi, copy.lo, copy.target.target_id): copy for copy in self._ask_all(wanted)}
        return [answers[hi, lo, target.target_id] for hi, lo, target in wanted]

    def find(self, hi: int, lo: int) -> tuple[list[int], dict[int, str]]:
        """The chains on which somebody has a chunk, or remembers its removal, whatever its file's layout says; and, by
        node id, why a node could not say.
        """
        copies = list(self._ask_all([(hi, lo, target) for target in self._mgmtd.routing.targets.values()]))
        found = [copy for copy in copies if copy.there or (not copy.error and copy.flags & META_REMOVED)]
        return sorted({copy.target.chain_id for copy in found}), silent(copies)

    @contextmanager
    def connected(self, node: Node) -> Iterator[tuple[Connection, float]]:
        """A connection to a node, and the deadline for what is asked on it. Raises: Fs3Error."""
        if not node.alive:
            raise Unavailable("not heard of")
        deadline_s = deadline_after(_ANSWER_S)
        connection = self._pool.borrow(node.endpoints[0], deadline_s=deadline_s, connect_timeout_s=_ANSWER_S)
        try:
            yield connection, deadline_s
        finally:
            self._pool.give_back(connection)

    def _ask_all(self, wanted: Sequence[_Asked]) -> Iterator[Copy]:
        """Every answer, node by node."""
        nodes = self._mgmtd.routing.nodes
        by_node: dict[NodeId, list[_Asked]] = {}
        for one in wanted:
            by_node.setdefault(one[2].node_id, []).append(one)
        for node_id, own in sorted(by_node.items()):
            yield from self._ask(nodes[node_id], own)

    def _ask(self, node: Node, wanted: Sequence[_Asked]) -> Iterator[Copy]:
        for begin in range(0, len(wanted), _AT_ONCE):
            some = wanted[begin : begin + _AT_ONCE]
            try:
                metas = self._metas(node, some)
            except Fs3Error as error:
                yield from (Copy(hi, lo, target, error=str(error)) for hi, lo, target in some)
                continue
            for (hi, lo, target), meta in zip(some, metas, strict=True):
                version, pending, chain_version, length, crc, flags = (int(meta[name]) for name in _TOLD)
                yield Copy(hi, lo, target, version, pending, chain_version, length, crc, flags)

    def _metas(self, node: Node, wanted: Sequence[_Asked]) -> Records:
        ranges = np.zeros(len(wanted), dtype=RANGE)
        ranges["hi"], ranges["lo"] = [one[0] for one in wanted], [one[1] for one in wanted]
        ranges["chain"] = [one[2].chain_id for one in wanted]
        with self.connected(node) as (connection, deadline_s):
            connection.send(Kind.INSPECT, [ranges.tobytes()], count=len(ranges), deadline_s=deadline_s)
            header, head = connection.receive_head()
            if header.count != len(wanted) or len(head) != len(wanted) * CHUNK_META.itemsize:
                connection.close()
                raise Corrupt(
                    f"node {node_name(node.node_id)} answered {header.count} records instead of {len(wanted)}"
                )
            return records(bytes(head), CHUNK_META, header.count)


def silent(copies: Sequence[Copy]) -> dict[int, str]:
    """By node id, why a node that was asked has not answered."""
    return {int(copy.target.node_id): copy.error for copy in copies if copy.error}
