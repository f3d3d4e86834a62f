"""The RPCs that the client calls, as methods of an asyncio channel.

Written here because generated stubs demand a grpcio as new as their generator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import grpc.aio
from google.protobuf.message import Message

from opservice_client._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice_client._proto.opservice.v1.operation_record_service_pb2 import (
    GetOperationRecordRequest,
    WatchOperationRecordRequest,
)
from opservice_client._proto.opservice.v1.producer_service_pb2 import (
    CompleteRequest,
    FailRequest,
    RenewRequest,
    RenewResponse,
    StartRequest,
    StartResponse,
)
from opservice_client._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice_client._proto.yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Unary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[Request, Response]"


class Stubs:
    """The RPCs on one channel."""

    start: Unary[StartRequest, StartResponse]
    renew: Unary[RenewRequest, RenewResponse]
    complete: Unary[CompleteRequest, Operation]
    fail: Unary[FailRequest, Operation]
    get: Unary[GetOperationRequest, Operation]
    cancel: Unary[CancelOperationRequest, Operation]
    record: Unary[GetOperationRecordRequest, OperationRecord]
    watch: grpc.aio.UnaryStreamMultiCallable[WatchOperationRecordRequest, OperationRecord]

    def __init__(self, channel: grpc.aio.Channel) -> None:
        def unary(
            method: str, request: type[Request], response: type[Response]
        ) -> Unary[Request, Response]:
            return channel.unary_unary(method, *_coders(request, response))

        producer = "/opservice.v1.ProducerService/"
        self.start = unary(producer + "Start", StartRequest, StartResponse)
        self.renew = unary(producer + "Renew", RenewRequest, RenewResponse)
        self.complete = unary(producer + "Complete", CompleteRequest, Operation)
        self.fail = unary(producer + "Fail", FailRequest, Operation)
        operations = "/yandex.cloud.operation.OperationService/"
        self.get = unary(operations + "Get", GetOperationRequest, Operation)
        self.cancel = unary(operations + "Cancel", CancelOperationRequest, Operation)
        records = "/opservice.v1.OperationRecordService/"
        self.record = unary(records + "Get", GetOperationRecordRequest, OperationRecord)
        self.watch = channel.unary_stream(
            records + "Watch", *_coders(WatchOperationRecordRequest, OperationRecord)
        )


def _coders(
    request: type[Request], response: type[Response]
) -> tuple[Callable[[Request], bytes], Callable[[bytes], Response]]:
    return request.SerializeToString, response.FromString
