"""The metrics of operations: what commands and sweeps have done to them."""

from __future__ import annotations

from opservice.common.metrics import DELETED, ENDED, OPERATION_SECONDS, RENEWED, STARTED
from opservice.domain.operation import (
    SECOND,
    Cancel,
    Command,
    Complete,
    Delete,
    DeleteExpired,
    EndCancelGrace,
    Fail,
    LapseLeases,
    ReachTimeouts,
    Record,
    Renew,
    Start,
    Sweep,
    Swept,
)

_CANCELLED = 1
"""The google.rpc.Code of an operation that was cancelled."""
_SWEPT: dict[type[Sweep], str] = {
    LapseLeases: "lapsed",
    ReachTimeouts: "timed_out",
    EndCancelGrace: "cancelled",
}


def count_outcome(command: Command, record: Record) -> None:
    """Counts a command that has changed an operation."""
    match command:
        case Start():
            STARTED.inc()
        case Renew():
            RENEWED.inc()
        case Delete():
            DELETED.labels("call").inc()
        case Complete() | Fail() | Cancel() if record.done:
            outcome = "completed"
            if record.error_code is not None:
                outcome = "cancelled" if record.error_code == _CANCELLED else "failed"
            ENDED.labels(outcome).inc()
            seconds = (record.modified_at - record.created_at) / SECOND
            OPERATION_SECONDS.labels(outcome).observe(seconds)
        case _:
            pass  # a Cancel that its producer is to answer


def count_swept(sweep: Sweep, swept: Swept) -> None:
    """Counts operations that a sweep has ended or deleted."""
    if not swept.ids:
        return
    if isinstance(sweep, DeleteExpired):
        DELETED.labels("expired").inc(swept.expired)
        return
    outcome = _SWEPT[type(sweep)]
    ENDED.labels(outcome).inc(len(swept.ids))
    seconds = OPERATION_SECONDS.labels(outcome)
    for lasted in swept.lasted:
        seconds.observe(lasted / SECOND)
