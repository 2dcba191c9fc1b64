"""Where the client's time goes in the small reads: cProfile of the caller's thread, the functions that took most."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from pathlib import Path

from benchmarks.context import Context
from benchmarks.single_reads import READ_BYTES
from benchmarks.small_reads import batched

ROOT = Path(__file__).resolve().parent.parent


def profile_client(context: Context) -> list[str]:
    """Where the calling thread spends the time of a batch of 4 KiB reads on 3 replicas."""
    return profile(batched(context, context.client, context.remote(3), READ_BYTES), 200)


def profile(step: Callable[[int], float], times: int, *, top: int = 14) -> list[str]:
    """Lines "share of the time in it, calls a step, function", by the time spent in a function itself."""
    step(0)
    profiler = cProfile.Profile()
    profiler.enable()
    for number in range(times):
        step(number)
    profiler.disable()
    stats = pstats.Stats(profiler)
    total = stats.total_tt  # type: ignore[attr-defined]
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:top]  # type: ignore[attr-defined]
    return [f"{own / total:6.1%} {calls / times:8.1f}  {_name(key)}" for key, (_, calls, own, _, _) in rows]


def _name(key: tuple[str, int, str]) -> str:
    file, line, function = key
    if file == "~":
        return function.strip("<>")
    path = Path(file)
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) and ".venv" not in path.parts else path.name
    return f"{shown}:{line} {function}"
