"""`opservice health`: its exit codes, and the TLS that it speaks."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse

from opservice.cli import cli
from support.certificates import Authority
from support.server import serving


@pytest.fixture
def health_server() -> Iterator[tuple[HealthServicer, str]]:
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("status", "exit_code"),
    [(HealthCheckResponse.SERVING, 0), (HealthCheckResponse.NOT_SERVING, 1)],
    ids=["SERVING", "NOT_SERVING"],
)
def test_health_exits_by_what_the_server_says(
    health_server: tuple[HealthServicer, str],
    status: Any,
    exit_code: int,
) -> None:
    servicer, address = health_server
    servicer.set("", status)

    result = CliRunner().invoke(cli, ["health", "--server", address])

    assert result.exit_code == exit_code
    assert result.output == HealthCheckResponse.ServingStatus.Name(status) + "\n"


def test_health_of_nobody_is_a_failure() -> None:
    result = CliRunner().invoke(cli, ["health", "--server", "127.0.0.1:1"])

    assert result.exit_code == 1
    assert "127.0.0.1:1: UNAVAILABLE" in result.output


def test_health_shows_a_certificate_to_a_server_that_demands_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, ours = authority.issue(), authority.issue("client")
    settings: dict[str, Any] = {
        "tls_cert": pair.certificate,
        "tls_key": pair.key,
        "tls_client_ca": authority.certificate,
    }
    with serving(tmp_path, f"sqlite:///{tmp_path}/a.db", **settings) as server:
        line = ["health", "--server", server.address, "--tls-ca", str(authority.certificate)]
        identity = ["--tls-cert", str(ours.certificate), "--tls-key", str(ours.key)]

        assert CliRunner().invoke(cli, [*line, *identity]).exit_code == 0
        assert CliRunner().invoke(cli, line).exit_code == 1
