"""How many headers a call may have."""

import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode

from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice.api.calls import MAX_HEADERS
from support.client import Client, refused
from support.server import ServerProcess, eventually

OF_GRPC = 1
"""Headers that gRPC adds and shows: user-agent."""


def get(client: Client, headers: int) -> str:
    request = GetOperationRequest(operation_id=client.started())
    return client.operations.Get(request, metadata=(("x", ""),) * headers).id


def test_a_call_may_have_so_many_headers(client: Client) -> None:
    assert get(client, MAX_HEADERS - OF_GRPC)


@pytest.mark.parametrize("more", [1, 50])
def test_a_call_with_more_headers_is_refused(server: ServerProcess, more: int) -> None:
    with refused() as refusal:
        get(server.client, MAX_HEADERS - OF_GRPC + more)

    assert refusal.code == StatusCode.RESOURCE_EXHAUSTED
    assert refusal.message == "A call may have 128 headers at most"
    assert refusal.one(ErrorInfo) == ErrorInfo(reason="TOO_MANY_HEADERS", domain="opservice")
    eventually(lambda: server.log(event="refused a call with too many headers"))
