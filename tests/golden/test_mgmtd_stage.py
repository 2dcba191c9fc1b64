"""A decision of mgmtd that waits in its stage: the bytes that a next version of fs3 must still read."""

from __future__ import annotations

from fs3.mgmtd.stage_core import Change, Stage, pack, unpack

PART = bytes.fromhex(
    "000e000000034d474d542f6e6f64652f000000050a0b0c"  # put
    "0010ffffffff4d474d542f7461726765742f00000007"  # removed
)


def test_a_part() -> None:
    changes: list[Change] = [(b"MGMT/node/\x00\x00\x00\x05", b"\n\x0b\x0c"), (b"MGMT/target/\x00\x00\x00\x07", None)]
    assert pack(changes) == PART, pack(changes).hex()
    assert unpack(PART) == changes


def test_the_stage() -> None:
    assert Stage(7, 3).pack().hex() == "000000000000000700000003"
    assert Stage.unpack(bytes.fromhex("000000000000000700000003")) == Stage(7, 3)
