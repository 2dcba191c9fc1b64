"""Chain tables over the disks of a cluster: every disk carries the same load, and a lost disk's load spreads evenly.

Wanted, for chains of r replicas over n disks, k chains headed by each disk: every disk stands k times in every place of
a chain; the replicas of a chain are on distinct machines; and any two disks share about as many chains, since those who
share chains with a lost disk take over its reads and bring its successor up to date. That is a balanced block design
(3FS solves an integer programme for it). Here it is a cyclic one: number the disks 0..n-1 so that disk i is on machine
i mod N; take k base blocks and shift each by 0..n-1. The shifts give equal load and equal places by construction, and
two disks a distance d apart share as many chains as the blocks have differences of d: so only the k blocks are
searched, for differences as even as possible. n = 3, r = 3, k = 2 gives all 6 orders of the 3 disks.

Clusters whose machines have different numbers of disks have no such numbering and are filled greedily by the same
measure. The workers of a storage daemon are nodes, and what each has of a disk counts as a disk; their machine is one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fs3.errors import Invalid
from fs3.ids import ChainId, ChainTableId, NodeId, TargetId, machine_of, worker_of
from fs3.routing import Chain, ChainTable, Node, NodeKind, Target, TargetState


@dataclass(frozen=True, slots=True, order=True)
class DiskSlot:
    """A disk that may carry targets: its node, and its index in the node's list."""

    node_id: NodeId
    disk: int

    @property
    def machine(self) -> NodeId:
        """What the disk dies with: two replicas of a chain are never on one."""
        return machine_of(self.node_id)


@dataclass(frozen=True, slots=True)
class Plan:
    """Targets, chains and tables that go together; all chains SERVING at version 1 once the targets exist."""

    targets: tuple[Target, ...]
    chains: tuple[Chain, ...]
    tables: tuple[ChainTable, ...]


def complete_nodes(nodes: Iterable[Node]) -> dict[NodeId, list[Node]]:
    """The storage nodes that are alive with all their workers, and the records of those, by configured node id."""
    alive: dict[NodeId, list[Node]] = defaultdict(list)
    for node in sorted(nodes, key=lambda node: node.node_id):
        if node.kind == NodeKind.STORAGE and node.alive:
            alive[machine_of(node.node_id)].append(node)
    return {
        machine: workers
        for machine, workers in alive.items()
        if {worker_of(node.node_id) for node in workers} >= set(range(workers[0].workers))
    }


def plan_tables(disks: Sequence[DiskSlot], max_replicas: int, chains_per_disk: int) -> Plan:
    """One table for each of 1..`max_replicas`, with `chains_per_disk` chains per disk in each.

    Table r has the id r and version 1; chains and targets are numbered from 1.

    Raises:
        Invalid: fewer machines than replicas, or counts that are not positive.
    """
    machines = {slot.machine for slot in disks}
    if max_replicas < 1 or chains_per_disk < 1:
        raise Invalid(f"{max_replicas} replicas with {chains_per_disk} chains per disk: both must be at least 1")
    if max_replicas > len(machines):
        raise Invalid(f"{max_replicas} replicas need as many storage nodes with a disk each; there are {len(machines)}")
    targets: list[Target] = []
    chains: list[Chain] = []
    tables: list[ChainTable] = []
    for replicas in range(1, max_replicas + 1):
        table: list[ChainId] = []
        for block in place_chains(disks, replicas, chains_per_disk):
            chain_id = ChainId(len(chains) + 1)
            members = [
                Target(
                    target_id=TargetId(len(targets) + place + 1),
                    node_id=slot.node_id,
                    disk=slot.disk,
                    chain_id=chain_id,
                    state=TargetState.SERVING,
                )
                for place, slot in enumerate(block)
            ]
            targets += members
            ids = tuple(target.target_id for target in members)
            chains.append(Chain(chain_id=chain_id, version=1, targets=ids, replicas=replicas))
            table.append(chain_id)
        tables.append(ChainTable(table_id=ChainTableId(replicas), version=1, replicas=replicas, chains=tuple(table)))
    return Plan(tuple(targets), tuple(chains), tuple(tables))


def place_chains(disks: Sequence[DiskSlot], replicas: int, chains_per_disk: int) -> list[tuple[DiskSlot, ...]]:
    """`chains_per_disk` * len(disks) chains as tuples of `replicas` disks, head first, on distinct machines."""
    per_machine: dict[NodeId, list[DiskSlot]] = defaultdict(list)
    for slot in sorted(disks, key=lambda slot: (slot.machine, slot)):
        per_machine[slot.machine].append(slot)
    assert len(per_machine) >= replicas, (len(per_machine), replicas)
    rows = list(per_machine.values())
    if len({len(row) for row in rows}) > 1:
        return _fill_greedily(rows, replicas, chains_per_disk)
    numbered = [row[index] for index in range(len(rows[0])) for row in rows]
    blocks = base_blocks(len(numbered), len(rows), replicas, chains_per_disk)
    return [
        tuple(numbered[(offset + shift) % len(numbered)] for offset in block)
        for shift in range(len(numbered))
        for block in blocks
    ]


