"""The read of one operation, for every service that has one."""

from __future__ import annotations

from opservice.domain.operation import SECOND, Record
from opservice.methods.call import Call
from opservice.methods.guard import GuardedStore

_AGE_PER_POLL_SECOND = 20
_MAX_POLL_SECONDS = 10


async def read(store: GuardedStore, call: Call, operation_id: str, max_wait: int) -> Record:
    """The operation as it is; or, for a caller who prefers to wait, as it is at its end or after that time.

    `max_wait` is microseconds. Notes the operation with the call. Raises as GuardedStore does.
    """
    seconds = call.seconds_to_wait()
    if seconds:
        at_most = min(max_wait, int(seconds * SECOND))
        record = await store.wait(call.caller, operation_id, at_most)
    else:
        record = await store.get(call.caller, operation_id)
    call.found = record
    return record


def poll_seconds(record: Record, now: float) -> int:
    """When to ask again for an operation that runs, from now on. `now` is seconds since the epoch.

    The older an operation, the less is lost by asking seldom.
    """
    age = now - record.created_at / SECOND
    return max(1, min(_MAX_POLL_SECONDS, int(age / _AGE_PER_POLL_SECOND)))
