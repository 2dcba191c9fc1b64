"""The one tree of errors that fs3 raises, with the code each has on the wire.

A caller acts on the class, a person reads the message: what failed, where, and the way out. A code is part of the
frozen wire format (proto/data_plane.md and fs3/pb/common.proto carry it): codes are appended, never renumbered.
`retryable` says whether the same call can succeed later without anybody's help.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class Fs3Error(Exception):
    """Base of everything fs3 raises on purpose."""

    code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    errno: ClassVar[int] = errno.EIO


class Invalid(Fs3Error):
    """The request itself is wrong; it changed nothing."""

    code = 2
    errno = errno.EINVAL


class NotFound(Fs3Error):
    """The path, inode, chunk, chain or node does not exist."""

    code = 3
    errno = errno.ENOENT


class Exists(Fs3Error):
    """The name is taken."""

    code = 4
    errno = errno.EEXIST


class PermissionDenied(Fs3Error):
    """Wrong cluster, wrong secret, or not allowed."""

    code = 5
    errno = errno.EACCES


class Conflict(Fs3Error):
    """A concurrent transaction or writer won; reading again and retrying can succeed."""

    code = 6
    retryable = True
    errno = errno.EAGAIN


class StaleRouting(Fs3Error):
    """The request names a chain version that is not the current one; refresh the routing and retry."""

    code = 7
    retryable = True
    errno = errno.EAGAIN


class Busy(Fs3Error):
    """A queue or pool is full; retry after a pause."""

    code = 8
    retryable = True
    errno = errno.EBUSY


class Unavailable(Fs3Error):
    """Nobody who could answer was reached before the deadline."""

    code = 9
    retryable = True
    errno = errno.EHOSTUNREACH


class Corrupt(Fs3Error):
    """Bytes failed their checksum or a structure its check; they were not handed out."""

    code = 10
    errno = errno.EIO


class MaybeApplied(Fs3Error):
    """The outcome of a change is unknown: it was sent, and no answer came."""

    code = 11
    errno = errno.EIO


class NoSpace(Fs3Error):
    """A disk, quota or block class is full; the request changed nothing."""

    code = 12
    errno = errno.ENOSPC


class Committing(Fs3Error):
    """The chunk has a pending version; retry, or read the committed one from the tail."""

    code = 13
    retryable = True
    errno = errno.EAGAIN


class NotADirectory(Fs3Error):
    """A file stands where the path needs a directory."""

    code = 14
    errno = errno.ENOTDIR


class IsADirectory(Fs3Error):
    """A directory stands where a file was meant."""

    code = 15
    errno = errno.EISDIR


class NotEmpty(Fs3Error):
    """The directory still has entries."""

    code = 16
    errno = errno.ENOTEMPTY


class SessionEnded(Fs3Error):
    """A session is over: a client's with mgmtd, and with it what the cluster remembered of its updates; or a writer's
    with meta, and with it what it wrote."""

    code = 17


class NotPrimary(Unavailable):
    """This mgmtd does not decide now; another does, or one soon will: ask the others, and go on asking for a while."""

    code = 18


class SymlinkLoop(Invalid):
    """The path goes through more symlinks than are followed, most likely in a circle."""

    code = 19
    errno = errno.ELOOP


class NotPermitted(PermissionDenied):
    """No permission bits allow this: only an owner may do it, or the superuser, or nobody (link a directory)."""

    code = 20
    errno = errno.EPERM


class NoAttribute(NotFound):
    """The inode is there, and has no extended attribute of this name."""

    code = 21
    errno = errno.ENODATA


class TooLarge(Invalid):
    """More than one transaction of the metadata store can hold; it changed nothing: do it in smaller parts."""

    code = 22


class QuotaExceeded(Fs3Error):
    """More than the quota of a directory allows; the request changed nothing."""

    code = 23
    errno = errno.EDQUOT


class CrossQuota(Fs3Error):
    """It would have to be counted anew, and cannot at once: copy it, and remove the original."""

    code = 24
    errno = errno.EXDEV


class InUse(Fs3Error):
    """Another writer has the file."""

    code = 25
    errno = errno.EBUSY


OK = 0

BY_CODE: dict[int, type[Fs3Error]] = {
    cls.code: cls
    for cls in (
        Fs3Error,
        Invalid,
        NotFound,
        Exists,
        PermissionDenied,
        Conflict,
        StaleRouting,
        Busy,
        Unavailable,
        Corrupt,
        MaybeApplied,
        NoSpace,
        Committing,
        NotADirectory,
        IsADirectory,
        NotEmpty,
        SessionEnded,
        NotPrimary,
        SymlinkLoop,
        NotPermitted,
        NoAttribute,
        TooLarge,
        QuotaExceeded,
        CrossQuota,
        InUse,
    )
}


def from_code(code: int, message: str) -> Fs3Error:
    """The error a peer meant by `code`; an unknown code (a newer peer) becomes a plain `Fs3Error` that names it."""
    cls = BY_CODE.get(code)
    if cls is None:
        return Fs3Error(f"{message} (error code {code} of a newer fs3)")
    return cls(message)


def missing_package(error: ImportError, extra: str) -> Invalid:
    """What to tell a user whose installation lacks a package that comes with `extra`."""
    return Invalid(f"the package {error.name} is not installed; it comes with: pip install 'fs3-storage[{extra}]'")


def to_os_error(error: Fs3Error, path: str | None = None) -> OSError:
    """The standard library's exception for `error`, as file objects and fsspec raise it."""
    return OSError(error.errno, str(error), path) if path is not None else OSError(error.errno, str(error))


def line_of(error: Fs3Error | OSError) -> str:
    """What a person is told of `error`, in one line: of the operating system's the file and the reason."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
