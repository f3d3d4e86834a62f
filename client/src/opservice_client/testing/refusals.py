"""What the server in memory refuses calls with: the statuses of the real one."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from opservice_client.retries import ERROR_DOMAIN

_LONGEST_MESSAGE = 1024


class Refusal(Exception):
    """Becomes the status of the call."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: Sequence[Message] = (),
        operation_id: str = "",
    ) -> None:
        super().__init__(message)
        info = ErrorInfo(reason=reason, domain=ERROR_DOMAIN)
        if operation_id:
            info.metadata["operation_id"] = operation_id
        self.status: Status = Status(code=code, message=shortened(message))
        for detail in (info, *details):
            self.status.details.add().Pack(detail)


def invalid(violations: Sequence[tuple[str, str]], reason: str = "INVALID_REQUEST") -> Refusal:
    """Of fields, each with what is wrong with it."""
    bad_request = BadRequest()
    for field, description in violations:
        bad_request.field_violations.add(field=field, description=description)
    message = "; ".join(f"{field}: {description}" for field, description in violations)
    return Refusal(Code.INVALID_ARGUMENT, reason, message, [bad_request])


def not_found(operation_id: str) -> Refusal:
    message = f"Operation {operation_id} not found"
    return Refusal(Code.NOT_FOUND, "OPERATION_NOT_FOUND", message, operation_id=operation_id)


def wrong_token() -> Refusal:
    message = "The lease token is not the one that started the operation."
    return Refusal(Code.PERMISSION_DENIED, "LEASE_TOKEN_MISMATCH", message)


def precondition(
    reason: str, message: str, operation_id: str, details: Sequence[Message] = ()
) -> Refusal:
    """Of an operation whose state does not allow the call."""
    return Refusal(Code.FAILED_PRECONDITION, reason, message, details, operation_id)


def stopping() -> Refusal:
    again = RetryInfo(retry_delay=Duration(seconds=1))
    message = "The server is being stopped: ask again."
    return Refusal(Code.UNAVAILABLE, "SERVER_STOPPING", message, [again])


def outdated() -> Refusal:
    """Of a stream that cannot be continued."""
    message = "The stream cannot be continued: forget what it told, and call again without a resume token."
    return Refusal(Code.ABORTED, "RESUME_TOKEN_EXPIRED", message)


def unimplemented(what: str) -> Refusal:
    """Of what only the real server has."""
    message = (
        f"The server in memory of opservice_client.testing has no {what}: install opservice, and tests run"
        " on the real server"
    )
    return Refusal(Code.UNIMPLEMENTED, "NOT_IN_MEMORY", message)


def shortened(message: str) -> str:
    """With at most 1,024 characters."""
    if len(message) <= _LONGEST_MESSAGE:
        return message
    return message[: _LONGEST_MESSAGE - 1] + "…"
