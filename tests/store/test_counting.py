"""The metrics of operations: each end is counted once, whatever brought it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest

from opservice.domain.operation import (
    DAY,
    SECOND,
    Cancel,
    CancelPolicy,
    Command,
    Complete,
    Delete,
    DeleteExpired,
    EndCancelGrace,
    Fail,
    LapseLeases,
    ReachTimeouts,
    Start,
    Sweep,
    new_id,
)
from opservice.store.engine import Database
from opservice.store.service import OperationStore
from store.conftest import (
    ABORTED,
    CANCELLED,
    DEADLINE_EXCEEDED,
    INTERNAL,
    Clock,
    repository_on,
)
from support.metrics import counted

OUTCOMES = ("completed", "failed", "cancelled", "lapsed", "timed_out")
HOUR = 3600 * SECOND


@pytest.fixture
async def store(database: Database, clock: Clock) -> AsyncIterator[OperationStore]:
    store = OperationStore(database, repository_on(clock))
    yield store
    await store.close()


class Counted:
    """What was counted of operations since this was made."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> dict[str, tuple[float, float, float]]:
        total = "opservice_operations_ended_total"
        seconds = "opservice_operation_duration_seconds"
        return {
            outcome: (
                counted(total, outcome=outcome),
                counted(f"{seconds}_count", outcome=outcome),
                counted(f"{seconds}_sum", outcome=outcome),
            )
            for outcome in OUTCOMES
        }

    def ended(self) -> dict[str, tuple[float, float, float]]:
        """By outcome: how many, how many of which the duration is known, and the seconds of those."""
        now = self._now()
        return {
            outcome: (
                now[outcome][0] - count,
                now[outcome][1] - known,
                round(now[outcome][2] - seconds, 3),
            )
            for outcome, (count, known, seconds) in self._before.items()
            if now[outcome] != self._before[outcome]
        }


@pytest.mark.parametrize(
    ("start", "sweep", "outcome"),
    [
        (partial(Start, lease=HOUR), LapseLeases(ABORTED, 10), "lapsed"),
        (partial(Start, timeout=HOUR), ReachTimeouts(DEADLINE_EXCEEDED, 10), "timed_out"),
        (
            partial(Start, cancel_policy=CancelPolicy.COOPERATIVE),
            EndCancelGrace(HOUR, 10),
            "cancelled",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_time_ends_is_counted_once_with_its_duration(
    store: OperationStore, clock: Clock, start: Callable[..., Start], sweep: Sweep, outcome: str
) -> None:
    ids = [new_id() for _ in range(3)]
    await asyncio.gather(*(store.apply(start(id_, DAY)) for id_ in ids))
    if outcome == "cancelled":
        await asyncio.gather(*(store.apply(Cancel(id_, CANCELLED)) for id_ in ids))
    clock.advance(2 * HOUR)
    since = Counted()

    await store.sweep(sweep)
    await store.sweep(sweep)

    assert since.ended() == {outcome: (3, 3, 3 * 7200)}


async def test_what_a_call_ends_is_counted_once_with_its_duration(
    store: OperationStore, clock: Clock
) -> None:
    ids = [new_id() for _ in range(3)]
    await asyncio.gather(*(store.apply(Start(id_, DAY)) for id_ in ids))
    clock.advance(HOUR)
    ends: list[Command] = [
        Complete(ids[0], b""),
        Fail(ids[1], INTERNAL),
        Cancel(ids[2], CANCELLED),
    ]
    since = Counted()

    for _ in range(2):
        await asyncio.gather(*map(store.apply, ends))

    once = (1, 1, 3600)
    assert since.ended() == {"completed": once, "failed": once, "cancelled": once}


async def test_what_is_deleted_has_not_ended_once_more(store: OperationStore, clock: Clock) -> None:
    id_ = new_id()
    await store.apply(Start(id_, HOUR))
    await store.apply(Complete(id_, b""))
    clock.advance(2 * HOUR)
    since = Counted()

    assert (await store.sweep(DeleteExpired(10))).ids == (id_,)

    assert since.ended() == {}


async def test_what_a_call_deletes_is_counted_once(store: OperationStore, clock: Clock) -> None:
    deleted, expired = new_id(), new_id()
    for id_ in (deleted, expired):
        await store.apply(Start(id_, HOUR))
        await store.apply(Complete(id_, b""))

    def deletions() -> dict[str, float]:
        total = "opservice_operations_deleted_total"
        return {reason: counted(total, reason=reason) for reason in ("call", "expired")}

    before = deletions()
    await store.apply(Delete(deleted))
    clock.advance(2 * HOUR)

    assert set((await store.sweep(DeleteExpired(10))).ids) == {deleted, expired}

    assert deletions() == {reason: count + 1 for reason, count in before.items()}


async def test_only_what_others_were_notified_of_counts_as_sent(
    database: Database, clock: Clock
) -> None:
    """On SQLite nothing is sent: each commit shows to all who look."""

    before = counted("opservice_hints_sent_total")
    store = OperationStore(database, repository_on(clock))
    id_ = new_id()
    await store.apply(Start(id_, HOUR))
    await store.apply(Complete(id_, b""))
    await store.close()  # after what is being sent

    sent = counted("opservice_hints_sent_total") - before
    assert sent == (0 if database.driver.embedded else 1)
