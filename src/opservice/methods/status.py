"""The status mapping: what each error is on the wire, in one table, and the details that go with it."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import (
    BadRequest,
    ErrorInfo,
    QuotaFailure,
    RequestInfo,
    RetryInfo,
)
from google.rpc.status_pb2 import Status

from opservice.domain.errors import (
    CredentialsExpired,
    CredentialsMissing,
    EndpointNotFound,
    IamNotServed,
    IdempotencyKeyReused,
    InvalidArgument,
    KeysUnavailable,
    LeaseTokenMismatch,
    LimitReached,
    MalformedRequest,
    OperationDone,
    OperationNotCancellable,
    OperationNotFound,
    OperationRunning,
    PermissionDenied,
    PreconditionFailed,
    RateLimited,
    RequestTooLarge,
    ServerBusy,
    ServerStopping,
    ServiceUnknown,
    StoreBusy,
    StoreFileLost,
    StoreFull,
    StoreUnavailable,
    TooManyFailures,
    TooManyHeaders,
    TooManyLists,
    TooManyOperations,
    TooManyWaits,
    Unauthenticated,
    WatchOutdated,
)
from opservice.methods.convert import ERROR_DOMAIN

RETRY_SECONDS = 1

_MAX_MESSAGE = 1024
"""Characters of a message: status and details travel as headers, of which clients accept 8 KiB."""


@dataclass(frozen=True, slots=True)
class ErrorStatus:
    """What an error is on the wire: a google.rpc.Code, and the reason in its ErrorInfo.

    With `retry` the status says when to try again.
    """

    code: int
    reason: str
    retry: bool = False


ERROR_STATUSES: dict[type[BaseException], ErrorStatus] = {
    InvalidArgument: ErrorStatus(Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
    IdempotencyKeyReused: ErrorStatus(Code.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_REUSED"),
    OperationNotFound: ErrorStatus(Code.NOT_FOUND, "OPERATION_NOT_FOUND"),
    EndpointNotFound: ErrorStatus(Code.NOT_FOUND, "ENDPOINT_NOT_FOUND"),
    ServiceUnknown: ErrorStatus(Code.NOT_FOUND, "SERVICE_UNKNOWN"),
    MalformedRequest: ErrorStatus(Code.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
    # Not RESOURCE_EXHAUSTED: clients repeat that, and it would not help.
    RequestTooLarge: ErrorStatus(Code.INVALID_ARGUMENT, "REQUEST_TOO_LARGE"),
    IamNotServed: ErrorStatus(Code.UNIMPLEMENTED, "IAM_NOT_SERVED"),
    TooManyHeaders: ErrorStatus(Code.RESOURCE_EXHAUSTED, "TOO_MANY_HEADERS"),
    Unauthenticated: ErrorStatus(Code.UNAUTHENTICATED, "CREDENTIALS_INVALID"),
    CredentialsMissing: ErrorStatus(Code.UNAUTHENTICATED, "CREDENTIALS_MISSING"),
    CredentialsExpired: ErrorStatus(Code.UNAUTHENTICATED, "CREDENTIALS_EXPIRED"),
    KeysUnavailable: ErrorStatus(Code.UNAVAILABLE, "KEYS_UNAVAILABLE", retry=True),
    PermissionDenied: ErrorStatus(Code.PERMISSION_DENIED, "PERMISSION_DENIED"),
    LeaseTokenMismatch: ErrorStatus(Code.PERMISSION_DENIED, "LEASE_TOKEN_MISMATCH"),
    OperationDone: ErrorStatus(Code.FAILED_PRECONDITION, "OPERATION_DONE"),
    OperationNotCancellable: ErrorStatus(Code.FAILED_PRECONDITION, "OPERATION_NOT_CANCELLABLE"),
    OperationRunning: ErrorStatus(Code.FAILED_PRECONDITION, "OPERATION_RUNNING"),
    StoreUnavailable: ErrorStatus(Code.UNAVAILABLE, "STORE_UNAVAILABLE", retry=True),
    StoreBusy: ErrorStatus(Code.UNAVAILABLE, "STORE_UNAVAILABLE", retry=True),
    StoreFileLost: ErrorStatus(Code.UNAVAILABLE, "STORE_UNAVAILABLE", retry=True),
    StoreFull: ErrorStatus(Code.RESOURCE_EXHAUSTED, "STORE_FULL", retry=True),
    ServerBusy: ErrorStatus(Code.RESOURCE_EXHAUSTED, "SERVER_BUSY", retry=True),
    RateLimited: ErrorStatus(Code.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry=True),
    TooManyFailures: ErrorStatus(Code.RESOURCE_EXHAUSTED, "TOO_MANY_FAILURES", retry=True),
    TooManyWaits: ErrorStatus(Code.RESOURCE_EXHAUSTED, "TOO_MANY_WAITS", retry=True),
    TooManyLists: ErrorStatus(Code.RESOURCE_EXHAUSTED, "TOO_MANY_LISTS", retry=True),
    TooManyOperations: ErrorStatus(Code.RESOURCE_EXHAUSTED, "TOO_MANY_OPERATIONS", retry=True),
    WatchOutdated: ErrorStatus(Code.ABORTED, "RESUME_TOKEN_EXPIRED"),
    ServerStopping: ErrorStatus(Code.UNAVAILABLE, "SERVER_STOPPING", retry=True),
}
_UNEXPECTED = ErrorStatus(Code.INTERNAL, "INTERNAL")
REASONS = frozenset(each.reason for each in (*ERROR_STATUSES.values(), _UNEXPECTED))
"""All that a call may end with."""


def status_of(error: BaseException) -> ErrorStatus:
    """What the error is on the wire; INTERNAL when it is not in the table."""
    return ERROR_STATUSES.get(type(error), _UNEXPECTED)


def error_to_pb(error: BaseException, request_id: str) -> Status:
    """The status for an error; for one that is not in the table, nothing of it but INTERNAL."""
    mapped = status_of(error)
    unexpected = f"Internal error, request id {request_id}"
    message = unexpected if mapped is _UNEXPECTED else str(error)
    status = Status(code=mapped.code, message=_shortened(message))
    info = ErrorInfo(reason=mapped.reason, domain=ERROR_DOMAIN)
    if isinstance(error, PreconditionFailed):
        info.metadata["operation_id"] = error.record.id
    elif isinstance(error, OperationNotFound):
        info.metadata["operation_id"] = error.operation_id
    status.details.add().Pack(info)
    if isinstance(error, InvalidArgument):
        bad_request = BadRequest()
        for violation in error.violations:
            bad_request.field_violations.add(
                field=violation.field, description=violation.description
            )
        status.details.add().Pack(bad_request)
    if isinstance(error, OperationDone):
        status.details.add().Pack(_terminal_status(error))
    retry_seconds: float = RETRY_SECONDS
    if isinstance(error, LimitReached):
        retry_seconds = error.retry_seconds
        quota = QuotaFailure()
        quota.violations.add(subject=error.subject, description=_shortened(str(error)))
        status.details.add().Pack(quota)
    if mapped.retry:
        delay = Duration()
        delay.FromNanoseconds(int(retry_seconds * 1e9))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    if request_id:
        status.details.add().Pack(RequestInfo(request_id=request_id))
    return status


def _terminal_status(error: OperationDone) -> Status:
    """How the operation ended, short: Get shows it in full."""
    if error.record.error is None:
        return Status(code=Code.OK)
    status = Status.FromString(error.record.error)
    return Status(code=status.code, message=_shortened(status.message))


def _shortened(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 1] + "…"
