"""fsspec's own suites for filesystems, on a real cluster: copy, get, put, open, pipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fsspec
import fsspec.tests.abstract as suites
import pytest


class Fs3Fixtures(suites.AbstractFixtures):
    """What the suites ask of the filesystem under test; as for local files, missing directories are made."""

    @pytest.fixture
    def fs(self, cluster_url: str) -> Any:
        return fsspec.url_to_fs(cluster_url + "/", auto_mkdir=True)[0]

    @pytest.fixture
    def fs_path(self, home: str) -> str:
        return home

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)


class TestCopy(suites.AbstractCopyTests, Fs3Fixtures):
    pass


class TestGet(suites.AbstractGetTests, Fs3Fixtures):
    pass


class TestPut(suites.AbstractPutTests, Fs3Fixtures):
    pass


class TestOpen(suites.AbstractOpenTests, Fs3Fixtures):
    pass


class TestPipe(suites.AbstractPipeTests, Fs3Fixtures):
    pass
