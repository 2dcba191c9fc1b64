"""What must hold once a soak's faults have ended: nothing acknowledged is lost, nothing is wrong, replicas agree.

chunks    the history of each is linearizable, where its replicas' bytes at the end are its last reads
replicas  the SERVING targets of a chain have the same version and bytes of every chunk
files     every file is what its client was last told, or may have written since
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from soak_client import CHUNK_BYTES, file_content
from soak_cluster import SECRET
from soak_history import CHUNK_HI, Kind, Operation, Outcome, check, operations_of

from fs3.client.connect import Client
from fs3.clock import deadline_after
from fs3.errors import Fs3Error, NotFound
from fs3.pb import storage_pb2
from fs3.routing import Routing
from fs3.transport.connection import Connection
from fs3.transport.frame_core import Kind as FrameKind
from fs3.transport.messages import RANGE, RESULT

_AT_ONCE = 64
_FINAL = 60 << 26  # the numbers of the last reads


@dataclass(slots=True)
class Findings:
    """`wrong` is empty if all is well."""

    wrong: list[str] = field(default_factory=list)
    chunks: int = 0
    operations: int = 0
    undecided: int = 0
    replicas_read: int = 0
    files: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def check_all(lines: list[dict[str, Any]], client: Client, replicas: int, files: list[Path], now_ns: int) -> Findings:
    """Look at everything; `now_ns` is after every operation of the history."""
    found = Findings()
    for line in lines:
        if line["o"] == "failed" and not _definite(line):
            found.failed[line["k"]] += 1
            if len(found.failures) < 50:
                found.failures.append(f"{line['k']}: {line['e']}")
        if line.get("wrong"):
            found.wrong.append(f"file {line['f']}: {line['e']}")
    histories = operations_of(lines)
    chains = [int(chain) for chain in client.mgmtd.routing.table_for_replicas(replicas).chains]
    number = _FINAL
    for lo, copies in _copies(client.mgmtd.routing, chains, sorted(histories)).items():
        found.replicas_read += len(copies)
        if len(set(copies.values())) > 1:
            told = {f"node {node}": f"v{version}, {len(data)} bytes" for node, (version, data) in copies.items()}
            found.wrong.append(f"chunk {lo}: its replicas differ: {told}")
        for version, data in copies.values():
            number += 1
            histories[lo].append(_last_read(number, lo, version, data, now_ns))
    for lo, operations in histories.items():
        found.chunks += 1
        found.operations += len(operations)
        verdict = check(operations)
        if not verdict.decided:
            found.undecided += 1
        elif not verdict.ok:
            found.wrong.append(f"chunk {lo}: not linearizable: {verdict.why}")
    for path in files:
        _check_files(json.loads(path.read_text(encoding="utf-8")), client, found)
    return found


def _definite(line: dict[str, Any]) -> bool:
    """Whether a failure is an answer: an update of a chunk that does not exist, say."""
    return bool(line["e"].startswith("NotFound"))


def _last_read(number: int, lo: int, version: int, data: bytes | None, now_ns: int) -> Operation:
    return Operation(
        number,
        "the end",
        (CHUNK_HI, lo),
        Kind.READ,
        now_ns + number,
        length=CHUNK_BYTES,
        returned=now_ns + number + 1,
        outcome=Outcome.OK,
        found=data is not None,
        version=version if data is not None else 0,
        chunk_length=len(data or b""),
        seen=data or b"",
    )


def _copies(routing: Routing, chains: list[int], los: list[int]) -> dict[int, dict[int, tuple[int, bytes | None]]]:
    """Chunk -> node -> (version, bytes or None), of every SERVING replica, asked of each itself."""
    out: dict[int, dict[int, tuple[int, bytes | None]]] = {lo: {} for lo in los}
    hello = storage_pb2.Hello(protocol=1, cluster_id=routing.cluster_id, secret=SECRET, role="client")
    for node in routing.nodes.values():
        mine = {int(chain) for chain in chains if any(t.node_id == node.node_id for t in routing.serving(chain))}
        wanted = [lo for lo in los if chains[lo % len(chains)] in mine]
        if not wanted:
            continue
        connection = Connection.open(node.endpoints[0], hello, timeout_s=10.0)
        try:
            for at in range(0, len(wanted), _AT_ONCE):
                some = wanted[at : at + _AT_ONCE]
                for lo, told in zip(some, _read(connection, routing, chains, some), strict=True):
                    out[lo][int(node.node_id)] = told
        finally:
            connection.close()
    return out


def _read(
    connection: Connection, routing: Routing, chains: list[int], los: list[int]
) -> list[tuple[int, bytes | None]]:
    ranges = np.zeros(len(los), dtype=RANGE)
    for row, lo in enumerate(los):
        chain = chains[lo % len(chains)]
        ranges[row] = (CHUNK_HI, lo, 0, CHUNK_BYTES, chain, routing.chain(chain).version)
    connection.send(FrameKind.READ, [ranges.tobytes()], count=len(los), deadline_s=deadline_after(30))
    header, head = connection.receive_head()
    results = np.frombuffer(head, dtype=RESULT, count=len(los)).copy()
    body = memoryview(bytearray(header.body_bytes))
    connection.receive_body([body])
    out: list[tuple[int, bytes | None]] = []
    at = 0
    for lo, result in zip(los, results, strict=True):
        if int(result["status"]) not in (0, NotFound.code):
            raise AssertionError(f"chunk {lo}: {connection.endpoint} answers status {int(result['status'])} at the end")
        size = int(result["length"])
        out.append((int(result["version"]), bytes(body[at : at + size])) if not result["status"] else (0, None))
        at += size
    return out


def _check_files(expected: dict[str, list[list[int]]], client: Client, found: Findings) -> None:
    for path, contents in expected.items():
        found.files += 1
        try:
            data = client.files.read(client.files.open_read(path))
        except NotFound:
            if len(contents) == 1:
                found.wrong.append(f"file {path} is gone")
            continue
        except Fs3Error as error:
            found.wrong.append(f"file {path} cannot be read at the end: {error}")
            continue
        if all(file_content(seed, size) != data for seed, size in contents):
            found.wrong.append(f"file {path}: {len(data)} bytes that nobody wrote, or that were written over")
