"""redis-py reading 256 values at a time, as a program in an environment of its own.

    redis_py.py PORT HOW        HOW: "pipeline" of GETs, or one "mget"; then as it is told (obey.py)

The values are copied into one buffer, one after the other: whoever reads into memory of their own has to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.obey import obey, timed_calls


def main(port: int, how: str) -> None:
    """Until standard input ends."""
    import redis

    client = redis.Redis(port=port)

    def pipeline(keys: Sequence[str]) -> list[bytes]:
        calls = client.pipeline(transaction=False)
        for key in keys:
            calls.get(key)
        values: list[bytes] = calls.execute()
        return values

    def mget(keys: Sequence[str]) -> list[bytes]:
        values: list[bytes] = client.mget(keys)
        return values

    get: Callable[[Sequence[str]], list[bytes]] = {"pipeline": pipeline, "mget": mget}[how]

    def read(keys: Sequence[str], out: memoryview) -> float:
        at = 0
        for value in get(keys):
            out[at : at + len(value)] = value
            at += len(value)
        return len(keys)

    turns: list[list[str]] = []
    out = bytearray()

    def load(wanted: list[list[int]], block_bytes: int) -> dict[str, Any]:
        """The keys to read in turn; what the first of them gave."""
        turns[:] = [[str(key) for key in keys] for keys in wanted]
        out[:] = bytes(len(turns[0]) * block_bytes)
        read(turns[0], memoryview(out))
        return {"hex": out.hex()}

    def run(seconds: float) -> dict[str, Any]:
        into = memoryview(out)
        return timed_calls(lambda number: read(turns[number % len(turns)], into), seconds)

    obey({"run": run, "load": load})


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
