"""Which file systems several machines see, told from the kernel's list of mounts (proc(5), mountinfo)."""

from __future__ import annotations

import re

_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "glusterfs", "beegfs", "gpfs", "afs", "ocfs2", "gfs2"}
)
_NETWORK_FUSE = frozenset({"sshfs", "glusterfs", "s3fs", "gcsfuse", "juicefs", "ceph", "cephfs", "fs3"})
_ESCAPED = re.compile(r"\\([0-7]{3})")


def network_file_system(path: str, mountinfo: str) -> str | None:
    """The type of the file system that holds the absolute `path` if other machines may see it, else None."""
    longest, kind = -1, ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, types = left.split(" "), right.split(" ")
        if len(fields) < 5 or not types[0]:
            continue
        mount = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4])
        holds = path == mount or path.startswith(mount.rstrip("/") + "/")
        if holds and len(mount) >= longest:  # of two mounts in one place the later one is on top
            longest, kind = len(mount), types[0]
    base, _, sub = kind.partition(".")
    return kind if base in _NETWORK or (base == "fuse" and sub in _NETWORK_FUSE) else None
