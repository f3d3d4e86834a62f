"""How many headers a call may have."""

from collections.abc import Callable
from typing import Any

import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode

from opservice._proto.opservice.v1.operation_record_service_pb2 import WatchOperationRecordRequest
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice.api.calls import MAX_HEADERS
from support.client import Client, refused
from support.server import ServerProcess, eventually

OF_GRPC = 1
"""Headers that gRPC adds and shows: user-agent."""

Call = Callable[[Client, str, int], Any]


def get(client: Client, id_: str, headers: int) -> Any:
    request = GetOperationRequest(operation_id=id_)
    return client.operations.Get(request, metadata=(("x", ""),) * headers)


def watch(client: Client, id_: str, headers: int) -> Any:
    request = WatchOperationRecordRequest(operation_id=id_)
    records = client.records.Watch(request, metadata=(("x", ""),) * headers)
    first = next(records)
    records.cancel()
    return first.operation


@pytest.mark.parametrize("call", [get, watch])
def test_a_call_may_have_so_many_headers(client: Client, call: Call) -> None:
    id_ = client.started()

    assert call(client, id_, MAX_HEADERS - OF_GRPC).id == id_


@pytest.mark.parametrize("call", [get, watch])
@pytest.mark.parametrize("more", [1, 50])
def test_a_call_with_more_headers_is_refused(client: Client, call: Call, more: int) -> None:
    id_ = client.started()

    with refused() as refusal:
        call(client, id_, MAX_HEADERS - OF_GRPC + more)

    assert refusal.code == StatusCode.RESOURCE_EXHAUSTED
    assert refusal.message == "A call may have 128 headers at most"
    assert refusal.one(ErrorInfo) == ErrorInfo(reason="TOO_MANY_HEADERS", domain="opservice")
    assert len(refusal.details) == 1


def test_the_log_tells_of_calls_with_more_headers(server: ServerProcess) -> None:
    id_ = server.client.started()
    with refused():
        get(server.client, id_, MAX_HEADERS)

    eventually(lambda: server.log(reason="A call may have 128 headers at most"))
