"""Checkpoints of a run under one URL, written by torch.distributed.checkpoint through fsspec.

    URL/config.json, tokenizer.json     what the weights are, as transformers reads it, and how text becomes tokens
    URL/step-000123/                    .metadata and *.distcp (the tensors), state.json (all else that a resume needs)
    URL/latest.json                     the newest step, for people and scripts

A step's folder is written as `.tmp-...` and moved into place when it is complete and on stable storage, so that a
folder called `step-...` is always whole, whenever the writer dies: on fs3 and on local disks the move is one rename.
Where a filesystem has no rename, `latest.json` says which step is whole. One run writes to a URL at a time.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import time
import uuid
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException

from fs3.errors import Corrupt, Fs3Error, NotADirectory, NotFound
from fs3_loader.location import Location, as_fs3_error, one_line
from fs3_trainer.model import DeepseekV3, ModelConfig
from fs3_trainer.train.range_reader import RangeReader
from fs3_trainer.train.state import RunState

CONFIG_NAME = "config.json"
TOKENIZER_NAME = "tokenizer.json"
LATEST_NAME = "latest.json"
STATE_NAME = "state.json"
_STEP_NAME = re.compile(r"step-(\d{6,})")
_DISCARDED = (".tmp-", ".old-")
_UNREADABLE = (
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    AssertionError,
    pickle.UnpicklingError,
)


class Saved(NamedTuple):
    """What a save cost: bytes of the step's folder, and seconds until it was published."""

    name: str
    bytes: int
    seconds: float


class Checkpoints:
    """The checkpoints under `url`; making one touches nothing."""

    def __init__(self, url: str, *, keep: int = 3) -> None:
        """`keep`: steps that stay; older ones are removed after a save.

        Raises:
            Invalid: no filesystem knows the URL.
            Unavailable: its cluster cannot be reached.
        """
        self.location = Location.parse(url)
        self.url = self.location.url
        self._keep = keep
        self._renames = self.location.is_local or self.location.is_fs3

    def prepare(self, config: ModelConfig, tokenizer_json: str | None) -> None:
        """Makes the folder ready to be saved to: what a crashed writer left is removed, config and tokenizer written.

        Raises:
            Fs3Error: it cannot be written to.
        """
        self.location.make()
        for name in self._entries():
            if name.startswith(_DISCARDED):
                self._remove_folder(name)
        self.location.publish(CONFIG_NAME, config.to_json().encode())
        if tokenizer_json is not None:
            self.location.publish(TOKENIZER_NAME, tokenizer_json.encode())

    def steps(self) -> list[int]:
        """The steps that can be loaded, ascending; none where there is no folder.

        Raises:
            NotADirectory: the URL names a file.
        """
        found = sorted(int(match[1]) for name in self._entries() if (match := _STEP_NAME.fullmatch(name)))
        if self._renames or not found:
            return found
        try:
            whole = int(json.loads(self.location.read(LATEST_NAME))["step"])
        except NotFound:
            return []
        except (ValueError, KeyError, TypeError):
            raise Corrupt(f"{self.location.show(LATEST_NAME)}: does not name a step") from None
        return [step for step in found if step <= whole]

    def latest(self) -> int | None:
        """The newest step that can be loaded."""
        steps = self.steps()
        return steps[-1] if steps else None

    def save(self, tensors: dict[str, Tensor], state: RunState) -> Saved:
        """Writes the checkpoint of `state.step`, publishes it, and removes those beyond `keep`.

        Raises:
            Fs3Error: it could not be written; the checkpoints that were there still are, and nothing else is.
        """
        begin_s = time.perf_counter()
        name = step_name(state.step)
        part = f".tmp-{name}-{uuid.uuid4().hex[:8]}"
        try:
            with _plain_errors("written", self.location.show(name)):
                writer = FsspecWriter(self.location.show(part), sync_files=self.location.is_local)
                dcp.save(dict(tensors), storage_writer=writer, no_dist=True)
            self._write(f"{part}/{STATE_NAME}", state.to_json().encode())
            Location.parse(self.location.show(part)).sync_folder()
            written = sum(self._files(part).values())
            if name in self._entries():
                self._discard(name)
            self._move(part, name)
        except BaseException:
            # The reason for the failure is what the user must hear, not that cleaning up failed too.
            with contextlib.suppress(Fs3Error):
                self._remove_folder(part)
            raise
        self.location.sync_folder()
        self.location.publish(LATEST_NAME, json.dumps({"step": state.step, "path": name}).encode())
        seconds = time.perf_counter() - begin_s
        for old in self.steps()[: -self._keep]:
            self._discard(step_name(old))
        return Saved(name, written, seconds)

    def state(self, step: int) -> RunState:
        """Raises: NotFound, or Corrupt if the file is not what `save` writes."""
        path = f"{step_name(step)}/{STATE_NAME}"
        return RunState.from_json(self.location.read(path), self.location.show(path))

    def load(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Reads the tensors of these names into them.

        Raises:
            Corrupt: one is not there, of another shape, or cannot be read.
        """
        name = step_name(step)
        with _plain_errors("read", self.location.show(name)):
            folder = Location.parse(self.location.show(name))
            dcp.load(tensors, storage_reader=RangeReader(folder), no_dist=True)

    def tokenizer_json(self) -> str | None:
        """The tokenizer that the run's data set had."""
        try:
            return self.location.read(TOKENIZER_NAME).decode()
        except NotFound:
            return None

    def _entries(self) -> list[str]:
        self.location.fs.invalidate_cache()
        if self.location.kind() == "file":
            raise NotADirectory(f"{self.url} is a file; give a folder for checkpoints")
        try:
            found = self.location.call("", lambda: self.location.fs.ls(self.location.root, detail=False))
        except NotFound:
            return []
        return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found)

    def _files(self, folder: str) -> dict[str, int]:
        return Location.parse(self.location.show(folder)).names()

    def _write(self, name: str, data: bytes) -> None:
        with self.location.create(name) as file:
            self.location.call(name, lambda: file.write(data))
            self.location.sync(file)

    def _move(self, source: str, target: str) -> None:
        paths = self.location.path(source), self.location.path(target)
        self.location.call(target, lambda: self.location.fs.mv(*paths, recursive=True))

    def _discard(self, name: str) -> None:
        """Removes a step; renamed first, so that a half-removed one is never taken for whole."""
        old = f".old-{name}-{uuid.uuid4().hex[:8]}"
        self._move(name, old)
        self._remove_folder(old)

    def _remove_folder(self, name: str) -> None:
        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.location.fs.rm(self.location.path(name), recursive=True)

        self.location.call(name, remove)


