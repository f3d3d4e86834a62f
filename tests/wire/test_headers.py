"""How many headers a call may have."""

from collections.abc import Callable
from typing import Any

import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode

from opservice._proto.opservice.v1.operation_record_service_pb2 import WatchOperationRecordRequest
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice.common.loggers import AUDIT_LOGGER
from opservice.methods.pipeline import MAX_HEADERS
from support.client import Client, refused
from support.server import ServerProcess

OF_GRPC = 1
"""Headers that gRPC adds and shows: user-agent."""

GET = "/yandex.cloud.operation.OperationService/Get"
WATCH = "/opservice.v1.OperationRecordService/Watch"

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


@pytest.mark.parametrize(("call", "method"), [(get, GET), (watch, WATCH)])
def test_the_audit_log_tells_of_each_call_with_more_headers(
    server: ServerProcess, call: Call, method: str
) -> None:
    id_ = server.client.started()

    def told() -> list[dict[str, Any]]:
        return server.log(
            logger=AUDIT_LOGGER, error="TooManyHeaders", method=method, code="RESOURCE_EXHAUSTED"
        )

    before = len(told())
    for _ in range(3):
        with refused():
            call(server.client, id_, MAX_HEADERS)

    assert len(told()) == before + 3
    assert told()[-1]["peer"].startswith("ipv4:127.0.0.1:")
    assert server.log(event="refusing calls", reason="A call may have 128 headers at most")
