"""Pipelines for tests: with handlers of the tests' own, open to all or with tokens."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1 import operation_record_service_pb2 as records_pb
from opservice._proto.opservice.v1 import producer_service_pb2 as producer_pb
from opservice._proto.yandex.cloud.endpoint import api_endpoint_service_pb2 as endpoint_pb
from opservice._proto.yandex.cloud.operation import operation_service_pb2 as operation_pb
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice.auth.authenticator import Authenticator
from opservice.auth.policy import Policy, StaticToken, hash_token
from opservice.domain.identity import parse_grant
from opservice.methods.admission import Admission, AdmissionLimits
from opservice.methods.pipeline import MethodPipeline, Pipeline
from opservice.methods.registry import Handler, Method
from support.calls import ReceivedCall

SERVICES = {
    "Get": operation_pb.DESCRIPTOR.services_by_name["OperationService"],
    "Cancel": operation_pb.DESCRIPTOR.services_by_name["OperationService"],
    "Wait": records_pb.DESCRIPTOR.services_by_name["OperationRecordService"],
    "Watch": records_pb.DESCRIPTOR.services_by_name["OperationRecordService"],
    "Start": producer_pb.DESCRIPTOR.services_by_name["ProducerService"],
    "List": endpoint_pb.DESCRIPTOR.services_by_name["ApiEndpointService"],
}
REQUEST = operation_pb.GetOperationRequest(operation_id="ops1")
WATCHED = records_pb.WatchOperationRecordRequest(operation_id="ops1")
ANSWER = Operation(id="ops1")
NOW = 1_800_000_000.0
REQUEST_ID = ("x-request-id", "the-request-1")

Line = MutableMapping[str, Any]


async def answer(_request: Any, _call: Any) -> Operation:
    return ANSWER


def failing(error: Exception) -> Handler:
    async def fail(_request: Any, _call: Any) -> Operation:
        raise error

    return fail


def pipeline_of(
    name: str, handler: Handler = answer, shared: Pipeline | None = None
) -> MethodPipeline:
    """The pipeline of the method of this name, handled so."""
    method = SERVICES[name].methods_by_name[name]
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    served = Method(SERVICES[name].full_name, name, request, response, handler, method)
    return (shared or open_to_all()).of(served)


def open_to_all(max_calls: int = 100, **limits: int) -> Pipeline:
    """Without authentication."""
    return Pipeline(Admission(AdmissionLimits(**limits), None), max_calls)


def authenticating(**limits: int) -> Pipeline:
    """Where tokens are known: of a viewer, and of an editor whose token has expired."""
    tokens = {
        "viewer": StaticToken("ann", (parse_grant("viewer:folders/a"),), None),
        "expired": StaticToken("eve", (parse_grant("editor:*"),), NOW - 1),
    }
    known = {hash_token(token): each for token, each in tokens.items()}
    authenticator = Authenticator(Policy(), known, clock=lambda: NOW)
    return Pipeline(Admission(AdmissionLimits(**limits), authenticator), 100)


def bearing(token: str) -> ReceivedCall:
    return ReceivedCall(REQUEST, headers=[("authorization", f"Bearer {token}")])


def detail(status: Status | None, kind: Any) -> Any:
    """The one detail of this kind."""
    assert status is not None
    (packed,) = (each for each in status.details if each.Is(kind.DESCRIPTOR))
    found = kind()
    packed.Unpack(found)
    return found


def reason(status: Status | None) -> str:
    found: str = detail(status, ErrorInfo).reason
    return found


class Held:
    """A handler whose calls end when they are told to."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.end = asyncio.Event()

    async def __call__(self, _request: Any, _call: Any) -> Operation:
        self.begun.set()
        await self.end.wait()
        return ANSWER
