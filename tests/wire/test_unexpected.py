"""What nobody expected: the client learns a request id and no more, the log everything else."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode

from opservice._proto.opservice.v1 import operation_record_service_pb2 as records_pb
from support.client import Client, refused
from support.fixtures import execute
from support.server import ServerProcess, eventually

Call = Callable[[Client], Any]

CALLS: dict[str, Call] = {
    "Get": lambda c: c.get("ops1"),
    "Cancel": lambda c: c.cancel("ops1"),
    "Start": lambda c: c.start(),
    "Renew": lambda c: c.renew("ops1"),
    "Complete": lambda c: c.complete("ops1"),
    "Watch": lambda c: next(
        c.records.Watch(records_pb.WatchOperationRecordRequest(operation_id="ops1"))
    ),
}


@pytest.fixture
def broken(server: ServerProcess) -> Iterator[ServerProcess]:
    """A server whose table is taken away while it runs."""
    execute(server.database, "ALTER TABLE operations RENAME TO taken_away")
    yield server
    execute(server.database, "ALTER TABLE taken_away RENAME TO operations")


def test_a_broken_database_is_an_internal_error_that_tells_nothing(broken: ServerProcess) -> None:
    for name, call in CALLS.items():
        with refused() as refusal:
            call(broken.client)

        assert refusal.code == StatusCode.INTERNAL, name
        assert refusal.message == f"Internal error, request id {refusal.request_id}"
        assert refusal.one(ErrorInfo) == ErrorInfo(reason="INTERNAL", domain="opservice")
        assert len(refusal.details) == 2


def test_the_log_has_what_the_client_was_not_told(broken: ServerProcess) -> None:
    with refused() as refusal:
        broken.client.get("ops1")

    (line,) = eventually(lambda: broken.log(request_id=refusal.request_id))
    assert line["level"] == "error"
    assert line["code"] == "INTERNAL"
    assert "Traceback" in line["exception"]
    assert "operations" in line["exception"]


def test_a_server_recovers_when_its_database_does(server: ServerProcess) -> None:
    execute(server.database, "ALTER TABLE operations RENAME TO taken_away")
    with refused():
        server.client.start()
    execute(server.database, "ALTER TABLE taken_away RENAME TO operations")

    assert not server.client.get(server.client.started()).done


METHODS = [
    "/yandex.cloud.operation.OperationService/Get",
    "/opservice.v1.ProducerService/Start",
    "/opservice.v1.OperationRecordService/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
]


def send(client: Client, method: str, request: bytes) -> list[bytes]:
    """Calls a method of any kind with these bytes."""
    stub: Any = client.channel.unary_stream(method)
    return list(stub(request))


@pytest.mark.parametrize("method", METHODS)
def test_bytes_that_are_no_message_are_an_invalid_argument(client: Client, method: str) -> None:
    with refused() as refusal:
        send(client, method, b"\xff\xff no protobuf")

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.reason == "MALFORMED_REQUEST"
    assert refusal.request_id


def test_a_string_that_is_not_utf_8_is_an_invalid_argument(client: Client) -> None:
    with refused() as refusal:
        send(client, METHODS[0], b"\x0a\x02\xff\xfe")

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.reason == "MALFORMED_REQUEST"


def test_a_method_that_does_not_exist_is_unimplemented(client: Client) -> None:
    with refused() as refusal:
        send(client, "/opservice.v1.ProducerService/Undo", b"")

    assert refusal.code == StatusCode.UNIMPLEMENTED
