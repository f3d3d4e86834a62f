"""x-request-id: the caller's when it can be logged and sent back, else a new one."""

import re
import uuid

import pytest

from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from support import http2
from support.client import Client, refused
from support.server import ServerProcess, eventually

BAD = {
    "empty": b"",
    "129 characters": b"x" * 129,
    "a space": b"two words",
    "a control character": b"bell\x07",
    "not ASCII": "запрос".encode(),
    "not UTF-8": b"\xff\xfe",
}
_NEW = re.compile(rb"x-request-id\$([0-9a-f-]{36})")


def get(client: Client, operation_id: str, request_id: str) -> dict[str, str | bytes]:
    """The trailers of a Get."""
    request = GetOperationRequest(operation_id=operation_id)
    _, call = client.operations.Get.with_call(request, metadata=(("x-request-id", request_id),))
    return dict(call.trailing_metadata() or ())


@pytest.mark.parametrize("request_id", ["r", "x" * 128, 'a/b:c"d\\e~!'])
def test_a_good_request_id_comes_back(client: Client, request_id: str) -> None:
    trailers = get(client, client.started(), request_id)

    assert trailers["x-request-id"] == request_id


def test_a_good_request_id_comes_back_with_an_error(client: Client) -> None:
    with refused() as refusal:
        get(client, "nowhere", "mine-1")

    assert refusal.trailers["x-request-id"] == "mine-1"
    assert refusal.request_id == "mine-1"


def test_a_call_without_a_request_id_gets_one(client: Client) -> None:
    with refused() as refusal:
        client.get("nowhere")

    assert uuid.UUID(refusal.request_id)
    assert refusal.trailers["x-request-id"] == refusal.request_id


def test_every_call_gets_another_request_id(client: Client) -> None:
    made = set()
    for _ in range(2):
        with refused() as refusal:
            client.get("nowhere")
        made.add(refusal.request_id)

    assert len(made) == 2


@pytest.mark.parametrize("request_id", BAD.values(), ids=BAD)
def test_a_bad_request_id_is_replaced(server: ServerProcess, request_id: bytes) -> None:
    answer = http2.call(
        server.address,
        "/yandex.cloud.operation.OperationService/Get",
        {"x-request-id": request_id},
        GetOperationRequest(operation_id="nowhere").SerializeToString(),
    )

    assert b"Operation nowhere not found" in answer
    made = _NEW.search(answer)
    assert made is not None
    assert eventually(lambda: server.log(request_id=made[1].decode()))


def test_a_header_that_is_not_text_is_not_logged(server: ServerProcess) -> None:
    http2.call(
        server.address,
        "/yandex.cloud.operation.OperationService/Get",
        {"x-request-id": b"after-the-header", "authorization": b"Bearer hidden-\xff"},
        GetOperationRequest(operation_id="nowhere").SerializeToString(),
    )

    eventually(lambda: server.log(request_id="after-the-header"))
    assert "hidden" not in server.stderr
