"""Where files and pages lie, frozen: another answer here would lose every byte that is already stored.

`mix64` is checked against the published outputs of splitmix64, of which it is one step.
"""

from __future__ import annotations

import pytest

from fs3.ids import ChainId, ChainTableId, chunk_bytes, chunk_from_bytes, file_chunk, kv_page_chunk
from fs3.layout import Layout, mix64, page_chain, split_range, stripe_chains
from fs3.routing import ChainTable

TABLE = ChainTable(
    table_id=ChainTableId(1), version=1, replicas=3, chains=tuple(ChainId(chain) for chain in range(101, 125))
)


def test_mix64_is_splitmix64() -> None:
    gamma = 0x9E3779B97F4A7C15
    # The first five outputs of the reference implementation (Vigna's splitmix64.c) from state 1234567.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [mix64((1_234_567 + step * gamma) % (1 << 64)) for step in range(5)] == expected
    assert [mix64(value) for value in (0, 1, gamma, (1 << 64) - 1)] == [
        0xE220A8397B1DCDAF,
        0x910A2DEC89025CC1,
        0x6E789E6AA1B965F4,
        0xE4D971771B652C20,
    ]


@pytest.mark.parametrize(
    ("seed", "stripe", "expected"),
    [
        (0, 4, [120, 111, 117, 123]),
        (1, 16, [109, 101, 112, 123, 122, 107, 108, 116, 110, 124, 113, 115, 118, 119, 121, 120]),
        (
            (1 << 64) - 1,
            40,
            [
                *(121, 101, 120, 107, 104, 119, 123, 111, 105, 115, 122, 117),
                *(114, 102, 108, 124, 112, 106, 118, 116, 110, 113, 109, 103),
            ],
        ),
    ],
)
def test_stripes(seed: int, stripe: int, expected: list[int]) -> None:
    layout = Layout(chain_table=1, chain_table_version=1, stripe=stripe, seed=seed)
    assert stripe_chains(layout, TABLE).tolist() == expected


def test_pages() -> None:
    assert [page_chain(digest, TABLE) for digest in (0, 1, 2, 0xDEADBEEF, (1 << 64) - 1)] == [108, 118, 123, 120, 109]


def test_a_range_is_cut_at_chunks() -> None:
    chains = stripe_chains(Layout(chain_table=1, chain_table_version=1, stripe=4, seed=0), TABLE)
    ranges = split_range(65_536, chains, 3 * 65_536 - 10, 65_536 + 20)
    assert ranges.chunk.tolist() == [2, 3, 4]
    assert ranges.chain.tolist() == [117, 123, 120]
    assert ranges.offset.tolist() == [65_526, 0, 0]
    assert ranges.length.tolist() == [10, 65_536, 10]
    assert split_range(65_536, chains, 5, 0).chunk.tolist() == []


def test_chunk_ids() -> None:
    assert chunk_bytes(*file_chunk(7, 3)).hex() == "01000000000000070000000000000003"
    digest = bytes(range(0xA0, 0xB0))
    assert chunk_bytes(*kv_page_chunk(digest)).hex() == "02a0a1a2a3a4a5a6a7a8a9aaabacadae"
    assert chunk_from_bytes(bytes.fromhex("01000000000000070000000000000003")) == file_chunk(7, 3)
