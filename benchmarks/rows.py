"""A row of the table: what fs3 did, what stands beside it, and what it was meant to reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rounds import Spread, Timed, rates, ratios


@dataclass(frozen=True, slots=True)
class Beside:
    """Something measured in the same rounds. `kind`: "limit" of the machine, or "other" way to do the same."""

    name: str
    kind: str
    rate: Spread
    ratio: Spread
    """fs3's rate over this one, round by round"""


@dataclass(frozen=True, slots=True)
class Absent:
    """Something that could not be measured here, and why; `wanted` is the target that therefore has no verdict."""

    name: str
    why: str
    wanted: float | None = None
    """fs3's ratio to it"""


@dataclass(frozen=True, slots=True)
class Target:
    """`got` should be at least `wanted` (or at most): a rate, or where `over` names something beside the row, a ratio
    to it."""

    wanted: float
    got: float
    over: str = ""
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.got <= self.wanted if self.at_most else self.got >= self.wanted


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of the client and of the servers per `per` ("GB"), of fs3 or of a limit; `wanted`: at most, together,
    or None."""

    name: str
    per: str
    client: float
    servers: float
    wanted: float | None = None

    @property
    def met(self) -> bool:
        return self.wanted is None or self.client + self.servers <= self.wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`unit` is shown; rates are in its base (GB/s: bytes a second)."""

    name: str
    unit: str
    rate: Spread
    beside: tuple[Beside, ...]
    targets: tuple[Target, ...] = ()
    costs: tuple[Cost, ...] = ()
    absent: tuple[Absent, ...] = ()

    @property
    def met(self) -> bool:
        """All of its targets that have a verdict."""
        return all(target.met for target in self.targets) and all(cost.met for cost in self.costs)


def make_row(
    name: str,
    unit: str,
    runs: Mapping[str, Sequence[Timed]],
    *,
    ours: str,
    limits: Sequence[str] = (),
    others: Sequence[str] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    at_least_times: Mapping[str, float] | None = None,
    at_most_times: Mapping[str, float] | None = None,
    cost_per: tuple[str, float] | None = None,
    cost_at_most: float | None = None,
    absent: Sequence[Absent] = (),
) -> Row:
    """The row of `runs[ours]`, with the runs named by `limits` and `others` beside it.

    `at_least`, `at_most`: a target for the median rate; `at_least_times`, `at_most_times`: targets for the median ratio
    to something beside. `absent`: what should stand beside it and could not be run; its target has no verdict.
    `cost_per`: a name and an amount, ("GB", 1e9), per which the CPU seconds of ours and of the limits are given;
    `cost_at_most`: a target for those of ours, client and servers together.
    """
    rate = rates(runs[ours])
    beside = []
    for kind, names in (("limit", limits), ("other", others)):
        for other in names:
            theirs = rates(runs[other])
            beside.append(Beside(other, kind, theirs, ratios(rate, theirs)))
    targets = [] if at_least is None else [Target(at_least, rate.median)]
    targets += [] if at_most is None else [Target(at_most, rate.median, at_most=True)]
    missing = {one.name: one for one in absent}
    for upper, wanted in ((False, at_least_times), (True, at_most_times)):
        for other, times in (wanted or {}).items():
            if other in missing:
                missing[other] = dataclasses.replace(missing[other], wanted=times)
                continue
            ratio = next(one.ratio for one in beside if one.name == other)
            targets.append(Target(times, ratio.median, over=other, at_most=upper))
    costs = []
    if cost_per is not None:
        per, amount = cost_per
        for case in (ours, *limits):
            total = sum(run.amount for run in runs[case]) / amount
            client, servers = (
                sum(getattr(run, field) for run in runs[case]) / total for field in ("client_cpu_s", "servers_cpu_s")
            )
            name_, wanted_ = ("fs3", cost_at_most) if case == ours else (case, None)
            costs.append(Cost(name_, per, client, servers, wanted_))
    return Row(
        name=name,
        unit=unit,
        rate=rate,
        beside=tuple(beside),
        targets=tuple(targets),
        costs=tuple(costs),
        absent=tuple(missing.values()),
    )


def row_to_json(row: Row) -> dict[str, Any]:
    """What bench.json holds of a row."""
    return {
        "name": row.name,
        "unit": row.unit,
        **_spread(row.rate),
        "beside": [
            {"name": one.name, "kind": one.kind, **_spread(one.rate), "ratio": _spread(one.ratio)} for one in row.beside
        ],
        "targets": [{**dataclasses.asdict(one), "met": one.met} for one in row.targets],
        "costs": [{**dataclasses.asdict(one), "met": one.met} for one in row.costs],
        "absent": [dataclasses.asdict(one) for one in row.absent],
    }


def row_from_json(table: Mapping[str, Any]) -> Row:
    """The inverse of `row_to_json`. Raises: KeyError, if it is no row."""
    return Row(
        name=table["name"],
        unit=table["unit"],
        rate=Spread(tuple(table["rounds"])),
        beside=tuple(
            Beside(one["name"], one["kind"], Spread(tuple(one["rounds"])), Spread(tuple(one["ratio"]["rounds"])))
            for one in table["beside"]
        ),
        targets=tuple(
            Target(one["wanted"], one["got"], one["over"], one.get("at_most", False)) for one in table["targets"]
        ),
        costs=tuple(
            Cost(one["name"], one["per"], one["client"], one["servers"], one.get("wanted")) for one in table["costs"]
        ),
        absent=tuple(Absent(**one) for one in table.get("absent", ())),
    )


def _spread(spread: Spread) -> dict[str, Any]:
    return {"median": spread.median, "min": spread.low, "max": spread.high, "rounds": list(spread.values)}
