"""What clients were told, as the history of an operation has it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, TypeAlias

import grpc
from google.longrunning import operations_proto_pb2 as longrunning_pb
from google.protobuf.any_pb2 import Any as AnyPb
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from opservice._proto.opservice.v1 import producer_service_pb2 as producer_pb
from opservice._proto.opservice.v1.operation_record_pb2 import (
    OperationRecord,
)
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from support.client import packed, unpacked
from support.history import Sight, State

_UNHEARD = frozenset({"STORE_UNAVAILABLE", "SERVER_STOPPING"})
"""Reasons that leave open whether the call happened."""

Answer: TypeAlias = (
    Operation | OperationRecord | producer_pb.StartResponse | producer_pb.RenewResponse
)


def told_by(answer: Any) -> dict[str, Any]:
    """The fields of an Event."""
    if isinstance(answer, longrunning_pb.Operation):
        return {"glimpse": glimpse_of(answer)}
    if isinstance(answer, Empty):
        return {}
    return {"seen": (Sight(time.monotonic(), state_of(answer)),)}


def glimpse_of(operation: longrunning_pb.Operation) -> State:
    return State(
        modified_at=0,
        done=operation.done,
        result=_result_of(operation),
        metadata=unpacked(operation.metadata, StringValue).value,
    )


def _result_of(operation: Operation | longrunning_pb.Operation) -> str | None:
    if operation.HasField("response"):
        return f"response {unpacked(operation.response, StringValue).value}"
    if operation.HasField("error"):
        error = operation.error
        return f"{Code.Name(error.code)} {_reason(error.details) or error.message}"
    return None


def state_of(answer: Answer) -> State:
    """What is equal in two answers is equal in their states."""
    operation = answer if isinstance(answer, Operation) else answer.operation
    record = answer if isinstance(answer, OperationRecord) else None
    return State(
        modified_at=operation.modified_at.ToMicroseconds(),
        done=operation.done,
        result=_result_of(operation),
        metadata=unpacked(operation.metadata, StringValue).value,
        born=operation.created_at.ToMicroseconds(),
        rest=operation.SerializeToString(deterministic=True),
        revision=None if record is None else record.revision,
        beside=b"" if record is None else record.SerializeToString(deterministic=True),
    )


def refusal_to_fields(error: grpc.RpcError) -> dict[str, Any]:
    """Only the server gives reasons; what has none comes from the network, or from the deadline."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError has what is asked for
    reason = "" if status is None else _reason(status.details)
    if reason and reason not in _UNHEARD:
        return {"answer": "refused", "refusal": reason}
    return {"answer": "unknown", "refusal": reason or error.code().name}


def _reason(details: Iterable[AnyPb]) -> str:
    name = ErrorInfo.DESCRIPTOR.full_name
    infos = (each for each in details if each.TypeName() == name)
    return next((unpacked(info, ErrorInfo).reason for info in infos), "")


def text(value: str) -> AnyPb:
    return packed(StringValue(value=value))
