"""Every method of the server, with a request for it, called without the help of generated stubs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import grpc
from google.longrunning import operations_proto_pb2 as longrunning_pb
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from opservice._proto.opservice.v1 import operation_record_service_pb2 as record_pb
from opservice._proto.opservice.v1 import producer_service_pb2 as producer_pb
from opservice._proto.yandex.cloud.endpoint import api_endpoint_service_pb2 as endpoint_pb
from opservice._proto.yandex.cloud.operation import operation_service_pb2 as operation_pb
from support.client import TOKEN

Metadata = Sequence[tuple[str, str]]

YANDEX = "/yandex.cloud.operation.OperationService"
RECORDS = "/opservice.v1.OperationRecordService"
PRODUCER = "/opservice.v1.ProducerService"
GOOGLE = "/google.longrunning.Operations"
ENDPOINTS = "/yandex.cloud.endpoint.ApiEndpointService"
HEALTH = "/grpc.health.v1.Health"
REFLECTION = (
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)

AT_ONCE = Duration()

BY_ID: dict[str, Callable[[str], Message]] = {
    f"{YANDEX}/Get": lambda id_: operation_pb.GetOperationRequest(operation_id=id_),
    f"{YANDEX}/Cancel": lambda id_: operation_pb.CancelOperationRequest(operation_id=id_),
    f"{RECORDS}/Get": lambda id_: record_pb.GetOperationRecordRequest(operation_id=id_),
    f"{RECORDS}/Wait": lambda id_: record_pb.WaitOperationRecordRequest(
        operation_id=id_, timeout=AT_ONCE
    ),
    f"{RECORDS}/Watch": lambda id_: record_pb.WatchOperationRecordRequest(operation_id=id_),
    f"{RECORDS}/Delete": lambda id_: record_pb.DeleteOperationRecordRequest(operation_id=id_),
    f"{PRODUCER}/Renew": lambda id_: producer_pb.RenewRequest(operation_id=id_, lease_token=TOKEN),
    f"{PRODUCER}/Complete": lambda id_: producer_pb.CompleteRequest(
        operation_id=id_, lease_token=TOKEN
    ),
    f"{PRODUCER}/Fail": lambda id_: producer_pb.FailRequest(
        operation_id=id_, lease_token=TOKEN, error=Status(code=13)
    ),
}
OF_IDS: dict[str, Callable[[str], Message]] = {
    f"{RECORDS}/BatchGet": lambda id_: record_pb.BatchGetOperationRecordsRequest(
        operation_ids=[id_]
    ),
    f"{RECORDS}/BatchWatch": lambda id_: record_pb.BatchWatchOperationRecordsRequest(
        operation_ids=[id_]
    ),
}
"""Which tell of an operation that may not be seen that it is not found, and are not refused."""
BY_NAME: dict[str, Callable[[str], Message]] = {
    f"{GOOGLE}/GetOperation": lambda name: longrunning_pb.GetOperationRequest(name=name),
    f"{GOOGLE}/WaitOperation": lambda name: longrunning_pb.WaitOperationRequest(
        name=name, timeout=AT_ONCE
    ),
    f"{GOOGLE}/CancelOperation": lambda name: longrunning_pb.CancelOperationRequest(name=name),
    f"{GOOGLE}/DeleteOperation": lambda name: longrunning_pb.DeleteOperationRequest(name=name),
}
OF_PARENT: dict[str, Callable[[str], Message]] = {
    f"{PRODUCER}/Start": lambda parent: producer_pb.StartRequest(parent=parent),
    f"{RECORDS}/List": lambda parent: record_pb.ListOperationRecordsRequest(parent=parent),
    f"{GOOGLE}/ListOperations": lambda parent: longrunning_pb.ListOperationsRequest(name=parent),
}
OF_NOTHING: dict[str, Message] = {
    f"{ENDPOINTS}/Get": endpoint_pb.GetApiEndpointRequest(api_endpoint_id="operation"),
    f"{ENDPOINTS}/List": endpoint_pb.ListApiEndpointsRequest(),
    f"{HEALTH}/Check": HealthCheckRequest(),
    f"{HEALTH}/Watch": HealthCheckRequest(),
    **dict.fromkeys(REFLECTION, ServerReflectionRequest(list_services="")),
}
OF_OPERATION = (*BY_ID, *BY_NAME)
EVERY_METHOD = (*OF_OPERATION, *OF_IDS, *OF_PARENT, *OF_NOTHING)
_STREAMS = {f"{RECORDS}/Watch", f"{RECORDS}/BatchWatch", f"{HEALTH}/Watch"}


def full_name(parent: str, operation_id: str) -> str:
    return f"{parent}/operations/{operation_id}" if parent else f"operations/{operation_id}"


def request_for(method: str, operation_id: str, parent: str) -> Message:
    if method in BY_ID:
        return BY_ID[method](operation_id)
    if method in OF_IDS:
        return OF_IDS[method](operation_id)
    if method in BY_NAME:
        return BY_NAME[method](full_name(parent, operation_id))
    if method in OF_PARENT:
        return OF_PARENT[method](parent)
    return OF_NOTHING[method]


class PendingCall:
    """A call that is under way."""

    def __init__(
        self, channel: grpc.Channel, method: str, request: Message, metadata: Metadata = ()
    ) -> None:
        # The generated stubs make the same call with serializers.
        bare = cast("Any", channel)
        sent = request.SerializeToString()
        if method in REFLECTION:
            self.call = bare.stream_stream(method)(iter([sent]), metadata=metadata)
        elif method in _STREAMS:
            self.call = bare.unary_stream(method)(sent, metadata=metadata)
        else:
            self.call = bare.unary_unary(method).future(sent, metadata=metadata)
        self._streams = method in _STREAMS or method in REFLECTION

    def answer(self) -> bytes:
        """The response, or the first of them. Raises the RpcError that it is refused with."""
        response: bytes = next(self.call) if self._streams else self.call.result()
        self.call.cancel()
        return response
