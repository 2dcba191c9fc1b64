"""The asyncio face of the filesystem: fsspec's `_cat_file`, `_info`, `_pipe_file` and the like.

fs3's client blocks, so each call runs on a thread. What many tasks ask for at the same moment goes together: a thousand
`_cat_file` are one batched read, a thousand `_info` one stat, a thousand small `_pipe_file` one batch of files. What
fsspec takes apart for other filesystems (`_rm` and `_find` of trees, `_get`, `_put`, `_copy`) runs as its sync
counterpart does. The sync methods have nothing to do with an event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from fsspec.asyn import AsyncFileSystem, get_loop
from fsspec.spec import AbstractFileSystem

from fs3.filesystem.gather import Gatherer, in_thread

_Call = Callable[..., Awaitable[Any]]
_Range = tuple[str, int | None, int | None]
_SMALL_BYTES = 1 << 20  # files up to here are written with others


def _threaded(name: str) -> _Call:
    """The method of that name, on a thread."""

    async def call(self: Any, *args: Any, batch_size: int | None = None, **options: Any) -> Any:
        return await in_thread(getattr(self, name), *args, **options)

    call.__name__ = f"_{name}"
    return call


class AsyncFace(AsyncFileSystem):  # type: ignore[misc]
    """Methods whose names begin with an underscore are coroutines; they do what those without do."""

    mirror_sync_methods: ClassVar[bool] = False
    infos: Callable[[list[str]], list[dict[str, Any] | Exception]]  # as `info`, of many

    def __init__(
        self,
        *args: Any,
        asynchronous: bool = False,
        loop: asyncio.AbstractEventLoop | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        AbstractFileSystem.__init__(self, *args, **options)  # AsyncFileSystem's begins a thread that nobody may need
        self.asynchronous = asynchronous
        self.batch_size = batch_size
        self._own_loop = loop
        self._reads = Gatherer[_Range, bytes](self._read_together)
        self._stats = Gatherer[str, dict[str, Any]](lambda paths: self.infos(paths))
        self._writes = Gatherer[tuple[str, bytes], None](self._write_together)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Where others may run the coroutines: fsspec's own loop, unless one was given."""
        return None if self.asynchronous else self._own_loop or get_loop()

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return await self._reads.ask((path, start, end))

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        return await self._stats.ask(path)

    async def _exists(self, path: str, **_: Any) -> bool:
        try:
            await self._info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        if mode == "overwrite" and len(value) <= _SMALL_BYTES:
            await self._writes.ask((path, value))
        else:
            await in_thread(self.pipe_file, path, value, mode=mode)

    _cat = _threaded("cat")
    _cat_ranges = _threaded("cat_ranges")
    _copy = _threaded("copy")
    _cp_file = _threaded("cp_file")
    _du = _threaded("du")
    _expand_path = _threaded("expand_path")
    _find = _threaded("find")
    _get = _threaded("get")
    _get_file = _threaded("get_file")
    _glob = _threaded("glob")
    _ls = _threaded("ls")
    _makedirs = _threaded("makedirs")
    _mkdir = _threaded("mkdir")
    _mv = _threaded("mv")
    _mv_file = _threaded("rename")
    _pipe = _threaded("pipe")
    _put = _threaded("put")
    _put_file = _threaded("put_file")
    _rm = _threaded("rm")
    _rm_file = _threaded("rm_file")
    _rmdir = _threaded("rmdir")
    _touch = _threaded("touch")

    async def open_async(self, path: str, mode: str = "rb", **options: Any) -> AsyncFile:
        """A file whose methods are coroutines; binary only."""
        if "b" not in mode or options.get("compression"):
            raise ValueError(f"{path}: open_async opens binary files, mode 'rb', 'wb', 'xb' or 'ab', uncompressed")
        return AsyncFile(await in_thread(self.open, path, mode))

    def _read_together(self, asked: list[_Range]) -> list[bytes | Exception]:
        paths, starts, ends = zip(*asked, strict=True)
        found: list[bytes | Exception] = self.cat_ranges(list(paths), list(starts), list(ends), on_error="return")
        return found

    def _write_together(self, files: list[tuple[str, bytes]]) -> list[Exception | None]:
        self.pipe(dict(files))  # of two of one name the later
        return [None] * len(files)


class AsyncFile:
    """A file of the filesystem with coroutines for methods.

    One that is cancelled goes on in its thread, and the next of the same file begins when that has ended: of a read the
    position has moved then, of a write an unknown part is taken, so that the file is to be left by an exception.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._turn = threading.Lock()

    async def __aenter__(self) -> AsyncFile:
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._do(self._file.__exit__, *error)

    @property
    def size(self) -> int:
        return int(self._file.size)

    async def read(self, size: int = -1) -> bytes:
        return bytes(await self._do(self._file.read, size))

    async def readinto(self, buffer: bytearray | memoryview) -> int:
        return int(await self._do(self._file.readinto, buffer))

    async def write(self, data: bytes | bytearray | memoryview) -> int:
        return int(await self._do(self._file.write, data))

    async def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    async def tell(self) -> int:
        return int(self._file.tell())

    async def close(self) -> None:
        await self._do(self._file.close)

    async def _do(self, call: Callable[..., Any], *args: Any) -> Any:
        return await in_thread(self._in_turn, call, *args)

    def _in_turn(self, call: Callable[..., Any], *args: Any) -> Any:
        with self._turn:
            return call(*args)
