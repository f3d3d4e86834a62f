"""A plain gRPC client of the server, and what it is told when it is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyPb
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from opservice._proto.opservice.v1 import producer_service_pb2 as producer_pb
from opservice._proto.opservice.v1.operation_record_service_pb2_grpc import (
    OperationRecordServiceStub,
)
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceStub
from opservice._proto.yandex.cloud.endpoint.api_endpoint_service_pb2_grpc import (
    ApiEndpointServiceStub,
)
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)
from opservice._proto.yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub

TOKEN = "token-of-the-first-producer"
OTHER_TOKEN = "token-of-another-producer"

_EVERY_CALL = {"methodConfig": [{"name": [{}], "timeout": "60s"}]}

Detail = TypeVar("Detail", bound=Message)


def open_channel(
    address: str,
    root_certificates: bytes | None = None,
    private_key: bytes | None = None,
    certificate_chain: bytes | None = None,
) -> grpc.Channel:
    """A connection of its own, whose calls all have a deadline, and that comes back quickly."""
    options = [
        ("grpc.service_config", json.dumps(_EVERY_CALL)),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 200),
        ("grpc.max_receive_message_length", -1),
    ]
    if root_certificates is None:
        return grpc.insecure_channel(address, options)
    credentials = grpc.ssl_channel_credentials(root_certificates, private_key, certificate_chain)
    return grpc.secure_channel(address, credentials, options)


def packed(message: Message) -> AnyPb:
    payload = AnyPb()
    payload.Pack(message, deterministic=True)  # so that it has the same bytes again after JSON
    return payload


def unpacked(payload: AnyPb, message_type: type[Detail]) -> Detail:
    message = message_type()
    assert payload.Unpack(message), payload.type_url
    return message


class Client:
    """The services of the server; fields of requests as keywords."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.operations = OperationServiceStub(channel)
        self.producer = ProducerServiceStub(channel)
        self.records = OperationRecordServiceStub(channel)
        self.endpoints = ApiEndpointServiceStub(channel)

    def get(self, operation_id: str) -> Operation:
        return self.operations.Get(GetOperationRequest(operation_id=operation_id))

    def cancel(self, operation_id: str) -> Operation:
        return self.operations.Cancel(CancelOperationRequest(operation_id=operation_id))

    def start(self, **fields: Any) -> producer_pb.StartResponse:
        return self.producer.Start(producer_pb.StartRequest(**fields))

    def started(self, **fields: Any) -> str:
        """The id of a new operation."""
        return self.start(**fields).operation.id

    def renew(self, operation_id: str, **fields: Any) -> producer_pb.RenewResponse:
        return self.producer.Renew(producer_pb.RenewRequest(operation_id=operation_id, **fields))

    def complete(self, operation_id: str, **fields: Any) -> Operation:
        request = producer_pb.CompleteRequest(operation_id=operation_id, **fields)
        return self.producer.Complete(request)

    def fail(self, operation_id: str, error: Status, **fields: Any) -> Operation:
        request = producer_pb.FailRequest(operation_id=operation_id, error=error, **fields)
        return self.producer.Fail(request)


@dataclass
class Refusal:
    """What a refused call was told: filled when the `with refused()` block ends."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    details: list[AnyPb] = field(default_factory=list)
    trailers: dict[str, str | bytes] = field(default_factory=dict)

    def all(self, detail_type: type[Detail]) -> list[Detail]:
        name = detail_type.DESCRIPTOR.full_name
        found = [each for each in self.details if each.TypeName() == name]
        return [unpacked(each, detail_type) for each in found]

    def one(self, detail_type: type[Detail]) -> Detail:
        (detail,) = self.all(detail_type)
        return detail

    @property
    def reason(self) -> str:
        info = self.one(ErrorInfo)
        assert info.domain == "opservice"
        return info.reason

    @property
    def fields(self) -> list[str]:
        """The fields that the BadRequest names, in its order."""
        return [violation.field for violation in self.one(BadRequest).field_violations]

    @property
    def request_id(self) -> str:
        return self.one(RequestInfo).request_id

    @property
    def header_bytes(self) -> int:
        """What it took on the wire: some clients accept no more than 8 KiB."""
        details = base64.b64encode(bytes(self.trailers.get("grpc-status-details-bin") or b""))  # type: ignore[arg-type]
        return len(quote(self.message)) + len(details)

    @property
    def retry_seconds(self) -> float:
        return self.one(RetryInfo).retry_delay.ToTimedelta().total_seconds()


def refusal_from(error: grpc.RpcError, into: Refusal | None = None) -> Refusal:
    refusal = into or Refusal()
    assert isinstance(error, grpc.Call)
    refusal.code = error.code()
    refusal.message = error.details() or ""
    status = rpc_status.from_call(error)
    refusal.details = [] if status is None else list(status.details)
    refusal.trailers = dict(error.trailing_metadata() or ())
    return refusal


@contextmanager
def refused() -> Iterator[Refusal]:
    """Expects the block's call to be refused, and says how."""
    refusal = Refusal()
    with pytest.raises(grpc.RpcError) as caught:
        yield refusal
    refusal_from(caught.value, refusal)
