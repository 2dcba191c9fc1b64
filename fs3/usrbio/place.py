"""Where an I/O process is found: a socket in a directory that only its user can enter, and a lock that makes it one.

    $XDG_RUNTIME_DIR/fs3/  or  /tmp/fs3-UID/     mode 0700, the user's own
      usrbio-KEY.lock     held (flock) by the I/O process for as long as it lives
      usrbio-KEY.sock     where it listens
      usrbio-KEY.log      what it had to say

KEY is a digest of the cluster's addresses, the secret, the user with all groups, and the PID namespace, as processes of
different ones cannot name each other: whoever differs in one of these has an I/O process of their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fs3.errors import PermissionDenied
from fs3.user import process_user

_LONGEST = 64  # bytes of a path below which a socket can lie: 108 in all


@dataclass(frozen=True, slots=True)
class Place:
    """The files of one I/O process."""

    directory: Path
    key: str

    @property
    def socket(self) -> Path:
        return self.directory / f"usrbio-{self.key}.sock"

    @property
    def lock(self) -> Path:
        return self.directory / f"usrbio-{self.key}.lock"

    @property
    def log(self) -> Path:
        return self.directory / f"usrbio-{self.key}.log"

    def take(self) -> int | None:
        """The descriptor that holds the lock, or None if another process has it."""
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor


def place_of(addresses: Sequence[str], secret: str) -> Place:
    """Of this process's user. Raises: PermissionDenied: somebody else has the directory, or could look into it."""
    user = process_user()
    words = "\0".join([*sorted(addresses), secret, user.text, str(_pid_namespace())])
    return Place(_directory(user.uid), hashlib.sha256(words.encode()).hexdigest()[:16])


def _directory(uid: int) -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    usable = 0 < len(os.fsencode(runtime)) <= _LONGEST and _is_ours(Path(runtime), uid)
    at = Path(runtime) / "fs3" if usable else Path(f"/tmp/fs3-{uid}")
    with contextlib.suppress(FileExistsError):
        at.mkdir(mode=0o700)
    if not _is_ours(at, uid):
        raise PermissionDenied(
            f"{at}: is not a directory of user {uid} that nobody else can enter; remove it, or set XDG_RUNTIME_DIR"
        )
    return at


def _pid_namespace() -> int:
    """0 where it cannot be known."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _is_ours(directory: Path, uid: int) -> bool:
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077
