"""What the audit log tells of: every Start, Cancel, Delete and end of an operation, and every refusal.

An event is the line of its call, told by the logger `opservice.audit` whatever the level of the log: the
method, the code, the caller and how he showed who he is, where from, the operation, its parent, and
whether anything changed. What time does to operations is told by housekeeping.
"""

from __future__ import annotations

from opservice.api.auth import Caller
from opservice.errors import (
    KeysUnavailable,
    LimitReached,
    OperationNotFound,
    PermissionDenied,
    ServerBusy,
    Unauthenticated,
)
from opservice.operation import Start


def is_refusal(error: Exception) -> bool:
    """Whether it says no to the caller, rather than to his request."""
    hidden = isinstance(error, OperationNotFound) and error.hidden
    return hidden or isinstance(
        error, Unauthenticated | PermissionDenied | LimitReached | ServerBusy | KeysUnavailable
    )


def described(error: Exception) -> dict[str, object]:
    """What the log says of an error, which may be more than what the caller is told."""
    said: dict[str, object] = {"error": type(error).__name__}
    if isinstance(error, Unauthenticated):
        said["reason"] = error.message
    if isinstance(error, OperationNotFound) and error.hidden:
        said["hidden"] = True
    if isinstance(error, LimitReached):
        said["limited"] = error.subject
    return said


def done_by(caller: Caller) -> dict[str, object]:
    """Who it was, and what came of it."""
    identity, command, outcome = caller.identity, caller.command, caller.outcome
    said: dict[str, object] = {"subject": identity.subject, "authenticated_by": identity.source}
    if outcome is not None:
        record = outcome.record
        said |= {
            "operation_id": record.id,
            "parent": record.parent,
            "done": record.done,
            "error_code": record.error_code,
            "changed": outcome.changed,
        }
    elif command is not None:
        # Of one that was refused, or whose caller did not wait: then it may have happened.
        said["operation_id"] = command.id
        if isinstance(command, Start):
            said["parent"] = command.parent
    return said
