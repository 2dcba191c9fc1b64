"""The configuration of one storage daemon (deploy/storage.toml is an example)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from fs3.errors import Invalid
from fs3.ids import MAX_NODE, MAX_WORKERS, machine_of, worker_node, worker_of
from fs3.storage.engine_api import EngineConfig
from fs3.transport.exposure import check_exposure
from fs3.transport.frame_core import MAX_BODY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """`disks` are folders, one per disk; their order is part of what mgmtd knows and must stay.

    `workers` processes serve them, each with a share (share_core.py). All limits are a process's own, but for the rates
    below, which its workers have together. With ports given, a worker's are higher by its number.

    `max_inflight_bytes` bounds the bodies of requests that are held in memory, for each place in a chain on its own: a
    request that waits for a successor must never take the room of those that successor waits for. A removal is
    remembered for `tombstone_s`, and at most twice as long. Recovery of other replicas takes at most `recovery_bytes_s`
    (0: no limit), verifying what lies on the disks `scrub_bytes_s` each (0: never), once in `scrub_every_s`.
    """

    node_id: int
    mgmtd: tuple[str, ...]
    disks: tuple[Path, ...]
    listen_host: str = "127.0.0.1"
    listen_port: int = 0
    unix_dir: Path | None = None
    metrics_port: int = 0
    secret: str = ""
    insecure: bool = False
    workers: int = 1
    io_threads: int = 2
    write_threads: int = 16  # for each place in a chain
    read_threads: int = 4  # for reads that wait for the disk
    max_connections: int = 1024
    max_requests: int = 64  # unanswered on one connection
    max_ranges: int = 4096
    max_body_bytes: int = 64 << 20
    max_inflight_bytes: int = 256 << 20
    tombstone_s: float = 600.0
    recovery_bytes_s: int = 1 << 30
    scrub_bytes_s: int = 16 << 20
    scrub_every_s: float = 7 * 86_400.0
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if worker_of(self.node_id) >= max(self.workers, 1) or not machine_of(self.node_id):
            raise Invalid(f"node_id {self.node_id}: must be between 1 and {MAX_NODE}")
        for name, least, most in _LIMITS:
            if not least <= getattr(self, name) <= most:
                raise Invalid(f"{name} {getattr(self, name)}: must be between {least} and {most}")
        if self.listen_host in ("0.0.0.0", "::", "[::]", ""):
            raise Invalid(f"listen_host {self.listen_host!r}: name the address by which other nodes reach this one")
        if not self.mgmtd:
            raise Invalid("mgmtd: name at least one address, as host:port")
        for address in self.mgmtd:
            host, _, digits = address.rpartition(":")
            if not host or not digits.isdecimal():
                raise Invalid(f"mgmtd {address!r}: expected host:port")
        if not self.disks:
            raise Invalid("disks: name at least one folder")
        if len(set(self.disks)) < len(self.disks):
            raise Invalid("disks: a folder is named twice")
        if self.max_inflight_bytes < self.max_body_bytes:
            raise Invalid(
                f"max_inflight_bytes {self.max_inflight_bytes}: must be at least max_body_bytes ({self.max_body_bytes})"
            )
        for what, port in (("listen_port", self.listen_port), ("metrics_port", self.metrics_port)):
            if port and port + self.workers > 65_536:
                raise Invalid(f"{what} {port}: {self.workers} workers take as many ports, and 65535 is the last")
        check_exposure(self.listen_host, secret=self.secret, insecure=self.insecure)

    @property
    def worker(self) -> int:
        """Which worker's configuration this is; a daemon's own is that of worker 0."""
        return worker_of(self.node_id)

    def of_worker(self, worker: int) -> StorageConfig:
        """The configuration of one of the workers of the daemon that has this one."""
        return replace(
            self,
            node_id=worker_node(machine_of(self.node_id), worker),
            listen_port=self.listen_port + worker if self.listen_port else 0,
            metrics_port=self.metrics_port + worker if self.metrics_port else 0,
            recovery_bytes_s=-(-self.recovery_bytes_s // self.workers),
        )


_LIMITS = (
    ("workers", 1, MAX_WORKERS),
    ("listen_port", 0, 65_535),
    ("metrics_port", 0, 65_535),
    ("io_threads", 1, 64),
    ("write_threads", 1, 256),
    ("read_threads", 1, 256),
    ("max_connections", 1, 1 << 20),
    ("max_requests", 1, 4096),
    ("max_ranges", 1, 1 << 16),
    ("tombstone_s", 0.01, 86_400),
    ("recovery_bytes_s", 0, 1 << 40),
    ("scrub_bytes_s", 0, 1 << 40),
    ("scrub_every_s", 1, 10 * 365 * 86_400),
    ("max_body_bytes", 1 << 20, MAX_BODY_BYTES),
)
