"""The directory that a KV cache lives in: it names the cluster and decides replicas and durability, as for files."""

from __future__ import annotations

import contextlib

from fs3.client.connect import Client, connect
from fs3.errors import Exists, Fs3Error, NotADirectory, NotFound
from fs3.inode import Inode
from fs3.layout import Durability, LayoutChoice
from fs3.url import parse_url

# What a cache holds can be computed again: one copy, and the page cache is stable enough.
CACHE_LAYOUT = LayoutChoice(replicas=1, durability=Durability.OS)
STAT_TIMEOUT_S = 5.0


def open_directory(url: str, *, secret: str = "", create: bool) -> tuple[Client, Inode]:
    """The cluster and the directory that `url` names; with `create` it is made, with `CACHE_LAYOUT`, if missing.

    Raises:
        Invalid: not an fs3:// URL.
        NotFound: there is no such directory, and it is not to be made.
        NotADirectory: a file stands there.
        Unavailable: the cluster cannot be reached.
    """
    addresses, path = parse_url(url)
    client = connect(addresses, secret=secret)
    (found,) = client.meta.stat([path], timeout_s=STAT_TIMEOUT_S)
    if isinstance(found, NotFound) and create:
        with contextlib.suppress(Exists):  # another runner may have been faster
            client.meta.mkdir(path, parents=True, mode=0o755, layout=CACHE_LAYOUT, timeout_s=STAT_TIMEOUT_S)
        (found,) = client.meta.stat([path], timeout_s=STAT_TIMEOUT_S)
    if isinstance(found, NotFound):
        raise NotFound(f"{url}: no such directory; a runner makes it when it first stores a page")
    if isinstance(found, Fs3Error):
        raise found
    if not found.is_directory:
        raise NotADirectory(f"{url} is a file; a KV cache lives in a directory")
    return client, found
