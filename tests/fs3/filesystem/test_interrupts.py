"""Ctrl-C while a file is written, on a real cluster: what is there then is whole, and no session is left behind."""

from __future__ import annotations

import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fs3.client.meta import Written
from fs3.client.sending import WINDOW
from fs3.layout import LayoutChoice

CHUNK = 64 << 10


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.fixture
def small(fs: Any, home: str) -> str:
    """A directory whose files have chunks of 64 KiB."""
    fs.mkdir(f"{home}/small", layout=LayoutChoice(chunk_bytes=CHUNK))
    return f"{home}/small"


@pytest.fixture
def interrupted(fs: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Makes a call that waits for chunks, which is interrupted, and only then are they written."""
    goes_on, write, writing = threading.Event(), fs.client.storage.write, threading.main_thread().ident or 0
    monkeypatch.setattr(fs.client.storage, "write", lambda *args, **more: goes_on.wait() and write(*args, **more))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # else as whoever started the tests had it

    def interrupt() -> None:
        while "_settle_some" not in [one.name for one in traceback.extract_stack(sys._current_frames()[writing])]:
            pass
        signal.pthread_kill(writing, signal.SIGINT)
        goes_on.set()

    def call(waiting: Callable[[], object]) -> None:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            waiting()

    yield call
    goes_on.set()
    signal.signal(signal.SIGINT, before)


def test_a_file_whose_update_was_interrupted_has_what_it_had(fs: Any, small: str, interrupted: Any) -> None:
    """It is not told to have the bytes that nobody has sent."""
    path = f"{small}/log"
    fs.file_client.create_writer(path).close()
    with fs.open(path, "ab") as file:
        for number in range(WINDOW):
            file.write(noise(number, CHUNK))
        file.write(b"more")
        interrupted(file.flush)
        with pytest.raises(OSError, match="a write was interrupted"):
            file.close()
    assert fs.cat_file(path) == b""
    with fs.open(path, "ab") as again:
        again.write(b"anew")
    assert fs.cat_file(path) == b"anew"


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_file_whose_end_was_interrupted_is_given_up(fs: Any, small: str, interrupted: Any, mode: str) -> None:
    path = f"{small}/f"
    file = fs.open(path, mode)
    below = file if mode == "wb" else file.buffer
    for number in range(WINDOW):
        below.write(noise(number, CHUNK))
    file.write(b"the end" if mode == "wb" else "the end")
    interrupted(file.close)
    file.close()
    assert not fs.exists(path)
    assert fs.client.meta.renew({below.writer.inode_id: Written()}) == [below.writer.inode_id], "nobody has it any more"
