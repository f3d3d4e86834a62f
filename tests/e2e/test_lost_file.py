"""An SQLite file that is deleted under a running server."""

from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse

from support.client import refused
from support.server import ServerProcess, eventually, serving


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_whose_file_is_deleted_refuses_calls_and_says_so(
    tmp_path: Path, sqlite_url: str, workers: int
) -> None:
    with serving(tmp_path, sqlite_url, workers=workers) as server:
        id_ = server.client.started()
        Path(sqlite_url.removeprefix("sqlite:///")).unlink()

        with refused() as refusal:
            server.client.start()
        assert refusal.code is StatusCode.UNAVAILABLE
        assert refusal.reason == "STORE_UNAVAILABLE"
        assert "restarted" in refusal.message

        # Every worker notices, also one that is asked for nothing.
        lines = eventually(lambda: lost(server) if len(lost(server)) == workers else None)
        assert all("Stop the server" in line["event"] for line in lines)
        with refused() as refusal:
            server.client.get(id_)
        assert refusal.code is StatusCode.UNAVAILABLE
        assert health(server) == HealthCheckResponse.NOT_SERVING
        assert server.terminate() == 0


def lost(server: ServerProcess) -> list[dict[str, Any]]:
    return server.log(level="error", reason="was deleted or moved away")


def health(server: ServerProcess) -> int:
    check = server.channel().unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    answer: HealthCheckResponse = check(health_pb2.HealthCheckRequest())
    return answer.status
