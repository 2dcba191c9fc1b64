"""What the clients of a soak wrote down, and what it says: as the simulator's histories, for the simulator's checker.

The bytes of an update name it (`content`), so a line of the history needs no bytes: what a read saw is told as runs of
(begin, end, operation); only bytes that nobody can have written are kept as they are.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "sim"))

from sim_history import Kind, Operation, Outcome, content
from sim_linearize import check

__all__ = [
    "CHUNK_HI",
    "Kind",
    "Operation",
    "Outcome",
    "check",
    "chunk_place",
    "content",
    "lines_of",
    "operations_of",
    "runs_of",
]

CHUNK_HI = 9 << 56 | 0x50AC
_WORD = 8


def chunk_place(lo: int, chains: list[int]) -> dict[str, int]:
    """Where chunk `lo` lies."""
    return {"hi": CHUNK_HI, "lo": lo, "chain": chains[lo % len(chains)]}


def runs_of(data: bytes, offset: int) -> list[list[int]] | str:
    """Whose bytes these are: [begin, end, operation] for each run, operation 0 for zeros; or the bytes, as hex.

    `offset` is a multiple of 8.
    """
    if not data:
        return []
    whole = len(data) // _WORD * _WORD
    words = np.frombuffer(data[:whole], dtype="<u8")
    who = (words >> np.uint64(32)).astype(np.int64)
    place = np.arange(offset // _WORD, offset // _WORD + len(words), dtype=np.uint64)
    fits = ((words & np.uint64(0xFFFFFFFF)) == place) | (words == 0)
    if whole != len(data) or not fits.all():
        return data.hex()
    starts = np.flatnonzero(np.concatenate([[True], who[1:] != who[:-1]]))
    ends = [*starts[1:].tolist(), len(who)]
    return [[offset + a * _WORD, offset + b * _WORD, int(who[a])] for a, b in zip(starts.tolist(), ends, strict=True)]


def bytes_of(runs: list[list[int]] | str) -> bytes:
    """What `runs_of` was made of."""
    if isinstance(runs, str):
        return bytes.fromhex(runs)
    return b"".join(content(who, begin, end - begin) if who else bytes(end - begin) for begin, end, who in runs)


def lines_of(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The lines of all clients; a last one that was cut off is left out."""
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)


def operations_of(lines: Iterable[dict[str, Any]]) -> dict[int, list[Operation]]:
    """The operations on chunks, by chunk, as the checker takes them."""
    out: defaultdict[int, list[Operation]] = defaultdict(list)
    for line in lines:
        if "lo" not in line:
            continue
        kind = Kind(line["k"])
        out[line["lo"]].append(
            Operation(
                line["n"],
                f"client-{line['c']}",
                (CHUNK_HI, line["lo"]),
                kind,
                line["i"],
                offset=line["off"],
                length=line["len"],
                data=b"" if kind is Kind.READ else content(line["n"], line["off"], line["len"]),
                returned=line["r"],
                outcome=Outcome(line["o"]),
                found=line.get("found", True),
                version=line.get("v", 0),
                chunk_length=line.get("cl", 0),
                seen=bytes_of(line.get("seen", [])),
                error=line.get("e", ""),
                chain=line["chain"],
            )
        )
    return dict(out)
