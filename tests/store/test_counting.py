"""The metrics of operations: each end is counted once, whatever brought it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from opservice.common.metrics import REGISTRY
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
                REGISTRY.get_sample_value(total, {"outcome": outcome}) or 0,
                REGISTRY.get_sample_value(f"{seconds}_count", {"outcome": outcome}) or 0,
                REGISTRY.get_sample_value(f"{seconds}_sum", {"outcome": outcome}) or 0,
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
        ({"lease": HOUR}, LapseLeases(ABORTED, 10), "lapsed"),
        ({"timeout": HOUR}, ReachTimeouts(DEADLINE_EXCEEDED, 10), "timed_out"),
        ({"cancel_policy": CancelPolicy.COOPERATIVE}, EndCancelGrace(HOUR, 10), "cancelled"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_time_ends_is_counted_once_with_its_duration(
    store: OperationStore, clock: Clock, start: dict[str, int], sweep: Sweep, outcome: str
) -> None:
    ids = [new_id() for _ in range(3)]
    await asyncio.gather(*(store.apply(Start(id_, DAY, **start)) for id_ in ids))  # type: ignore[arg-type] # each has fields of its own
    if outcome == "cancelled":
        await asyncio.gather(*(store.apply(Cancel(id_, CANCELLED)) for id_ in ids))
    clock.advance(2 * HOUR)
    counted = Counted()

    await store.sweep(sweep)
    await store.sweep(sweep)

    assert counted.ended() == {outcome: (3, 3, 3 * 7200)}


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
    counted = Counted()

    for _ in range(2):
        await asyncio.gather(*map(store.apply, ends))

    once = (1, 1, 3600)
    assert counted.ended() == {"completed": once, "failed": once, "cancelled": once}


async def test_what_is_deleted_has_not_ended_once_more(store: OperationStore, clock: Clock) -> None:
    id_ = new_id()
    await store.apply(Start(id_, HOUR))
    await store.apply(Complete(id_, b""))
    clock.advance(2 * HOUR)
    counted = Counted()

    assert (await store.sweep(DeleteExpired(10))).ids == (id_,)

    assert counted.ended() == {}


async def test_what_a_call_deletes_is_counted_once(store: OperationStore, clock: Clock) -> None:
    deleted, expired = new_id(), new_id()
    for id_ in (deleted, expired):
        await store.apply(Start(id_, HOUR))
        await store.apply(Complete(id_, b""))

    def counted() -> dict[str, float]:
        total = "opservice_operations_deleted_total"
        return {
            reason: REGISTRY.get_sample_value(total, {"reason": reason}) or 0
            for reason in ("call", "expired")
        }

    before = counted()
    await store.apply(Delete(deleted))
    clock.advance(2 * HOUR)

    assert set((await store.sweep(DeleteExpired(10))).ids) == {deleted, expired}

    assert counted() == {reason: count + 1 for reason, count in before.items()}


async def test_only_what_others_were_notified_of_counts_as_sent(
    database: Database, clock: Clock
) -> None:
    """On SQLite nothing is sent: each commit shows to all who look."""

    def sent() -> float:
        return REGISTRY.get_sample_value("opservice_hints_sent_total") or 0

    before = sent()
    store = OperationStore(database, repository_on(clock))
    id_ = new_id()
    await store.apply(Start(id_, HOUR))
    await store.apply(Complete(id_, b""))
    await store.close()  # after what is being sent

    assert sent() - before == (0 if database.driver.embedded else 1)
