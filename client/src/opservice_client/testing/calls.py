"""The calls that a test makes to see, and to cancel, what the service under test has started."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from opservice_client._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice_client._proto.opservice.v1.operation_record_service_pb2 import (
    GetOperationRecordRequest,
    ListOperationRecordsRequest,
    ListOperationRecordsResponse,
    WaitOperationRecordRequest,
)
from opservice_client._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice_client._proto.yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)

Response = TypeVar("Response", bound=Message)

_OPERATIONS = "/yandex.cloud.operation.OperationService/"
_RECORDS = "/opservice.v1.OperationRecordService/"
_SECONDS = 60.0
"""How long a call may take that should be answered at once."""
_LONGEST_WAIT_SECONDS = 30.0


def get(channel: grpc.Channel, operation_id: str) -> Operation:
    request = GetOperationRequest(operation_id=operation_id)
    return _call(channel, _OPERATIONS + "Get", request, Operation.FromString)


def cancel(channel: grpc.Channel, operation_id: str) -> Operation:
    request = CancelOperationRequest(operation_id=operation_id)
    return _call(channel, _OPERATIONS + "Cancel", request, Operation.FromString)


def record(channel: grpc.Channel, operation_id: str) -> OperationRecord:
    request = GetOperationRecordRequest(operation_id=operation_id)
    return _call(channel, _RECORDS + "Get", request, OperationRecord.FromString)


def records(channel: grpc.Channel, parent: str) -> list[OperationRecord]:
    found: list[OperationRecord] = []
    request = ListOperationRecordsRequest(parent=parent)
    while True:
        page = _call(channel, _RECORDS + "List", request, ListOperationRecordsResponse.FromString)
        found += page.operation_records
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def wait(channel: grpc.Channel, operation_id: str, seconds: float) -> OperationRecord:
    """The operation once it is done, or as it is after that time, or after half a minute."""
    request = _wait_request(operation_id, seconds)
    return _call(channel, _RECORDS + "Wait", request, OperationRecord.FromString)


async def wait_aio(channel: grpc.aio.Channel, operation_id: str, seconds: float) -> OperationRecord:
    """The same on an event loop."""
    call: grpc.aio.UnaryUnaryMultiCallable[WaitOperationRecordRequest, OperationRecord]
    call = channel.unary_unary(
        _RECORDS + "Wait", WaitOperationRecordRequest.SerializeToString, OperationRecord.FromString
    )
    return await call(_wait_request(operation_id, seconds), timeout=_SECONDS)


def _wait_request(operation_id: str, seconds: float) -> WaitOperationRecordRequest:
    timeout = Duration()
    timeout.FromMicroseconds(int(min(max(seconds, 0.0), _LONGEST_WAIT_SECONDS) * 1e6))
    return WaitOperationRecordRequest(operation_id=operation_id, timeout=timeout)


def _call(
    channel: grpc.Channel, path: str, request: Message, decode: Callable[[bytes], Response]
) -> Response:
    call: grpc.UnaryUnaryMultiCallable[Message, Response]
    call = channel.unary_unary(path, lambda message: message.SerializeToString(), decode)
    return call(request, timeout=_SECONDS)
