"""What a storage daemon tells of itself: to Prometheus, and as the JSON of a STATS frame. Computed when asked for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fs3.errors import BY_CODE
from fs3.storage.body_pool import BodyPool
from fs3.storage.engine_api import ChunkEngine
from fs3.storage.io_thread import IoThread
from fs3.storage.scrub import Scrubber
from fs3.storage.write_path import WritePath
from fs3.transport.frame_core import Kind


class DaemonFigures(Collector):
    """The figures of one daemon."""

    def __init__(
        self,
        engines: Sequence[ChunkEngine],
        disks: Sequence[Path],
        threads: Sequence[IoThread],
        pool: BodyPool,
        writes: WritePath,
        scrubbers: Sequence[Scrubber] = (),
    ) -> None:
        self._engines = tuple(engines)
        self._disks = tuple(disks)
        self._threads = tuple(threads)
        self._pool = pool
        self._writes = writes
        self._scrubbers = tuple(scrubbers)

    def stats_json(self) -> str:
        """Server, write path and engines, as one JSON object."""
        return json.dumps(
            {
                "server": self._server(),
                "writes": asdict(self._writes.stats()),
                "disks": [
                    {"path": str(disk), **dict(zip(("total_bytes", "free_bytes"), engine.space(), strict=True))}
                    | asdict(engine.stats())
                    for disk, engine in zip(self._disks, self._engines, strict=True)
                ],
                "scrub": [
                    {"path": str(disk), **asdict(scrubber.counts), "oldest_pass_ns": _oldest_pass_ns(scrubber)}
                    for disk, scrubber in zip(self._disks, self._scrubbers, strict=False)
                ],
            }
        )

    def _server(self) -> dict[str, Any]:
        figures = [thread.figures for thread in self._threads]
        errors: Counter[int] = Counter()
        for one in figures:
            errors.update(dict(one.errors))
        return {
            "requests": {
                kind.name.lower(): sum(one.requests[kind] for one in figures) for kind in Kind if kind != Kind.HELLO
            },
            "errors": {_error_name(code): count for code, count in sorted(errors.items())},
            "read_bytes": sum(one.read_bytes for one in figures),
            "located_bytes": sum(one.located_bytes for one in figures),
            "write_bytes": sum(one.write_bytes for one in figures),
            "connections": sum(len(thread.peers) for thread in self._threads),
            "accepted": sum(one.accepted for one in figures),
            "refused": sum(one.refused for one in figures),
            "unreadable": sum(one.unreadable for one in figures),
            "inflight_bytes": self._pool.lent_bytes,
        }

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        server = self._server()
        yield _counter("fs3_storage_requests", "Requests by kind", "kind", server["requests"].items())
        yield _counter("fs3_storage_errors", "Requests and ranges that failed", "error", server["errors"].items())
        for name, text in (
            ("read_bytes", "Bytes of chunks in answers"),
            ("located_bytes", "Bytes of chunks that clients on this host were shown, to read them by themselves"),
            ("write_bytes", "Bytes of updates received, from clients and predecessors"),
            ("accepted", "Connections accepted"),
            ("refused", "Connections refused because there were too many"),
            ("unreadable", "Reads of blocks that the disk failed after an answer had begun"),
        ):
            yield CounterMetricFamily(f"fs3_storage_{name}", text, value=server[name])
        yield GaugeMetricFamily("fs3_storage_connections", "Open connections", value=server["connections"])
        yield GaugeMetricFamily(
            "fs3_storage_inflight_bytes", "Memory lent to the bodies of requests", value=server["inflight_bytes"]
        )
        yield from self._of_writes()
        yield from self._of_disks()

    def _of_writes(self) -> Iterator[Metric]:
        stats = asdict(self._writes.stats())
        gauges = ("locked_chunks", "serving_targets", "syncing_targets")
        for name, value in stats.items():
            text = f"{name.replace('_', ' ').capitalize()} (write path)"
            family = GaugeMetricFamily if name in gauges else CounterMetricFamily
            yield family(f"fs3_storage_{name}", text, value=value)

    def _of_disks(self) -> Iterator[Metric]:
        space = GaugeMetricFamily("fs3_storage_space_bytes", "Room for chunks", labels=["disk", "what"])
        chunks = GaugeMetricFamily("fs3_storage_chunks", "Chunks by state", labels=["disk", "state"])
        fullness = GaugeMetricFamily(
            "fs3_storage_fullness", "0: there is room, 1: nearly full, 2: no new chunks, 3: no writes", labels=["disk"]
        )
        corrupt = CounterMetricFamily("fs3_storage_corrupt", "Blocks found not to match their sums", labels=["disk"])
        syncs = CounterMetricFamily("fs3_storage_syncs", "Syncs of files and logs", labels=["disk", "what"])
        locked = GaugeMetricFamily(
            "fs3_storage_locked_blocks", "Freed blocks that a client on this host still keeps", labels=["disk"]
        )
        for disk, engine in zip(self._disks, self._engines, strict=True):
            total, free = engine.space()
            stats = engine.stats()
            for what, value in (("total", total), ("free", free), ("used", stats.used_bytes)):
                space.add_metric([str(disk), what], value)
            for state in ("chunks", "pending", "tombstones"):
                name = "committed" if state == "chunks" else state
                chunks.add_metric([str(disk), name], getattr(stats, state))
            corrupt.add_metric([str(disk)], stats.corrupt)
            syncs.add_metric([str(disk), "files"], stats.file_syncs)
            syncs.add_metric([str(disk), "log"], stats.wal_syncs)
            fullness.add_metric([str(disk)], stats.fullness)
            locked.add_metric([str(disk)], stats.locked)
        yield from (space, chunks, corrupt, syncs, fullness, locked)
        yield from self._of_scrubbing()

    def _of_scrubbing(self) -> Iterator[Metric]:
        damaged = GaugeMetricFamily(
            "fs3_storage_damaged_chunks", "Chunks known to fail their sums and not repaired yet", labels=["disk"]
        )
        for disk, engine in zip(self._disks, self._engines, strict=True):
            damaged.add_metric([str(disk)], len(engine.damaged()))
        yield damaged
        oldest = GaugeMetricFamily(
            "fs3_storage_scrub_oldest_pass_seconds",
            "When the target that has gone unverified for longest was last verified whole, Unix time; 0: never",
            labels=["disk"],
        )
        for disk, scrubber in zip(self._disks, self._scrubbers, strict=False):
            oldest.add_metric([str(disk)], _oldest_pass_ns(scrubber) / 1e9)
        yield oldest
        for name, text in (
            ("chunks", "Chunks verified by the scrubber"),
            ("bytes", "Bytes verified by the scrubber"),
            ("damaged", "Damaged chunks that the scrubber came by"),
            ("passes", "Targets verified whole"),
        ):
            family = CounterMetricFamily(f"fs3_storage_scrub_{name}", text, labels=["disk"])
            for disk, scrubber in zip(self._disks, self._scrubbers, strict=False):
                family.add_metric([str(disk)], getattr(scrubber.counts, name))
            yield family


def _counter(name: str, text: str, label: str, values: Iterable[tuple[str, int]]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family


def _oldest_pass_ns(scrubber: Scrubber) -> int:
    return min((one.ended_ns for one in scrubber.progress().values()), default=0)


def _error_name(code: int) -> str:
    cls = BY_CODE.get(code)
    return cls.__name__ if cls is not None else str(code)
