"""Callers that ask for much and read nothing."""

import socket
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import requests
from google.protobuf.any_pb2 import Any as AnyPb
from grpc import StatusCode

from opservice._proto.opservice.v1.operation_record_service_pb2 import WatchOperationRecordRequest
from opservice._proto.opservice.v1.producer_service_pb2 import CompleteRequest
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice.common.loggers import AUDIT_LOGGER
from support import http2
from support.client import Client, refused
from support.process import resident_mib
from support.server import ServerProcess, eventually, serving

MIB = 1 << 20
GET = "/yandex.cloud.operation.OperationService/Get"
WATCH = "/opservice.v1.OperationRecordService/Watch"
COMPLETE = "/opservice.v1.ProducerService/Complete"
PAYLOAD = AnyPb(type_url="type.googleapis.com/google.protobuf.Empty", value=bytes(900_000))


EACH_KIND = pytest.mark.parametrize("path", [GET, pytest.param(WATCH, marks=pytest.mark.slow)])


def ask_without_reading(
    server: ServerProcess,
    path: str,
    id_: str,
    count: int,
    and_then: tuple[str, bytes] | None = None,
) -> socket.socket:
    """No window is given for any answer. `and_then` is another call, its path and its request."""
    host, port = server.address.rsplit(":", 1)
    message = http2.grpc_message(GetOperationRequest(operation_id=id_).SerializeToString())
    calls = b"".join(
        http2.request_headers(stream, path)
        + http2.frame(http2.DATA, http2.END_STREAM, stream, message)
        for stream in range(1, 2 * count, 2)
    )
    if and_then is not None:
        path, request = and_then
        calls += http2.request_headers(2 * count + 1, path)
        calls += http2.frame(
            http2.DATA, http2.END_STREAM, 2 * count + 1, http2.grpc_message(request)
        )
    no_window = http2.setting(http2.INITIAL_WINDOW_SIZE, 0)
    connection = socket.create_connection((host, int(port)))
    connection.sendall(http2.PREFACE + http2.frame(http2.SETTINGS, payload=no_window) + calls)
    return connection


@EACH_KIND
def test_one_connection_is_refused_what_it_does_not_read(
    sqlite_url: str, tmp_path: Path, path: str
) -> None:
    with serving(tmp_path, sqlite_url, max_unsent_bytes=8 * MIB) as server:
        id_ = server.client.started(metadata=PAYLOAD)
        with ask_without_reading(server, path, id_, 50):
            told = {"logger": AUDIT_LOGGER, "method": path, "error": "ServerBusy"}
            eventually(lambda: len(server.log(**told)) == 49)

            assert server.client.get(id_).metadata == PAYLOAD


def test_all_are_refused_large_answers_while_too_many_are_unread(
    sqlite_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, sqlite_url, max_unsent_bytes=8 * MIB) as server:
        id_ = server.client.started(metadata=PAYLOAD)
        with ExitStack() as unread:
            for _ in range(10):
                unread.enter_context(ask_without_reading(server, GET, id_, 1))
            eventually(lambda: server.log(error="ServerBusy"))
            with refused() as refusal:
                server.client.get(id_)
            assert refusal.code == StatusCode.RESOURCE_EXHAUSTED
            assert server.client.get(server.client.started())

        assert eventually(lambda: answer_of(server.client, id_)).metadata == PAYLOAD


def answer_of(client: Client, id_: str) -> Operation | None:
    try:
        return client.get(id_)
    except grpc.RpcError:
        return None


def test_large_answers_that_are_read_are_never_refused(sqlite_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, sqlite_url, max_unsent_bytes=32 * MIB) as server:
        id_ = server.client.started(metadata=PAYLOAD)
        watch = server.client.records.Watch(WatchOperationRecordRequest(operation_id=id_))
        for _ in range(50):
            assert server.client.get(id_).metadata == PAYLOAD
            server.client.renew(id_)
        server.client.complete(id_)

        assert [each.operation.done for each in watch][-1]


def refused_in_all(server: ServerProcess) -> int:
    """The calls that have a line in the audit log, and those of which only the number is told."""
    lines = server.log(logger=AUDIT_LOGGER, error="ServerBusy")
    return sum(line.get("calls", 1) for line in lines)


@EACH_KIND
def test_nothing_is_kept_of_answers_that_were_refused(
    sqlite_url: str, tmp_path: Path, path: str
) -> None:
    """Neither the answer nor the exception's traceback, which leads to it, while nobody reads the refusal."""
    with serving(tmp_path, sqlite_url, max_unsent_bytes=8 * MIB) as server:
        id_ = server.client.started(metadata=PAYLOAD)
        server.client.get(id_)
        before = resident_mib(server.pid)
        with ExitStack() as unread:
            for _ in range(4):
                unread.enter_context(ask_without_reading(server, path, id_, 50))
            eventually(lambda: refused_in_all(server) == 4 * 49)

            assert resident_mib(server.pid) - before < 100


def test_writes_of_a_connection_that_reads_nothing_are_not_held_up(
    sqlite_url: str, tmp_path: Path
) -> None:
    reads = 50  # of whose refusals each has a line of its own
    with serving(tmp_path, sqlite_url, max_unsent_bytes=8 * MIB) as server:
        id_ = server.client.started(metadata=PAYLOAD)
        complete = CompleteRequest(operation_id=server.client.started()).SerializeToString()
        with ask_without_reading(server, GET, id_, reads, (COMPLETE, complete)):
            eventually(lambda: len(server.log(method=GET, error="ServerBusy")) == reads - 1)

        lines = server.log(event="call")
        (completed,) = server.log(method=COMPLETE, code="OK")
        (*_, last) = server.log(method=GET, error="ServerBusy")
        assert lines.index(completed) < lines.index(last)  # though it came after all of them


def test_by_http_too_many_unread_answers_are_a_refusal(tmp_path: Path, sqlite_url: str) -> None:
    settings = {"max_unsent_bytes": MIB, "http_listen": "127.0.0.1:0"}
    with serving(tmp_path, sqlite_url, **settings) as server:
        # As JSON it is more than the eighth of that, which one connection may have.
        id_ = server.client.started(metadata=AnyPb(type_url="a.com/a.B", value=bytes(110_000)))

        answer = requests.get(f"{server.http_url}/operations/{id_}", timeout=60)

        assert (answer.status_code, answer.json()["code"]) == (429, 8)
        assert server.log(level="error") == []
