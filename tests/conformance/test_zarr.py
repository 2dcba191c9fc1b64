"""zarr's own tests of stores, and its state machine, on its store for fsspec filesystems over fs3."""

from __future__ import annotations

from itertools import count
from typing import Any

import fsspec
import pytest
import zarr
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from zarr.core.buffer import Buffer, cpu
from zarr.storage import FsspecStore
from zarr.testing.stateful import ZarrHierarchyStateMachine
from zarr.testing.store import StoreTests

_number = count()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.usefixtures("anyio_backend")
class TestFs3Store(StoreTests[FsspecStore, cpu.Buffer]):
    store_cls = FsspecStore
    buffer_cls = cpu.Buffer
    # Of methods that stores for fsspec do not have.
    test_get_sync = test_get_sync_missing = test_set_sync = test_delete_sync = test_delete_sync_missing = None

    @pytest.fixture
    def store_kwargs(self, cluster_url: str, home: str) -> dict[str, Any]:
        fs, path = fsspec.url_to_fs(f"{cluster_url}{home}/store", asynchronous=True, auto_mkdir=True)
        return {"fs": fs, "path": path}

    async def get(self, store: FsspecStore, key: str) -> Buffer:
        return self.buffer_cls.from_bytes(store.fs.cat(f"{store.path}/{key}"))

    async def set(self, store: FsspecStore, key: str, value: Buffer) -> None:
        store.fs.pipe(f"{store.path}/{key}", value.to_bytes())

    def test_store_repr(self, store: FsspecStore) -> None:
        assert str(store) == f"<FsspecStore(Fs3FileSystem, {store.path})>"

    def test_store_supports_writes(self, store: FsspecStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: FsspecStore) -> None:
        assert store.supports_listing


class Cleared(FsspecStore):
    """zarr 3.1.6 clears by removing directories and then what was in them, and stops at the first that is gone."""

    async def clear(self) -> None:
        if await self.fs._exists(self.path):
            await self.fs._rm(self.path, recursive=True)


@pytest.mark.filterwarnings("ignore:The data type")
def test_a_hierarchy_does_what_one_in_memory_does(cluster_url: str, home: str) -> None:
    """The other machine of zarr's needs a store in which "0" and "0/0" are keys at once, as no file is a directory."""

    def make() -> ZarrHierarchyStateMachine:
        fs, path = fsspec.url_to_fs(f"{cluster_url}{home}/{next(_number)}", asynchronous=True, auto_mkdir=True)
        return ZarrHierarchyStateMachine(Cleared(fs, path=path))

    run_state_machine_as_test(
        make,
        settings=settings(
            max_examples=4, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_an_array_by_its_url(cluster_url: str, home: str) -> None:
    store = FsspecStore.from_url(f"{cluster_url}{home}/a.zarr", storage_options={"auto_mkdir": True})
    array = zarr.create_array(store=store, shape=(100, 100), chunks=(10, 10), dtype="i4")
    array[:] = 7
    array[20:30, 5] = 1
    again = zarr.open_array(f"{cluster_url}{home}/a.zarr", mode="r")
    assert again[:].sum() == 7 * (10_000 - 10) + 10
