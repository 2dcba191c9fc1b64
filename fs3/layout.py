"""Where a file's bytes lie: offset -> (chain, chunk, offset in the chunk), as arithmetic that clients do by themselves.

A file is cut into chunks of `chunk_bytes`; chunk i goes to `stripe_chains[i % stripe]`. The stripe is chosen from the
chain table by ranking its positions with a 64-bit mix of the file's seed, so neighbouring files load different chains.
(3FS shuffles with the C++ library's `std::shuffle`, which ties its layout to one compiler.) The mix and the ranking
are frozen; tests/golden holds vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fs3.errors import Invalid
from fs3.pb import common_pb2, meta_pb2
from fs3.routing import ChainTable

MIN_CHUNK_BYTES = 64 << 10
MAX_CHUNK_BYTES = 64 << 20
DEFAULT_CHUNK_BYTES = 4 << 20
DEFAULT_STRIPE = 16
MAX_FILE_BYTES = (1 << 63) - 1  # what an off_t holds

_U64 = (1 << 64) - 1


class Durability(IntEnum):
    """What an acknowledged write has reached on every serving replica."""

    SYNC = 0  # stable storage
    OS = 1  # the page cache


_DURABILITIES: dict[int, Durability] = {int(durability): durability for durability in Durability}


class Layout(NamedTuple):
    """A file's layout, fixed when it is created; a directory's is what new files in it get."""

    chain_table: int
    chain_table_version: int
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    stripe: int = DEFAULT_STRIPE
    seed: int = 0
    durability: Durability = Durability.SYNC


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutChoice:
    """What a caller chooses of a layout; None is inherited from the directory."""

    replicas: int | None = None
    chunk_bytes: int | None = None
    stripe: int | None = None
    durability: Durability | None = None


@dataclass(frozen=True, slots=True)
class ChunkRanges:
    """Parallel arrays, one element per piece of a file range that lies within one chunk.

    `chunk` is the chunk's index, `chain` the chain that holds it, `offset` and `length` the bytes within the chunk.
    """

    chunk: NDArray[np.int64]
    chain: NDArray[np.int64]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]


def mix64(value: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): a bijection on 64 bits that scatters neighbours."""
    value = (value + 0x9E3779B97F4A7C15) & _U64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _U64
    return value ^ (value >> 31)


def stripe_chains(layout: Layout, table: ChainTable) -> NDArray[np.int64]:
    """The chains of a file, in the order its chunks go round: [min(stripe, chains in the table)]."""
    assert (table.table_id, table.version) == (layout.chain_table, layout.chain_table_version), (layout, table)
    ranks = [mix64(layout.seed ^ mix64(position)) for position in range(len(table.chains))]
    order = sorted(range(len(table.chains)), key=lambda position: (ranks[position], position))
    return np.array([table.chains[position] for position in order[: layout.stripe]], dtype=np.int64)


def page_chain(digest_lo: int, table: ChainTable) -> int:
    """The chain of a KV page, chosen by the lower half of its chunk id."""
    return table.chains[mix64(digest_lo) % len(table.chains)]


def split_range(chunk_bytes: int, chains: NDArray[np.int64], offset: int, length: int) -> ChunkRanges:
    """The pieces of file range [offset, offset + length), in order; `chains` comes from `stripe_chains`."""
    first = offset // chunk_bytes
    last = (offset + length - 1) // chunk_bytes if length else first - 1
    chunk = np.arange(first, last + 1, dtype=np.int64)
    begin = np.maximum(chunk * chunk_bytes, offset)
    end = np.minimum((chunk + 1) * chunk_bytes, offset + length)
    return ChunkRanges(chunk, chains[chunk % len(chains)], begin - chunk * chunk_bytes, end - begin)


def check_choice(*, chunk_bytes: int, stripe: int) -> None:
    """Raises: Invalid, naming the value, unless a file can be laid out so."""
    if not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_CHUNK_BYTES or chunk_bytes & (chunk_bytes - 1):
        raise Invalid(f"chunk size {chunk_bytes}: must be a power of two from 64KiB to 64MiB")
    if not 1 <= stripe <= 65_536:
        raise Invalid(f"stripe {stripe}: must be from 1 to 65536")


def choice_to_pb(choice: LayoutChoice) -> meta_pb2.LayoutChoice:
    return meta_pb2.LayoutChoice(
        replicas=choice.replicas,
        chunk_bytes=choice.chunk_bytes,
        stripe=choice.stripe,
        durability=None if choice.durability is None else common_pb2.Durability.ValueType(choice.durability),
    )


def layout_to_pb(layout: Layout) -> common_pb2.Layout:
    return common_pb2.Layout(
        chain_table=layout.chain_table,
        chain_table_version=layout.chain_table_version,
        chunk_bytes=layout.chunk_bytes,
        stripe=layout.stripe,
        seed=layout.seed,
        durability=common_pb2.Durability.ValueType(layout.durability),
    )


def layout_from_pb(message: common_pb2.Layout) -> Layout:
    """Raises: ValueError if it promises what nobody knows."""
    durability = _DURABILITIES.get(message.durability)
    if durability is None:
        raise ValueError(f"a layout of durability {message.durability}")
    return Layout(
        message.chain_table,
        message.chain_table_version,
        message.chunk_bytes,
        message.stripe,
        message.seed,
        durability,
    )
