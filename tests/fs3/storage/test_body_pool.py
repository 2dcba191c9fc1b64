"""Memory for bodies: never more than the share, granted in the order of asking, used again."""

from __future__ import annotations

import random

from fs3.storage.body_pool import Body, BodyPool, Share, rounded

MIB = 1 << 20


def _never(_body: Body) -> None:
    raise AssertionError("granted though it was given")


def test_sizes_waste_at_most_a_quarter() -> None:
    for size in [1, 65_536, 65_537, 70_000, 100_000, MIB, MIB + 1, 5 * MIB - 3, 64 * MIB]:
        assert size <= rounded(size) <= max(65_536, size * 5 / 4)


def test_memory_is_used_again() -> None:
    share = Share(16 * MIB)
    first = share.take(MIB, _never)
    assert first is not None and first.memory.nbytes == MIB
    memory = first.memory
    share.give_back(first)
    second = share.take(MIB - 5, _never)
    assert second is not None and second.memory is memory


def test_who_finds_no_room_is_granted_in_turn() -> None:
    share = Share(4 * MIB)
    held = [share.take(MIB, _never) for _ in range(4)]
    order: list[str] = []
    granted: list[Body] = []

    def grant(name: str, body: Body) -> None:
        order.append(name)
        granted.append(body)

    assert share.take(2 * MIB, lambda body: grant("large", body)) is None
    assert share.take(MIB, lambda body: grant("small", body)) is None, "the small one must not overtake"
    for body in held[:1]:
        assert body is not None
        share.give_back(body)
    assert order == []
    for body in held[1:]:
        assert body is not None
        share.give_back(body)
    assert order == ["large", "small"]
    assert share.lent_bytes == 3 * MIB


def test_one_body_larger_than_the_share_is_lent_alone() -> None:
    share = Share(MIB)
    body = share.take(3 * MIB, _never)
    assert body is not None
    waiting: list[Body] = []
    assert share.take(1, waiting.append) is None
    share.give_back(body)
    assert len(waiting) == 1


def test_the_share_holds_under_random_use() -> None:
    rng = random.Random(3)
    share = Share(8 * MIB)
    held: list[Body] = []
    asked = got = 0
    for _ in range(3000):
        if held and rng.random() < 0.5:
            share.give_back(held.pop(rng.randrange(len(held))))
        else:
            asked += 1
            body = share.take(rng.randrange(1, 2 * MIB), held.append)
            if body is not None:
                held.append(body)
        assert share.lent_bytes == sum(body.memory.nbytes for body in held) <= 8 * MIB
    while held:
        share.give_back(held.pop())
        got = share.lent_bytes
    assert got == 0 and asked > 0


def test_hops_do_not_share() -> None:
    pool = BodyPool(hops=2, share_bytes=MIB)
    assert pool.shares[0].take(MIB, _never) is not None
    assert pool.shares[1].take(MIB, _never) is not None
    assert pool.lent_bytes == 2 * MIB
