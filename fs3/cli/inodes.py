"""`fs3 ln|chmod|chown`: what changes names and attributes of files and not their bytes, as coreutils do it."""

from __future__ import annotations

import os
import posixpath

import click

from fs3.cli.places import Failures, place
from fs3.errors import Invalid


@click.command()
@click.option("-s", "--symbolic", is_flag=True, help="Make a symlink; TARGET is kept as it is written.")
@click.argument("target")
@click.argument("link")
def ln(target: str, link: str, symbolic: bool) -> int:
    """Make LINK a further name of the file TARGET, or with -s a symlink to it.

    LINK may be a directory, in which the link then gets TARGET's last name. The target of a symlink in a cluster is a
    path in that cluster, relative to the link's directory or absolute.
    """
    failures = Failures("ln")
    with failures.of("cannot make", link):
        at = place(link)
        if at.kind() == "directory":
            at = at.child(posixpath.basename(target.rstrip("/")))
        if not symbolic:
            source = place(target)
            if not source.shares_filesystem(at):
                raise Invalid(f"{target}: lies elsewhere, and a hard link cannot leave its filesystem")
            at.fs.link(source.path, at.path)
            return failures.exit_code()
        if "://" in target:
            source = place(target)
            if not source.shares_filesystem(at):
                raise Invalid(f"{target}: lies elsewhere, and a symlink in a cluster cannot lead out of it")
            target = source.path
        if at.is_local:
            os.symlink(target, at.path)  # fsspec would make it absolute
        else:
            at.fs.symlink(target, at.path)
    return failures.exit_code()


@click.command()
@click.argument("mode")
@click.argument("places", nargs=-1, required=True)
def chmod(mode: str, places: tuple[str, ...]) -> int:
    """Set the permission bits of PLACES to MODE, an octal number such as 644."""
    try:
        bits = int(mode, 8)
    except ValueError:
        bits = -1
    if not 0 <= bits <= 0o7777:
        raise click.BadParameter(f"{mode!r} is not an octal number from 0 to 7777", param_hint="MODE")
    failures = Failures("chmod")
    for text in places:
        with failures.of("cannot change", text):
            at = place(text)
            at.fs.chmod(at.path, bits)
    return failures.exit_code()


@click.command()
@click.argument("owner")
@click.argument("places", nargs=-1, required=True)
def chown(owner: str, places: tuple[str, ...]) -> int:
    """Set owner and group of PLACES to OWNER: UID, UID:GID or :GID, numbers, since a cluster knows no users' names."""
    uid_text, _, gid_text = owner.partition(":")
    try:
        uid, gid = (int(text) if text else None for text in (uid_text, gid_text))
    except ValueError:
        raise click.BadParameter(f"{owner!r} is not UID, UID:GID or :GID", param_hint="OWNER") from None
    failures = Failures("chown")
    for text in places:
        with failures.of("cannot change", text):
            at = place(text)
            if at.is_local:
                os.chown(at.path, -1 if uid is None else uid, -1 if gid is None else gid)
            else:
                at.fs.chown(at.path, uid, gid)
    return failures.exit_code()