def base_blocks(disks: int, machines: int, replicas: int, count: int) -> list[tuple[int, ...]]:
    """`count` blocks of `replicas` numbers below `disks`, each starting with 0, distinct modulo `machines`.

    Greedy, then improved by single exchanges until none helps; deterministic.
    """
    assert disks % machines == 0 and machines >= replicas, (disks, machines, replicas)
    tally = _Differences(disks)
    blocks: list[tuple[int, ...]] = []
    for _ in range(count):
        block: tuple[int, ...] = (0,)
        while len(block) < replicas:
            block = min(((*block, number) for number in _allowed(block, disks, machines)), key=tally.cost)
        tally.count(block, +1)
        blocks.append(block)
    improved = True
    while improved:
        improved = False
        for index, block in enumerate(blocks):
            tally.count(block, -1)
            best = _best_exchange(block, disks, machines, tally)
            tally.count(best, +1)
            improved = improved or best != block
            blocks[index] = best
    return blocks


def _allowed(block: tuple[int, ...], disks: int, machines: int) -> list[int]:
    taken = {number % machines for number in block}
    return [number for number in range(disks) if number % machines not in taken]


def _best_exchange(block: tuple[int, ...], disks: int, machines: int, tally: _Differences) -> tuple[int, ...]:
    best, best_cost = block, tally.cost(block)
    for place in range(1, len(block)):
        rest = block[:place] + block[place + 1 :]
        for number in _allowed(rest, disks, machines):
            candidate = (*block[:place], number, *block[place + 1 :])
            cost = tally.cost(candidate)
            if cost < best_cost:
                best, best_cost = candidate, cost
    return best


class _Differences:
    """How often each distance between two disks occurs among the blocks, and from head to successor and so on."""

    def __init__(self, disks: int) -> None:
        self._disks = disks
        self._pairs: Counter[int] = Counter()
        self._steps: Counter[int] = Counter()

    def count(self, block: tuple[int, ...], sign: int) -> None:
        for distance in self._distances(block):
            self._pairs[distance] += sign
        for step in self._successions(block):
            self._steps[step] += sign

    def cost(self, block: tuple[int, ...]) -> tuple[int, int]:
        """What the sums of squares would grow by: lowest where the counts are evenest. Pairs matter more than order."""
        return _growth(self._pairs, self._distances(block)), _growth(self._steps, self._successions(block))

    def _distances(self, block: tuple[int, ...]) -> list[int]:
        return [(a - b) % self._disks for a in block for b in block if a != b]

    def _successions(self, block: tuple[int, ...]) -> list[int]:
        return [(after - before) % self._disks for before, after in pairwise(block)]


def _growth(counts: Counter[int], added: Sequence[int]) -> int:
    return sum((counts[key] + more) ** 2 - counts[key] ** 2 for key, more in Counter(added).items())


def _fill_greedily(rows: list[list[DiskSlot]], replicas: int, chains_per_disk: int) -> list[tuple[DiskSlot, ...]]:
    """Chains one by one from the disks with the most left of their share, and of those from the least acquainted."""
    count = chains_per_disk * sum(len(row) for row in rows)
    left = _shares(rows, replicas * count, count)
    heads: Counter[DiskSlot] = Counter()
    shared: Counter[tuple[DiskSlot, DiskSlot]] = Counter()
    chains = []
    for remaining in range(count, 0, -1):
        # A machine with as much left as there are chains to come must be in all of them; at most `replicas` are.
        due = {row[0].machine for row in rows if sum(left[slot] for slot in row) >= remaining}
        block: list[DiskSlot] = []
        while len(block) < replicas:
            block.append(_next_slot(left, block, due, shared))
        left.subtract(block)
        shared.update((a, b) for a in block for b in block if a != b)
        fewest = min(heads[slot] for slot in block)
        first = next(place for place, slot in enumerate(block) if heads[slot] == fewest)
        heads[block[first]] += 1
        chains.append(tuple(block[first:] + block[:first]))
    return chains


def _shares(rows: list[list[DiskSlot]], total: int, at_most_per_machine: int) -> Counter[DiskSlot]:
    """How many targets each disk gets: as equal as can be when no machine is twice in a chain."""
    shares: Counter[DiskSlot] = Counter({slot: 0 for row in rows for slot in row})
    for _ in range(total):
        open_rows = [row for row in rows if sum(shares[slot] for slot in row) < at_most_per_machine]
        least = min((slot for row in open_rows for slot in row), key=lambda slot: (shares[slot], slot))
        shares[least] += 1
    return shares


def _next_slot(
    left: Counter[DiskSlot],
    block: Sequence[DiskSlot],
    due: set[NodeId],
    shared: Counter[tuple[DiskSlot, DiskSlot]],
) -> DiskSlot:
    machines = {slot.machine for slot in block}
    free = [slot for slot in left if slot.machine not in machines and left[slot] > 0]
    acquainted = {slot: sum(shared[slot, other] for other in block) for slot in free}
    return min(free, key=lambda slot: (slot.machine not in due, -left[slot], acquainted[slot], slot))
