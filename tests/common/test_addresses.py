"""Addresses: how they are read, and which are of this machine alone."""

from __future__ import annotations

import pytest

from opservice.common.addresses import is_loopback, overlap, split_address
from opservice.domain.errors import StartupError


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("[::1]", True),
        ("::1", True),
        ("localhost", True),
        ("", False),
        ("0.0.0.0", False),
        ("[::]", False),
        ("128.0.0.1", False),
        ("localhost.example", False),
        ("my-localhost", False),
        ("127.0.0.1.example", False),
        ("2130706433", False),
    ],
)
def test_loopback_is_what_is_clearly_so(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("localhost:65535", "localhost", 65535),
        ("[::1]:443", "[::1]", 443),
        ("[fe80::1%eth0]:443", "[fe80::1%eth0]", 443),
    ],
)
def test_an_address_is_split(address: str, host: str, port: int) -> None:
    assert split_address(address) == (host, port)


@pytest.mark.parametrize(
    "address", ["", "host", ":443", "host:", "host:65536", "::1:443", "h:1:2", "a b:1", "h:\u0661"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(StartupError, match="expected HOST:PORT"):
        split_address(address)


@pytest.mark.parametrize(
    ("address", "other", "both"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", False),
        ("127.0.0.1:1", "localhost:1", False),
        ("0.0.0.0:1", "10.0.0.1:1", False),
        ("[::]:1", "127.0.0.1:1", False),
        ("[::1]:1", "[0:0:0:0:0:0:0:1]:1", False),
        ("Localhost:1", "127.0.0.1:1", False),
        ("127.0.0.1:1", "127.0.0.1:2", True),
        ("127.0.0.1:0", "127.0.0.1:0", True),
        ("10.0.0.1:1", "10.0.0.2:1", True),
        ("localhost:1", "10.0.0.1:1", True),
    ],
)
def test_two_addresses_that_can_both_be_listened_on(address: str, other: str, both: bool) -> None:
    assert overlap(address, other) is not both
    assert overlap(other, address) is not both
