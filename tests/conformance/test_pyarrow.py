"""pyarrow's own tests of filesystems, on fs3 through its fsspec handler: those that are not of one particular kind."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import fsspec
import pytest
from pyarrow.fs import FSSpecHandler, PyFileSystem
from pyarrow.tests.test_fs import (  # noqa: F401  # collected by their names
    pickle_with_and_without_subtree_filesystem,
    test_copy_file,
    test_create_dir,
    test_delete_dir,
    test_delete_dir_contents,
    test_delete_dir_with_explicit_subdir,
    test_delete_file,
    test_filesystem_equals_none,
    test_filesystem_is_functional_after_pickling,
    test_filesystem_pickling,
    test_get_file_info,
    test_get_file_info_with_selector,
    test_move_directory,
    test_move_file,
    test_non_path_like_input_raises,
    test_normalize_path,
    test_open_append_stream,
    test_open_input_file,
    test_open_input_stream,
    test_open_input_stream_not_found,
    test_open_output_stream,
    test_open_output_stream_metadata,
)


@pytest.fixture
def fs(cluster_url: str) -> PyFileSystem:
    return PyFileSystem(FSSpecHandler(fsspec.url_to_fs(cluster_url)[0]))


@pytest.fixture
def pathfn(fs: PyFileSystem, tmp_path: Path) -> Callable[[str], str]:
    """Of a name, its path in a directory of this test."""
    fs.create_dir(str(tmp_path))
    return lambda name: f"{tmp_path}/{name}"


@pytest.fixture
def allow_move_dir() -> bool:
    return True


@pytest.fixture
def allow_append_to_file() -> bool:
    return True


@pytest.fixture
def pickle_module() -> ModuleType:
    return pickle
