"""Conversions between protobuf and the domain, in named pairs. No other module knows both."""

from __future__ import annotations

import hashlib
import re

from google.longrunning.operations_proto_pb2 import Operation as LongrunningOperation
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1 import operation_record_pb2 as record_pb
from opservice._proto.opservice.v1 import producer_service_pb2 as producer_pb
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice.domain.errors import InvalidArgument, Violation
from opservice.domain.identity import Identity
from opservice.domain.labels import labels_from_text, labels_to_text
from opservice.domain.operation import (
    SECOND,
    CancelPolicy,
    Complete,
    Fail,
    Failure,
    Progress,
    Record,
    Renew,
    Start,
    hash_lease_token,
    start_by,
)
from opservice.methods.validation import (
    MAX_CREATED_BY,
    MAX_DESCRIPTION,
    MAX_ID,
    MAX_IDEMPOTENCY_KEY,
    MAX_NAME,
    MAX_PROGRESS_MESSAGE,
    MAX_PROGRESS_UNIT,
    MAX_TIMEOUT,
    MIN_LEASE,
    Check,
    Limits,
)

ERROR_DOMAIN = "opservice"
"""The domain of every `google.rpc.ErrorInfo` that this server makes."""

_SEGMENT = r"[^/\s\x00-\x1f\x7f-\x9f]+"
_COLLECTION = "operations"
_NAME = re.compile(
    rf"((?P<parent>{_SEGMENT}(/{_SEGMENT})*)/)?{_COLLECTION}/(?P<id>[^/\x00-\x1f\x7f-\x9f]{{1,{MAX_ID}}})"
)
_MAX_FULL_NAME = MAX_NAME + len(f"/{_COLLECTION}/") + MAX_ID
_NAME_EXPECTED = (
    f"must be {_COLLECTION}/ID or PARENT/{_COLLECTION}/ID, the ID of 1 to {MAX_ID} characters, the"
    f" PARENT segments joined by '/', of at most {MAX_NAME}; without control characters"
)


def operation_to_pb(record: Record, *, hide_error: bool = False) -> Operation:
    """The public operation. With `hide_error` it shows no error until it is done."""
    operation = Operation(
        id=record.id,
        description=record.description,
        created_at=timestamp_to_pb(record.created_at),
        created_by=record.created_by,
        modified_at=timestamp_to_pb(record.modified_at),
        done=record.done,
    )
    if record.metadata is not None:
        operation.metadata.MergeFromString(record.metadata)
    if record.error is not None:
        if record.done or not hide_error:
            operation.error.MergeFromString(record.error)
    elif record.response is not None:
        operation.response.MergeFromString(record.response)
    return operation


def operation_to_longrunning_pb(record: Record) -> LongrunningOperation:
    """Without a result until it is done: while it is being cancelled, `error` is kept back."""
    operation = LongrunningOperation(name=name_to_pb(record.parent, record.id), done=record.done)
    if record.metadata is not None:
        operation.metadata.MergeFromString(record.metadata)
    if not record.done:
        return operation
    if record.error is not None:
        operation.error.MergeFromString(record.error)
    elif record.response is not None:
        operation.response.MergeFromString(record.response)
    return operation


def name_to_pb(parent: str, operation_id: str) -> str:
    """google.longrunning's name of an operation."""
    name = f"{_COLLECTION}/{operation_id}"
    return f"{parent}/{name}" if parent else name


def name_from_pb(name: str) -> tuple[str, str]:
    """The parent, empty when the name does not tell it, and the id. Raises InvalidArgument."""
    found = None if len(name) > _MAX_FULL_NAME else _NAME.fullmatch(name)
    if found is None or len(found["parent"] or "") > MAX_NAME:
        raise InvalidArgument([Violation("name", _NAME_EXPECTED)])
    return found["parent"] or "", found["id"]


def parent_from_pb(name: str) -> str:
    """The parent in the name of a collection, which may end with `/operations` or not."""
    return "" if name == _COLLECTION else name.removesuffix(f"/{_COLLECTION}") or name


