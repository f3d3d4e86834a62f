"""What time does: leases that lapse, timeouts, cancel grace, retention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from sqlalchemy import update

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
    ReachTimeouts,
    Renew,
    Sweep,
    Swept,
)
from opservice.store.repository import SWEEP_WITHIN
from opservice.store.schema import operations
from store.conftest import ABORTED, CANCELLED, DEADLINE_EXCEEDED, INTERNAL, Clock, Ops

WAIT = 30 * SECOND
COOPERATIVE, UNSUPPORTED = CancelPolicy.COOPERATIVE, CancelPolicy.UNSUPPORTED


def make_leased(ops: Ops, clock: Clock) -> str:
    clock.advance(SECOND)
    return ops.start(lease=WAIT).id


def make_with_timeout(ops: Ops, clock: Clock) -> str:
    clock.advance(SECOND)
    return ops.start(timeout=WAIT).id


def make_cancelling(ops: Ops, clock: Clock) -> str:
    id_ = ops.start(policy=COOPERATIVE).id
    clock.advance(SECOND)
    ops.apply(Cancel(id_, CANCELLED))
    return id_


def make_done(ops: Ops, clock: Clock) -> str:
    id_ = ops.start(retention=WAIT).id
    clock.advance(SECOND)
    ops.apply(Complete(id_, b"response"))
    return id_


@dataclass(frozen=True)
class Case:
    """A sweep, and how to make an operation that is due for it, and no other, after WAIT."""

    sweep: Callable[[int], Sweep]
    make: Callable[[Ops, Clock], str]


LEASE = Case(lambda limit: LapseLeases(ABORTED, limit), make_leased)
TIMEOUT = Case(lambda limit: ReachTimeouts(DEADLINE_EXCEEDED, limit), make_with_timeout)
CANCEL_GRACE = Case(lambda limit: EndCancelGrace(WAIT, limit), make_cancelling)
RETENTION = Case(DeleteExpired, make_done)
ENDING = {"lease": LEASE, "timeout": TIMEOUT, "cancel grace": CANCEL_GRACE}
ALL = {**ENDING, "retention": RETENTION}

every_case = pytest.mark.parametrize("case", ALL.values(), ids=ALL)
every_ending_case = pytest.mark.parametrize("case", ENDING.values(), ids=ENDING)


@every_case
def test_a_sweep_takes_an_operation_the_moment_it_is_due(
    ops: Ops, clock: Clock, case: Case
) -> None:
    id_ = case.make(ops, clock)
    clock.advance(WAIT - 1)
    too_early = ops.sweep(case.sweep(10))

    clock.advance(1)

    assert too_early == ()
    assert ops.sweep(case.sweep(10)) == (id_,)


@every_case
def test_a_sweep_takes_each_operation_once(ops: Ops, clock: Clock, case: Case) -> None:
    case.make(ops, clock)
    clock.advance(WAIT)
    ops.sweep(case.sweep(10))

    assert ops.sweep(case.sweep(10)) == ()


@every_case
def test_a_sweep_takes_no_more_than_its_limit(ops: Ops, clock: Clock, case: Case) -> None:
    ids = {case.make(ops, clock) for _ in range(5)}
    clock.advance(WAIT)

    batches = [ops.sweep(case.sweep(2)) for _ in range(4)]

    assert [len(batch) for batch in batches] == [2, 2, 1, 0]
    assert {id_ for batch in batches for id_ in batch} == ids


@every_case
def test_a_sweep_takes_first_what_was_due_first(ops: Ops, clock: Clock, case: Case) -> None:
    made = []
    for _ in range(4):
        made.append(case.make(ops, clock))
        clock.advance(-3 * SECOND)  # so the next one is due earlier
    clock.advance(WAIT + 20 * SECOND)

    batches = [ops.sweep(case.sweep(1)) for _ in made]

    assert [id_ for batch in batches for id_ in batch] == made[::-1]


@every_case
def test_a_sweep_leaves_what_is_due_for_another(ops: Ops, clock: Clock, case: Case) -> None:
    others = [other.make(ops, clock) for other in ALL.values() if other is not case]
    clock.advance(WAIT - SECOND)  # what is done has not expired, so that it can be compared
    before = [ops.find(id_) for id_ in others]

    clock.advance(SECOND)
    assert ops.sweep(case.sweep(10)) == ()

    clock.advance(-SECOND)
    assert [ops.find(id_) for id_ in others] == before


@every_case
@pytest.mark.parametrize("step", [SWEEP_WITHIN + 1, -SWEEP_WITHIN - 1], ids=["late", "set back"])
def test_a_sweep_that_is_executed_far_from_its_cutoff_changes_nothing(
    ops: Ops, clock: Clock, case: Case, step: int
) -> None:
    id_ = case.make(ops, clock)
    cutoff = clock.now + WAIT
    clock.now = cutoff + step
    assert sweep_by(ops, case, cutoff) == ()

    clock.now = cutoff + SWEEP_WITHIN
    assert sweep_by(ops, case, cutoff) == (id_,)


@every_case
def test_a_sweep_takes_only_what_was_due_by_its_cutoff(ops: Ops, clock: Clock, case: Case) -> None:
    id_ = case.make(ops, clock)
    due = clock.now + WAIT
    clock.now = due + SECOND

    assert sweep_by(ops, case, due - 1) == ()
    assert sweep_by(ops, case, due) == (id_,)


def test_proving_writes_changes_no_operation(ops: Ops) -> None:
    before = ops.start(lease=WAIT)
    ops.database.prove_write()
    assert ops.get(before.id) == before


@pytest.mark.parametrize("make", [make_leased, make_cancelling], ids=["lease", "cancel grace"])
def test_it_is_known_that_somebody_may_soon_be_late(
    ops: Ops, clock: Clock, make: Callable[[Ops, Clock], str]
) -> None:
    ops.start()
    assert ops.database.read(ops.repository.read_clock) == (clock.now, False)
    id_ = make(ops, clock)
    assert ops.database.read(ops.repository.read_clock) == (clock.now, True)
    ops.apply(Complete(id_, b"response"))
    assert ops.database.read(ops.repository.read_clock) == (clock.now, False)


def sweep_by(ops: Ops, case: Case, cutoff: int) -> tuple[str, ...]:
    return swept_by(ops, case, cutoff).ids


def swept_by(ops: Ops, case: Case, cutoff: int) -> Swept:
    return ops.database.write(lambda c: ops.repository.sweep(c, case.sweep(10), cutoff))


@every_ending_case
def test_what_a_sweep_ends_has_no_lease_and_expires_after_its_retention(
    ops: Ops, clock: Clock, case: Case
) -> None:
    id_ = case.make(ops, clock)
    clock.advance(WAIT)

    ops.sweep(case.sweep(10))

    record = ops.get(id_)
    assert record.done
    assert record.response is None
    assert (record.lease_expires_at, record.expires_at) == (None, clock.now + DAY)


@every_ending_case
def test_a_sweep_tells_how_long_each_had_run_that_it_ends(
    ops: Ops, clock: Clock, case: Case
) -> None:
    made = [case.make(ops, clock) for _ in range(3)]
    began = {id_: ops.get(id_).created_at for id_ in made}
    clock.advance(WAIT + SECOND)

    swept = swept_by(ops, case, clock.now)

    assert dict(zip(swept.ids, swept.lasted, strict=True)) == {
        id_: clock.now - began[id_] for id_ in made
    }


def test_a_sweep_that_deletes_tells_no_duration(ops: Ops, clock: Clock) -> None:
    id_ = make_done(ops, clock)
    clock.advance(WAIT)
    assert swept_by(ops, RETENTION, clock.now) == Swept((id_,), expired=1)


@pytest.mark.parametrize("case", [TIMEOUT, CANCEL_GRACE], ids=["timeout", "cancel grace"])
@pytest.mark.parametrize("step", [0, -1], ids=["stands", "goes back"])
def test_a_sweep_makes_revision_and_modified_at_grow_though_the_clock(
    ops: Ops, clock: Clock, case: Case, step: int
) -> None:
    id_ = case.make(ops, clock)
    clock.advance(WAIT + 1)
    before = ops.apply(Renew(id_)).record
    clock.advance(step)

    ops.sweep(case.sweep(10))

    after = ops.get(id_)
    assert after.revision == before.revision + 1
    assert after.modified_at > before.modified_at


@every_ending_case
@pytest.mark.parametrize(
    "end",
    [lambda id_: Complete(id_, b"response"), lambda id_: Fail(id_, INTERNAL)],
    ids=["completed", "failed"],
)
def test_what_was_done_in_time_stays_as_it_is(
    ops: Ops, clock: Clock, case: Case, end: Callable[[str], Command]
) -> None:
    id_ = case.make(ops, clock)
    clock.advance(WAIT)
    done = ops.apply(end(id_)).record

    for each in ENDING.values():
        assert ops.sweep(each.sweep(10)) == ()

    assert ops.get(id_) == done


def test_a_lapsed_lease_ends_the_operation_with_the_sweeps_error(ops: Ops, clock: Clock) -> None:
    id_ = make_leased(ops, clock)
    clock.advance(WAIT)

    ops.sweep(LapseLeases(ABORTED, 10))

    record = ops.get(id_)
    assert (record.done, record.error, record.error_code) == (True, ABORTED.status, ABORTED.code)


def test_a_reached_timeout_ends_the_operation_with_the_sweeps_error(ops: Ops, clock: Clock) -> None:
    id_ = make_with_timeout(ops, clock)
    clock.advance(WAIT)

    ops.sweep(ReachTimeouts(DEADLINE_EXCEEDED, 10))

    record = ops.get(id_)
    assert (record.error, record.error_code) == (DEADLINE_EXCEEDED.status, DEADLINE_EXCEEDED.code)


def test_the_end_of_the_cancel_grace_leaves_the_error_of_the_cancel(ops: Ops, clock: Clock) -> None:
    id_ = make_cancelling(ops, clock)
    clock.advance(WAIT)

    ops.sweep(EndCancelGrace(WAIT, 10))

    record = ops.get(id_)
    assert record.done
    assert (record.error, record.error_code) == (CANCELLED.status, CANCELLED.code)


def test_the_end_of_the_cancel_grace_keeps_when_cancel_was_asked_for(
    ops: Ops, clock: Clock
) -> None:
    id_ = make_cancelling(ops, clock)
    asked_at = clock.now
    clock.advance(WAIT)

    ops.sweep(EndCancelGrace(WAIT, 10))

    assert ops.get(id_).cancel_requested_at == asked_at


def test_a_renewed_lease_does_not_lapse(ops: Ops, clock: Clock) -> None:
    id_ = make_leased(ops, clock)
    clock.advance(WAIT - 1)
    ops.apply(Renew(id_))
    clock.advance(WAIT - 1)

    assert ops.sweep(LapseLeases(ABORTED, 10)) == ()
    assert not ops.get(id_).done


def test_a_renewed_lease_lapses_when_it_is_not_renewed_again(ops: Ops, clock: Clock) -> None:
    id_ = make_leased(ops, clock)
    clock.advance(SECOND)
    ops.apply(Renew(id_))
    clock.advance(WAIT)

    assert ops.sweep(LapseLeases(ABORTED, 10)) == (id_,)


def test_renewing_does_not_put_off_the_timeout(ops: Ops, clock: Clock) -> None:
    id_ = make_with_timeout(ops, clock)
    clock.advance(SECOND)
    ops.apply(Renew(id_))
    clock.advance(WAIT - SECOND)

    assert ops.sweep(ReachTimeouts(DEADLINE_EXCEEDED, 10)) == (id_,)


def test_renewing_does_not_put_off_the_end_of_the_cancel_grace(ops: Ops, clock: Clock) -> None:
    id_ = make_cancelling(ops, clock)
    clock.advance(SECOND)
    ops.apply(Renew(id_))
    clock.advance(WAIT - SECOND)

    assert ops.sweep(EndCancelGrace(WAIT, 10)) == (id_,)


@pytest.mark.parametrize("policy", [COOPERATIVE, UNSUPPORTED])
def test_a_lease_lapses_whatever_the_cancel_policy(
    ops: Ops, clock: Clock, policy: CancelPolicy
) -> None:
    id_ = ops.start(policy=policy, lease=WAIT).id
    clock.advance(WAIT)

    assert ops.sweep(LapseLeases(ABORTED, 10)) == (id_,)


@pytest.mark.parametrize(
    ("case", "error"),
    [(LEASE, ABORTED), (TIMEOUT, DEADLINE_EXCEEDED)],
    ids=["lease", "timeout"],
)
def test_time_runs_for_a_cancelling_operation_too(
    ops: Ops, clock: Clock, case: Case, error: Failure
) -> None:
    id_ = ops.start(policy=COOPERATIVE, lease=WAIT, timeout=WAIT).id
    ops.apply(Cancel(id_, CANCELLED))
    clock.advance(WAIT)

    assert ops.sweep(case.sweep(10)) == (id_,)
    assert ops.get(id_).error == error.status


def test_what_is_past_its_retention_is_gone_from_the_table(ops: Ops, clock: Clock) -> None:
    expired, kept = make_done(ops, clock), make_leased(ops, clock)
    clock.advance(WAIT)

    ops.sweep(DeleteExpired(10))

    clock.advance(-WAIT)  # when neither had expired
    assert ops.find(expired) is None
    assert ops.find(kept) is not None


def test_a_running_operation_is_never_deleted(ops: Ops, clock: Clock) -> None:
    id_ = ops.start(retention=WAIT).id
    clock.advance(1000 * WAIT)

    assert ops.sweep(DeleteExpired(10)) == ()
    assert ops.find(id_) is not None


def make_deleted(ops: Ops) -> str:
    id_ = ops.start().id
    ops.apply(Complete(id_, b"response"))
    ops.apply(Delete(id_))
    return id_


def make_deleted_by_the_version_before(ops: Ops) -> str:
    id_ = make_deleted(ops)
    left = update(operations).where(operations.c.id == id_).values(expires_at=0)
    ops.database.write(lambda connection: connection.execute(left))
    return id_


def make_expired(ops: Ops) -> str:
    id_ = ops.start(retention=2).id
    ops.apply(Complete(id_, b"response"))
    return id_


@pytest.mark.parametrize("make", [make_deleted, make_deleted_by_the_version_before, make_expired])
def test_what_is_gone_is_kept_for_as_long_as_the_sweep_says(
    ops: Ops, clock: Clock, make: Callable[[Ops], str]
) -> None:
    id_ = make(ops)  # gone some ticks of the clock later
    clock.advance(WAIT)
    assert ops.sweep(DeleteExpired(10, kept=WAIT)) == ()
    clock.advance(SECOND)
    assert ops.sweep(DeleteExpired(10, kept=WAIT)) == (id_,)
