"""The configuration of one meta daemon (deploy/meta.toml is an example)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fs3.errors import Invalid
from fs3.ids import MAX_NODE


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaConfig:
    """`mgmtd` names every mgmtd as "host:port"; clients learn this daemon's address from them, so port 0 will do.

    `kv` is where the metas of a cluster keep all names (fs3/kv/opening.py tells what it may be), by default a file in
    `data_dir`, which is of no use otherwise.
    """

    node_id: int
    mgmtd: tuple[str, ...]
    data_dir: Path | None = None
    kv: str = ""
    listen_host: str = "127.0.0.1"
    listen_port: int = 0
    metrics_port: int = 0
    secret: str = ""
    insecure: bool = False
    session_lease_s: float = 60.0  # an unpublished file whose writer has not renewed for so long is collected
    gc_delay_s: float = 10.0  # how long a removed file's chunks stay for those who are reading them
    gc_interval_s: float = 1.0  # between two looks for something to collect
    trash_grace_s: float = 600.0  # what is due in the trash stays for so long, should this machine's clock have jumped
    check_permissions: bool = True  # else permission bits and owners are kept, and everybody may do everything

    def __post_init__(self) -> None:
        if not 0 < self.node_id <= MAX_NODE:
            raise Invalid(f"node_id {self.node_id}: must be between 1 and {MAX_NODE}")
        if not self.mgmtd:
            raise Invalid("mgmtd: name at least one mgmtd as host:port")
        if self.data_dir is None and not self.kv:
            raise Invalid("data_dir: name the folder of the metadata store, or another store in kv")
        if not 0 <= self.listen_port < 65_536:
            raise Invalid(f"listen_port {self.listen_port}: must be between 0 and 65535")
        if self.session_lease_s <= 0 or self.gc_interval_s <= 0 or self.gc_delay_s < 0 or self.trash_grace_s < 0:
            raise Invalid("session_lease_s and gc_interval_s must be above 0, trash_grace_s and gc_delay_s at least 0")

    @property
    def store(self) -> str:
        """Where the key-value store is."""
        if self.kv or self.data_dir is None:
            return self.kv
        return str(self.data_dir / "meta.sqlite")
