"""The collector's way to the storage daemons: the blocking storage client, in threads of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fs3.client.mgmtd import MgmtdClient
from fs3.client.storage import StorageClient
from fs3.inode import Inode
from fs3.meta.inode import known_length

_THREADS = 8


class StorageRemover:
    """Implements `fs3.meta.gc.ChunkRemover`; connects at the first removal."""

    def __init__(self, mgmtd: Sequence[str], secret: str) -> None:
        self._mgmtd = tuple(mgmtd)
        self._secret = secret
        self._pool = ThreadPoolExecutor(_THREADS, "fs3-meta-remover")
        self._connecting = threading.Lock()
        self._clients: tuple[MgmtdClient, StorageClient] | None = None

    async def remove_file(self, inode: Inode) -> None:
        """Cancellation lets a removal that has begun go on in its thread. Raises: Fs3Error of the storage client."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self._remove, inode)

    def close(self) -> None:
        """Give up removals that have not begun, disconnect, and wait for the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._connecting:
            if self._clients is not None:
                mgmtd, storage = self._clients
                storage.close()
                mgmtd.close()
        self._pool.shutdown(wait=True)

    def _remove(self, inode: Inode) -> None:
        assert inode.layout is not None, inode
        self._storage().remove_file_chunks(inode.inode_id, inode.layout, known_length(inode))

    def _storage(self) -> StorageClient:
        with self._connecting:
            if self._clients is None:
                mgmtd = MgmtdClient.connect(self._mgmtd, self._secret)
                self._clients = (mgmtd, StorageClient(mgmtd, secret=self._secret))
            return self._clients[1]
