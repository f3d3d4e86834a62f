"""Addresses to listen on."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from opservice.domain.errors import StartupError
from opservice.runtime.ports import listening_sockets, reserved_port

LOOPBACK = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
ELSEWHERE = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))


@pytest.fixture(params=[[LOOPBACK, LOOPBACK], [ELSEWHERE, LOOPBACK]], ids=["twice", "not here"])
def localhost(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is there twice, or whose first address is not this machine's."""

    def resolved(_host: str, *_: Any, **__: Any) -> Any:
        return request.param

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


@pytest.mark.usefixtures("localhost")
def test_a_name_is_listened_on_where_this_machine_has_it() -> None:
    with listening_sockets("localhost:0", "--http-listen", share=False) as (sockets, address):
        assert [each.getsockname()[0] for each in sockets] == ["127.0.0.1"]
        assert address == f"localhost:{sockets[0].getsockname()[1]}"


@pytest.mark.usefixtures("localhost")
def test_a_port_of_a_name_is_reserved_where_this_machine_has_it() -> None:
    with (
        reserved_port("localhost:0") as address,
        socket.create_server(("127.0.0.1", int(address.rpartition(":")[2])), reuse_port=True),
    ):
        pass


def test_a_port_is_had_once_also_before_connections_are_taken() -> None:
    with (
        listening_sockets("127.0.0.1:0", "--http-listen", share=False) as (_, address),
        pytest.raises(StartupError, match=f"cannot listen on {address}: the port is taken"),
        listening_sockets(address, "--metrics-listen", share=False),
    ):
        pass
