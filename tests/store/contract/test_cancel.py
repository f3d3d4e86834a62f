"""Cancel by each policy, Delete, expiry, and how modified_at and revision grow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from opservice.domain.errors import OperationNotCancellable, OperationNotFound, OperationRunning
from opservice.domain.operation import (
    DAY,
    SECOND,
    Cancel,
    CancelPolicy,
    Command,
    Complete,
    Delete,
    Fail,
    Failure,
    Progress,
    Record,
    Renew,
)
from store.conftest import CANCELLED, INTERNAL, Clock, Ops


def result(record: Record) -> tuple[bool, bytes | None, bytes | None, int | None]:
    return (record.done, record.response, record.error, record.error_code)


def test_cancel_of_an_immediate_operation_ends_it(ops: Ops, clock: Clock) -> None:
    id_ = ops.start(lease=30 * SECOND, retention=100 * SECOND).id
    clock.advance(SECOND)

    outcome = ops.apply(Cancel(id_, CANCELLED))

    record = ops.get(id_)
    assert outcome.record == record
    assert outcome.changed
    assert result(record) == (True, None, CANCELLED.status, CANCELLED.code)
    assert record.cancel_requested_at == clock.now
    assert (record.lease_expires_at, record.expires_at) == (None, clock.now + 100 * SECOND)


def test_cancel_of_a_cooperative_operation_only_asks(ops: Ops, clock: Clock) -> None:
    started = ops.start(policy=CancelPolicy.COOPERATIVE, lease=30 * SECOND)
    clock.advance(SECOND)

    outcome = ops.apply(Cancel(started.id, CANCELLED))

    record = ops.get(started.id)
    assert outcome.record == record
    assert outcome.changed
    assert result(record) == (False, None, CANCELLED.status, CANCELLED.code)
    assert record.cancel_requested_at == clock.now
    assert (record.lease_expires_at, record.expires_at) == (started.lease_expires_at, None)


def test_cancel_of_an_operation_that_does_not_support_it_is_refused(ops: Ops) -> None:
    started = ops.start(policy=CancelPolicy.UNSUPPORTED)

    refusal = ops.refusal(Cancel(started.id, CANCELLED), OperationNotCancellable)

    assert refusal.record == started == ops.get(started.id)


@pytest.mark.parametrize("policy", [CancelPolicy.IMMEDIATE, CancelPolicy.COOPERATIVE])
def test_cancel_again_is_ok_and_changes_nothing(
    ops: Ops, clock: Clock, policy: CancelPolicy
) -> None:
    id_ = ops.start(policy=policy).id
    first = ops.apply(Cancel(id_, CANCELLED, "alice"))
    assert first.record.cancelled_by == "alice"
    clock.advance(SECOND)

    again = ops.apply(Cancel(id_, Failure(1, b"by another"), "bob"))
    assert ops.get(id_).cancelled_by == "alice"

    assert not again.changed
    assert again.record == first.record == ops.get(id_)


@pytest.mark.parametrize("policy", CancelPolicy)
@pytest.mark.parametrize(
    "end",
    [lambda id_: Complete(id_, b"response"), lambda id_: Fail(id_, INTERNAL)],
    ids=["completed", "failed"],
)
def test_cancel_of_what_is_done_is_ok_and_changes_nothing(
    ops: Ops, policy: CancelPolicy, end: Callable[[str], Command]
) -> None:
    id_ = ops.start(policy=policy).id
    done = ops.apply(end(id_)).record

    outcome = ops.apply(Cancel(id_, CANCELLED))

    assert not outcome.changed
    assert outcome.record == done == ops.get(id_)


def test_cancel_needs_no_lease_token(ops: Ops) -> None:
    id_ = ops.start(token="token-of-the-producer").id

    assert ops.apply(Cancel(id_, CANCELLED)).record.done


def test_delete_takes_a_done_operation_away(ops: Ops) -> None:
    id_ = ops.start().id
    done = ops.apply(Complete(id_, b"response")).record

    outcome = ops.apply(Delete(id_))

    at = outcome.record.modified_at
    left = replace(done, revision=3, modified_at=at, expires_at=-at)
    assert (outcome.record, outcome.changed) == (left, True)
    assert outcome.record.modified_at > done.modified_at
    assert ops.find(id_) is None


def test_what_was_deleted_is_gone_though_the_clock_is_set_back(ops: Ops, clock: Clock) -> None:
    id_ = ops.start().id
    ops.apply(Complete(id_, b"response"))
    ops.apply(Delete(id_))

    clock.advance(-7 * DAY)

    assert ops.find(id_) is None
    ops.refusal(Delete(id_), OperationNotFound)


def test_delete_of_a_running_operation_is_refused(ops: Ops) -> None:
    started = ops.start()

    refusal = ops.refusal(Delete(started.id), OperationRunning)

    assert refusal.record == started == ops.get(started.id)


def test_delete_of_a_cancelling_operation_is_refused(ops: Ops) -> None:
    id_ = ops.start(policy=CancelPolicy.COOPERATIVE).id
    ops.apply(Cancel(id_, CANCELLED))

    ops.refusal(Delete(id_), OperationRunning)


def test_delete_leaves_the_other_operations(ops: Ops) -> None:
    first, second = ops.start().id, ops.start().id
    for id_ in (first, second):
        ops.apply(Complete(id_, b"response"))

    ops.apply(Delete(first))

    assert ops.find(second) is not None


COMMANDS: dict[str, Callable[[str], Command]] = {
    "Renew": lambda id_: Renew(id_),
    "Complete": lambda id_: Complete(id_, b"response"),
    "Fail": lambda id_: Fail(id_, INTERNAL),
    "Cancel": lambda id_: Cancel(id_, CANCELLED),
    "Delete": Delete,
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_expired_operation_is_not_found_by_any_command(
    ops: Ops, clock: Clock, command: Callable[[str], Command]
) -> None:
    id_ = ops.start(retention=100 * SECOND).id
    clock.advance(SECOND)
    ops.apply(Complete(id_, b"response"))
    clock.advance(100 * SECOND)

    ops.refusal(command(id_), OperationNotFound)


@pytest.mark.parametrize("command", [COMMANDS["Cancel"], COMMANDS["Delete"]])
def test_what_never_was_is_not_found(ops: Ops, command: Callable[[str], Command]) -> None:
    ops.refusal(command("opsneverwas"), OperationNotFound)


def test_a_done_operation_is_found_until_its_retention_has_passed(ops: Ops, clock: Clock) -> None:
    id_ = ops.start(retention=100 * SECOND).id
    clock.advance(SECOND)
    ops.apply(Complete(id_, b"response"))
    clock.advance(100 * SECOND - 1)
    before = ops.find(id_)

    clock.advance(1)

    assert before is not None
    assert ops.find(id_) is None


def test_find_answers_with_those_that_exist_of_many(ops: Ops) -> None:
    first, second = ops.start(), ops.start()
    ops.start()
    ids = [first.id, "opsneverwas", second.id]

    found = ops.database.read(lambda c: ops.repository.find(c, ids))

    assert found == {first.id: first, second.id: second}


def test_find_of_no_ids_finds_nothing(ops: Ops) -> None:
    ops.start()

    assert ops.database.read(lambda c: ops.repository.find(c, [])) == {}


def test_revisions_are_those_of_the_operations_that_find_finds(ops: Ops, clock: Clock) -> None:
    running, done, expired = ops.start(), ops.start(), ops.start(retention=SECOND)
    ops.apply(Complete(done.id, b"response"))
    ops.apply(Complete(expired.id, b"response"))
    clock.advance(2 * SECOND)
    ids = [running.id, "opsneverwas", done.id, expired.id]

    revisions = ops.database.read(lambda c: ops.repository.revisions(c, ids))

    assert revisions == {running.id: 1, done.id: 2}


LIFE: list[Callable[[str], Command]] = [
    lambda id_: Renew(id_),
    lambda id_: Renew(id_, metadata=b"metadata"),
    lambda id_: Renew(id_, progress=Progress(1, 2)),
    lambda id_: Cancel(id_, CANCELLED),
    lambda id_: Renew(id_),
    lambda id_: Complete(id_, b"response"),
]


@pytest.mark.parametrize("step", [SECOND, 0, -SECOND], ids=["goes on", "stands", "goes back"])
def test_revision_and_modified_at_grow_with_every_change_though_the_clock(
    ops: Ops, clock: Clock, step: int
) -> None:
    records = [ops.start(policy=CancelPolicy.COOPERATIVE)]

    for command in LIFE:
        clock.advance(step)
        ops.apply(command(records[0].id))
        records.append(ops.get(records[0].id))

    assert [record.revision for record in records] == [1, 2, 3, 4, 5, 6, 7]
    times = [record.modified_at for record in records]
    assert times == sorted(set(times))


def test_modified_at_is_the_time_of_the_change(ops: Ops, clock: Clock) -> None:
    id_ = ops.start().id
    clock.advance(SECOND)

    ops.apply(Renew(id_))

    assert ops.get(id_).modified_at == clock.now


def test_created_at_never_changes(ops: Ops, clock: Clock) -> None:
    started = ops.start()
    clock.advance(SECOND)

    ops.apply(Complete(started.id, b"response"))

    assert ops.get(started.id).created_at == started.created_at


def test_an_operation_that_ends_on_a_clock_set_back_still_has_its_whole_retention(
    ops: Ops, clock: Clock
) -> None:
    started = ops.start(retention=100 * SECOND)
    clock.advance(-50 * SECOND)

    ops.apply(Complete(started.id, b"response"))

    record = ops.get(started.id)
    assert record.expires_at == record.modified_at + 100 * SECOND
