"""Either end of Mooncake (mooncake_tcp.py), as a program of the standard library and of Mooncake's own environment.

mooncake_program.py serve FILE                    then until standard input ends
mooncake_program.py read ADDRESS MEMORY BYTES     then as it is told (obey.py); BYTES: room for what is read at once
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.obey import obey

_HOST = "127.0.0.1"
_PIECE = 4 << 20


def _registered(size: int) -> tuple[Any, mmap.mmap, int]:
    """An engine, memory that it knows, of the kind that fs3 receives into, and where that is."""
    from mooncake.engine import TransferEngine

    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_HUGEPAGE)
    memory[:: mmap.PAGESIZE] = bytes(len(range(0, size, mmap.PAGESIZE)))
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    engine = TransferEngine()
    if engine.initialize(_HOST, "P2PHANDSHAKE", "tcp", "") or engine.register_memory(at, size):
        sys.exit("Mooncake did not start over TCP")
    return engine, memory, at


def serve(path: str) -> None:
    """Hold the bytes of `path` until standard input ends."""
    engine, memory, at = _registered(Path(path).stat().st_size)
    with open(path, "rb") as file:
        done = 0
        while got := file.readinto(memoryview(memory)[done : done + _PIECE]):
            done += got
    obey({}, port=engine.get_rpc_port(), memory=at)


def read(peer: str, there: int, room_bytes: int) -> None:
    """Read until standard input ends."""
    engine, memory, here = _registered(room_bytes)

    def transfer(offsets: Sequence[int], size: int, at: int) -> int:
        into = [at + number * size for number in range(len(offsets))]
        if engine.batch_transfer_sync_read(peer, into, [there + offset for offset in offsets], [size] * len(offsets)):
            raise ConnectionError("Mooncake could not read")
        return size * len(offsets)

    def run(turns: list[list[int]], size: int, in_flight: int, seconds: float) -> dict[str, Any]:
        done = [0] * in_flight
        room = size * len(turns[0])
        cpu_s, begin_s = time.process_time(), time.perf_counter()

        def reads(slot: int) -> None:
            number = slot * 101
            while not done[slot] or time.perf_counter() - begin_s < seconds:
                done[slot] += transfer(turns[number % len(turns)], size, here + slot * room)
                number += 1

        threads = [threading.Thread(target=reads, args=(slot,)) for slot in range(1, in_flight)]
        for thread in threads:
            thread.start()
        reads(0)
        for thread in threads:
            thread.join()
        elapsed_s = time.perf_counter() - begin_s
        return {"amount": sum(done), "seconds": elapsed_s, "client_cpu_s": time.process_time() - cpu_s}

    def check(offset: int, size: int) -> dict[str, Any]:
        transfer([offset], size, here)
        return {"hex": memory[:size].hex()}

    obey({"run": run, "check": check})


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        read(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
