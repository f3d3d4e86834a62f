"""Many operations at once, or many replicas at one operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from sqlalchemy import Connection, text

from opservice.domain.errors import IdempotencyKeyReused, OperationDone, OpserviceError
from opservice.domain.operation import (
    DAY,
    SECOND,
    Cancel,
    CancelPolicy,
    Command,
    Complete,
    DeleteExpired,
    EndCancelGrace,
    Fail,
    Failure,
    LapseLeases,
    Outcome,
    ReachTimeouts,
    Start,
    Sweep,
    derive_id,
    hash_lease_token,
    new_id,
)
from opservice.store.engine import Database
from opservice.store.repository import Repository
from opservice.store.sql import database_clock
from support.replicas import REPOSITORY, Replicas, apply, apply_one, find, sweep

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
ENDED = Failure(10, b"ended")

AN_HOUR_AGO = Repository(database_clock() - HOUR)

SWEEPS: dict[str, Sweep] = {
    "leases": LapseLeases(ENDED, 60),
    "timeouts": ReachTimeouts(ENDED, 60),
    "cancel grace": EndCancelGrace(MINUTE, 60),
    "retention": DeleteExpired(60),
}

ROUNDS = pytest.mark.parametrize("rounds", [5, pytest.param(50, marks=pytest.mark.slow)])


@pytest.fixture
def replicas(database_url: str) -> Iterator[Replicas]:
    opened = Replicas(database_url, patient=True)
    yield opened
    opened.close()


def start_due(database: Database, kind: str, count: int) -> list[str]:
    """Operations for which the time of this sweep has come."""
    ids = [new_id() for _ in range(count)]
    lease, timeout = (MINUTE, None) if kind == "leases" else (None, MINUTE)
    retention = MINUTE if kind == "retention" else 30 * DAY
    policy = CancelPolicy.COOPERATIVE if kind == "cancel grace" else CancelPolicy.IMMEDIATE
    commands: list[Command] = [
        Start(id_, retention, cancel_policy=policy, lease=lease, timeout=timeout) for id_ in ids
    ]
    if kind in ("cancel grace", "retention"):
        commands += [Cancel(id_, ENDED) for id_ in ids]
    apply(database, *commands, repository=AN_HOUR_AGO)
    return ids


def sweep_all(database: Database, command: Sweep) -> list[str]:
    """As housekeeping does: until a sweep finds less than it may."""
    swept: list[str] = []
    while True:
        ids = sweep(database, command)
        swept += ids
        if len(ids) < command.limit:
            return swept


@pytest.mark.parametrize("kind", SWEEPS)
def test_two_replicas_sweep_each_due_operation_exactly_once(replicas: Replicas, kind: str) -> None:
    due = start_due(replicas[0], kind, 500)
    swept = replicas.race(*[partial(sweep_all, command=SWEEPS[kind])] * 2)
    assert Counter(swept[0] + swept[1]) == Counter(due)


@pytest.mark.parametrize("kind", SWEEPS)
def test_a_sweep_changes_no_more_than_its_limit_when_the_database_expected_none_to_be_due(
    database: Database, kind: str
) -> None:
    ids = [new_id() for _ in range(400)]
    apply(database, *(Start(id_, DAY) for id_ in ids), *(Complete(id_, b"answer") for id_ in ids))
    database.read(lambda connection: connection.execute(text("ANALYZE")))
    start_due(database, kind, 100)
    assert len(sweep(database, SWEEPS[kind])) == SWEEPS[kind].limit


def apply_once(database: Database, commands: Sequence[Command]) -> list[Outcome | OpserviceError]:
    """Applies them, and fails when the transaction had to be repeated, as after a deadlock."""
    attempts = 0

    def work(connection: Connection) -> list[Outcome | OpserviceError]:
        nonlocal attempts
        attempts += 1
        return REPOSITORY.apply(connection, commands)

    outcomes = database.write(work)
    assert attempts == 1
    return outcomes


@ROUNDS
def test_batches_over_the_same_operations_in_opposite_order_never_deadlock(
    replicas: Replicas, rounds: int
) -> None:
    for _ in range(rounds):
        ids = [new_id() for _ in range(100)]
        apply(replicas[0], *(Start(id_, DAY) for id_ in ids))
        completed, failed = replicas.race(
            partial(apply_once, commands=[Complete(id_, b"answer") for id_ in ids]),
            partial(apply_once, commands=[Fail(id_, ENDED) for id_ in reversed(ids)]),
        )
        for one, other in zip(completed, reversed(failed), strict=True):
            winner, loser = (one, other) if isinstance(one, Outcome) else (other, one)
            assert isinstance(winner, Outcome)
            assert winner.changed
            assert isinstance(loser, OperationDone)
            assert loser.record == winner.record


@ROUNDS
def test_batches_that_start_the_same_operations_in_opposite_order_never_deadlock(
    replicas: Replicas, rounds: int
) -> None:
    for _ in range(rounds):
        starts = [Start(new_id(), DAY, request_hash=b"request") for _ in range(100)]
        one, other = replicas.race(
            partial(apply_once, commands=starts), partial(apply_once, commands=starts[::-1])
        )
        for pair in zip(one, reversed(other), strict=True):
            assert sorted(isinstance(o, Outcome) and o.changed for o in pair) == [False, True]


def start_with_token(database: Database, operation_id: str, token: str) -> Outcome:
    hash_ = hash_lease_token(operation_id, token)
    command = Start(operation_id, DAY, lease=HOUR, lease_token_hash=hash_, request_hash=b"request")
    return apply_one(database, command)


@ROUNDS
def test_of_sixteen_that_start_the_same_operation_one_creates_and_owns_it(
    replicas: Replicas, rounds: int
) -> None:
    for number in range(rounds):
        id_ = derive_id("ops", "caller", "parent", f"key {number}")
        outcomes = replicas.race(
            *(
                partial(start_with_token, operation_id=id_, token=f"the token of replica {index}")
                for index in range(16)
            )
        )
        (owner,) = (outcome for outcome in outcomes if outcome.owned)
        assert [outcome.changed for outcome in outcomes] == [o.owned for o in outcomes]
        assert {outcome.record for outcome in outcomes} == {owner.record}
        assert replicas.agreed(id_) == owner.record


@ROUNDS
def test_of_two_requests_with_one_key_one_starts_and_the_other_is_refused(
    replicas: Replicas, rounds: int
) -> None:
    for number in range(rounds):
        id_ = derive_id("ops", "caller", "parent", f"key {number}")
        outcomes = [
            outcome
            for (outcome,) in replicas.race(
                *(
                    partial(apply_once, commands=[Start(id_, DAY, request_hash=request)])
                    for request in (b"one", b"another")
                )
            )
        ]
        (started,) = (outcome for outcome in outcomes if isinstance(outcome, Outcome))
        assert sum(isinstance(outcome, IdempotencyKeyReused) for outcome in outcomes) == 1
        assert replicas.agreed(id_) == started.record


@ROUNDS
def test_an_expired_operation_that_two_start_again_is_started_once(
    replicas: Replicas, rounds: int
) -> None:
    for number in range(rounds):
        id_ = derive_id("ops", "caller", "parent", f"key {number}")
        apply(replicas[0], Start(id_, MINUTE), Complete(id_, b"old"), repository=AN_HOUR_AGO)
        assert find(replicas[0], id_) is None
        outcomes = replicas.race(
            *(
                partial(start_with_token, operation_id=id_, token=f"the token of replica {index}")
                for index in range(4)
            )
        )
        assert sum(outcome.changed for outcome in outcomes) == 1
        assert {outcome.record for outcome in outcomes} == {replicas.agreed(id_)}
