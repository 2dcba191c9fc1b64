"""Single reads of many asyncio tasks, sent as batches: what is asked for in one turn of the loop is one request a node.

A blocking call per range costs a thread and a request each, and Python runs a few thousand of those a second; the same
ranges in batches are read fifty times as fast (D2). Tasks that each want one range need not know: while a batch is on
its way the next one gathers, so that batches grow with the load and a lone read waits for nobody.

Small ranges and plain success never leave the loop's thread (loop_reads.py, loop_lanes.py). All else goes to a thread
and the ordinary `read_batch`, which fails over, retries and knows what to say: large ranges, ranges over a chunk's end,
wrong arguments, what a daemon refused or sent damaged, and what was on a connection that broke or stalled.
"""

from __future__ import annotations

import asyncio
import os

from fs3.client.file import FileClient, OpenFile
from fs3.client.loop_reads import LoopReads
from fs3.errors import Invalid


class AsyncReader:
    """Reads of one event loop at a time; after that has ended, or in a forked child, of another.

    Close it in the loop's thread, or once the loop has ended; reads that are outstanding raise Unavailable.
    """

    def __init__(self, files: FileClient, *, batches: int = 2, max_waiting: int = 65_536) -> None:
        """At most `max_waiting` reads are unanswered at once; those that need a thread are read in `batches` batches at
        a time."""
        self._files = files
        self._batches = batches
        self._max_waiting = max_waiting
        self._reads: LoopReads | None = None
        self._pid = os.getpid()

    async def read(self, handle: OpenFile, offset: int, length: int) -> bytes:
        """`length` bytes of an open file, verified. Cancelling drops the answer.

        Raises: as `FileClient.read_batch`; Busy: too many reads wait already; Invalid: another loop is using this.
        """
        reads = self._reads
        loop = asyncio.get_running_loop()
        if reads is None or reads.loop is not loop:
            reads = self._adopt(loop)
        return await reads.ask(handle, offset, length)

    def close(self) -> None:
        """Close the connections and end the threads."""
        reads, self._reads = self._reads, None
        if reads is not None:
            reads.close(forked=os.getpid() != self._pid)

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> LoopReads:
        """Begin anew in `loop`; what still waits in one that has ended will not be heard of."""
        if self._reads is not None and os.getpid() == self._pid and self._reads.loop.is_running():
            raise Invalid("this AsyncReader is in use by another event loop; make one for each")
        self.close()
        self._pid = os.getpid()
        self._reads = LoopReads(self._files, loop, batches=self._batches, max_waiting=self._max_waiting)
        return self._reads
