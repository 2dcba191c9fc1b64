"""A refusal that the caller has gone on from stays one: a copy of the request that is under way is refused too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fs3.errors import Exists, Fs3Error, NotFound
from fs3.kv.api import KVEngine
from fs3.kv.memory import MemoryKV
from fs3.meta.service import MetaService
from fs3.pb import meta_pb2
from fs3.transport.credentials import Credentials
from tests.fs3.meta.conftest import ROUTING


class Interrupted:
    """A store in which something else happens before one step of a transaction: a read, or a commit."""

    def __init__(self, kv: KVEngine, step: int, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._kv, self.left, self._meanwhile = kv, step, meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    def begin(self) -> Any:
        return _Steps(self._kv.begin(), self._step)

    async def _step(self) -> None:
        self.left -= 1
        if self.left == 0:
            await self._meanwhile()


class _Steps:
    def __init__(self, txn: Any, step: Callable[[], Awaitable[None]]) -> None:
        self._txn, self._step = txn, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)

    async def get(self, key: bytes, **more: Any) -> bytes | None:
        await self._step()
        return await self._txn.get(key, **more)

    async def commit(self) -> None:
        await self._step()
        await self._txn.commit()


class Door:
    """The service, without a server around it."""

    def __init__(self, kv: Any) -> None:
        self._service = MetaService(kv, Credentials(), CollectorRegistry())
        self._service.adopt(ROUTING)
        self._last = 0

    def id(self, *, retry: bool = False) -> meta_pb2.RequestId:
        self._last += 1
        return meta_pb2.RequestId(client_id=7, request_id=self._last, retry=retry)

    async def call(self, method: str, request: Any) -> Any:
        """The answer, or the error."""
        try:
            return await getattr(MetaService, method).__wrapped__(self._service, request)
        except Fs3Error as error:
            return error

    async def mkdir(self, path: str) -> Any:
        return await self.call("Mkdir", meta_pb2.MkdirRequest(id=self.id(), path=path))

    async def remove(self, path: str) -> Any:
        return await self.call("Remove", meta_pb2.RemoveRequest(id=self.id(), path=path))


def drive(body: Callable[[Door], Awaitable[None]]) -> None:
    async def run() -> None:
        kv = MemoryKV()
        await body(Door(kv))
        await kv.close()

    asyncio.run(run())


def copy_of(request: Any, *, retry: bool) -> Any:
    made = type(request)()
    made.CopyFrom(request)
    made.id.retry = retry
    return made


CHANGES = [  # a change, what makes it fail, what lets it succeed again
    ("Remove", meta_pb2.RemoveRequest(path="/d"), "remove", "mkdir", NotFound),
    ("Rename", meta_pb2.RenameRequest(source="/d", target="/e"), "remove", "mkdir", NotFound),
    ("Mkdir", meta_pb2.MkdirRequest(path="/d"), "mkdir", "remove", Exists),
    ("Symlink", meta_pb2.SymlinkRequest(path="/d", target="x"), "mkdir", "remove", Exists),
    ("SetAttr", meta_pb2.SetAttrRequest(path="/d", mode=0o700), "remove", "mkdir", NotFound),
    ("SetXattr", meta_pb2.SetXattrRequest(path="/d", name="user.a", value=b"1"), "remove", "mkdir", NotFound),
    ("CreateFiles", meta_pb2.CreateFilesRequest(paths=["/d/f"]), "remove", "mkdir", NotFound),
]


@pytest.mark.parametrize(("method", "change", "hinder", "allow", "error"), CHANGES)
def test_a_late_copy_of_what_was_refused_changes_nothing(
    method: str, change: Any, hinder: str, allow: str, error: type[Fs3Error]
) -> None:
    async def body(door: Door) -> None:
        change.id.CopyFrom(door.id())
        await getattr(door, hinder)("/d")
        refused = await door.call(method, copy_of(change, retry=True))
        assert type(refused) is error, refused
        await getattr(door, allow)("/d")
        for retry in (False, True):
            late = await door.call(method, copy_of(change, retry=retry))
            assert type(late) is error and str(late) == str(refused)
        change.id.CopyFrom(door.id())
        assert not isinstance(await door.call(method, change), Fs3Error)  # a new one is none of them

    drive(body)


def test_what_was_sent_once_leaves_no_refusal() -> None:
    async def body(door: Door) -> None:
        request = meta_pb2.RemoveRequest(id=door.id(), path="/d")
        assert isinstance(await door.call("Remove", request), NotFound)
        await door.mkdir("/d")
        assert not isinstance(await door.call("Remove", copy_of(request, retry=True)), Fs3Error)

    drive(body)


def test_all_copies_of_a_request_have_one_answer() -> None:
    """The directory appears, and a copy removes it, at every point of what another copy does."""

    async def answered(step: int) -> tuple[bool, list[str]]:
        kv = MemoryKV()
        door = Door(kv)
        request = meta_pb2.RemoveRequest(id=door.id(retry=True), path="/d")
        await door.remove("/other")  # the store has its root
        answers: list[str] = []

        async def meanwhile() -> None:
            await door.mkdir("/d")
            answers.append(repr(await door.call("Remove", copy_of(request, retry=False))))

        store = Interrupted(kv, step, meanwhile)
        answers += [repr(await one.call("Remove", request)) for one in (Door(store), door)]
        await kv.close()
        return store.left <= 0, answers

    async def run() -> None:
        for step in range(1, 100):
            interrupted, answers = await answered(step)
            if not interrupted:
                break
            assert len(set(answers)) == 1 and len(answers) == 3, (step, answers)
        assert step > 6, step

    asyncio.run(run())
