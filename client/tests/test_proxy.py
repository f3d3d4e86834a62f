"""What goes to this machine goes through no proxy: it would see the token."""

from __future__ import annotations

import pytest

from opservice_client.targets import is_loopback
from support.server import ServerProcess, run_opservice
from support.tools import stable_port

from .conftest import Connect


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names, and that is not there."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{stable_port()}")


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:{}",
        "LocalHost:{}",
        "dns:///127.0.0.1:{}",
        "dns:localhost:{}",
        "ipv4:127.0.0.1:{}",
    ],
)
@pytest.mark.usefixtures("proxy")
def test_a_producer_calls_a_server_on_this_machine_itself(
    connect: Connect, server: ServerProcess, target: str
) -> None:
    port = server.address.rpartition(":")[2]

    assert connect(target.format(port)).start(description="Backup")


@pytest.mark.usefixtures("proxy")
def test_the_command_line_calls_a_server_on_this_machine_itself(server: ServerProcess) -> None:
    made = run_opservice("start", "-q", server=server.address)

    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost", True),
        ("localhost.:1", True),
        ("127.3.2.1", True),
        ("[::1]:1", True),
        ("::1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
        ("ipv6:[::1]:1", True),
        ("unix:/run/opservice/server.sock", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("dns://10.0.0.1/localhost:1", False),
        ("localhost.example.org:1", False),
        ("10.0.0.1:1", False),
        ("[::2]:1", False),
        ("", False),
    ],
)
def test_a_target_of_this_machine_is_known(target: str, expected: bool) -> None:
    assert is_loopback(target) is expected
