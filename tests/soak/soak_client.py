"""One client process of a soak: load on chunks and files until SIGTERM, and the history of what it was told.

    python soak_client.py '{"addresses": [...], "secret": ..., "number": 1, "seed": 1, "out": "...", "begun_ns": ...}'

Chunks are shared with the other clients and change every few seconds (`generation`), so that the history of each is
short enough to be checked, and old ones stay as they are until they are read at the end. Files are this client's own.
Every operation is a line of JSON in `out`, when it has ended; times are CLOCK_MONOTONIC, one clock for the machine.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from soak_history import CHUNK_HI, chunk_place, content, runs_of

from fs3.client.connect import Client, connect
from fs3.client.write_path import ChunkUpdate
from fs3.errors import Fs3Error, MaybeApplied, NotFound
from fs3.transport.messages import RANGE, Op

CHUNK_BYTES = 64 << 10
CHUNKS = 20  # of a generation
GENERATION_S = 10.0
_PAUSE_S = 0.01
_FILES = 6
_KINDS = {
    Op.WRITE: "write",
    Op.REPLACE: "replace",
    Op.REMOVE: "remove",
    Op.PUT_IF_ABSENT: "put-if-absent",
    Op.TRUNCATE: "truncate",
}


class Load:
    """The threads of one process."""

    def __init__(self, said: dict[str, Any]) -> None:
        self._said = said
        self._out = Path(said["out"]).open("w", buffering=1, encoding="utf-8")  # noqa: SIM115  # until the end of `run`
        self._lock = threading.Lock()
        self._numbers = said["number"] << 26
        self._stop = threading.Event()
        self.broken = False  # a thread has ended by a mistake of this script
        self.client: Client = connect(tuple(said["addresses"]), secret=said["secret"], same_host=False)
        routing = self.client.mgmtd.routing
        self._chains = [int(chain) for chain in routing.table_for_replicas(said["replicas"]).chains]
        options = {"mgmtd": ",".join(said["addresses"]), "secret": said["secret"], "skip_instance_cache": True}
        self._fs = fsspec.filesystem("fs3", **options)
        self.files: dict[str, list[tuple[int, int]]] = {}  # path -> (seed, size) of every content that it may have

    def run(self) -> None:
        """Until SIGTERM."""
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        workers: list[Callable[[random.Random], None]] = [self._change, self._change, self._read, self._file]
        threads = [
            threading.Thread(target=self._repeat, args=(worker, random.Random(self._said["seed"] * 1_000 + at)))
            for at, worker in enumerate(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)
        Path(self._said["out"] + ".files").write_text(json.dumps(self.files), encoding="utf-8")
        self._out.close()
        if self.broken:
            raise SystemExit(1)

    def _repeat(self, work: Callable[[random.Random], None], rng: random.Random) -> None:
        try:
            while not self._stop.is_set():
                work(rng)
                self._stop.wait(_PAUSE_S)
        except BaseException:
            self.broken = True
            self._stop.set()
            raise

    def _number(self) -> int:
        with self._lock:
            self._numbers += 1
            return self._numbers

    def _say(self, **line: Any) -> None:
        text = json.dumps(line, separators=(",", ":"))
        with self._lock:
            self._out.write(text + "\n")

    def _chunk(self, rng: random.Random) -> int:
        generation = int((time.monotonic_ns() - self._said["begun_ns"]) / 1e9 / GENERATION_S)
        return generation * CHUNKS + rng.randrange(CHUNKS)

    # Chunks

    def _change(self, rng: random.Random) -> None:
        """A batch of updates of distinct chunks."""
        chunks = sorted({self._chunk(rng) for _ in range(rng.choice((1, 1, 2, 4)))})
        updates, lines = [], []
        for lo in chunks:
            number = self._number()
            op = rng.choices(tuple(_KINDS), (5, 3, 1, 1, 1))[0]
            offset = rng.randrange(0, 20_000, 8) if op in (Op.WRITE, Op.TRUNCATE) else 0
            size = 0 if op in (Op.TRUNCATE, Op.REMOVE) else rng.randrange(8, 12_000, 8)
            data = content(number, offset, size)
            place = chunk_place(lo, self._chains)
            updates.append(
                ChunkUpdate(**place, op=op, offset=offset, data=data, chunk_bytes=CHUNK_BYTES)  # type: ignore[arg-type]
            )
            lines.append({"n": number, "lo": lo, "k": _KINDS[op], "off": offset, "len": size, "chain": place["chain"]})
        begun = time.monotonic_ns()
        try:
            results, errors = self.client.storage.try_write(updates)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is part of the history
            results, errors = (
                np.zeros(len(updates), dtype=[("version", "u8"), ("chunk_length", "u4")]),
                [error] * len(lines),
            )
        ended = time.monotonic_ns()
        for line, result, error in zip(lines, results, errors, strict=True):
            outcome = "ok" if error is None else "unknown" if isinstance(error, MaybeApplied) else "failed"
            if isinstance(error, NotFound):
                outcome = "failed"
            said = "" if error is None else f"{type(error).__name__}: {error}"[:300]
            told = {"v": int(result["version"]), "cl": int(result["chunk_length"])}
            self._say(c=self._said["number"], i=begun, r=ended, o=outcome, e=said, **line, **told)

    def _read(self, rng: random.Random) -> None:
        """A batch of reads, whole and partial."""
        chunks = sorted({self._chunk(rng) for _ in range(rng.choice((1, 4, 8)))})
        ranges = np.zeros(len(chunks), dtype=RANGE)
        for row, lo in enumerate(chunks):
            place = chunk_place(lo, self._chains)
            ranges["hi"][row], ranges["lo"][row], ranges["chain"][row] = CHUNK_HI, lo, place["chain"]
            if rng.random() < 0.5:
                ranges["length"][row] = CHUNK_BYTES
            else:
                ranges["offset"][row], ranges["length"][row] = rng.randrange(0, 16_000, 8), rng.randrange(8, 9_000, 8)
        out = memoryview(bytearray(len(chunks) * CHUNK_BYTES))
        begun = time.monotonic_ns()
        results, problem = None, ""
        try:
            at = np.arange(len(chunks), dtype=np.int64) * CHUNK_BYTES
            results = self.client.storage.read(ranges, out, at)
        except Exception as error:  # noqa: BLE001
            problem = f"{type(error).__name__}: {error}"[:300]
        ended = time.monotonic_ns()
        for row, lo in enumerate(chunks):
            line: dict[str, Any] = {"n": self._number(), "lo": lo, "k": "read", "chain": int(ranges["chain"][row])}
            line |= {"off": int(ranges["offset"][row]), "len": int(ranges["length"][row]), "i": begun, "r": ended}
            if results is None:
                line |= {"o": "failed", "e": problem}
            else:
                result = results[row]
                status = int(result["status"])
                if status not in (0, NotFound.code):
                    line |= {"o": "failed", "e": f"status {status}"}
                else:
                    seen = bytes(out[row * CHUNK_BYTES :][: int(result["length"])])
                    line |= {
                        "o": "ok",
                        "found": status == 0,
                        "v": int(result["version"]),
                        "cl": int(result["chunk_length"]),
                    }
                    line |= {"seen": runs_of(seen, line["off"])}
            self._say(c=self._said["number"], **line)

    # Files

    def _file(self, rng: random.Random) -> None:
        path = f"/soak-{self._said['number']}-{rng.randrange(_FILES)}"
        if path in self.files and rng.random() < 0.6:
            self._read_file(path)
        else:
            self._write_file(path, rng.getrandbits(30), rng.choice((100, 5_000, 300_000, 1_500_000)))
        self._stop.wait(0.05)

    def _write_file(self, path: str, seed: int, size: int) -> None:
        before = self.files.get(path, [])
        self.files[path] = [*before, (seed, size)]
        begun = time.monotonic_ns()
        problem = ""
        try:
            self._fs.pipe_file(path, file_content(seed, size))
            self.files[path] = [(seed, size)]
        except Exception as error:  # noqa: BLE001
            problem = f"{type(error).__name__}: {error}"[:300]
        self._say_file(path, "file-write", begun, problem, wrong=False)

    def _read_file(self, path: str) -> None:
        begun = time.monotonic_ns()
        problem, wrong = "", False
        try:
            data = self._fs.cat_file(path)
            matching = [one for one in self.files[path] if file_content(*one) == data]
            wrong = not matching
            if wrong:
                problem = f"{len(data)} bytes that are none of {self.files[path]}"
            else:
                self.files[path] = matching
        except FileNotFoundError as error:
            wrong = len(self.files[path]) == 1  # else its first write may never have been
            problem = str(error)[:300]
        except Exception as error:  # noqa: BLE001
            problem = f"{type(error).__name__}: {error}"[:300]
        self._say_file(path, "file-read", begun, problem, wrong=wrong)

    def _say_file(self, path: str, kind: str, begun: int, problem: str, *, wrong: bool) -> None:
        outcome = "failed" if problem else "ok"
        said = {"c": self._said["number"], "f": path, "k": kind, "i": begun, "r": time.monotonic_ns(), "o": outcome}
        self._say(**said, e=problem, wrong=wrong)


def file_content(seed: int, size: int) -> bytes:
    """The bytes of a file."""
    return np.random.default_rng(seed).bytes(size)


if __name__ == "__main__":
    try:
        Load(json.loads(sys.argv[1])).run()
    except Fs3Error as error:
        print(f"client: {error}", file=sys.stderr)
        sys.exit(1)
