"""The scrubber of one disk: every committed chunk of every target is read and compared with its sums, slowly, for ever.

Damage that no client meets is found so while another replica still has the bytes; what is done about it is repair.py's.
One thread a disk, at a bounded rate, resumable. An operator can begin a pass now (`fs3 admin scrub`), and after a power
loss one begins by itself: chunks written without syncs may have lost their bytes and not their records.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from fs3.errors import Fs3Error, NotFound
from fs3.ids import chunk_bytes
from fs3.runtime import SYSTEM, Runtime
from fs3.storage import scrub_core
from fs3.storage.config import StorageConfig
from fs3.storage.engine_api import ChunkEngine
from fs3.storage.pace_core import Pace
from fs3.storage.repair import Repair
from fs3.storage.scrub_core import Progress
from fs3.storage.share_core import Share
from fs3.transport.messages import Records

_LOG = logging.getLogger("fs3.storage")
_STATE = b"scrub"  # engine state of a target
_PAGE = 256
_SAVE_S = 30.0
_LOOK_S = 60.0  # for targets that are new
_FAILED_S = 10.0
MOST_LISTED = 1_000  # damaged chunks that are named, per disk


@dataclass(slots=True)
class ScrubCounts:
    """Counters since the start."""

    chunks: int = 0
    bytes: int = 0
    damaged: int = 0
    passes: int = 0  # of single targets


class Scrubber:
    """Thread-safe. `bytes_s` 0: verifies only when `start` is called, as fast as it goes."""

    def __init__(
        self,
        engine: ChunkEngine,
        repair: Repair,
        *,
        name: str,
        bytes_s: float,
        every_s: float,
        at_once: bool = False,
        runtime: Runtime = SYSTEM,
    ) -> None:
        self.counts = ScrubCounts()
        self._engine = engine
        self._repair = repair
        self._pace = Pace(bytes_s)
        self._every_s = every_s if bytes_s > 0 else float("inf")
        self._runtime = runtime
        self._changed = runtime.condition()
        self._progress: dict[int, Progress] = {}
        self._closed = False
        self._take_in()
        if at_once:
            self.start()
        self._thread = runtime.spawn(self._run, name=f"fs3-scrub-{name}")

    def start(self) -> None:
        """Begin a pass over every target now, from its first chunk."""
        now_ns = self._runtime.wall_ns()
        self._take_in()
        with self._changed:
            self._progress = {target: scrub_core.begun(one, now_ns) for target, one in self._progress.items()}
            self._changed.notify_all()

    def progress(self) -> dict[int, Progress]:
        """By target."""
        with self._changed:
            return dict(self._progress)

    def close(self) -> None:
        """Stop, and store how far it has come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            try:
                wait_s = self._work()
            except Fs3Error as error:
                _LOG.warning("scrubbing: %s (%s); trying again", error, type(error).__name__)
                wait_s = _FAILED_S
            except Exception:  # noqa: BLE001  # a defect must not end the scrubbing of a disk that is in use
                _LOG.exception("scrubbing failed; trying again")
                wait_s = _FAILED_S
            self._wait(wait_s)

    def _wait(self, wait_s: float) -> None:
        if wait_s > 0:
            with self._changed:
                if not self._closed:
                    self._changed.wait(wait_s)

    def _take_in(self) -> None:
        """Know the targets that the engine has now, and no others."""
        targets = sorted(self._engine.targets())
        new = {
            target: scrub_core.unpack(self._engine.get_state(target, _STATE))
            for target in targets
            if target not in self._progress
        }
        with self._changed:
            self._progress = {target: self._progress.get(target) or new.get(target) or Progress() for target in targets}

    def _work(self) -> float:
        """Go on with one target until its pass ends; for how long to wait then. Raises: Fs3Error."""
        self._take_in()
        with self._changed:
            # Without a rate only what was asked for is due: what has begun and not ended.
            if self._every_s == float("inf"):
                target = next((target for target, one in self._progress.items() if one.running), None)
                wait_s = _LOOK_S
            else:
                target, wait_s = scrub_core.choose(self._progress, self._runtime.wall_ns(), self._every_s)
            if target is None:
                return min(wait_s, _LOOK_S)
            if not self._progress[target].running:
                self._progress[target] = scrub_core.begun(self._progress[target], self._runtime.wall_ns())
        self._pass(target)
        return 0.0

    def _pass(self, target: int) -> None:
        """Verify the rest of a target's chunks; ends early if the pass was begun anew, or the scrubber closed."""
        saved_s = self._runtime.now_s()
        one: Progress | None = self._progress[target]
        while one is not None:
            page = self._engine.metas(target, one.after, _PAGE)
            one = self._verify(target, one, page)
            if one is not None and len(page) < _PAGE:
                self._end(target, one)
                return
            if self._runtime.now_s() - saved_s >= _SAVE_S:
                self._save(target)
                saved_s = self._runtime.now_s()
        self._save(target)

    def _verify(self, target: int, one: Progress, page: Records) -> Progress | None:
        """Verify the chunks of a page of CHUNK_META; None if the pass is not to go on."""
        for hi, lo, version, length in page[["hi", "lo", "version", "length"]].tolist():
            if self._closed:
                return None
            chunk = chunk_bytes(hi, lo)
            if version:
                after = scrub_core.advanced(one, chunk, length, damaged=self._look(target, hi, lo, length))
            else:  # only pending
                after = replace(one, after=chunk)
            if not self._replace(target, one, after):
                return None
            one = after
            if version:
                self._wait(self._pace.spent(length, self._runtime.now_s()))
        return one

    def _look(self, target: int, hi: int, lo: int, length: int) -> bool:
        try:
            damaged = self._repair.look((target, hi, lo))
        except NotFound:
            return False  # removed meanwhile
        self.counts.chunks += 1
        self.counts.bytes += length
        self.counts.damaged += damaged
        return damaged

    def _replace(self, target: int, before: Progress, after: Progress) -> bool:
        """False: the target is gone, or its pass was begun anew."""
        with self._changed:
            if self._progress.get(target) is not before:
                return False
            self._progress[target] = after
            return True

    def _end(self, target: int, one: Progress) -> None:
        if not self._replace(target, one, scrub_core.ended(one, self._runtime.wall_ns())):
            return
        self.counts.passes += 1
        self._save(target)
        if one.damaged:
            _LOG.warning("scrub of target %d: %d of %d chunks are damaged", target, one.damaged, one.chunks)
        else:
            _LOG.info("scrub of target %d: %d chunks (%d bytes) are good", target, one.chunks, one.read_bytes)

    def _save(self, target: int) -> None:
        one = self._progress.get(target)
        if one is not None and target in self._engine.targets():
            self._engine.put_state(target, _STATE, one.pack())


