"""What goes to this machine goes through no proxy: it would see the token."""

from __future__ import annotations

import pytest

from client.conftest import Connect
from support.server import ServerProcess, run_opservice
from support.tools import stable_port


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names, and that is not there."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{stable_port()}")


@pytest.mark.parametrize("target", ["127.0.0.1:{}", "localhost:{}", "dns:///127.0.0.1:{}"])
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
