"""The configuration of one mgmtd (deploy/mgmtd.toml is an example)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fs3.errors import Invalid
from fs3.ids import MAX_NODE


@dataclass(frozen=True, slots=True, kw_only=True)
class MgmtdConfig:
    """`bootstrap_*` and `chains_per_disk` matter once: when the first chain tables are made.

    `kv` is where the mgmtds of a cluster keep what they share: by default the folder's own file (fs3/kv/opening.py says
    what it may be). `lease_s` and `client_session_s` must be the same for all of them.
    """

    node_id: int
    data_dir: Path
    listen_host: str = "127.0.0.1"
    listen_port: int = 7300
    metrics_port: int = 0
    kv: str = ""
    lease_s: float = 10.0
    client_session_s: float = 60.0
    bootstrap_nodes: int = 1
    bootstrap_replicas: int = 1
    chains_per_disk: int = 2
    secret: str = ""
    insecure: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.node_id <= MAX_NODE:
            raise Invalid(f"node_id {self.node_id}: must be between 1 and {MAX_NODE}")
        if not 0 <= self.listen_port < 65_536:
            raise Invalid(f"listen_port {self.listen_port}: must be between 0 and 65535")
        if not 0.2 <= self.lease_s <= 600:
            raise Invalid(f"lease_s {self.lease_s:g}: must be between 0.2 and 600 seconds")
        if not 0.2 <= self.client_session_s <= 86_400:
            raise Invalid(f"client_session_s {self.client_session_s:g}: must be between 0.2 and 86400 seconds")
        if not 1 <= self.bootstrap_replicas <= self.bootstrap_nodes:
            raise Invalid(
                f"bootstrap_replicas {self.bootstrap_replicas}: must be between 1 and bootstrap_nodes"
                f" ({self.bootstrap_nodes}), since every replica of a chain is on a node of its own"
            )
        if not 1 <= self.chains_per_disk <= 64:
            raise Invalid(f"chains_per_disk {self.chains_per_disk}: must be between 1 and 64")

    @property
    def store(self) -> str:
        """Where the key-value store is."""
        return self.kv or str(self.data_dir / "mgmtd.sqlite")

    @property
    def election_s(self) -> float:
        """E (fs3/mgmtd/election_core.py): a quarter of T, so that a change of the primary costs no daemon its lease."""
        return self.lease_s / 4
