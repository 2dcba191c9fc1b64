"""USRBIO (3FS's user-space I/O): batched reads and writes by an I/O process of the host, straight into an application's
memory and out of it.

    with usrbio.open("fs3://127.0.0.1:7300") as io:
        memory, ring = io.iov(256 << 20), io.ior(depth=64)
        files = io.open_files(["/data/a", "/data/b"])
        number = ring.read(files, index, offsets, lengths, memory, places)      numpy arrays, one element a range
        ...                                                                     anything else
        for done in ring.wait():
            done.check()
        memory.array("float32")                                                 what was read, without a copy
        with io.open_for_writing(["/data/c"]) as files:
            ring.write(files, index, offsets, lengths, memory, places)          the same, the other way
            ring.wait()[0].check()

A client in the application's own process needs the interpreter for every reply, and gets it only when a busy thread
gives it up, every 5 ms; here another process receives and verifies. Applications use it through shared memory, so what
either side does wrong, or its death, is the other's to survive: see `ring_core`, `ior` and `attached`.
"""

from fs3.usrbio.application import UsrBio, open
from fs3.usrbio.ior import Done, Ior
from fs3.usrbio.iov import Files, Iov
from fs3.usrbio.schedule_core import Priority
from fs3.usrbio.writable import WritableFiles

__all__ = ["Done", "Files", "Ior", "Iov", "Priority", "UsrBio", "WritableFiles", "open"]
