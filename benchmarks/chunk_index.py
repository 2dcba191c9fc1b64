"""What a chunk costs in a daemon's memory, and how long an engine with a million of them takes to open.

The engine is a real folder: its records are written as the engine writes them, in batches of RocksDB, and name slots of
a block file that is all holes, since nobody reads a chunk here. It is opened by fresh processes, this file run as a
program, which measure themselves:

    chunk_index.py FOLDER     the seconds, the bytes of anonymous memory grown by, the bytes of the index alone, chunks
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from benchmarks.context import Context
from benchmarks.machine import anonymous_bytes
from benchmarks.rounds import Timed
from benchmarks.rows import Row, make_row
from fs3.ids import file_chunk
from fs3.storage import metadata as md
from fs3.storage.blocks import BlockFile
from fs3.storage.engine import Engine
from fs3.storage.engine_api import EngineConfig
from fs3.storage.raw_file import SystemFolder

BYTES_AT_MOST, SECONDS_AT_MOST = 220.0, 3.0
CLUSTER = "chunk-index"
_TARGET, _CHAIN = 1, 1
_FILE_CHUNKS = 1_024  # chunks of each file
_LENGTH = 64 << 10
_BATCH = 10_000


def measure(context: Context) -> list[Row]:
    """Bytes a chunk, and seconds."""
    chunks = context.sizes.chunks
    folder = context.folder / "chunk-index"
    context.say(f"making an engine of {chunks:,} chunks")
    logging.getLogger("fs3.storage").setLevel(logging.ERROR)  # that the folder is a new disk is no news
    fill(folder, chunks)
    found: list[tuple[float, int, int]] = []

    def run() -> Timed:
        said = subprocess.run(
            [sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.split()
        if int(said[3]) != chunks:
            raise AssertionError(f"{said[3]} chunks were found of {chunks}")
        found.append((float(said[0]), int(said[1]), int(said[2])))
        return Timed(amount=chunks, seconds=found[-1][0])

    context.measure(f"opening {chunks:,} chunks", {"fs3": run})
    measured = found[1:]  # the first was the unmeasured turn
    grown = [Timed(amount=grown / chunks, seconds=1.0) for _, grown, _ in measured]
    index = [Timed(amount=index / chunks, seconds=1.0) for _, _, index in measured]
    return [
        make_row(
            f"an engine of {chunks:,} chunks: memory for each",
            "bytes",
            {"fs3": grown, "of which the index": index},
            ours="fs3",
            others=["of which the index"],
            at_most=BYTES_AT_MOST,
        ),
        make_row(
            f"an engine of {chunks:,} chunks: to open it",
            "s",
            {"fs3": [Timed(amount=seconds, seconds=1.0) for seconds, _, _ in measured]},
            ours="fs3",
            at_most=SECONDS_AT_MOST,
        ),
    ]


def fill(folder: Path, chunks: int) -> None:
    """An engine in `folder`, with chunks of 64 KiB in files of 1,024 of them."""
    engine = Engine.open(folder, cluster_id=CLUSTER, create=True)
    engine.create_target(_TARGET, _CHAIN)
    engine.close()
    BlockFile.create(SystemFolder(folder / "blocks"), 0, chunks).close()
    metadata = md.Metadata(folder / "metadata", write_buffer_bytes=EngineConfig().write_buffer_bytes)
    for begin in range(0, chunks, _BATCH):
        metadata.apply(_records(begin, min(begin + _BATCH, chunks)))
    metadata.sync()
    metadata.close()


def _records(begin: int, end: int) -> Iterator[md.Put]:
    for slot in range(begin, end):
        hi, lo = file_chunk(1 + slot // _FILE_CHUNKS, slot % _FILE_CHUNKS)
        version = md.Version(version=1, chain_version=1, length=_LENGTH, file=0, slot=slot, crc=0, flags=0)
        yield md.chunk_key(md.COMMITTED, _TARGET, hi, lo), version.pack()


def main(folder: str) -> None:
    """Open it, and say what that took."""
    me = psutil.Process()
    before = anonymous_bytes(me)
    begin_s = time.perf_counter()
    engine = Engine.open(folder, cluster_id=CLUSTER)
    seconds = time.perf_counter() - begin_s
    stats = engine.stats()
    print(seconds, anonymous_bytes(me) - before, stats.index_bytes, stats.chunks)
    engine.close()


if __name__ == "__main__":
    main(sys.argv[1])
