"""Start with a limit on how many operations of its parent may run at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from opservice.domain.errors import IdempotencyKeyReused, OpserviceError, TooManyOperations
from opservice.domain.operation import (
    DAY,
    SECOND,
    Cancel,
    Command,
    Complete,
    Fail,
    LapseLeases,
    Outcome,
    Start,
    derive_id,
    new_id,
)
from opservice.store.engine import Database
from opservice.store.repository import Repository
from store.conftest import ABORTED, CANCELLED, INTERNAL, Clock, Ops
from store.contract.test_plans import full, plans, scans, uses
from support.replicas import REPOSITORY, Replicas, apply

__all__ = ["full"]

PARENT = "folders/f"
KEYED = derive_id("ops", "caller", PARENT, "key")


def start(limit: int | None, parent: str = PARENT) -> Start:
    return Start(new_id(), DAY, parent=parent, lease=SECOND, max_running=limit)


def keyed(limit: int, request: bytes = b"request") -> Start:
    """A Start with an idempotency key."""
    return Start(KEYED, DAY, parent=PARENT, request_hash=request, max_running=limit)


def test_as_many_as_the_limit_may_run(ops: Ops) -> None:
    started = [ops.apply(start(3)) for _ in range(3)]

    assert all(outcome.changed for outcome in started)


def test_one_more_than_the_limit_is_refused(ops: Ops) -> None:
    for _ in range(3):
        ops.apply(start(3))

    ops.refusal(start(3), TooManyOperations)


def test_what_is_refused_leaves_nothing(ops: Ops) -> None:
    ops.apply(start(1))
    refused = start(1)

    ops.refusal(refused, TooManyOperations)

    assert ops.find(refused.id) is None


def test_the_refusal_names_the_limit_and_the_parent(ops: Ops) -> None:
    for _ in range(2):
        ops.apply(start(2))

    refusal = ops.refusal(start(2), TooManyOperations)

    assert "2 in folders/f" in str(refusal)
    assert refusal.subject == "parent:folders/f"


def test_the_refusal_says_that_there_is_no_parent(ops: Ops) -> None:
    ops.apply(start(1, parent=""))

    refusal = ops.refusal(start(1, parent=""), TooManyOperations)

    assert "1 in the operations without a parent" in str(refusal)


def test_a_limit_of_none_running_refuses_every_start(ops: Ops) -> None:
    ops.refusal(start(0), TooManyOperations)


def test_operations_of_other_parents_do_not_count(ops: Ops) -> None:
    for parent in ("", "folders", "folders/f/g", "folders/ff"):
        ops.apply(start(None, parent=parent))

    assert ops.apply(start(1)).changed


def test_those_that_were_started_without_a_limit_count(ops: Ops) -> None:
    ops.apply(start(None))

    ops.refusal(start(1), TooManyOperations)


def test_a_start_without_a_limit_is_not_refused(ops: Ops) -> None:
    ops.apply(start(1))

    assert ops.apply(start(None)).changed


def test_within_one_batch_those_beyond_the_limit_are_refused(ops: Ops) -> None:
    ops.apply(start(3))

    outcomes = ops.batch([start(3) for _ in range(5)])

    assert sum(isinstance(outcome, Outcome) for outcome in outcomes) == 2
    assert sum(isinstance(outcome, TooManyOperations) for outcome in outcomes) == 3


@pytest.mark.parametrize(
    "end",
    [
        lambda id_: Complete(id_, b"response"),
        lambda id_: Fail(id_, INTERNAL),
        lambda id_: Cancel(id_, CANCELLED),
    ],
    ids=["Complete", "Fail", "Cancel"],
)
def test_there_is_room_again_when_one_ends(ops: Ops, end: Callable[[str], Command]) -> None:
    first = ops.apply(start(1)).record
    ops.refusal(start(1), TooManyOperations)

    ops.apply(end(first.id))

    assert ops.apply(start(1)).changed


def test_there_is_room_again_when_a_lease_has_lapsed(ops: Ops, clock: Clock) -> None:
    ops.apply(start(1))
    clock.advance(SECOND)

    ops.sweep(LapseLeases(ABORTED, 10))

    assert ops.apply(start(1)).changed


def test_a_repeat_at_the_limit_answers_the_operation_that_runs(ops: Ops) -> None:
    first = ops.apply(keyed(1))

    repeat = ops.apply(keyed(1))

    assert (repeat.record, repeat.changed) == (first.record, False)


def test_a_repeat_at_the_limit_answers_the_operation_that_is_done(ops: Ops) -> None:
    ops.apply(keyed(1))
    done = ops.apply(Complete(KEYED, b"response")).record
    ops.apply(start(1))

    assert ops.apply(keyed(1)).record == done


def test_the_key_with_another_request_is_refused_as_such_also_at_the_limit(ops: Ops) -> None:
    ops.apply(keyed(1))

    ops.refusal(keyed(1, b"another"), IdempotencyKeyReused)


def test_a_key_whose_operation_has_expired_starts_a_new_one_only_where_there_is_room(
    ops: Ops, clock: Clock
) -> None:
    ops.apply(keyed(1))
    ops.apply(Complete(KEYED, b"response"))
    clock.advance(2 * DAY)
    ops.apply(start(1))

    ops.refusal(keyed(1), TooManyOperations)


@pytest.fixture
def replicas(database_url: str) -> Iterator[Replicas]:
    opened = Replicas(database_url, patient=True)
    yield opened
    opened.close()


def start_many(
    database: Database, limit: int, parent: str = PARENT
) -> list[Outcome | OpserviceError]:
    """In transactions of different sizes."""
    return [
        outcome
        for size in (1, 2, 3, 1, 2, 3)
        for outcome in apply(database, *(start(limit, parent) for _ in range(size)))
    ]


@pytest.mark.parametrize("backend", ["sqlite"])
def test_on_sqlite_the_limit_is_exact_however_many_start_at_the_same_time(
    replicas: Replicas,
) -> None:
    for round_ in range(1, 6):
        limit = 6 * round_
        started = limit - 6  # by the rounds before

        raced = replicas.race(*[partial(start_many, limit=limit)] * 4)

        outcomes = [outcome for each in raced for outcome in each]
        assert sum(isinstance(outcome, Outcome) for outcome in outcomes) == limit - started
        assert sum(isinstance(outcome, TooManyOperations) for outcome in outcomes) == 42


@pytest.mark.parametrize("backend", ["postgresql"])
def test_on_postgresql_starts_at_the_same_moment_exceed_the_limit_by_it_for_each_further_replica(
    replicas: Replicas,
) -> None:
    """As the setting says."""
    with ExitStack() as open_transactions:
        for index in range(3):
            connection = open_transactions.enter_context(replicas[index].writer.begin())
            outcomes = REPOSITORY.apply(connection, [start(2) for _ in range(5)])
            assert sum(isinstance(outcome, Outcome) for outcome in outcomes) == 2

    (outcome,) = apply(replicas[0], start(6))
    assert isinstance(outcome, TooManyOperations)
    (outcome,) = apply(replicas[0], start(7))
    assert isinstance(outcome, Outcome)


@pytest.mark.parametrize("backend", ["postgresql"])
def test_on_postgresql_the_limit_is_exceeded_by_no_more_than_it_for_each_further_replica(
    replicas: Replicas,
) -> None:
    for round_ in range(5):
        limit, parent = 3, f"folders/{round_}"

        raced = replicas.race(*[partial(start_many, limit=limit, parent=parent)] * 4)

        outcomes = [outcome for each in raced for outcome in each]
        started = sum(isinstance(outcome, Outcome) for outcome in outcomes)
        assert limit <= started <= 4 * limit
        (outcome,) = apply(replicas[0], start(limit, parent))
        assert isinstance(outcome, TooManyOperations)


@pytest.mark.parametrize("parent", ["folders/3", "folders/none"])
def test_running_operations_are_counted_by_the_index_of_those_of_a_parent(
    full: Database, parent: str
) -> None:
    command = start(50, parent=parent)

    count, _ = plans(full, lambda connection: Repository().apply(connection, [command]))

    assert uses(count, "operations_running"), count
    assert not scans(count), count
