"""Network file systems are told from local ones by the kernel's list of mounts."""

from __future__ import annotations

import pytest

from fs3.kv.network_core import network_file_system

MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /home rw,relatime shared:20 master:3 - nfs4 server:/home rw,vers=4.2
41 40 8:2 / /home/fast rw - xfs /dev/sdb1 rw
42 22 0:36 / /mnt/two\040words rw - fuse.sshfs host:/ rw
43 22 0:37 / /mnt/over rw - nfs server:/x rw
44 22 0:38 / /mnt/over rw - tmpfs tmpfs rw
45 22 0:39 / /mnt/plain rw - fuse.squashfuse file rw
not a line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/kv.db", None),
        ("/home/me/kv.db", "nfs4"),
        ("/homework/kv.db", None),
        ("/home/fast/kv.db", None),
        ("/mnt/two words/kv.db", "fuse.sshfs"),
        ("/mnt/over/kv.db", None),
        ("/mnt/plain/kv.db", None),
    ],
)
def test_the_innermost_and_topmost_mount_decides(path: str, kind: str | None) -> None:
    assert network_file_system(path, MOUNTS) == kind


def test_no_mounts_no_opinion() -> None:
    assert network_file_system("/x", "") is None
