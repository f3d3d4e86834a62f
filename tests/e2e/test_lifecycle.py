"""From the line that says that the server is ready to the exit code."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.code_pb2 import Code
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckResponse

from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    WatchOperationRecordRequest,
)
from opservice._proto.yandex.cloud.endpoint.api_endpoint_service_pb2 import (
    ListApiEndpointsRequest,
)
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import CancelOperationRequest
from support.client import Client, refusal_from, refused
from support.fixtures import held_up_writes
from support.postgres import PostgresServer
from support.server import ServerProcess, eventually, serving


def watch_health(channel: grpc.Channel, service: str = "") -> Iterator[HealthCheckResponse]:
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    statuses: Iterator[HealthCheckResponse] = watch(health_pb2.HealthCheckRequest(service=service))
    return statuses


def cancel_in_progress(client: Client, id_: str) -> Any:
    """The future of a Cancel that the server has begun."""
    call = client.operations.Cancel.future(CancelOperationRequest(operation_id=id_))
    # On one connection the server begins calls in their order.
    client.get(id_)
    assert not call.done()
    return call


def test_the_server_prints_one_line_once_it_is_ready(tmp_path: Path, sqlite_url: str) -> None:
    with serving(tmp_path, sqlite_url) as server:
        line = rf"opservice \d+\.\d+\.\d+ serving on {server.address} \(plaintext, {sqlite_url}\)\n"
        assert re.fullmatch(line, server.stdout)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_ends_the_server_with_success(
    tmp_path: Path, sqlite_url: str, number: int
) -> None:
    with serving(tmp_path, sqlite_url) as server:
        server.client.started()
        server.send_signal(number)

        assert server.wait() == 0
        assert [line["event"] for line in server.log(logger="opservice.server")][-1] == "stopped"
        assert "Traceback" not in server.stderr


def test_a_call_in_progress_ends_before_the_server_does(tmp_path: Path, database_url: str) -> None:
    with serving(tmp_path, database_url) as server:
        id_ = server.client.started()
        with held_up_writes(database_url):
            call = cancel_in_progress(server.client, id_)
            server.send_signal(signal.SIGTERM)
            eventually(lambda: server.log(event="draining"))

        assert server.wait() == 0
        assert call.result().error.code == Code.CANCELLED


def test_a_server_that_drains_takes_no_new_calls(tmp_path: Path, sqlite_url: str) -> None:
    with serving(tmp_path, sqlite_url) as server:
        id_ = server.client.started()
        with held_up_writes(sqlite_url):
            cancel_in_progress(server.client, id_)
            server.send_signal(signal.SIGTERM)
            eventually(lambda: server.log(event="draining"))

            with refused() as refusal:
                Client(server.channel()).get(id_)

        assert refusal.code == StatusCode.UNAVAILABLE
        assert server.wait() == 0


def test_a_call_that_outlasts_the_drain_is_ended(tmp_path: Path, sqlite_url: str) -> None:
    with serving(tmp_path, sqlite_url, drain="100ms") as server:
        id_ = server.client.started()
        with held_up_writes(sqlite_url):
            call = cancel_in_progress(server.client, id_)
            server.send_signal(signal.SIGTERM)

            error = call.exception()

        assert isinstance(error, grpc.RpcError)
        assert refusal_from(error).code in {StatusCode.UNAVAILABLE, StatusCode.CANCELLED}
        assert server.wait() == 0


def test_a_second_signal_ends_the_server_at_once(tmp_path: Path, sqlite_url: str) -> None:
    with serving(tmp_path, sqlite_url, drain="1h") as server:
        id_ = server.client.started()
        with held_up_writes(sqlite_url):
            cancel_in_progress(server.client, id_)
            server.send_signal(signal.SIGTERM)
            eventually(lambda: server.log(event="draining"))
            server.send_signal(signal.SIGTERM)

            assert server.wait() == 1


@contextmanager
def hanging(postgres: PostgresServer, database_url: str) -> Iterator[None]:
    """Whoever is connected to the database gets no answer within the block."""
    name = database_url.rpartition("/")[2]
    rows = postgres.execute(f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}'")
    pids = [int(str(pid)) for (pid,) in rows]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
def test_a_database_that_hangs_does_not_keep_the_server_from_ending(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    url = postgres.create_database()
    with serving(tmp_path, url, drain="100ms", housekeeping_interval="1h") as server:
        id_ = server.client.complete(server.client.started()).id
        server.client.get(id_)
        with hanging(postgres, url):
            call = server.client.operations.Cancel.future(CancelOperationRequest(operation_id=id_))
            server.client.endpoints.List(ListApiEndpointsRequest())  # the Cancel has begun
            server.send_signal(signal.SIGTERM)

            assert server.wait() == 1
        assert call.exception() is not None
        assert server.log(event="the database hangs: stopped without waiting for it")


def test_who_watches_the_health_sees_the_end_coming(tmp_path: Path, sqlite_url: str) -> None:
    services = ["", "yandex.cloud.operation.OperationService", "opservice.v1.ProducerService"]
    with serving(tmp_path, sqlite_url) as server:
        watches = [watch_health(server.channel(), service) for service in services]
        assert {next(watch).status for watch in watches} == {HealthCheckResponse.SERVING}

        server.send_signal(signal.SIGTERM)

        assert {next(watch).status for watch in watches} == {HealthCheckResponse.NOT_SERVING}
        assert [list(watch) for watch in watches] == [[], [], []]
        assert server.wait() == 0


def test_who_watches_an_operation_is_sent_elsewhere(tmp_path: Path, sqlite_url: str) -> None:
    with serving(tmp_path, sqlite_url) as server:
        request = WatchOperationRecordRequest(operation_id=server.client.started())
        records = server.client.records.Watch(request)
        next(records)

        server.send_signal(signal.SIGTERM)

        with refused() as refusal:
            next(records)
        assert refusal.code == StatusCode.UNAVAILABLE
        assert refusal.reason == "SERVER_STOPPING"
        assert refusal.retry_seconds > 0
        assert server.wait() == 0


def test_a_second_server_on_the_port_is_refused_and_the_first_goes_on(
    tmp_path: Path, sqlite_url: str
) -> None:
    with serving(tmp_path, sqlite_url) as first:
        id_ = first.client.started()
        second = ServerProcess(tmp_path, f"{sqlite_url}-2", listen=first.address)

        assert second.expect_refusal() == 1
        assert f"cannot listen on {first.address}: the port is taken" in second.stderr
        assert "Traceback" not in second.stderr
        assert Client(first.channel()).get(id_).id == id_
