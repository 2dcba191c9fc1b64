"""The store in etcd, format 1: its keys and the values of its records, as docs/formats.md says."""

from __future__ import annotations

import pytest

from fs3.errors import Invalid
from fs3.kv import keys
from fs3.kv.etcd_core import Record, Translator, Work, check_format, fence, format_of
from fs3.kv.etcd_layout import Layout, by_kind
from fs3.kv.occ_core import WriteSet
from fs3.pb.etcd import etcd_pb2 as pb

LAYOUT = Layout("meta")
ENGINE = bytes(range(8))


def test_keys() -> None:
    assert LAYOUT.format == b"fs3/meta/v"
    assert LAYOUT.data(b"INOD1") == b"fs3/meta/kINOD1"
    assert LAYOUT.key_of(b"fs3/meta/kINOD1") == b"INOD1"
    assert LAYOUT.stamp(b"INOD") == b"fs3/meta/sINOD"
    assert LAYOUT.wide == b"fs3/meta/w"
    assert LAYOUT.record(ENGINE, 258) == b"fs3/meta/c" + ENGINE + b"\0\0\1\2"
    assert LAYOUT.floor(258) == b"fs3/meta/f\0\0\0\0\0\0\1\2"


@pytest.mark.parametrize(
    ("key", "group", "kind"),
    [
        (keys.dentry(258, b"name"), b"DENT\0\0\0\0\0\0\1\2", b"DENT"),
        (keys.idempotency(258, 4, 5), b"IDEM\0\0\0\0\0\0\1\2", b"IDEM"),
        (keys.inode(258), b"INOD", b"INOD"),
        (keys.stamp(258), b"DSTM", b"DSTM"),
        (keys.COLLECTOR, b"META", b"META"),
        (b"abc", b"abc", b"abc"),
    ],
)
def test_groups(key: bytes, group: bytes, kind: bytes) -> None:
    assert (keys.group(key), by_kind(key)) == (group, kind)


def test_a_record_of_a_commit_and_of_a_fence() -> None:
    record = Record(LAYOUT.record(ENGINE, 0), 7, 258)
    work = Work(revision=0, points={}, ranges=[], writes=WriteSet())
    commit = Translator(LAYOUT, by_kind, 128).request(work, record, {})
    assert commit.success[0].request_put.value == b"c\0\0\0\0\0\0\1\2"
    assert fence(record).success[0].request_put.value == b"f\0\0\0\0\0\0\1\2"


def test_the_format_is_marked_once_and_another_one_is_refused() -> None:
    request = format_of(LAYOUT)
    assert request.success[0].request_put == pb.PutRequest(key=b"fs3/meta/v", value=b"1")
    check_format(pb.TxnResponse(succeeded=True))
    for value in (b"1", b"2"):
        response = pb.TxnResponse()
        response.responses.add().response_range.kvs.add(key=LAYOUT.format, value=value)
        if value == b"1":
            check_format(response)
        else:
            with pytest.raises(Invalid, match="has format '2', this fs3 uses '1'"):
                check_format(response)
