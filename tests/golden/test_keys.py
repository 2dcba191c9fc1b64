"""The metadata store's keys and values, byte by byte: a store written by any earlier version must stay readable."""

from __future__ import annotations

from fs3.ids import InodeId
from fs3.inode import Inode, InodeType
from fs3.kv import keys
from fs3.layout import Durability, Layout
from fs3.meta import dentry, inode, quota, session, trashed
from fs3.meta.access import Permissions
from fs3.meta.session import Session
from fs3.pb import meta_pb2

KEYS = {
    keys.inode(1): "494e4f44 0000000000000001",
    keys.inode((1 << 56) - 1): "494e4f44 00ffffffffffffff",
    keys.dentry(258, "ü".encode()): "44454e54 0000000000000102 c3bc",
    keys.stamp(258): "4453544d 0000000000000102",
    keys.listing(258): "4c564552 0000000000000102",
    keys.session(258): "53455353 0000000000000102",
    keys.idempotency(3, 4, 1 << 63): "4944454d 0000000000000003 0000000000000004 8000000000000000",
    keys.gc_queue(258): "47435155 0000000000000102",
    keys.xattr(258, "user.ü".encode()): "58415452 0000000000000102 757365722ec3bc",
    keys.trash(1_800_000_000, 258): "54525348 000000006b49d200 0000000000000102",
    keys.quota(258): "51554f54 0000000000000102",
    keys.quota_use(258)[0]: "51555345 0000000000000102 62",
    keys.quota_use(258)[1]: "51555345 0000000000000102 69",
    keys.NEXT_INODE: "434f554e 6e6578742d696e6f6465",
    keys.IDEMPOTENCY_PERIOD: "434f554e 6964656d706f74656e63792d706572696f64",
    keys.CLUSTER: "4d455441 636c7573746572",
    keys.COLLECTOR: "4d455441 636f6c6c6563746f72",
}

INODE = Inode(
    inode_id=InodeId(300),
    type=InodeType.FILE,
    mode=0o644,
    nlink=1,
    length=5_000_000_000,
    mtime_ns=1_700_000_000_000_000_000,
    layout=Layout(chain_table=2, chain_table_version=1, chunk_bytes=1 << 20, seed=300, durability=Durability.OS),
    version=2,
)
INODE_BYTES = (
    "01 08ac02 1001 18a403 3001 3880e497d012 488080a8b1e39fe7cb17 5a0f 0802 1001 18808040 2010 28ac02 3001 7002"
)


def test_keys() -> None:
    for made, golden in KEYS.items():
        assert made == bytes.fromhex(golden), golden


def test_keys_sort_by_number_and_ranges_hold_their_kind_only() -> None:
    assert keys.inode(255) < keys.inode(256)
    begin, end = keys.dentries(258)
    assert begin <= keys.dentry(258, b"\x01") < keys.dentry(258, b"\xff" * 255) < end <= keys.dentry(259, b"\x01")
    begin, end = keys.whole(keys.DENTRY)
    assert (
        begin
        < keys.dentry(1, b"a")
        < keys.dentry((1 << 64) - 1, b"\xfe")
        < end
        < keys.stamp(1)
        < keys.whole(b"DSTM")[1]
    )
    begin, end = keys.idempotency_before(5)
    assert begin < keys.idempotency(4, 1 << 63, 1 << 63) < end <= keys.idempotency(5, 0, 0)
    assert keys.inode_of(keys.session(77)) == 77 and keys.dentry_name(keys.dentry(7, b"x/y")) == b"x/y"


def test_attributes_of_an_inode_are_a_range_and_a_group() -> None:
    begin, end = keys.xattrs(258)
    assert begin < keys.xattr(258, b"\x01") < keys.xattr(258, b"\xff" * 255) < end <= keys.xattr(259, b"\x01")
    assert keys.xattr_name(keys.xattr(7, b"user.x")) == b"user.x"
    assert keys.group(keys.xattr(7, b"a")) == keys.group(keys.xattr(7, b"b")) != keys.group(keys.xattr(8, b"a"))


def test_the_trash_sorts_by_what_is_due() -> None:
    begin, end = keys.trash_due(10)
    assert begin < keys.trash(0, 5) < keys.trash(10, (1 << 64) - 1) < end <= keys.trash(11, 0) < keys.whole(b"TRSH")[1]
    assert keys.trash_of(keys.trash(10, 5)) == (10, 5)
    record = meta_pb2.TrashRecord(path="/d/ü", removed_ns=1_700_000_000_000_000_000, client_id=300)
    stored = bytes.fromhex("01 0a05 2f642fc3bc 108080a8b1e39fe7cb17 18ac02")
    assert trashed.encode(record) == stored and trashed.decode(stored) == record
    assert trashed.entry_name(keys.trash(10, 5), record) == "10-5-ü".encode()
    assert trashed.key_of(b"10-5-whatever") == keys.trash(10, 5)


def test_a_quota_is_kept_apart_from_what_it_counts() -> None:
    record = meta_pb2.QuotaRecord(directory=300, path="/ü", max_bytes=1 << 40, counting=True)
    stored = bytes.fromhex("01 08ac02 1203 2fc3bc 1880808080 8020 2801")
    assert quota.encode(record) == stored and quota.decode(stored) == record
    begin, end = keys.whole(keys.QUOTA)
    assert begin < keys.quota(1) < keys.quota((1 << 64) - 1) < end <= keys.quota_use(0)[0]


def test_values() -> None:
    assert inode.encode(INODE._replace(xattr_bytes=300)) == bytes.fromhex(INODE_BYTES + " 8001ac02")
    assert inode.encode(INODE) == bytes.fromhex(INODE_BYTES)
    assert inode.decode(bytes.fromhex(INODE_BYTES)) == INODE
    assert dentry.decode(bytes.fromhex("000000000000012c 01")) == dentry.Dentry(InodeId(300), InodeType.FILE)
    entry = dentry.of_inode(INODE._replace(type=InodeType.DIRECTORY, mode=0o2750, uid=1_000, gid=500))
    assert dentry.decode(bytes.fromhex("000000000000012c 02 05e8 000003e8 000001f4")) == entry
    assert entry.permissions == Permissions(0o2750, 1_000, 500)
    assert dentry.encode(entry) == bytes.fromhex("000000000000012c 02 05e8 000003e8 000001f4")
    assert dentry.decode(bytes.fromhex("000000000000012c 02")) == entry._replace(packed=b"")  # of before
    assert dentry.encode(entry._replace(packed=b"")) == bytes.fromhex("000000000000012c 02")
    counted = dentry.of_inode(INODE._replace(type=InodeType.DIRECTORY, mode=0o2750, uid=1_000, gid=500, quota=9))
    assert counted == entry._replace(has_quota=True)
    assert dentry.encode(counted) == bytes.fromhex("000000000000012c 82 05e8 000003e8 000001f4")
    assert dentry.decode(dentry.encode(counted)) == counted
    quotas = INODE._replace(quota=300, quotas=(1, 300), lost_name=True)
    assert inode.encode(quotas) == bytes.fromhex(INODE_BYTES + " 9001ac02 9a010301ac02 a00101")
    assert inode.decode(inode.encode(quotas)) == quotas
    assert session.decode(bytes.fromhex("0000000000000007 0000000000000009")) == Session(7, 9)
