"""What a soak says at its end: a table, JSON and a picture of how long calls stalled and how much was done."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from soak_check import Findings
from soak_faults import Fault

_READS = ("read", "file-read")


@dataclass(frozen=True, slots=True)
class Felt:
    """What the clients felt of one fault; seconds."""

    kind: str
    what: str
    at_s: float
    lasted_s: float
    failed_calls: int
    read_stall_s: float
    write_stall_s: float
    next_write_s: float | None  # until a write that was begun after the fault was acknowledged; the slowest client's


def felt(
    faults: Sequence[Fault], lines: Sequence[dict[str, Any]], begun_ns: int, *, after_s: float = 8.0
) -> list[Felt]:
    """For each fault the calls that overlap it, or the `after_s` seconds after its end: still what they waited for."""
    begins = np.array([line["i"] for line in lines], dtype=np.int64)
    ends = np.array([line["r"] for line in lines], dtype=np.int64)
    reads = np.array([line["k"] in _READS for line in lines], dtype=np.bool_)
    failed = np.array(
        [line["o"] == "failed" and not line["e"].startswith("NotFound") for line in lines], dtype=np.bool_
    )
    acknowledged = np.array(
        [line["o"] == "ok" and "lo" in line and line["k"] != "read" for line in lines], dtype=np.bool_
    )
    client = np.array([line["c"] for line in lines], dtype=np.int64)
    out = []
    for fault in faults:
        during = (begins < fault.ended_ns + int(after_s * 1e9)) & (ends > fault.begun_ns)
        took = (ends - begins) / 1e9
        nexts = []
        for one in np.unique(client).tolist():
            later = acknowledged & (client == one) & (begins >= fault.begun_ns)
            if later.any():
                nexts.append((int(ends[later].min()) - fault.begun_ns) / 1e9)
        out.append(
            Felt(
                fault.kind,
                fault.what,
                (fault.begun_ns - begun_ns) / 1e9,
                (fault.ended_ns - fault.begun_ns) / 1e9,
                int((during & failed).sum()),
                float(took[during & reads].max(initial=0.0)),
                float(took[during & ~reads].max(initial=0.0)),
                max(nexts) if nexts else None,
            )
        )
    return out


def table(all_felt: Sequence[Felt], findings: Findings, cannot: dict[str, str], extra: Sequence[str]) -> str:
    """Text for people."""
    lines = [f"{'fault':15s} {'of':34s} {'at':>7s} {'for':>6s} {'failed':>7s} {'read':>7s} {'write':>7s} {'next':>7s}"]
    for one in all_felt:
        after = "-" if one.next_write_s is None else f"{one.next_write_s:.2f}"
        lines.append(
            f"{one.kind:15s} {one.what[:34]:34s} {one.at_s:6.0f}s {one.lasted_s:5.1f}s {one.failed_calls:7d}"
            f" {one.read_stall_s:6.2f}s {one.write_stall_s:6.2f}s {after:>6s}s"
        )
    kinds = Counter(one.kind for one in all_felt)
    lines += ["", f"{len(all_felt)} faults: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())]
    lines += [f"left out: {kind}: {why}" for kind, why in cannot.items()]
    lines += [
        f"{findings.operations:,} operations on {findings.chunks:,} chunks,"
        f" {findings.replicas_read:,} replicas compared"
        f", {findings.files} files",
        f"failed calls: {sum(findings.failed.values())} {dict(findings.failed)}",
        *(f"  {text}" for text, _ in Counter(findings.failures).most_common(8)),
        *extra,
    ]
    if findings.undecided:
        lines.append(f"{findings.undecided} chunks' histories were too long to be decided")
    lines += [f"WRONG: {text}" for text in findings.wrong[:20]]
    lines.append("nothing was lost and nothing is wrong" if not findings.wrong else f"{len(findings.wrong)} WRONG")
    return "\n".join(lines)


def write_json(path: Path, all_felt: Sequence[Felt], findings: Findings, said: dict[str, Any]) -> None:
    """Everything the table has, for programs."""
    document = {**said, "faults": [asdict(one) for one in all_felt], "findings": asdict(findings)}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def plot(path: Path, all_felt: Sequence[Felt], lines: Sequence[dict[str, Any]], begun_ns: int) -> str:
    """The picture; why there is none, or ""."""
    try:
        import matplotlib
    except ImportError:
        return "no picture: matplotlib is not installed"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(12, 7), sharex=True, layout="constrained")
    at = [one.at_s for one in all_felt]
    above.vlines(at, 0, [one.write_stall_s for one in all_felt], color="tab:orange", linewidth=2)
    above.plot(at, [one.write_stall_s for one in all_felt], "o", color="tab:orange", label="longest write")
    above.plot(at, [one.read_stall_s for one in all_felt], "o", color="tab:blue", label="longest read")
    above.set_ylabel("seconds, by fault")
    above.legend(loc="upper right")
    ended = np.array([line["r"] for line in lines if line["o"] == "ok"], dtype=np.int64)
    is_read = np.array([line["k"] in _READS for line in lines if line["o"] == "ok"], dtype=np.bool_)
    seconds = (ended - begun_ns) / 1e9
    bins = np.arange(0, max(float(seconds.max(initial=1.0)), 1.0) + 1)
    for chosen, name, colour in ((is_read, "reads", "tab:blue"), (~is_read, "writes", "tab:orange")):
        counts, edges = np.histogram(seconds[chosen], bins)
        below.plot(edges[:-1], counts, color=colour, linewidth=1, label=name)
    for one in all_felt:
        for axes in (above, below):
            axes.axvspan(one.at_s, one.at_s + one.lasted_s, color="tab:red", alpha=0.08, linewidth=0)
    below.set_ylabel("operations per second")
    below.set_xlabel("seconds since the beginning; a fault is a red band")
    below.legend(loc="upper right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return ""
