"""`fs3://` URLs: what they mean, and what a wrong one is told."""

from __future__ import annotations

import pytest

from fs3.errors import Invalid
from fs3.url import check_local, make_url, parse_url


@pytest.mark.parametrize(
    ("url", "addresses", "path"),
    [
        ("fs3://h:1", ("h:1",), "/"),
        ("fs3://h:1/", ("h:1",), "/"),
        ("fs3://127.0.0.1:7300/a/b%20c d/", ("127.0.0.1:7300",), "/a/b%20c d/"),
        ("fs3://h1:1,h2:2/x", ("h1:1", "h2:2"), "/x"),
        ("fs3://h1:1, h2:2,h1:1/x", ("h1:1", "h2:2"), "/x"),
        ("fs3://[::1]:7300/x:y", ("[::1]:7300",), "/x:y"),
    ],
)
def test_parts(url: str, addresses: tuple[str, ...], path: str) -> None:
    assert parse_url(url) == (addresses, path)
    assert parse_url(make_url(addresses, path)) == (addresses, path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/local/path", "'/local/path' is not an fs3 URL; write fs3://HOST:PORT/path"),
        ("http://h:1/x", "is not an fs3 URL"),
        ("fs3:///x", "names no cluster"),
        ("fs3://host/x", "'host' is not HOST:PORT"),
        ("fs3://:7300/x", "':7300' is not HOST:PORT"),
        ("fs3://h:1,/x", "'' is not HOST:PORT"),
        ("fs3://::1:7300/x", "'::1:7300' is not HOST:PORT"),
        ("fs3://user@h:1/x", "is not HOST:PORT"),
        ("fs3://h:port/x", "port 'port' is not a number between 1 and 65535"),
        ("fs3://h:0/x", "port '0' is not a number"),
        ("fs3://h:70000/x", "port '70000' is not a number"),
    ],
)
def test_what_is_wrong_is_named(url: str, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_url(url)
    assert message in str(caught.value)
    assert "write fs3://HOST:PORT/path" in str(caught.value)


@pytest.mark.parametrize("path", ["fs3:/x", "fs3:x", "fs3:127.0.0.1:7300/x"])
def test_a_misspelt_url_is_no_local_path(path: str) -> None:
    with pytest.raises(Invalid, match="is not an fs3 URL; write fs3://HOST:PORT/path"):
        check_local(path)


@pytest.mark.parametrize("path", ["x", "/fs3:/x", "./fs3:/x", "fs3/x", "fs3", "fs3://h:1/x"])
def test_other_paths_pass(path: str) -> None:
    check_local(path)
