"""Bytes that no well-behaved peer sends to a storage daemon's data port: an endless supply, from a seed.

A *case* is one frame, or one run of bytes in the place of one, that a correct peer would not have sent just then.
Frames that the daemon answers and goes on after are *wrong*, and many of them share a connection; whatever ends the
connection is *fatal*, and there is at most one of those at the end of each, so that every case counted is one that the
daemon has read. A connection that is cut off without waiting counts as one case, however much it sent.

    wrong   well-formed by header and checksum, nonsense inside: lying counts and sums, huge and overlapping ranges,
            unknown kinds, operations and flags, recovery frames and forwarded writes from strangers, replays, ACKs
    fatal   random bytes, damaged, truncated or spliced frames, sizes beyond what HELLO allowed, other protocols,
            anything but HELLO before HELLO

What these frames name lies apart from all real data (`HOSTILE_HI`), so that even one that happens to be valid can
change nothing that somebody else has written: no few flipped bits lead from one to the other.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import crc32c

from fs3.pb import storage_pb2
from fs3.transport.frame_core import HEADER_BYTES, Flag, Header, Kind, pack_header
from fs3.transport.messages import LIST_CHUNKS, LIST_KIND, Op, UpdateFlag

HOSTILE_HI = 0x5A5A_5A5A_5A5A_5A00
HOSTILE_CLIENTS = 0x6B6B_0000_0000
_CHUNKS = 48
_RANGE = struct.Struct("<QQIIII")
_UPDATE = struct.Struct("<QQIIIIQQIIQHHIQ")
_AHEAD = struct.Struct("<QQIIIIQQIIII")
_CRC = struct.Struct("<I")
_EDGES32 = (0, 1, 4095, 4096, 4097, 65_535, 262_144, 1 << 20, 64 << 20, (1 << 31) - 1, 1 << 31, LIST_KIND, LIST_CHUNKS)
_EDGES64 = (0, 1, 255, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_FATAL_KINDS = (Kind.HELLO, Kind.READ, Kind.QUERY, Kind.ACK, Kind.SYNC_LIST, Kind.SYNC_DONE, Kind.STATS, 0, 9, 127)


class Role(Enum):
    """What a connection has said of itself before the cases come."""

    NOBODY = "before HELLO"
    CLIENT = "client"
    CHAIN = "chain"


@dataclass(frozen=True, slots=True)
class Target:
    """What an attacker knows of the daemon: enough to get past the first checks."""

    cluster_id: str
    chains: tuple[tuple[int, int], ...]  # (chain, version)
    nodes: tuple[int, ...]
    max_ranges: int
    max_body_bytes: int
    secret: str = ""


@dataclass(frozen=True, slots=True)
class Attack:
    """What one connection sends. `fatal`: its last case ends the connection, which must then come from the daemon."""

    role: Role
    stream: bytes
    cases: int
    fatal: bool
    abrupt: bool  # close, or reset, without waiting for anything


class Source:
    """Attacks on `target`, the same for the same seed."""

    def __init__(self, target: Target, seed: int) -> None:
        self.target = target
        self._rng = random.Random(seed)
        self._request = 1
        self._seq = 0
        self._last = b""
        self._wrong: tuple[Callable[[Role], bytes], ...] = (
            *([self._read] * 4),
            *([self._query] * 3),
            *([self._write] * 5),
            *([self._ahead] * 2),
            self._flipped_inside,
            self._flipped_inside,
            self._sync,
            self._sync,
            self._ack,
            self._ack,
            self._rare,
            self._told,
            self._replay,
        )
        self._fatal: tuple[Callable[[Role], bytes], ...] = (
            self._random_bytes,
            self._flipped,
            self._flipped,
            self._flipped_header,
            self._truncated,
            self._spliced,
            self._wrong_sizes,
            self._huge,
            self._no_body_allowed,
            self._deep,
            self._other_protocol,
        )

    def attack(self, most_cases: int) -> Attack:
        """The next connection, of at most `most_cases` cases (and at least one)."""
        rng = self._rng
        role = rng.choices((Role.NOBODY, Role.CLIENT, Role.CHAIN), (2, 4, 4))[0]
        if role is Role.NOBODY:
            return Attack(role, self._before_hello(), 1, fatal=True, abrupt=rng.random() < 0.1)
        pieces = [rng.choice(self._wrong)(role) for _ in range(rng.randrange(min(most_cases, 60)))]
        fatal = len(pieces) < 1 or (len(pieces) < most_cases and rng.random() < 0.5)
        if fatal:
            pieces.append(rng.choice(self._fatal)(role))
        abrupt = rng.random() < 0.05
        return Attack(role, b"".join(pieces), 1 if abrupt else len(pieces), fatal, abrupt)

    def hello(self, who: Role, **changed: object) -> bytes:
        """A HELLO that the daemon accepts, but for what is `changed`."""
        said: dict[str, object] = {"protocol": 1, "cluster_id": self.target.cluster_id, "secret": self.target.secret}
        if who is Role.CHAIN:
            said |= {"role": "chain", "node_id": self._rng.choice(self.target.nodes)}
        else:
            said |= {"role": "client", "client_id": HOSTILE_CLIENTS}
        head = storage_pb2.Hello(**(said | changed)).SerializeToString()  # type: ignore[arg-type]
        return self.frame(Kind.HELLO, head)

    def frame(
        self,
        kind: int,
        head: bytes = b"",
        body: bytes = b"",
        *,
        count: int = 0,
        flags: int = 0,
        hop: int = 0,
        head_bytes: int | None = None,
        body_bytes: int | None = None,
        deadline_ms: int = 3_000,
        ack_id: int = 0,
        request_id: int | None = None,
    ) -> bytes:
        """A frame whose header's checksum is right, whatever else is."""
        self._request += 1
        packed = pack_header(
            Header(
                kind,
                self._request if request_id is None else request_id,
                flags=flags,
                count=count,
                head_bytes=len(head) if head_bytes is None else head_bytes,
                body_bytes=len(body) if body_bytes is None else body_bytes,
                deadline_ms=deadline_ms,
                hop=hop,
                ack_id=ack_id,
            ),
            head,
        )
        return packed + head + body

    def query(self, request_id: int) -> bytes:
        """A correct QUERY, to learn that everything before it has been read."""
        chain, version = self.target.chains[0]
        head = _RANGE.pack(HOSTILE_HI, 0, 0, 0, chain, version)
        return self.frame(Kind.QUERY, head, count=1, request_id=request_id)

    def loitering(self, number: int) -> bytes:
        """What a connection says that then stays, in one of six ways."""
        way = number % 6
        if way == 0:
            return b""
        if way == 1:
            return self.hello(Role.CLIENT)[:40]
        if way == 2:
            return self.hello(Role.CLIENT)
        if way == 3:
            return self.hello(Role.CLIENT) + self._read(Role.CLIENT)[:50]
        if way == 4:
            role = Role.CHAIN if number % 4 else Role.CLIENT
            body_bytes, hop = self.target.max_body_bytes, number % 8 if role is Role.CHAIN else 0
            begun = bytes(40_000 if number % 5 == 0 else 10)  # enough to be given memory, or not
            return self.hello(role) + self.frame(Kind.WRITE, bytes(80), begun, count=1, body_bytes=body_bytes, hop=hop)
        chain, version = self.target.chains[0]
        ranges = b"".join(
            _RANGE.pack(HOSTILE_HI, at % _CHUNKS, at * 7 + 1, 200_000, chain, version) for at in range(60)
        )
        read = self.frame(Kind.READ, ranges, count=60, flags=int(Flag.CHECKSUM))
        return self.hello(Role.CLIENT) + read * 60

    # Values

    def _u32(self) -> int:
        return self._rng.choice(_EDGES32) if self._rng.random() < 0.6 else self._rng.getrandbits(32)

    def _u64(self) -> int:
        return self._rng.choice(_EDGES64) if self._rng.random() < 0.6 else self._rng.getrandbits(64)

    def _chain(self) -> tuple[int, int]:
        chain, version = self._rng.choice(self.target.chains)
        dice = self._rng.random()
        if dice < 0.8:
            return chain, version
        if dice < 0.9:
            return chain, self._rng.choice((0, version + 1, max(version - 1, 0), self._u32()))
        return self._rng.choice((0, 1 << 31, (1 << 32) - 1, self._u32())), version

    def _deadline(self) -> int:
        return self._rng.choice((1, 50, 1_000, 3_000, 30_000, (1 << 32) - 1))

    def _flags(self) -> int:
        return int(Flag.CHECKSUM) if self._rng.random() < 0.6 else self._rng.getrandbits(16)

    def _garbage(self, most: int = 200) -> bytes:
        return self._rng.randbytes(self._rng.randrange(1, most))

    # Frames that are answered

    def _range(self) -> bytes:
        rng = self._rng
        offset = self._u32() if rng.random() < 0.5 else rng.randrange(8_192)
        if offset >= LIST_KIND and rng.random() < 0.7:
            offset = 0
        length = self._u32() if rng.random() < 0.4 else rng.randrange(20_000)
        hi = HOSTILE_HI if rng.random() < 0.9 else self._u64() | 1 << 62
        lo = rng.randrange(_CHUNKS) if rng.random() < 0.9 else self._u64()
        return _RANGE.pack(hi, lo, offset, length, *self._chain())

    def _ranges(self, kind: Kind) -> bytes:
        rng = self._rng
        records = [self._range() for _ in range(rng.choice((0, 1, 1, 2, 3, 8, 40)))]
        if rng.random() < 0.2 and records:
            records += records[:1] * rng.randrange(1, 30)  # the same range again and again
        head = b"".join(records)
        count = len(records)
        if rng.random() < 0.15:
            count = rng.choice((0, count + 1, self.target.max_ranges + 1, (1 << 32) - 1))
        if rng.random() < 0.1:
            head = head[: rng.randrange(len(head) + 1)] + rng.randbytes(rng.randrange(40))
        return self.frame(kind, head, count=count, flags=self._flags(), hop=rng.choice((0, 0, 7, 255)))

    def _read(self, role: Role) -> bytes:
        return self._ranges(Kind.READ)

    def _query(self, role: Role) -> bytes:
        return self._ranges(Kind.QUERY)

    def _told(self, role: Role) -> bytes:
        """Reports of damage that is none, and looks at chunks that are not there."""
        return self._ranges(self._rng.choice((Kind.REPORT, Kind.INSPECT)))

    def _update(self, data: bytes, n_sums: int) -> bytes:
        rng = self._rng
        self._seq += rng.choice((0, 1, 1, 1))
        op = int(rng.choice(tuple(Op))) if rng.random() < 0.9 else rng.choice((0, 6, 255, 65_535))
        flags = int(UpdateFlag.OS_DURABILITY)
        if rng.random() < 0.25:
            flags = rng.getrandbits(16) if rng.random() < 0.3 else flags | int(rng.choice(tuple(UpdateFlag)))
        length = len(data)
        offset = rng.choice((0, 0, 1, 4_096, 5_000, 65_000)) if rng.random() < 0.8 else self._u32()
        if op == Op.TRUNCATE:
            offset, length = min(offset, 300_000), 0
        if op == Op.REMOVE and rng.random() < 0.9:
            length = 0
        if rng.random() < 0.1:
            length = self._u32()
        chunk_bytes = 1 << 20 if rng.random() < 0.9 else self._u32() % (65 << 20)
        version = 0 if rng.random() < 0.6 else rng.choice((1, 2, 3, self._seq, self._u64()))
        channel = rng.randrange(8)
        client = rng.choice((0, HOSTILE_CLIENTS + rng.randrange(4)))
        seq = self._seq if rng.random() < 0.9 else self._u64()
        return _UPDATE.pack(
            *(HOSTILE_HI, rng.randrange(_CHUNKS), offset, length, *self._chain()),
            *(client, seq, channel, n_sums, version, op, flags, chunk_bytes, 0),
        )

    def _write(self, role: Role) -> bytes:
        rng = self._rng
        records: list[bytes] = []
        sums: list[int] = []
        body = b""
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
            data = rng.randbytes(rng.choice((0, 1, 100, 4_096, 5_000))) if rng.random() < 0.7 else b""
            own = [crc32c.crc32c(data[at : at + 4_096]) for at in range(0, len(data), 4_096)]
            if own and rng.random() < 0.2:
                own[0] ^= 1 << rng.randrange(32)
            said = len(own) if rng.random() < 0.85 else rng.choice((0, len(own) + 1, self._u32()))
            records.append(self._update(data, said))
            sums += own
            body += data
        if rng.random() < 0.1:
            sums = sums[: rng.randrange(len(sums) + 1)]
        head = b"".join(records) + struct.pack(f"<{len(sums)}I", *sums)
        if rng.random() < 0.05:
            head += b"x" * rng.randrange(1, 4)
        count = len(records) if rng.random() < 0.92 else rng.choice((0, len(records) + 1, (1 << 32) - 1))
        hop = rng.randrange(3) if role is Role.CHAIN or rng.random() < 0.2 else 0
        if rng.random() < 0.05:
            hop = rng.randrange(8)
        return self.frame(Kind.WRITE, head, body, count=count, hop=hop, deadline_ms=self._deadline())

    def _ahead(self, role: Role) -> bytes:
        """A piece whose update never comes, mostly; of one chunk or of several, right or wrong."""
        rng = self._rng
        total = rng.choice((4_096, 8_192, 10_000, 65_536)) if rng.random() < 0.9 else self._u32()
        offset = rng.choice((0, 0, 4_096, 8_192)) if rng.random() < 0.9 else self._u32()
        data = rng.randbytes(min(4_096, max(total - offset, 0))) if rng.random() < 0.9 else rng.randbytes(5_000)
        length = len(data) if rng.random() < 0.95 else self._u32()
        sums = [crc32c.crc32c(data[at : at + 4_096]) for at in range(0, len(data), 4_096)]
        if sums and rng.random() < 0.2:
            sums[0] ^= 1 << rng.randrange(32)
        if rng.random() < 0.05:
            sums.append(0)
        client, seq = HOSTILE_CLIENTS + rng.randrange(4), self._seq if rng.random() < 0.5 else self._u64()
        head = _AHEAD.pack(
            *(HOSTILE_HI, rng.randrange(_CHUNKS), offset, length, *self._chain()),
            *(client, seq, rng.randrange(8), total, rng.choice((0, 0, 1, self._u32())), 0),
        )
        count = 1 if rng.random() < 0.95 else self._u32()
        hop = rng.randrange(3) if role is Role.CHAIN or rng.random() < 0.2 else 0
        head += struct.pack(f"<{len(sums)}I", *sums)
        return self.frame(Kind.AHEAD, head, data, count=count, hop=hop, deadline_ms=self._deadline())

    def _flipped_inside(self, role: Role) -> bytes:
        """Flipped bits in the head of a correct-looking frame, with its checksum made right again."""
        frame = bytearray(self._rng.choice((self._read, self._query, self._sync))(role))
        end = HEADER_BYTES + struct.unpack_from("<I", frame, 20)[0]
        if end > HEADER_BYTES:
            for _ in range(self._rng.randrange(1, 9)):
                at = self._rng.randrange(HEADER_BYTES, end)
                frame[at] ^= 1 << self._rng.randrange(8)
            _CRC.pack_into(frame, 60, crc32c.crc32c(bytes(frame[HEADER_BYTES:end]), crc32c.crc32c(bytes(frame[:60]))))
        return bytes(frame)

    def _sync(self, role: Role) -> bytes:
        rng = self._rng
        chain, version = self._chain()
        if rng.random() < 0.5:
            asked = storage_pb2.SyncListRequest(
                chain_id=chain, chain_version=version, after=self._garbage(40), limit=self._u32()
            )
            kind, head = Kind.SYNC_LIST, asked.SerializeToString()
        else:
            done = storage_pb2.SyncDoneRequest(chain_id=chain, chain_version=version)
            kind, head = Kind.SYNC_DONE, done.SerializeToString()
        if rng.random() < 0.4:
            head = self._garbage()
        return self.frame(kind, head, count=self._u32() if rng.random() < 0.2 else 0, deadline_ms=self._deadline())

    def _ack(self, role: Role) -> bytes:
        ack_id = self._rng.choice((0, self._request, self._u64()))
        return self.frame(Kind.ACK, self._garbage(9) if self._rng.random() < 0.2 else b"", ack_id=ack_id)

    def _rare(self, role: Role) -> bytes:
        rng = self._rng
        kind = rng.choice((0, int(Kind.STATS), int(Kind.HELLO), int(Kind.SCRUB), *range(9, 24), 100, 127))
        if kind == Kind.HELLO:
            return self.hello(role)
        return self.frame(kind, self._garbage() if rng.random() < 0.5 else b"", count=self._u32(), flags=self._flags())

    def _replay(self, role: Role) -> bytes:
        frame, self._last = self._last or self._write(role), self._write(role)
        return frame

    # What ends a connection

    def _random_bytes(self, role: Role) -> bytes:
        # At least a header's worth: fewer bytes are a frame that has not arrived yet.
        return self._rng.randbytes(self._rng.randrange(HEADER_BYTES, 2_000))

    def _any_frame(self, role: Role) -> bytes:
        return self._rng.choice((self._read, self._query, self._write, self._sync))(role)

    def _flipped(self, role: Role) -> bytes:
        frame = bytearray(self._any_frame(role))
        for _ in range(self._rng.randrange(1, 6)):
            frame[self._rng.randrange(len(frame))] ^= 1 << self._rng.randrange(8)
        return bytes(frame)

    def _flipped_header(self, role: Role) -> bytes:
        """Flipped bits in a header whose checksum is made right again: what was meant may be anything now."""
        frame = bytearray(self._any_frame(role))
        for _ in range(self._rng.randrange(1, 4)):
            frame[self._rng.randrange(4, 60)] ^= 1 << self._rng.randrange(8)
        end = HEADER_BYTES + struct.unpack_from("<I", frame, 20)[0]
        _CRC.pack_into(frame, 60, crc32c.crc32c(bytes(frame[HEADER_BYTES:end]), crc32c.crc32c(bytes(frame[:60]))))
        return bytes(frame)

    def _truncated(self, role: Role) -> bytes:
        frame = self._any_frame(role)
        return frame[: self._rng.randrange(1, len(frame))]

    def _spliced(self, role: Role) -> bytes:
        first, second = self._any_frame(role), self._any_frame(role)
        return first[: self._rng.randrange(1, len(first))] + second[self._rng.randrange(len(second)) :]

    def _wrong_sizes(self, role: Role) -> bytes:
        """Sizes within what is allowed, and not those of what follows."""
        head, body = self._garbage(), self._garbage()
        return self.frame(
            Kind.WRITE,
            head,
            body,
            count=1,
            head_bytes=self._rng.randrange(400),
            body_bytes=self._rng.choice((0, 1, 300, 1 << 20, self.target.max_body_bytes)),
        )

    def _huge(self, role: Role) -> bytes:
        head_bytes = self._rng.choice((1 << 20, 16 << 20, (1 << 32) - 1))
        body_bytes = self._rng.choice((0, self.target.max_body_bytes + 1, 256 << 20, 1 << 40, (1 << 64) - 1))
        return self.frame(Kind.WRITE, head_bytes=head_bytes, body_bytes=body_bytes) + self._garbage()

    def _no_body_allowed(self, role: Role) -> bytes:
        kind = self._rng.choice(_FATAL_KINDS)
        return self.frame(kind, b"", self._garbage())

    def _deep(self, role: Role) -> bytes:
        return self.frame(Kind.WRITE, b"", self._garbage(), hop=self._rng.randrange(8, 256))

    def _other_protocol(self, role: Role) -> bytes:
        return self._rng.choice(
            (
                b"GET / HTTP/1.1\r\nHost: storage\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n".ljust(80, b"\n"),
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64),
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + self._rng.randbytes(300),
                b"SSH-2.0-OpenSSH_9.2p1\r\n" + bytes(64),
                bytes(self._rng.randrange(64, 1_000)),
                b"\xff" * self._rng.randrange(64, 1_000),
            )
        )

    def _before_hello(self) -> bytes:
        rng = self._rng
        dice = rng.random()
        if dice < 0.35:
            return rng.choice(self._fatal)(Role.NOBODY)
        if dice < 0.55:
            return self._any_frame(Role.NOBODY)
        if dice < 0.75:
            hello = bytearray(self.hello(rng.choice((Role.CLIENT, Role.CHAIN))))
            for _ in range(rng.randrange(1, 5)):
                hello[rng.randrange(len(hello))] ^= 1 << rng.randrange(8)
            return bytes(hello)
        if dice < 0.85:
            return self.frame(Kind.HELLO, self._garbage(500))
        return self.hello(
            Role.CLIENT,
            **rng.choice(
                (
                    {"cluster_id": "another"},
                    {"cluster_id": "x" * 60_000},
                    {"protocol": self._u32()},
                    {"protocol": 2, "secret": "s" * 10_000},
                    {"cluster_id": "another", "role": "r" * 30_000},
                )
            ),
        )
