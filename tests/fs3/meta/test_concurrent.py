"""Operations that run at once do what they would have done one after another, in an order that keeps what was over
before something else began; each order is tried on the serial model, which is the operations themselves, one by one."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from fs3 import errors
from fs3.kv.memory import MemoryKV

PATHS = ("/a", "/b", "/a/x", "/a/y", "/b/x")
CLIENTS, EACH = 3, 3


@dataclass(frozen=True)
class Step:
    """An operation of a client, what came of it, and when it began and ended."""

    name: str
    arguments: tuple[Any, ...]
    outcome: str = ""
    begun: int = 0
    ended: int = 0


class Yielding:
    """A store whose reads let others run in between, as those of a real one do."""

    def __init__(self, chance: random.Random) -> None:
        self._kv, self._chance = MemoryKV(), chance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    def begin(self, **options: Any) -> Any:
        return _Transaction(self._kv.begin(**options), self._chance)


class _Transaction:
    def __init__(self, txn: Any, chance: random.Random) -> None:
        self._txn, self._chance = txn, chance

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._txn, name)
        if name not in ("get", "get_many", "range", "commit"):
            return found

        async def later(*arguments: Any, **options: Any) -> Any:
            for _ in range(self._chance.randrange(3)):
                await asyncio.sleep(0)
            return await found(*arguments, **options)

        return later


def drawn(chance: random.Random) -> Step:
    one, two = chance.choice(PATHS), chance.choice(PATHS)
    return chance.choice(
        [
            Step("mkdir", (one,)),
            Step("make_empty", (one, False)),
            Step("make_empty", (one, True)),
            Step("symlink", (one, "nowhere")),
            Step("link", (one, two)),
            Step("rename", (one, two)),
            Step("rename", (one, two)),
            Step("remove", (one, False)),
            Step("remove", (one, True)),
            Step("trash", (one,)),
        ]
    )


async def done(ns: Any, step: Step) -> str:
    """Do it; what came of it."""
    try:
        if step.name == "make_empty":
            await ns.make_empty(step.arguments[0], replace=step.arguments[1])
        else:
            await getattr(ns, step.name)(*step.arguments)
    except errors.Fs3Error as error:
        return type(error).__name__
    return "done"


async def tree(ns: Any) -> list[tuple[Any, ...]]:
    """Every name with its type and its number of names, and which of them stand for the same inode."""
    found, pending = [], ["/"]
    names = defaultdict(list)
    while pending:
        above = pending.pop()
        for name in await ns.names(above):
            path = f"{above.rstrip('/')}/{name}"
            (inode,) = await ns.stat(path, nofollow=True)
            if above == "/.trash":
                path = f"{above}/{name.split('-', 2)[2]}"  # numbers differ from run to run
            found.append((path, inode.type.name, inode.nlink))
            names[inode.inode_id].append(path)
            if inode.is_directory and above != "/.trash":
                pending.append(path)
    return sorted([*found, *(("same", *sorted(paths)) for paths in names.values() if len(paths) > 1)])


def make_serial(factory: Callable[[], Any]) -> Callable[[list[Step]], Any]:
    async def replay(steps: list[Step]) -> Any:
        """The tree after these steps in this order, or None if one of them comes out otherwise."""
        ns = await begun(factory())
        for step in steps:
            if await done(ns, step) != step.outcome:
                return None
        return await tree(ns)

    return replay


async def begun(ns: Any) -> Any:
    await ns.make_root()
    await ns.mkdir("/a")
    await ns.make_empty("/a/x")
    return ns


async def explained(replay: Any, clients: list[list[Step]], expected: Any, order: list[Step]) -> bool:
    """Whether some order that goes on from `order` gives all outcomes and the tree."""
    if not any(clients):
        return bool(await replay(order) == expected)
    if order and await replay(order) is None:
        return False
    first_end = min(steps[0].ended for steps in clients if steps)
    for at, steps in enumerate(clients):
        if steps and steps[0].begun <= first_end:
            rest = [*clients[:at], steps[1:], *clients[at + 1 :]]
            if await explained(replay, rest, expected, [*order, steps[0]]):
                return True
    return False


@pytest.mark.parametrize("seed", range(200))
def test_what_runs_at_once_equals_some_serial_run(
    seed: int, namespace_on: Callable[..., Any], namespace_in_memory: Callable[[], Any]
) -> None:
    async def main() -> None:
        chance, clock = random.Random(seed), count(1)
        ns = await begun(namespace_on(Yielding(random.Random(seed))))

        async def client(steps: list[Step]) -> list[Step]:
            seen = []
            for step in steps:
                at = next(clock)
                outcome = await done(ns, step)
                seen.append(Step(step.name, step.arguments, outcome, at, next(clock)))
            return seen

        work = [[drawn(chance) for _ in range(EACH)] for _ in range(CLIENTS)]
        clients = await asyncio.gather(*map(client, work))
        overlaps = sum(
            one.begun < other.ended and other.begun < one.ended
            for at, mine in enumerate(clients)
            for theirs in clients[at + 1 :]
            for one in mine
            for other in theirs
        )
        assert overlaps >= CLIENTS, "they ran one after another, which proves nothing"
        expected = await tree(ns)
        assert await explained(make_serial(namespace_in_memory), list(clients), expected, []), (clients, expected)

    asyncio.run(main())
