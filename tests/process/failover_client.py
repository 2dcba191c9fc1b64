"""A client process that creates, finds, renames, reads and removes files, and checks every answer (test_failover.py).

`failover_client.py URL HOME`: prints a line after each round; ends when its standard input is closed, after it has
looked at everything once more. A call that fails, or a wrong answer, ends it at once with status 1.
"""

from __future__ import annotations

import select
import sys

from fs3.client.connect import Client, connect
from fs3.errors import Fs3Error, NotFound


def content(name: str) -> bytes:
    return name.encode() * 37


class Home:
    """One directory that nobody else touches, and what must be in it."""

    def __init__(self, client: Client, path: str) -> None:
        self._client = client
        self._path = path
        self._there: dict[str, str] = {}  # name -> the name under which it was written
        client.meta.mkdir(path)

    def round(self, turn: int) -> None:
        meta, files = self._client.meta, self._client.files
        new = [f"t{turn}-{at}" for at in range(4)]
        files.create_batch([self._at(name) for name in new], [content(name) for name in new])
        self._there.update(zip(new, new, strict=True))
        self.check(new)
        meta.rename(self._at(new[0]), self._at(new[1]))
        self._there[new[1]] = self._there.pop(new[0])
        meta.remove(self._at(new[2]))
        del self._there[new[2]]
        meta.mkdir(self._at(f"d{turn}/e"), parents=True)
        meta.remove(self._at(f"d{turn}"), recursive=True)
        self.check([*new, f"d{turn}"])

    def check(self, names: list[str]) -> None:
        """What is there is whole, and what is not there is not."""
        found = self._client.meta.stat([self._at(name) for name in names])
        for name, one in zip(names, found, strict=True):
            written = self._there.get(name)
            if written is None:
                assert isinstance(one, NotFound), (name, one)
            else:
                assert not isinstance(one, Fs3Error) and one.length == len(content(written)), (name, one)
                handle = self._client.files.open_read(self._at(name))
                assert self._client.files.read(handle) == content(written), name

    def check_all(self) -> None:
        listed = [entry.name for page in self._client.meta.list(self._path) for entry in page]
        assert sorted(listed) == sorted(self._there)
        self.check(sorted(self._there))

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"


def main(url: str, path: str) -> None:
    home = Home(connect(url), path)
    turn = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        home.round(turn)
        turn += 1
        print(turn, flush=True)
    home.check_all()


if __name__ == "__main__":
    main(*sys.argv[1:])