def record_to_pb(record: Record, *, hide_error: bool = False) -> record_pb.OperationRecord:
    """The operation with what is kept beside it. With `hide_error` it shows no error until it is done."""
    beside = record_beside_to_pb(record)
    beside.operation.MergeFrom(operation_to_pb(record, hide_error=hide_error))
    return beside


def record_beside_to_pb(record: Record) -> record_pb.OperationRecord:
    """What is kept beside the operation, without the operation itself."""
    return record_pb.OperationRecord(
        parent=record.parent,
        method=record.method,
        cancel_policy=record_pb.CancelPolicy.ValueType(record.cancel_policy),
        cancel_requested_at=_optional_timestamp_to_pb(record.cancel_requested_at),
        progress=None if record.progress is None else progress_to_pb(record.progress),
        lease_expires_at=_optional_timestamp_to_pb(record.lease_expires_at),
        expires_at=_optional_timestamp_to_pb(record.expires_at),
        revision=record.revision,
        cancelled_by=record.cancelled_by,
        producer=record.producer,
        timeout_at=_optional_timestamp_to_pb(record.timeout_at),
        labels=labels_from_text(record.labels) if record.labels else None,
        traceparent=record.traceparent,
    )


def timestamp_to_pb(microseconds: int) -> Timestamp:
    """Of microseconds since the epoch."""
    seconds, rest = divmod(microseconds, SECOND)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def _optional_timestamp_to_pb(microseconds: int | None) -> Timestamp | None:
    return None if microseconds is None else timestamp_to_pb(microseconds)


def payload_to_bytes(payload: Any) -> bytes:
    """As it is kept. Equal payloads become equal bytes."""
    return payload.SerializeToString(deterministic=True)


def failure_from_pb(status: Status) -> Failure:
    """As it is kept: with its code beside it."""
    return Failure(status.code, status.SerializeToString(deterministic=True))


def _own_failure(code: int, reason: str, message: str) -> Failure:
    """A failure that the server itself gives an operation."""
    status = Status(code=code, message=message)
    status.details.add().Pack(ErrorInfo(reason=reason, domain=ERROR_DOMAIN))
    return failure_from_pb(status)


CANCELLED = _own_failure(Code.CANCELLED, "OPERATION_CANCELLED", "The operation was cancelled")
LEASE_EXPIRED = _own_failure(
    Code.ABORTED, "LEASE_EXPIRED", "The service that ran the operation stopped renewing its lease"
)
TIMED_OUT = _own_failure(
    Code.DEADLINE_EXCEEDED, "OPERATION_TIMEOUT", "The operation did not end within its timeout"
)
_EMPTY = Any()
_EMPTY.Pack(Empty())


def progress_to_pb(progress: Progress) -> record_pb.Progress:
    return record_pb.Progress(
        done=progress.done, total=progress.total, unit=progress.unit, message=progress.message
    )


def progress_from_pb(progress: record_pb.Progress) -> Progress:
    return Progress(progress.done, progress.total, progress.unit, progress.message)


