"""What a benchmark does, as its user asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fs3.errors import Invalid

MAX_FILES = 4_096
MAX_BATCH = 65_536
MAX_CALL_BYTES = 1 << 30


class Op(Enum):
    """The names are those of fio."""

    READ = "read"  # ranges one after the other, each thread through a part of the data
    RANDREAD = "randread"  # anywhere
    WRITE = "write"  # whole new files, durable when the call returns
    RANDRW = "randrw"  # random reads, and writes


@dataclass(frozen=True, slots=True)
class Job:
    """`clients` processes of `threads` threads, each of which makes one call after the other for `seconds`.

    A call reads `batch` ranges of `size` bytes, or writes `batch` files of `size` bytes. What is read is `data_bytes`
    in files of `file_bytes`. `read_share`: of the calls of RANDRW. Without `same_host` all goes over the network, also
    what daemons of a client's own host could show it.
    """

    op: Op
    size: int
    batch: int = 1
    clients: int = 1
    threads: int = 1
    seconds: float = 10.0
    data_bytes: int = 1 << 30
    file_bytes: int = 64 << 20
    read_share: float = 0.7
    same_host: bool = True

    @property
    def reads(self) -> bool:
        return self.op is not Op.WRITE

    @property
    def files(self) -> int:
        """How many there are to be read."""
        return -(-self.data_bytes // self.file_bytes) if self.reads else 0

    @property
    def per_file(self) -> int:
        """How many ranges of `size` there are in a file."""
        return self.file_bytes // self.size

    def check(self) -> None:
        """Raises: Invalid: it cannot be done, with the way out."""
        if self.size < 1 or self.batch < 1:
            raise Invalid("a call takes at least one range of one byte")
        if self.batch > MAX_BATCH or self.size * self.batch > MAX_CALL_BYTES:
            raise Invalid(
                f"{self.batch} x {self.size} bytes in a call is too much; at most {MAX_BATCH} ranges and 1 GiB"
            )
        if self.clients < 1 or self.threads < 1 or self.seconds <= 0:
            raise Invalid("clients, threads and seconds are more than 0")
        if not 0 < self.read_share < 1:
            raise Invalid(f"a share of reads of {self.read_share} is none; it lies between 0 and 1")
        if self.reads and self.file_bytes < self.size:
            raise Invalid(
                f"files of {self.file_bytes} bytes have no range of {self.size}; make them larger: --file-size"
            )
        if self.files > MAX_FILES:
            raise Invalid(f"{self.files} files are too many; at most {MAX_FILES}: make them larger with --file-size")
        if self.op is Op.READ and self.files * self.per_file < self.batch * self.threads * self.clients:
            raise Invalid("there is less data than one call of every thread; more: --data")
