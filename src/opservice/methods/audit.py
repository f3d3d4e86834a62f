"""What the audit log tells of: every Start, Cancel, Delete and end of an operation, and every refusal.

An event is the line of its call. The logger `opservice.audit` tells it, whatever the level of the log. It
has the method, the code, the caller, how they were authenticated, where the call came from, the operation,
its parent, and whether anything changed. Housekeeping tells of what it does to operations.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from opservice.auth.authenticator import Caller
from opservice.domain.errors import (
    IamNotServed,
    KeysUnavailable,
    LimitReached,
    MalformedRequest,
    OperationNotFound,
    PermissionDenied,
    RequestTooLarge,
    ServerBusy,
    TooManyHeaders,
    Unauthenticated,
)
from opservice.domain.identity import NOBODY
from opservice.domain.operation import Start

_CAUSED_BY_ANYBODY = (
    Unauthenticated,
    KeysUnavailable,
    LimitReached,
    RequestTooLarge,
    MalformedRequest,
    TooManyHeaders,
    IamNotServed,
    ServerBusy,
)
LINES_A_SECOND = 50
"""Of refusals of one address."""
REFLECTION_LINES_A_SECOND = 1
"""The same, of calls of reflection."""
_SUMMED_SECONDS = 1
_MAX_ADDRESSES = 1_000


def is_refusal(error: Exception, caller: Caller | None) -> bool:
    """Whether it says no to the caller, rather than to their request.

    An operation that is not found may exist, hidden from the caller. Both are told: if only hidden ones were,
    the answer for them would take longer, by the time that a line takes.
    """
    if isinstance(error, OperationNotFound):
        return caller is not None and not caller.identity.sees_everything
    return isinstance(
        error, Unauthenticated | PermissionDenied | LimitReached | ServerBusy | KeysUnavailable
    )


class Sums:
    """Limits the lines about what anybody can cause as often as they like.

    Each address gets so many lines a second. At the end of the second `sum_up` is given the number of the
    others: by address and by error.
    """

    def __init__(
        self, sum_up: Callable[[str, str, int], None], lines_a_second: int = LINES_A_SECOND
    ) -> None:
        self._sum_up = sum_up
        self._most = lines_a_second
        self._told: Counter[str] = Counter()
        self._untold: Counter[tuple[str, str]] = Counter()
        self._ends: asyncio.TimerHandle | None = None

    def tells(self, address: str, error: Exception) -> bool:
        """Whether the error is to have a line of its own; if not, it is counted."""
        if not isinstance(error, _CAUSED_BY_ANYBODY):
            return True
        if self._ends is None:
            loop = asyncio.get_running_loop()
            self._ends = loop.call_later(_SUMMED_SECONDS, self._end)
        if address not in self._told and len(self._told) >= _MAX_ADDRESSES:
            address = "others"
        self._told[address] += 1
        if self._told[address] <= self._most:
            return True
        self._untold[address, type(error).__name__] += 1
        return False

    def _end(self) -> None:
        self._ends = None
        untold = self._untold.copy()
        self._told.clear()
        self._untold.clear()
        for (address, what), count in untold.items():
            self._sum_up(address, what, count)


def described(error: Exception) -> dict[str, object]:
    """What the log says of an error. It may be more than the caller is told."""
    said: dict[str, object] = {"error": type(error).__name__}
    if isinstance(error, Unauthenticated):
        said["reason"] = error.message
    if isinstance(error, OperationNotFound) and error.hidden:
        said["hidden"] = True
    if isinstance(error, LimitReached):
        said["limited"] = error.subject
    return said


def done_by(caller: Caller) -> dict[str, object]:
    """Who the caller is, and what came of their command. Empty for NOBODY, who was not asked who they are."""
    identity, command, outcome = caller.identity, caller.command, caller.outcome
    if identity is NOBODY:
        return {}
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
    if caller.not_found:
        said |= {"not_found": caller.not_found, "operation_ids": caller.first_not_found}
    return said