def start_from_pb(
    request: producer_pb.StartRequest, limits: Limits, identity: Identity, traceparent: str = ""
) -> Start:
    """What a producer asks for, in this trace. Raises InvalidArgument that names every violation."""
    check = Check()
    check.text("description", request.description, MAX_DESCRIPTION)
    check.parent("parent", request.parent)
    check.name("method", request.method, MAX_NAME)
    check.name("created_by", request.created_by, MAX_CREATED_BY)
    check.name("idempotency_key", request.idempotency_key, MAX_IDEMPOTENCY_KEY)
    check.id_prefix("id_prefix", request.id_prefix)
    check.lease_token("lease_token", request.lease_token)
    check.labels("labels", request.labels)
    metadata = _metadata(request, check, limits)
    if request.cancel_policy not in record_pb.CancelPolicy.values():
        check.wrong("cancel_policy", f"{request.cancel_policy} is not a CancelPolicy")
    lease = timeout = None
    retention: int | None = limits.retention
    if request.HasField("lease"):
        lease = check.duration("lease", request.lease, MIN_LEASE, limits.max_lease)
        if not request.lease_token:
            check.wrong("lease_token", "is required with a lease")
    if request.HasField("timeout"):
        timeout = check.duration("timeout", request.timeout, 1, MAX_TIMEOUT)
    if request.HasField("retention"):
        retention = check.duration("retention", request.retention, 1, limits.max_retention)
    check.finish()
    assert retention is not None
    return start_by(
        identity,
        retention=retention,
        id_prefix=request.id_prefix,
        idempotency_key=request.idempotency_key,
        request_hash=_hash_start(request) if request.idempotency_key else None,
        parent=request.parent,
        method=request.method,
        description=request.description,
        created_by=request.created_by,
        metadata=metadata,
        cancel_policy=CancelPolicy(request.cancel_policy or CancelPolicy.IMMEDIATE),
        lease=lease,
        lease_token=request.lease_token,
        timeout=timeout,
        labels=labels_to_text(request.labels),
        traceparent=traceparent,
        max_running=limits.max_running,
    )


def renew_from_pb(request: producer_pb.RenewRequest, limits: Limits) -> Renew:
    """Raises InvalidArgument that names every violation."""
    check = Check()
    check.id("operation_id", request.operation_id)
    metadata = _metadata(request, check, limits)
    progress = None
    if request.HasField("progress"):
        progress = progress_from_pb(request.progress)
        if progress.done < 0:
            check.wrong("progress.done", f"is {progress.done}, must not be negative")
        if progress.total < 0:
            check.wrong("progress.total", f"is {progress.total}, must not be negative")
        elif 0 < progress.total < progress.done:
            check.wrong("progress.done", f"is {progress.done}, more than total {progress.total}")
        check.text("progress.unit", progress.unit, MAX_PROGRESS_UNIT)
        check.text("progress.message", progress.message, MAX_PROGRESS_MESSAGE)
    check.finish()
    token = hash_lease_token(request.operation_id, request.lease_token)
    return Renew(request.operation_id, token, metadata, progress)


def complete_from_pb(request: producer_pb.CompleteRequest, limits: Limits) -> Complete:
    """Raises InvalidArgument that names every violation."""
    check = Check()
    check.id("operation_id", request.operation_id)
    metadata = _metadata(request, check, limits)
    response = request.response if request.HasField("response") else _EMPTY
    check.payload("response", response, limits.max_payload_bytes)
    check.finish()
    token = hash_lease_token(request.operation_id, request.lease_token)
    return Complete(request.operation_id, payload_to_bytes(response), token, metadata)


def fail_from_pb(request: producer_pb.FailRequest, limits: Limits) -> Fail:
    """Raises InvalidArgument that names every violation."""
    check = Check()
    check.id("operation_id", request.operation_id)
    metadata = _metadata(request, check, limits)
    check.error("error", request.error, limits.max_payload_bytes)
    check.finish()
    token = hash_lease_token(request.operation_id, request.lease_token)
    return Fail(request.operation_id, failure_from_pb(request.error), token, metadata)


def _metadata(
    request: producer_pb.StartRequest
    | producer_pb.RenewRequest
    | producer_pb.CompleteRequest
    | producer_pb.FailRequest,
    check: Check,
    limits: Limits,
) -> bytes | None:
    if not request.HasField("metadata"):
        return None
    check.payload("metadata", request.metadata, limits.max_payload_bytes)
    return payload_to_bytes(request.metadata)


def _hash_start(request: producer_pb.StartRequest) -> bytes:
    """Tells requests under the same key apart; whoever repeats one may have chosen a new token."""
    same = producer_pb.StartRequest()
    same.CopyFrom(request)
    same.ClearField("lease_token")
    return hashlib.sha256(same.SerializeToString(deterministic=True)).digest()
