"""The blocking client of meta: one call per method, with a deadline, retried within it.

A change is sent with a request id and repeated under the same one: however often it is repeated, and whichever daemon
answers, it applies once: all meta daemons share one store, and the answer is recorded there with the change.
Thread-safe; a forked child goes on with connections of its own (fs3/client/control.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fs3.client.control import Channel, ControlChannel
from fs3.client.retry_core import pause_s
from fs3.client.turns_core import Turns
from fs3.errors import Busy, Conflict, Fs3Error, Invalid, MaybeApplied, Unavailable, from_code
from fs3.inode import Entry, Inode, InodeType, inode_from_pb
from fs3.layout import LayoutChoice, choice_to_pb
from fs3.pb import meta_pb2, meta_pb2_grpc
from fs3.routing import NodeKind, Routing
from fs3.runtime import SYSTEM, Runtime
from fs3.transport.rpc import Credentials

__all__ = ["Entry", "Found", "Inode", "InodeType", "MetaClient", "Publish", "Usage"]

STATS_AT_ONCE = 1_024
FILES_AT_ONCE = 512
PAGE = 1_000
_ATTEMPT_S = 10.0  # a silent meta daemon is asked again after so long
_SHORT_ATTEMPT_S = 3.0  # and given up for another, if there is one

Inodes: TypeAlias = list[Inode]
Entries: TypeAlias = list[Entry]


@dataclass(frozen=True, slots=True)
class Publish:
    """A written file, where it is to appear, and how long it is; `replace` an existing file there."""

    inode_id: int
    path: str
    length: int
    replace: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """What a subtree holds; a directory counts itself."""

    files: int
    directories: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """An inode that exists, or whether it is `dead`: removed, and its chunks still wait to be."""

    inode: Inode | None
    dead: bool


class MetaClient:
    """Metadata calls of one process; beside what a method names, each raises Unavailable at its deadline."""

    def __init__(
        self,
        routing: Callable[[], Routing],
        credentials: Credentials,
        client_id: int,
        *,
        timeout_s: float = 30.0,
        refresh: Callable[[], object],
        open_channel: Callable[[str], Channel] | None = None,
        runtime: Runtime = SYSTEM,
    ) -> None:
        """`routing` gives the newest known routing, which names the meta daemons; `refresh` fetches a newer one.

        `open_channel(address)` and `runtime` are ports.
        """
        self.client_id = client_id
        self._routing = routing
        self._refresh = refresh
        self._credentials = credentials
        self._timeout_s = timeout_s
        self._open_channel = open_channel or _open
        self._runtime = runtime
        self._channels: dict[str, Channel] = {}
        self._turns = Turns(client_id)
        self._closed = False

    def stat(
        self, paths: Sequence[str], *, follow: bool = True, timeout_s: float | None = None
    ) -> list[Inode | Fs3Error]:
        """The inode of each path, or its error in its place; up to 1024 paths are from one moment."""
        found: list[Inode | Fs3Error] = []
        for begin in range(0, len(paths), STATS_AT_ONCE):
            batch = paths[begin : begin + STATS_AT_ONCE]
            reply = self._call("Stat", meta_pb2.StatRequest, timeout_s, paths=batch, nofollow=not follow)
            found += [
                from_code(result.code, result.message) if result.code else inode_from_pb(result.inode)
                for result in reply.results
            ]
        return found

    def stat_one(self, path: str, *, follow: bool = True, timeout_s: float | None = None) -> Inode:
        """The inode of `path`. Raises: NotFound, NotADirectory, Invalid."""
        (found,) = self.stat([path], follow=follow, timeout_s=timeout_s)
        if isinstance(found, Fs3Error):
            raise found
        return found

    def mkdir(
        self,
        path: str,
        *,
        parents: bool = False,
        mode: int = 0o755,
        layout: LayoutChoice | None = None,
        timeout_s: float | None = None,
    ) -> Inode:
        """Make a directory; with `parents` also those above, and an existing one is no error. Raises: Exists, ..."""
        reply = self._change(
            "Mkdir",
            meta_pb2.MkdirRequest,
            timeout_s,
            path=path,
            parents=parents,
            mode=mode,
            layout=choice_to_pb(layout or LayoutChoice()),
        )
        return inode_from_pb(reply.inode)

    def create_files(
        self,
        paths: Sequence[str],
        *,
        layout: LayoutChoice | None = None,
        mode: int = 0o644,
        timeout_s: float | None = None,
    ) -> Inodes:
        """An inode for each path, to be written and then published there; renew them while writing takes long."""
        made: Inodes = []
        for begin in range(0, len(paths), FILES_AT_ONCE):
            reply = self._change(
                "CreateFiles",
                meta_pb2.CreateFilesRequest,
                timeout_s,
                paths=paths[begin : begin + FILES_AT_ONCE],
                layout=choice_to_pb(layout or LayoutChoice()),
                mode=mode,
            )
            made += map(inode_from_pb, reply.inodes)
        return made

    def publish_files(self, files: Sequence[Publish], *, timeout_s: float | None = None) -> Inodes:
        """Make up to 512 files visible, all or none.

        Raises:
            Exists: a name is taken and not to be replaced.
            NotFound: a directory is missing, or a write session was lost: write that file again.
            IsADirectory, NotADirectory, Invalid.
        """
        wanted = [
            meta_pb2.PublishFile(
                inode_id=file.inode_id, path=_text(file.path), length=file.length, replace=file.replace
            )
            for file in files
        ]
        reply = self._change("PublishFiles", meta_pb2.PublishFilesRequest, timeout_s, files=wanted)
        return [inode_from_pb(inode) for inode in reply.inodes]

    def abandon(self, inode_ids: Iterable[int], *, timeout_s: float | None = None) -> None:
        """Give up unpublished files; their chunks are collected."""
        self._change("AbandonFiles", meta_pb2.AbandonFilesRequest, timeout_s, inode_ids=list(inode_ids))

    def renew(self, inode_ids: Iterable[int], *, timeout_s: float | None = None) -> None:
        """Keep unpublished files alive; due several times per session lease of meta (60 s by default)."""
        self._call(
            "RenewSessions",
            meta_pb2.RenewSessionsRequest,
            timeout_s,
            client_id=self.client_id,
            inode_ids=list(inode_ids),
        )

    def rename(self, source: str, target: str, *, replace: bool = True, timeout_s: float | None = None) -> Inode:
        """Move `source` to `target` in one step, over a file or an empty directory if `replace`."""
        reply = self._change(
            "Rename", meta_pb2.RenameRequest, timeout_s, source=source, target=target, no_replace=not replace
        )
        return inode_from_pb(reply.inode)

    def remove(
        self,
        path: str,
        *,
        recursive: bool = False,
        must_be: InodeType | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Remove a file, an empty directory, or with `recursive` a subtree in one step."""
        kind = meta_pb2.InodeType.ValueType(must_be or 0)
        self._change("Remove", meta_pb2.RemoveRequest, timeout_s, path=path, recursive=recursive, must_be=kind)

    def usage(self, path: str, *, timeout_s: float | None = None) -> Usage:
        """What lies under `path`; takes time in proportion, so give it a deadline that fits."""
        reply = self._call("Usage", meta_pb2.UsageRequest, timeout_s, patient=True, path=path)
        return Usage(reply.files, reply.directories, reply.bytes)

    def find(self, inode_ids: Sequence[int], *, timeout_s: float | None = None) -> list[Found]:
        """What has become of each inode; those found together are from one moment."""
        found: list[Found] = []
        for begin in range(0, len(inode_ids), STATS_AT_ONCE):
            batch = inode_ids[begin : begin + STATS_AT_ONCE]
            reply = self._call("Find", meta_pb2.FindRequest, timeout_s, inode_ids=batch)
            found += [
                Found(inode_from_pb(one.inode) if one.HasField("inode") else None, one.dead) for one in reply.found
            ]
        return found

    def list(self, path: str, *, page: int = PAGE, timeout_s: float | None = None) -> Iterator[Entries]:
        """The entries of a directory, sorted by name, in pages, each from one moment; the deadline is a page's."""
        after = ""
        while True:
            reply = self._call("List", meta_pb2.ListRequest, timeout_s, path=path, after=after, limit=page)
            entries = [Entry(entry.name, inode_from_pb(entry.inode)) for entry in reply.entries]
            yield entries
            if not reply.more:
                return
            after = entries[-1].name

    def close(self) -> None:
        """Close the connections; later calls raise Unavailable."""
        self._closed = True
        for channel in list(self._channels.values()):
            channel.close()

    def _change(self, method: str, request: Callable[..., Any], timeout_s: float | None, **fields: Any) -> Any:
        """A call under a new request id, which repetitions keep. Random, so that forked children do not share any."""
        request_id = meta_pb2.RequestId(client_id=self.client_id, request_id=self._runtime.random_bits(63) + 1)
        return self._call(method, request, timeout_s, id=request_id, **fields)

    def _call(
        self,
        method: str,
        make: Callable[..., Any],
        timeout_s: float | None,
        *,
        patient: bool = False,
        **fields: Any,
    ) -> Any:
        request = make(**{name: _clean(value) for name, value in fields.items()})
        now_s = self._runtime.now_s
        deadline_s = now_s() + (self._timeout_s if timeout_s is None else timeout_s)
        failures = 0
        tried: set[str] = set()  # since the last pause
        while True:
            try:
                address, others = self._next_address(tried)
                left_s = deadline_s - now_s()
                attempt_s = left_s if patient else min(left_s, _SHORT_ATTEMPT_S if others else _ATTEMPT_S)
                reply = self._ask(address, method, request, max(attempt_s, 0.001))
            except (Unavailable, MaybeApplied, Conflict, Busy) as error:
                if self._closed or now_s() >= deadline_s:
                    raise
                elsewhere = isinstance(error, Unavailable | MaybeApplied)
                if elsewhere and not tried.issuperset(self._addresses()):
                    continue
                wait_s = pause_s(failures, self._runtime.random_bits(16) / (1 << 16))
                if now_s() + wait_s >= deadline_s:
                    raise
                if elsewhere:
                    self._refresh()
                self._runtime.sleep(wait_s)
                failures += 1
                tried.clear()
                continue
            return reply

    def _ask(self, address: str, method: str, request: Any, timeout_s: float) -> Any:
        """One attempt, remembered if the daemon cannot answer. Raises: Fs3Error."""
        try:
            reply = self._channel(address).call(method, request, timeout_s=timeout_s, credentials=self._credentials)
        except (Unavailable, MaybeApplied):
            self._turns.failed(address, self._runtime.now_s())
            raise
        self._turns.answered(address)
        return reply

    def _next_address(self, tried: set[str]) -> tuple[str, bool]:
        """Whom to ask, who is tried then, and whether there are others. Raises: Unavailable."""
        addresses = self._addresses()
        if not addresses:
            raise Unavailable("the cluster has no meta daemon; start one with `fs3 meta`")
        order = self._turns.order(addresses, self._runtime.now_s())
        address = next((one for one in order if one not in tried), order[0])
        tried.add(address)
        return address, len(addresses) > 1

    def _addresses(self) -> tuple[str, ...]:
        """Of the daemons that are alive, or of all if mgmtd knows none that is."""
        nodes = [node for node in self._routing().nodes.values() if node.kind is NodeKind.META and node.endpoints]
        return tuple(node.endpoints[0] for node in nodes if node.alive) or tuple(node.endpoints[0] for node in nodes)

    def _channel(self, address: str) -> Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels.setdefault(address, self._open_channel(address))
            if self._closed:
                channel.close()
        return channel


def _open(address: str) -> ControlChannel:
    return ControlChannel(address, meta_pb2_grpc.MetaStub)


def _clean(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def _text(path: str) -> str:
    """Raises: Invalid if `path` has no UTF-8 form (a message cannot carry it)."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise Invalid(f"path {path!r}: not valid UTF-8") from None
    return path
