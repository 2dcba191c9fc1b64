"""The storage client against real sockets and set faults: what is returned, what is asked again, and what is raised."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from fs3.client.channels import MAX_CHANNELS
from fs3.client.storage import UPDATES_AT_ONCE, ChunkUpdate, StorageClient
from fs3.clock import deadline_after
from fs3.errors import (
    Busy,
    Committing,
    Corrupt,
    Invalid,
    MaybeApplied,
    NoSpace,
    NotFound,
    SessionEnded,
    StaleRouting,
    Unavailable,
)
from fs3.ids import file_chunk
from fs3.layout import Layout, stripe_chains
from fs3.transport.frame_core import Flag, Kind
from fs3.transport.messages import RANGE, Op

HI, _ = file_chunk(7, 0)


@pytest.fixture
def client(cluster):
    made = StorageClient(cluster.mgmtd, timeout_s=20.0, client_id=77)  # the id also seeds its choices
    yield made
    made.close()


def fill(cluster, count: int, size: int = 10_000, seed: int = 0) -> list[bytes]:
    """Chunks 0..count-1 of file 7, going round the six chains."""
    rng = np.random.default_rng(seed)
    datas = [rng.bytes(size) for _ in range(count)]
    with StorageClosing(cluster) as client:
        client.write([update(at, data) for at, data in enumerate(datas)])
    return datas


class StorageClosing:
    def __init__(self, cluster) -> None:
        self.client = StorageClient(cluster.mgmtd, timeout_s=20.0)

    def __enter__(self) -> StorageClient:
        return self.client

    def __exit__(self, *_) -> None:
        self.client.close()


def chain_of(lo: int) -> int:
    return lo % 6 + 1


def update(lo: int, data: bytes, **more) -> ChunkUpdate:
    return ChunkUpdate(**{"hi": HI, "lo": lo, "chain": chain_of(lo), "data": data, **more})


def ranges(*wanted: tuple[int, int, int]) -> np.ndarray:
    out = np.zeros(len(wanted), dtype=RANGE)
    for record, (lo, offset, length) in zip(out, wanted, strict=True):
        record["hi"], record["lo"], record["offset"], record["length"] = HI, lo, offset, length
        record["chain"] = chain_of(lo)
    return out


def read(client: StorageClient, *wanted: tuple[int, int, int], **more) -> tuple[np.ndarray, list[bytes]]:
    asked = ranges(*wanted)
    lengths = asked["length"].astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    out = bytearray(int(lengths.sum()))
    results = client.read(asked, memoryview(out), starts, **more)
    return results, [bytes(out[a : a + n]) for a, n in zip(starts.tolist(), results["length"].tolist(), strict=True)]


def test_random_batches_equal_memory(cluster, client) -> None:
    datas = fill(cluster, 20, 70_000)
    rng = np.random.default_rng(3)
    for _ in range(12):
        wanted = []
        for _ in range(int(rng.integers(1, 120))):
            begin, end = sorted(rng.integers(0, 70_001, 2).tolist())
            wanted.append((int(rng.integers(0, 20)), begin, end - begin))
        results, got = read(client, *wanted)
        assert not results["status"].any()
        assert got == [datas[lo][offset : offset + length] for lo, offset, length in wanted]


def test_a_small_batch_is_one_request_and_a_large_one_is_one_per_node(cluster, client) -> None:
    fill(cluster, 12)

    def requests(ranges: int) -> list[int]:
        before = [len(server.asked) for server in cluster.servers]
        read(client, *[(lo % 12, 0, 4_096) for lo in range(ranges)])
        return sorted(len(server.asked) - n for server, n in zip(cluster.servers, before, strict=True))

    assert requests(240) == [0, 0, 1], "every node has every chunk here"
    assert requests(300) == [1, 1, 1]


def test_frames_keep_to_what_hello_allowed(cluster) -> None:
    for server in cluster.servers:
        server.limits = (5, 30_000)
    datas = fill(cluster, 12)
    with StorageClosing(cluster) as client:
        wanted = [(lo % 12, 0, 10_000) for lo in range(60)]
        _, got = read(client, *wanted)
        assert got == [datas[lo] for lo, _, _ in wanted]
    for server in cluster.servers:
        assert all(header.count <= 5 and header.body_bytes <= 30_000 for header in server.asked)
        assert any(header.kind == Kind.WRITE and header.count == 3 for header in server.asked)


@pytest.mark.parametrize("lanes", [1, 4])
def test_large_ranges_come_over_several_connections(cluster, lanes: int) -> None:
    datas = fill(cluster, 9, 3 << 20)
    client = StorageClient(cluster.mgmtd, timeout_s=20.0, max_lanes=lanes)
    wanted = [(lo, 0, 3 << 20) for lo in range(9)] * 2
    _, got = read(client, *wanted)
    assert got == datas * 2
    cluster.servers[0].stop()
    _, got = read(client, *wanted)
    assert got == datas * 2
    client.close()


def test_a_client_that_is_closed_inside_a_large_read_ends_it_as_any_other(cluster) -> None:
    datas = fill(cluster, 9, 3 << 20)
    client = StorageClient(cluster.mgmtd, timeout_s=20.0, max_lanes=4)
    client.peers.lanes().shutdown()  # as `close` does, at any time
    assert read(client, *[(lo, 0, 3 << 20) for lo in range(9)])[1] == datas
    client.close()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a terminal: what a shell starts in the background ignores SIGINT, and so do the processes it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_nothing_is_written_into_the_buffer_of_a_large_read_that_was_interrupted(cluster) -> None:
    """All connections but the caller's own are waited for when it is."""
    size, count = 3 << 20, 9
    with StorageClosing(cluster) as writer:
        writer.write([update(lo, b"x" * size) for lo in range(count)])
    client = StorageClient(cluster.mgmtd, timeout_s=60.0, stall_s=60.0, max_lanes=4, hedging=None)
    for endpoint in range(3):  # connections that are there already
        client.peers.give_back(
            client.peers.borrow(client.peers.table(), endpoint, deadline_s=client.deadline_s(), wait=False)
        )
    out = bytearray(count * size)
    _, *others = sorted(cluster.servers, key=lambda server: server.endpoint)
    goes_on = threading.Event()
    for server in others:
        server.halt = goes_on

    def interrupt() -> None:
        for server in others:
            server.halted.wait(20.0)
        pause = threading.Event()
        while sum(out[(lo + 1) * size - 1] != 0 for lo in range(count)) < count // 3:
            pause.wait(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        client.read(ranges(*[(lo, 0, size) for lo in range(count)]), memoryview(out), np.arange(count) * size)
    before = bytes(out)
    goes_on.set()
    other.join()
    client.peers.lanes().shutdown()
    assert before == out, "bytes came late"
    assert not cluster.mgmtd.suspected
    client.close()


def test_missing_and_short_chunks_are_results(cluster, client) -> None:
    datas = fill(cluster, 2)
    results, got = read(client, (0, 9_000, 5_000), (77, 0, 10), (1, 20_000, 5), (1, 0, 0))
    assert results["status"].tolist() == [0, NotFound.code, 0, 0]
    assert results["chunk_length"].tolist() == [10_000, 0, 10_000, 10_000]
    assert got == [datas[0][9_000:], b"", b"", b""]


def test_a_buffer_too_small_is_invalid(cluster, client) -> None:
    with pytest.raises(Invalid, match="do not fit"):
        client.read(ranges((0, 0, 10)), memoryview(bytearray(9)), np.zeros(1, dtype=np.int64))


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_dead_node_fails_no_read_and_is_reported(cluster, client, dead: int) -> None:
    datas = fill(cluster, 18)
    read(client, *[(lo, 0, 10_000) for lo in range(18)])
    cluster.servers[dead].stop()
    for _ in range(25):
        _, got = read(client, *[(lo, 0, 10_000) for lo in range(18)])
        assert got == datas
    assert cluster.mgmtd.told.wait(20)
    assert cluster.mgmtd.suspected == {(dead + 1, 5)}


def test_a_node_that_dies_inside_a_reply_fails_no_read(cluster, client) -> None:
    datas = fill(cluster, 18)
    for server in cluster.servers:
        server.die_in_reply = 1
    _, got = read(client, *[(lo, 0, 10_000) for lo in range(18)])
    assert got == datas


def test_corruption_on_one_replica_is_read_from_another(cluster, client) -> None:
    datas = fill(cluster, 18)
    cluster.servers[1].corrupt = True
    for _ in range(100):
        _, got = read(client, *[(lo, 0, 10_000) for lo in range(18)])
        assert got == datas
        if any(header.kind == Kind.READ for header in cluster.servers[1].asked):
            break
    # The replica is told, once for each chunk, and nobody else is.
    patience = threading.Event()
    for _ in range(1_000):
        if cluster.servers[1].reported and not client._peers._reports._sending:
            break
        patience.wait(0.01)
    reported = cluster.servers[1].reported
    assert reported and len(set(reported)) == len(reported)
    assert not cluster.servers[0].reported and not cluster.servers[2].reported
    for chain, hi, lo in reported:
        assert (chain, hi, lo) in cluster.shared.chunks


@pytest.mark.parametrize("size", [4_096, 10_000, 3 << 20])  # foreseen, verified at the end, verified as it comes
def test_corruption_everywhere_names_the_chunk_and_the_targets(cluster, client, size: int) -> None:
    datas = fill(cluster, 2, size)
    for server in cluster.servers:
        server.corrupt = True
    with pytest.raises(Corrupt, match=r"file 7 chunk 1 .*\(201, 202, 203\)"):
        read(client, (1, 0, size))
    for server in cluster.servers[:2]:
        server.corrupt = False
    assert read(client, (1, 0, size))[1] == datas[1:]


def has_bytes_of_no_chunk(results: np.ndarray) -> None:
    results["status"] = NotFound.code


def has_more_than_its_chunk(results: np.ndarray) -> None:
    results["chunk_length"] = 256 << 10


def has_sums_without_end(results: np.ndarray) -> None:
    results["n_sums"] = 0xFFFF_FFFF


@pytest.mark.parametrize("spoil", [has_bytes_of_no_chunk, has_more_than_its_chunk, has_sums_without_end])
def test_a_reply_that_contradicts_itself_is_not_believed(cluster, client, spoil) -> None:
    datas = fill(cluster, 3, 2 << 20)
    cluster.servers[1].spoil = spoil
    wanted = [(lo, 256 << 10, 700_000) for lo in range(3)]
    for _ in range(100):
        results, got = read(client, *wanted)
        assert not results["status"].any()
        assert got == [data[256 << 10 :][:700_000] for data in datas]
        if any(header.kind == Kind.READ for header in cluster.servers[1].asked):
            break
    else:
        raise AssertionError("the spoilt replica was never asked")


def test_a_listing_with_half_a_record_is_not_believed(cluster, client) -> None:
    fill(cluster, 12)
    for server in cluster.servers[:2]:
        server.stray = b"half"
    assert [page["lo"].tolist() for page in client.list_chunks(HI, 1)] == [[0, 6]]


@pytest.mark.parametrize("size", [4_096, 10_000, 3 << 20])
@pytest.mark.parametrize("said", [Corrupt.code, NotFound.code])
def test_what_the_trailer_says_is_missing_is_read_from_another(cluster, client, size: int, said: int) -> None:
    datas = fill(cluster, 3, size)
    cluster.servers[1].trailer = said, 1
    while not any(header.kind == Kind.READ for header in cluster.servers[1].asked):
        assert read(client, *[(lo, 0, size) for lo in range(3)])[1] == datas
    for server in cluster.servers:
        server.trailer = said, 1
    with pytest.raises(Corrupt, match="failed its checksum on every serving target"):
        read(client, *[(lo, 0, size) for lo in range(3)])


@pytest.mark.parametrize("size", [4_096, 10_000, 3 << 20])
def test_without_verify_no_sums_are_asked_for(cluster, size: int) -> None:
    datas = fill(cluster, 1, size)
    for server in cluster.servers:
        server.corrupt = True
    client = StorageClient(cluster.mgmtd, timeout_s=20.0, client_id=77, verify=False)
    _, (got,) = read(client, (0, 0, size))
    client.close()
    assert got != datas[0] and len(got) == size
    asked = [header for server in cluster.servers for header in server.asked if header.kind == Kind.READ]
    assert len(asked) == 1 and not asked[0].flags & Flag.CHECKSUM


@pytest.mark.parametrize("size", [4_096, 10_000, 3 << 20])
def test_a_buffer_is_its_owners_again_as_soon_as_it_was_read_into(cluster, client, size: int) -> None:
    fill(cluster, 3, size)
    gc.disable()
    try:
        out = bytearray(3 * size)
        client.read(ranges(*[(lo, 0, size) for lo in range(3)]), memoryview(out), np.arange(3) * size)
        out.append(1)  # BufferError, if anybody still had a view of it
    finally:
        gc.enable()


def test_a_pending_chunk_is_read_from_the_tail(cluster, client) -> None:
    datas = fill(cluster, 6)
    tail = {chain: int(cluster.mgmtd.routing.serving(chain)[-1].node_id) for chain in range(1, 7)}
    for node, server in enumerate(cluster.servers, 1):
        server.read_status = {chain: Committing.code for chain in tail if tail[chain] != node}
    for _ in range(8):
        before = sum(len(server.asked) for server in cluster.servers)
        _, got = read(client, *[(lo, 0, 10_000) for lo in range(6)])
        assert got == datas
        assert sum(len(server.asked) for server in cluster.servers) - before <= 6, "asked and, at most once, the tails"


def test_a_stale_chain_version_fetches_the_routing(cluster, client) -> None:
    datas = fill(cluster, 6)
    newer = cluster.mgmtd.routing
    cluster.set_chain(3, [2, 3])
    newer, cluster.mgmtd.routing = cluster.mgmtd.routing, newer
    cluster.mgmtd.on_refresh = lambda: setattr(cluster.mgmtd, "routing", newer)
    _, got = read(client, *[(lo, 0, 10_000) for lo in range(6)])
    assert got == datas and cluster.mgmtd.refreshed == 1
    client.write([update(2, b"new")])
    assert read(client, (2, 0, 3))[1] == [b"new"]


@pytest.mark.parametrize("error", [Busy, Unavailable, StaleRouting])
def test_a_refused_frame_is_asked_again(cluster, client, error) -> None:
    datas = fill(cluster, 6)
    for server in cluster.servers:
        server.frame_status = [error.code]
    _, got = read(client, *[(lo, 0, 10_000) for lo in range(6)])
    assert got == datas
    for server in cluster.servers:
        server.frame_status = [error.code]
    client.write([update(lo, b"again") for lo in range(6)])
    assert read(client, (5, 0, 5))[1] == [b"again"]


def test_an_answer_that_no_retry_changes_is_raised_with_the_chunk(cluster, client) -> None:
    fill(cluster, 1)
    for server in cluster.servers:
        server.read_status = {1: Invalid.code}
    with pytest.raises(Invalid, match="file 7 chunk 0"):
        read(client, (0, 0, 1))
    for server in cluster.servers:
        server.read_status = {1: NoSpace.code}
    with pytest.raises(NoSpace, match=r"file 7 chunk 0: no space left on .*; remove files or add a disk"):
        client.write([update(0, b"x")])


def test_nobody_left_ends_at_the_deadline(cluster, client) -> None:
    fill(cluster, 1)
    for server in cluster.servers:
        server.stop()
    with pytest.raises(Unavailable, match="file 7 chunk 0 was not read within"):
        read(client, (0, 0, 1), deadline_s=deadline_after(0.05))
    with pytest.raises(Unavailable, match="file 7 chunk 0 was not written"):
        client.write([update(0, b"x")], deadline_s=deadline_after(0.05))
    with pytest.raises(Unavailable):
        client.read(
            ranges((0, 0, 1)), memoryview(bytearray(1)), np.zeros(1, dtype=np.int64), deadline_s=deadline_after(-1.0)
        )


@pytest.mark.parametrize("deadline_s", [float("inf"), float("nan"), 1e300, 1e12])
def test_a_deadline_that_is_none_is_refused_and_nothing_is_sent(cluster, client, deadline_s: float) -> None:
    fill(cluster, 2)
    before = sum(len(server.asked) for server in cluster.servers)
    for wanted in ([(0, 0, 10)], [(0, 0, 10), (1, 0, 10)]):
        with pytest.raises(Invalid, match=r"a deadline (inf|nan|\d+) s ahead"):
            read(client, *wanted, deadline_s=deadline_s)
    with pytest.raises(Invalid, match="a deadline"):
        client.write([update(0, b"x")], deadline_s=deadline_s)
    assert sum(len(server.asked) for server in cluster.servers) == before


@pytest.mark.parametrize("deadline_s", [float("-inf"), -5.0, 0.0])
def test_a_deadline_that_is_over_is_over(cluster, client, deadline_s: float) -> None:
    fill(cluster, 2)
    read(client, (0, 0, 10), (1, 0, 10))
    for wanted in ([(0, 0, 10)], [(0, 0, 10), (1, 0, 10)]):
        with pytest.raises(Unavailable):
            read(client, *wanted, deadline_s=deadline_s)


def test_a_write_whose_answer_is_lost_is_applied_once(cluster, client) -> None:
    for server in cluster.servers:
        server.lose_ack = 2
    results = client.write([update(lo, bytes([lo]) * 5_000) for lo in range(24)])
    assert results["version"].tolist() == [1] * 24
    assert set(cluster.shared.applied.values()) == {1}
    assert read(client, (23, 0, 5_000))[1] == [bytes([23]) * 5_000]


def test_a_dead_head_waits_for_the_new_chain(cluster, client) -> None:
    head = int(cluster.mgmtd.routing.serving(1)[0].node_id)
    cluster.servers[head - 1].stop()
    rest = [node for node in (1, 2, 3) if node != head]

    def promote() -> None:
        if cluster.mgmtd.routing.chains[1].version == 1:
            for chain in range(1, 7):
                cluster.set_chain(chain, rest)

    cluster.mgmtd.on_refresh = promote
    client.write([update(lo, b"%d" % lo) for lo in range(12)])
    assert [read(client, (lo, 0, 2))[1] for lo in range(12)] == [[b"%d" % lo] for lo in range(12)]
    assert set(cluster.shared.applied.values()) == {1}


def test_an_unknown_outcome_says_so_and_its_channel_is_never_used_again(cluster, client) -> None:
    for server in cluster.servers:
        server.lose_ack = 1_000
    with pytest.raises(MaybeApplied, match="file 7 chunk 0: the outcome of a write is unknown"):
        client.write([update(0, b"x")], deadline_s=deadline_after(0.2))
    used = set(cluster.shared.seen)
    for server in cluster.servers:
        server.lose_ack = 0
    client.write([update(0, b"y")])
    assert len(set(cluster.shared.seen) - used) == 1


def test_a_write_whose_client_is_closed_before_it_is_answered_may_have_been_applied(cluster, client) -> None:
    for server in cluster.servers:
        server.lose_ack, server.on_write = 1, client.close
    with pytest.raises(MaybeApplied, match="file 7 chunk 0: the outcome of a write is unknown"):
        client.write([update(0, b"x")])
    assert cluster.shared.applied.total() == 1


@pytest.mark.usefixtures("interruptible")
def test_the_channel_of_a_write_that_was_interrupted_is_never_used_again(cluster, client) -> None:
    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        interrupted.wait(20.0)

    interrupted = threading.Event()
    for server in cluster.servers:
        server.on_write = interrupt
    with pytest.raises(KeyboardInterrupt):
        client.write([update(0, b"x")])
    for server in cluster.servers:
        server.on_write = lambda: None
    interrupted.set()
    client.write([update(0, b"y")])
    client.write([update(1, b"y")])
    assert cluster.shared.seen[77, 1][0] == 2


def test_channels_are_reused_one_after_the_other_and_distinct_at_once(cluster, client) -> None:
    for _ in range(5):
        client.write([update(lo, b"z") for lo in range(10)])
    assert len(cluster.shared.seen) == 10
    assert {seq for seq, _ in cluster.shared.seen.values()} == {5}


def test_when_a_session_has_ended_the_next_one_takes_what_was_not_sent(cluster) -> None:
    with StorageClosing(cluster) as client:
        client.write([update(lo, b"before") for lo in range(4)])
        assert {owner for owner, _ in cluster.shared.seen} == {100} and client.client_id == 100
        cluster.shared.ended.add(100)
        results = client.write([update(lo, b"after") for lo in range(10)])
        assert not results["status"].any() and client.client_id == 101
        assert sorted(channel for owner, channel in cluster.shared.seen if owner == 101) == list(range(10))
        assert {seq for (owner, _), (seq, _) in cluster.shared.seen.items() if owner == 101} == {1}
        assert cluster.shared.applied == {(HI, lo): 2 if lo < 4 else 1 for lo in range(10)}


def test_an_update_that_may_have_been_applied_in_an_ended_session_is_not_sent_in_another(cluster) -> None:
    """The node of one of two chains applies and loses the answer; then the session ends."""
    with StorageClosing(cluster) as client:
        head = int(cluster.mgmtd.routing.serving(chain_of(0))[0].node_id)
        other = next(lo for lo in range(1, 6) if cluster.mgmtd.routing.serving(chain_of(lo))[0].node_id != head)
        lost = cluster.servers[head - 1]
        lost.lose_ack = 1
        cluster.mgmtd.on_refresh = lambda: cluster.shared.ended.add(100)
        results, errors = client.try_write([update(0, b"once"), update(other, b"twice")])
        assert isinstance(errors[0], MaybeApplied) and "session" in str(errors[0]) and errors[1] is None
        assert cluster.shared.applied == {(HI, 0): 1, (HI, other): 1}
        client.write([update(other, b"next")])
        assert results["version"].tolist()[1] == 1 and {owner for owner, _ in cluster.shared.seen} == {100, 101}


def test_a_client_with_an_id_of_its_own_has_no_other_session(cluster, client) -> None:
    cluster.shared.ended.add(77)
    with pytest.raises(SessionEnded, match="session with the cluster has ended"):
        client.write([update(0, b"x")])


def test_a_session_is_waited_for_no_longer_than_the_write(cluster) -> None:
    deadline_s = deadline_after(1_000.0)
    with StorageClosing(cluster) as one:
        one.write([update(0, b"one")], deadline_s=deadline_s)
    assert cluster.mgmtd.session_deadline_s == deadline_s


def test_two_clients_of_one_session_are_told_apart(cluster) -> None:
    with StorageClosing(cluster) as one, StorageClosing(cluster) as two:
        one.write([update(0, b"one")])
        two.write([update(1, b"two")])
        one.write([update(2, b"three")])
        assert cluster.shared.applied == {(HI, 0): 1, (HI, 1): 1, (HI, 2): 1}
        assert [seq for seq, _ in cluster.shared.seen.values()] == [3], "one channel, used by turns"


class _TakesAllChannels(list):
    """Updates of which the later ones find every channel of their client in use."""

    def __init__(self, client: StorageClient, updates: list[ChunkUpdate]) -> None:
        super().__init__(updates)
        self.client = client

    def __getitem__(self, place):
        if isinstance(place, slice) and place.start:
            channels = self.client.peers.identity().channels
            channels.take(MAX_CHANNELS - 1, deadline_after(5.0))
        return super().__getitem__(place)


def test_what_was_done_before_the_client_was_too_busy_for_the_rest_is_told(cluster, client) -> None:
    updates = _TakesAllChannels(client, [update(lo, b"%d" % lo) for lo in range(UPDATES_AT_ONCE + 2)])
    results, errors = client.try_write(updates, deadline_s=deadline_after(5.0))
    assert errors[:UPDATES_AT_ONCE] == [None] * UPDATES_AT_ONCE
    assert [type(error) for error in errors[UPDATES_AT_ONCE:]] == [Busy, Busy]
    assert results["version"].tolist() == [1] * UPDATES_AT_ONCE + [0, 0]
    with pytest.raises(Busy):
        client.try_write(updates[:2], deadline_s=deadline_after(0.1))


@pytest.mark.parametrize("wrong", [{"hi": 1 << 64}, {"lo": -1}, {"offset": 1 << 32}, {"chain": -1}])
def test_an_update_of_numbers_that_no_frame_can_say_is_refused(cluster, client, wrong) -> None:
    with pytest.raises(Invalid, match=f"`{next(iter(wrong))}` of an update"):
        client.write([dataclasses.replace(update(0, b"x"), **wrong)])
    assert not cluster.shared.applied


def test_only_what_may_be_on_its_way_already_is_marked_as_sent_again(cluster, client) -> None:
    head = int(cluster.mgmtd.routing.serving(chain_of(0))[0].node_id)
    cluster.servers[head - 1].frame_status = [Busy.code]
    client.write([update(0, b"a")])
    assert cluster.shared.retries == [False], "refused, and sent again"
    cluster.servers[head - 1].lose_ack = 1
    client.write([update(0, b"b")])
    client.write([update(0, b"c")])
    assert cluster.shared.retries == [False, False, True, False]


def test_threads_share_a_client(cluster, client) -> None:
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            for turn in range(10):
                lo = worker * 10 + turn
                client.write([update(lo, b"%d" % lo * 3_000)])
                assert read(client, (lo, 0, 8_000))[1] == [(b"%d" % lo * 3_000)[:8_000]]
        except BaseException as error:  # noqa: BLE001 - a thread's failure must reach the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_query_put_if_absent_remove_and_list(cluster, client) -> None:
    fill(cluster, 3)
    put = [update(lo, b"page", op=Op.PUT_IF_ABSENT) for lo in range(1, 6)]
    assert client.put_if_absent(put).tolist() == [False, False, True, True, True]
    lo = np.arange(8, dtype=np.uint64)
    chain = np.array([chain_of(int(one)) for one in lo], dtype=np.uint32)
    hi = np.full(8, HI, dtype=np.uint64)
    found = client.query(hi, lo, chain)
    assert found["chunk_length"].tolist() == [10_000] * 3 + [4] * 3 + [0] * 2
    assert found["status"].tolist() == [0] * 6 + [NotFound.code] * 2
    assert [page["lo"].tolist() for page in client.list_chunks(HI, 2)] == [[1]]
    client.remove(hi[:3], lo[:3], chain[:3])
    client.remove(hi[:3], lo[:3], chain[:3])
    assert client.query(hi, lo, chain)["status"].tolist() == [NotFound.code] * 3 + [0] * 3 + [NotFound.code] * 2


@pytest.mark.parametrize("known", [True, False])
def test_a_files_chunks_are_removed_and_no_others(cluster, client, known: bool) -> None:
    layout = Layout(chain_table=1, chain_table_version=1, chunk_bytes=64 << 10, stripe=4, seed=9)
    chains = stripe_chains(layout, cluster.mgmtd.routing.table(1, 1))
    mine = [update(lo, b"f", chain=int(chains[lo % 4])) for lo in range(11)]
    other = dataclasses.replace(mine[0], hi=HI + 1)
    client.write([*mine, other])
    client.remove_file_chunks(7, layout, 10 * (64 << 10) + 1 if known else None)
    assert set(cluster.shared.chunks) == {(other.chain, HI + 1, 0)}


def test_a_forked_child_is_another_client(cluster, client) -> None:
    fill(cluster, 3)
    read(client, (0, 0, 10))
    client.write([update(4, b"parent")])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            client.write([update(4, b"child")])
            code = 0 if read(client, (4, 0, 5))[1] == [b"child"] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len({client_id for client_id, _ in cluster.shared.seen}) == 3
    assert read(client, (4, 0, 6))[1] == [b"child"]
    client.write([update(4, b"parent again")])


def test_one_client_that_cannot_begin_again_in_a_child_does_not_keep_the_others_from_it(cluster, client) -> None:
    read(client, (0, 0, 10))
    hurt = [StorageClient(cluster.mgmtd, client_id=200 + number) for number in range(8)]
    for other in hurt:
        other.peers.begin_again = lambda: 1 / 0  # type: ignore[method-assign]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            client.write([update(4, b"child")])
            for other in hurt:
                with pytest.raises(Unavailable, match="closed"):
                    read(other, (4, 0, 5))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert {client_id for client_id, _ in cluster.shared.seen} == {cluster.mgmtd.sessions + 1_000}
    for other in hurt:
        other.close()


def test_a_closed_client_says_so(cluster, client) -> None:
    client.close()
    with pytest.raises(Unavailable):
        read(client, (0, 0, 1))
