"""Reading 1 and 4 MiB at random from the block files of daemons on this host, beside `preadv` of the same local file.

Eight ranges a call, as a batch of samples has, and one. "Once verified": everything was read before. "Verifying" is a
client that forgets before each call what it knows, so that it sums every byte.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.context import REQUEST_BYTES, Context, buffer
from benchmarks.large_reads import check_equal
from benchmarks.local_files import LocalFile
from benchmarks.rounds import Case, for_seconds
from benchmarks.rows import Row, make_row
from fs3.checksum import crc
from fs3.client.file import FileClient, OpenFile
from fs3.client.storage import StorageClient

LOCAL, SUMMED, TCP = "local preadv", "local preadv and sum", "fs3 over TCP"
BATCH = 8
_SEED = 7


def measure(context: Context) -> list[Row]:
    """Rows for 1 and 4 MiB, once verified and verifying, many ranges a call and one."""
    rows: list[Row] = []
    file = context.remote(1)
    out = buffer(BATCH * REQUEST_BYTES)
    check_equal(context, file, out[:REQUEST_BYTES])
    here, far = context.client_here, context.client
    for offset in range(0, file.length, REQUEST_BYTES):
        _read(here.files, file, np.array([offset]), REQUEST_BYTES, out)
    storage = StorageClient(here.mgmtd)  # one that knows of nothing
    forgetful = FileClient(storage, here.meta, here.mgmtd)
    with LocalFile(context.local_path) as local:
        for size in (1 << 20, 4 << 20):
            for count in (BATCH, 1):
                offsets = _offsets(context, size, count)

                def read_local(places: np.ndarray, size: int = size) -> None:
                    for row, place in enumerate(places.tolist()):
                        local.read(place, out[row * size : (row + 1) * size])

                def read_verifying(places: np.ndarray, size: int = size) -> None:
                    storage.same_host.verified.clear()
                    _read(forgetful, file, places, size, out)

                def read_here(places: np.ndarray, size: int = size) -> None:
                    _read(here.files, file, places, size, out)

                def read_far(places: np.ndarray, size: int = size) -> None:
                    _read(far.files, file, places, size, out)

                what = f"same host, {size >> 20} MiB random, {count} a call"
                runs = context.measure(
                    what,
                    {
                        LOCAL: _case(context, offsets, size, read_local),
                        "verifying": _case(context, offsets, size, read_verifying),
                        "once verified": _case(context, offsets, size, read_here),
                        TCP: _case(context, offsets, size, read_far),
                    },
                )
                if count == BATCH:
                    rows.append(_mapped(context, file, local, offsets, size, out))
                for kind, wanted in (("once verified", 0.8), ("verifying", 0.5)):
                    rows.append(
                        make_row(
                            f"{what}, {kind}",
                            "GB/s",
                            runs,
                            ours=kind,
                            limits=[LOCAL],
                            others=[TCP],
                            at_least_times={LOCAL: wanted} if count == BATCH else None,
                            cost_per=("GB", 1e9),
                        )
                    )
    for client in (here.storage, storage):
        assert client.same_host.read_bytes > 0, "nothing was read from the block files"
    forgetful.close()
    storage.close()
    return rows


def _mapped(
    context: Context, file: OpenFile, local: LocalFile, offsets: list[np.ndarray], size: int, out: memoryview
) -> Row:
    """Ranges that are mapped, and summed by whoever gets them."""
    files = context.client_here.files

    def sum_local(places: np.ndarray) -> None:
        for place in places.tolist():
            local.read(place, out[:size])
            crc(out[:size])

    def sum_mapped(places: np.ndarray) -> None:
        count = len(places)
        one = (np.zeros(count, dtype=np.int64), places, np.full(count, size, dtype=np.int64))
        for view in files.map_batch([file], *one):
            crc(view)

    what = f"same host, {size >> 20} MiB random, {BATCH} a call, mapped and summed"
    runs = context.measure(
        what, {SUMMED: _case(context, offsets, size, sum_local), "fs3": _case(context, offsets, size, sum_mapped)}
    )
    return make_row(what, "GB/s", runs, ours="fs3", limits=[SUMMED], at_least_times={SUMMED: 1.0}, cost_per=("GB", 1e9))


def _offsets(context: Context, size: int, count: int) -> list[np.ndarray]:
    """The places of 64 calls, the same for everybody."""
    rng = np.random.default_rng(_SEED)
    return [rng.integers(0, context.sizes.file_bytes // size, count) * size for _ in range(64)]


def _read(files: FileClient, file: OpenFile, places: np.ndarray, size: int, out: memoryview) -> None:
    count = len(places)
    files.read_batch([file], np.zeros(count, dtype=np.int64), places, np.full(count, size, dtype=np.int64), out)


def _case(context: Context, offsets: list[np.ndarray], size: int, read: Callable[[np.ndarray], None]) -> Case:
    def step(number: int) -> float:
        places = offsets[number % len(offsets)]
        read(places)
        return float(size * len(places))

    return lambda: for_seconds(step, context.sizes.seconds)