def scrub_json(
    config: StorageConfig,
    shares: Sequence[Share],
    engines: Sequence[ChunkEngine],
    scrubbers: Sequence[Scrubber],
    repair: Repair,
) -> str:
    """What a daemon says of its disks when an operator asks: proto/data_plane.md, SCRUB."""
    disks = []
    for share, engine, scrubber in zip(shares, engines, scrubbers, strict=True):
        records = engine.targets()
        damaged = [
            {
                "target": key[0],
                "chain": records[key[0]].chain_id,
                "hi": key[1],
                "lo": key[2],
                "version": version,
                "why": repair.why(key),
            }
            for key, version in sorted(engine.damaged().items())
            if key[0] in records
        ]
        targets = [
            {"target": target, "chain": records[target].chain_id, **asdict(one), "after": one.after.hex()}
            | {"of_chunks": engine.target_usage(target)[1]}
            for target, one in sorted(scrubber.progress().items())
            if target in records
        ]
        disks.append(
            {
                "disk": share.disk,
                "path": str(share.folder),
                "targets": targets,
                "damaged": damaged[:MOST_LISTED],
                "damaged_chunks": len(damaged),
            }
        )
    said = {"node_id": config.node_id, "bytes_s": config.scrub_bytes_s, "every_s": config.scrub_every_s}
    return json.dumps({**said, "disks": disks})
