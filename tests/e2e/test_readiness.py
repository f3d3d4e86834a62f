"""Probes while the database is away: the server is alive, and says that it cannot serve."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from click.testing import CliRunner
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from opservice.cli import cli
from support.postgres import PostgresServer
from support.server import PATIENCE, ServerProcess, eventually, serving

READINESS = "opservice.readiness"
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


def check(server: ServerProcess, service: str) -> int:
    stub = server.client.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    answer: HealthCheckResponse = stub(HealthCheckRequest(service=service), timeout=PATIENCE)
    return answer.status


def watch(channel: grpc.Channel) -> Iterator[Any]:
    stub = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    answers = stub(HealthCheckRequest(service=READINESS), timeout=PATIENCE)
    return (answer.status for answer in answers)


def readyz(server: ServerProcess) -> tuple[int, Any]:
    answer = httpx.get(f"{server.http_url}/readyz", timeout=PATIENCE)
    return answer.status_code, answer.json()


def readiness_command(server: ServerProcess) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["health", "--readiness", "--server", server.address])
    return result.exit_code, result.output.strip()


def test_a_server_without_its_database_is_alive_but_not_ready(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    with serving(tmp_path, own_postgres.create_database(), http_listen="127.0.0.1:0") as server:
        channel = server.channel()
        told = watch(channel)
        assert next(told) == SERVING
        assert readiness_command(server) == (0, "SERVING")
        assert readyz(server) == (200, {"ready": True, "reasons": []})

        own_postgres.stop()

        assert next(told) == NOT_SERVING
        assert check(server, READINESS) == NOT_SERVING
        assert readiness_command(server) == (1, "NOT_SERVING")
        reasons = ["the database is not available"]
        assert readyz(server) == (503, {"ready": False, "reasons": reasons})
        assert server.log(event="not ready", reasons=reasons)
        assert check(server, "") == SERVING
        assert httpx.get(f"{server.http_url}/livez").status_code == 200

        channel.close()  # a process with calls of gRPC in progress must not fork
        own_postgres.start()

        eventually(lambda: check(server, READINESS) == SERVING)
        assert server.log(event="ready again")
        told = watch(server.channel())
        assert next(told) == SERVING
        server.send_signal(signal.SIGTERM)
        assert list(told) == [NOT_SERVING]
        assert server.wait() == 0


@pytest.mark.slow
def test_a_database_that_does_not_answer_is_told_in_time(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    with serving(tmp_path, own_postgres.create_database()) as server:
        assert check(server, READINESS) == SERVING
        stopped = own_postgres.processes()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            eventually(lambda: check(server, READINESS) == NOT_SERVING)
            assert check(server, "") == SERVING
            assert server.log(event="not ready", reasons=["the database did not answer within 2 s"])
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        eventually(lambda: check(server, READINESS) == SERVING)


@pytest.mark.slow
def test_a_database_that_is_read_only_is_not_connected_to_and_the_log_says_why(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    url = own_postgres.create_database()
    name = url.rpartition("/")[2]
    with serving(tmp_path, url) as server:
        own_postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        own_postgres.kill_connections(name)

        eventually(lambda: check(server, READINESS) == NOT_SERVING)
        assert server.log(event="not ready", reasons=["the database is not available"])
        eventually(
            lambda: any(
                "session is read-only" in line["cause"]
                for line in server.log(event="database check failed")
            )
        )

        own_postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        eventually(lambda: check(server, READINESS) == SERVING)
