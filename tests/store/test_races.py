"""Every transition of an operation against its rivals, each on a replica of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import pytest

from opservice.domain.errors import OperationDone, OperationNotFound, OperationRunning
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
    Failure,
    LapseLeases,
    Outcome,
    Progress,
    ReachTimeouts,
    Record,
    Renew,
    Start,
    Sweep,
    new_id,
)
from opservice.store.engine import Database
from opservice.store.repository import Repository
from opservice.store.sql import database_clock
from support.replicas import Replicas, apply, apply_one, sweep

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
TOKEN = b"the hash of a token"
PROGRESS = Progress(1, 2, "layers", "half way")

AN_HOUR_AGO = Repository(database_clock() - HOUR)
IN_AN_HOUR = Repository(database_clock() + HOUR)

ROUNDS = pytest.mark.parametrize("rounds", [8, pytest.param(200, marks=pytest.mark.slow)])


@dataclass(frozen=True)
class Verdict:
    """What a contender was told."""

    won: bool
    record: Record | None = None
    """The operation that it was shown, if any."""


@dataclass(frozen=True)
class Rival:
    """A transition, and the result that it leaves."""

    name: str
    move: Callable[[str], Command] | Sweep
    response: bytes | None = None
    error: Failure | None = None

    def run(self, database: Database, operation_id: str) -> Verdict:
        if isinstance(self.move, Sweep):
            return Verdict(operation_id in sweep(database, self.move))
        (outcome,) = apply(database, self.move(operation_id))
        if isinstance(outcome, Outcome):
            return Verdict(outcome.changed, outcome.record)
        assert isinstance(outcome, OperationDone), outcome
        return Verdict(False, outcome.record)

    def wins(self, database: Database, operation_id: str) -> bool:
        return self.run(database, operation_id).won


FAILED, CANCELLED = Failure(13, b"failed"), Failure(1, b"cancelled")
LAPSED, TIMED_OUT = Failure(10, b"lapsed"), Failure(4, b"timed out")

COMPLETE = Rival("Complete", lambda id_: Complete(id_, b"answer", TOKEN), response=b"answer")
FAIL = Rival("Fail", lambda id_: Fail(id_, FAILED, TOKEN), error=FAILED)
CANCEL = Rival("Cancel", lambda id_: Cancel(id_, CANCELLED), error=CANCELLED)
LAPSE = Rival("LapseLeases", LapseLeases(LAPSED, 100), error=LAPSED)
TIME_OUT = Rival("ReachTimeouts", ReachTimeouts(TIMED_OUT, 100), error=TIMED_OUT)
END_GRACE = Rival("EndCancelGrace", EndCancelGrace(MINUTE, 100), error=CANCELLED)


def each(argument: str, *rivals: Rival) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(argument, [pytest.param(r, id=r.name) for r in rivals])


@pytest.fixture
def replicas(database_url: str) -> Iterator[Replicas]:
    opened = Replicas(database_url, patient=True)
    yield opened
    opened.close()


def start(database: Database, policy: CancelPolicy = CancelPolicy.IMMEDIATE) -> Record:
    """An operation whose lease and timeout are overdue."""
    command = Start(
        new_id(),
        30 * DAY,
        cancel_policy=policy,
        lease=MINUTE,
        lease_token_hash=TOKEN,
        timeout=MINUTE,
    )
    return apply_one(database, command, AN_HOUR_AGO).record


def start_cancelling(database: Database) -> Record:
    """An operation whose lease, timeout and cancel grace are overdue."""
    record = start(database, CancelPolicy.COOPERATIVE)
    return apply_one(database, Cancel(record.id, CANCELLED), AN_HOUR_AGO).record


def assert_exactly_one_ends_it(replicas: Replicas, before: Record, one: Rival, two: Rival) -> None:
    verdicts = replicas.race(*(partial(rival.run, operation_id=before.id) for rival in (one, two)))
    assert sorted(verdict.won for verdict in verdicts) == [False, True]
    winner = one if verdicts[0].won else two
    after = replicas.agreed_record(before.id)
    assert after.done
    assert after.revision == before.revision + 1
    assert after.response == winner.response
    assert after.error == (winner.error and winner.error.status)
    assert after.error_code == (winner.error and winner.error.code)
    assert {verdict.record for verdict in verdicts} <= {after, None}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param(one, two, id=f"{one.name}-{two.name}")
        for one, two in combinations((COMPLETE, FAIL, CANCEL, LAPSE, TIME_OUT), 2)
    ],
)
@ROUNDS
def test_of_two_transitions_of_a_running_operation_exactly_one_ends_it(
    replicas: Replicas, one: Rival, two: Rival, rounds: int
) -> None:
    for _ in range(rounds):
        assert_exactly_one_ends_it(replicas, start(replicas[0]), one, two)


@each("rival", COMPLETE, FAIL, LAPSE, TIME_OUT)
@ROUNDS
def test_of_the_grace_period_and_a_rival_exactly_one_ends_a_cancelling_operation(
    replicas: Replicas, rival: Rival, rounds: int
) -> None:
    for _ in range(rounds):
        before = start_cancelling(replicas[0])
        assert_exactly_one_ends_it(replicas, before, END_GRACE, rival)


@pytest.mark.parametrize("policy", [CancelPolicy.IMMEDIATE, CancelPolicy.COOPERATIVE])
@ROUNDS
def test_of_two_cancels_the_one_that_is_accepted_is_named(
    replicas: Replicas, policy: CancelPolicy, rounds: int
) -> None:
    for _ in range(rounds):
        id_ = start(replicas[0], policy).id
        alice, bob = replicas.race(
            *(partial(apply_one, command=Cancel(id_, CANCELLED, who)) for who in ("alice", "bob"))
        )
        assert [alice.changed, bob.changed].count(True) == 1
        named = "alice" if alice.changed else "bob"
        assert replicas.agreed_record(id_).cancelled_by == named


@each("sweeping", LAPSE, TIME_OUT, END_GRACE)
@ROUNDS
def test_of_two_replicas_that_sweep_exactly_one_ends_an_operation(
    replicas: Replicas, sweeping: Rival, rounds: int
) -> None:
    for _ in range(rounds):
        before = start_cancelling(replicas[0])
        assert_exactly_one_ends_it(replicas, before, sweeping, sweeping)


@each("repeated", COMPLETE, FAIL, CANCEL)
@ROUNDS
def test_the_same_command_from_two_replicas_changes_an_operation_once(
    replicas: Replicas, repeated: Rival, rounds: int
) -> None:
    for _ in range(rounds):
        assert_exactly_one_ends_it(replicas, start(replicas[0]), repeated, repeated)


def renew(database: Database, operation_id: str) -> bool:
    (outcome,) = apply(database, Renew(operation_id, TOKEN, b"renewed", PROGRESS))
    if isinstance(outcome, Outcome):
        assert outcome.changed
        assert not outcome.record.done
        return True
    assert isinstance(outcome, OperationDone), outcome
    return False


@ROUNDS
def test_a_lease_is_either_renewed_or_lapses(replicas: Replicas, rounds: int) -> None:
    for _ in range(rounds):
        before = start(replicas[0])
        renewed, lapsed = replicas.race(
            partial(renew, operation_id=before.id), partial(LAPSE.wins, operation_id=before.id)
        )
        after = replicas.agreed_record(before.id)
        assert renewed != lapsed
        assert after.done == lapsed
        assert after.revision == before.revision + 1


@each("ending", COMPLETE, FAIL, CANCEL, TIME_OUT)
@ROUNDS
def test_a_renewal_comes_before_the_end_of_an_operation_or_is_refused(
    replicas: Replicas, ending: Rival, rounds: int
) -> None:
    for _ in range(rounds):
        before = start(replicas[0])
        renewed, ended = replicas.race(
            partial(renew, operation_id=before.id), partial(ending.wins, operation_id=before.id)
        )
        if isinstance(ending.move, Sweep) and not ended:
            # It passed over a row that was being renewed; the next one does not.
            ended = ending.wins(replicas[0], before.id)
        after = replicas.agreed_record(before.id)
        assert ended
        assert after.done
        assert after.revision == before.revision + 1 + renewed
        reported = (b"renewed", PROGRESS) if renewed else (None, None)
        assert (after.metadata, after.progress) == reported


def delete(database: Database, operation_id: str) -> bool:
    (outcome,) = apply(database, Delete(operation_id))
    if isinstance(outcome, Outcome):
        return outcome.changed
    assert isinstance(outcome, OperationNotFound), outcome
    return False


def delete_expired(database: Database, operation_id: str) -> bool:
    return operation_id in sweep(database, DeleteExpired(100), IN_AN_HOUR)


@pytest.mark.parametrize("way", [delete, delete_expired])
@ROUNDS
def test_an_operation_is_deleted_by_one_alone(
    replicas: Replicas, way: Callable[..., bool], rounds: int
) -> None:
    for _ in range(rounds):
        id_ = apply_one(replicas[0], Start(new_id(), MINUTE)).record.id
        apply_one(replicas[0], Complete(id_, b"answer"))
        deleted = replicas.race(*[partial(way, operation_id=id_)] * 2)
        assert sorted(deleted) == [False, True]
        assert replicas.agreed(id_) is None


@ROUNDS
def test_an_operation_that_expires_while_it_is_deleted_is_gone(
    replicas: Replicas, rounds: int
) -> None:
    """Its row is removed by the sweep, unless that came before the Delete had left it."""
    for _ in range(rounds):
        id_ = apply_one(replicas[0], Start(new_id(), MINUTE)).record.id
        apply_one(replicas[0], Complete(id_, b"answer"))
        ways = (delete, delete_expired)
        deleted = replicas.race(*(partial(way, operation_id=id_) for way in ways))
        assert any(deleted)
        assert replicas.agreed(id_) is None
        assert not delete(replicas[0], id_)


def delete_unless_running(database: Database, operation_id: str) -> bool:
    (outcome,) = apply(database, Delete(operation_id))
    assert isinstance(outcome, Outcome | OperationRunning), outcome
    return isinstance(outcome, Outcome)


@each("ending", COMPLETE, FAIL, CANCEL)
@ROUNDS
def test_a_delete_never_stops_an_operation_from_ending(
    replicas: Replicas, ending: Rival, rounds: int
) -> None:
    for _ in range(rounds):
        before = start(replicas[0])
        deleted, ended = replicas.race(
            partial(delete_unless_running, operation_id=before.id),
            partial(ending.wins, operation_id=before.id),
        )
        assert ended
        assert (replicas.agreed(before.id) is None) == deleted