class LoadedModel(NamedTuple):
    """A model as a checkpoint has it; `tokenizer_json` is None where the data set had no tokenizer."""

    model: DeepseekV3
    step: int
    tokenizer_json: str | None


def load_model(url: str, device: torch.device | str = "cpu") -> LoadedModel:
    """The weights alone, for inference, from a run's URL (the newest step) or the URL of one of its steps.

    Raises:
        NotFound: there is no checkpoint.
        Corrupt: it cannot be read.
    """
    parent, _, last = url.rstrip("/").rpartition("/")
    chosen = _STEP_NAME.fullmatch(last)
    checkpoints = Checkpoints((parent or "/") if chosen else url)
    step = int(chosen[1]) if chosen else checkpoints.latest()
    if step is None or step not in checkpoints.steps():
        raise NotFound(f"{url}: no checkpoint there; fs3-train --checkpoint URL writes one")
    where = checkpoints.location.show(f"{step_name(step)}/{STATE_NAME}")
    config = ModelConfig.from_dict(checkpoints.state(step).model, where)
    model = DeepseekV3.empty(config, device)
    checkpoints.load(step, {f"model.{name}": tensor for name, tensor in model.state_dict().items()})
    return LoadedModel(model.eval(), step, checkpoints.tokenizer_json())


def step_name(step: int) -> str:
    """The folder of a step."""
    return f"step-{step:06d}"


@contextlib.contextmanager
def _plain_errors(done: str, where: str) -> Iterator[None]:
    """Unwraps what torch.distributed.checkpoint wraps in its own tracebacks; `done`: "read" or "written"."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as wrapped:
        cause, _ = next(iter(wrapped.failures.values()))
        raise _as_fs3(cause, done, where) from None
    except (OSError, *_UNREADABLE) as error:
        raise _as_fs3(error, done, where) from None


def _as_fs3(error: BaseException, done: str, where: str) -> BaseException:
    # torch.save on a full disk ends in a RuntimeError about positions; what the disk said is in its context.
    link: BaseException | None = error
    while link is not None and not isinstance(link, OSError | Fs3Error):
        link = link.__cause__ or link.__context__
    if isinstance(link, Fs3Error):
        return link
    if isinstance(link, OSError):
        return as_fs3_error(link, where)
    if isinstance(error, _UNREADABLE):
        first, _, _ = one_line(error).partition(". ")
        way_out = "; restore it from a copy, or remove it to go on from the one before" if done == "read" else ""
        return Corrupt(f"checkpoint {where} cannot be {done}: {first[:200]}{way_out}")
    return error
