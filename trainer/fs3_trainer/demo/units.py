"""Numbers as people read them."""

from __future__ import annotations


def size(num_bytes: float) -> str:
    """Bytes in binary units, such as "11.2 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def duration(seconds: float) -> str:
    """A time span, such as "85 ms", "3.2 s" or "4 min 12 s"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def count(number: int, noun: str) -> str:
    """A number with its noun, such as "1 file" or "12,345 files"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
