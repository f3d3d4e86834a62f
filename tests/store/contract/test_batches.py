"""Several commands in one transaction."""

from __future__ import annotations

import pytest

from opservice.domain.errors import (
    IdempotencyKeyReused,
    LeaseTokenMismatch,
    OperationDone,
    OperationNotFound,
    OperationRunning,
    OpserviceError,
)
from opservice.domain.operation import (
    DAY,
    Cancel,
    Complete,
    Delete,
    Fail,
    Outcome,
    Progress,
    Renew,
    Start,
    hash_lease_token,
    new_id,
)
from store.conftest import CANCELLED, INTERNAL, Ops


def succeeded(outcomes: list[Outcome | Exception]) -> list[Outcome]:
    for outcome in outcomes:
        assert isinstance(outcome, Outcome), outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Outcome)]


def test_commands_on_one_operation_are_applied_in_their_order(ops: Ops) -> None:
    id_ = new_id()

    outcomes = succeeded(
        ops.batch(
            [
                Start(id_, DAY),
                Renew(id_, progress=Progress(1)),
                Renew(id_, progress=Progress(2)),
                Complete(id_, b"response"),
            ]
        )
    )

    assert [outcome.record.revision for outcome in outcomes] == [1, 2, 3, 4]
    assert ops.get(id_) == outcomes[-1].record


def test_of_two_results_for_one_operation_the_first_one_stands(ops: Ops) -> None:
    id_ = ops.start().id

    first, second = ops.batch([Complete(id_, b"response"), Fail(id_, INTERNAL)])

    assert isinstance(first, Outcome)
    assert isinstance(second, OperationDone)
    assert second.record == first.record == ops.get(id_)


def test_outcomes_come_in_the_order_of_the_commands(ops: Ops) -> None:
    ids = sorted((new_id() for _ in range(20)), reverse=True)

    outcomes = succeeded(ops.batch([Start(id_, DAY) for id_ in ids]))

    assert [outcome.record.id for outcome in outcomes] == ids


def test_interleaved_commands_on_two_operations_each_keep_their_order(ops: Ops) -> None:
    first, second = "opsb", "opsa"

    outcomes = succeeded(
        ops.batch(
            [
                Start(first, DAY),
                Start(second, DAY),
                Renew(first),
                Cancel(second, CANCELLED),
                Complete(first, b"response"),
                Delete(second),
            ]
        )
    )

    revisions = [(outcome.record.id, outcome.record.revision) for outcome in outcomes]
    assert revisions == [(first, 1), (second, 1), (first, 2), (second, 2), (first, 3), (second, 3)]


REFUSALS: list[type[OpserviceError]] = [
    LeaseTokenMismatch,
    OperationNotFound,
    OperationRunning,
    OperationDone,
    IdempotencyKeyReused,
]


def test_a_refusal_does_not_touch_the_other_commands_of_its_batch(ops: Ops) -> None:
    running = ops.start(token="token-of-the-producer").id
    token = hash_lease_token(running, "token-of-the-producer")
    done = ops.start().id
    ops.apply(Complete(done, b"response"))
    new, last = new_id(), new_id()

    outcomes = ops.batch(
        [
            Start(new, DAY),
            Complete(running, b"response", hash_lease_token(running, "wrong")),
            Renew("opsneverwas"),
            Delete(running),
            Fail(done, INTERNAL),
            Start(done, DAY, request_hash=b"request"),
            Complete(running, b"response", token),
            Start(last, DAY),
        ]
    )

    assert [type(outcome) for outcome in outcomes] == [Outcome, *REFUSALS, Outcome, Outcome]
    assert all(ops.find(id_) for id_ in (new, last))
    assert ops.get(running).response == b"response"


def test_the_same_keyed_start_twice_in_a_batch_makes_one_operation(ops: Ops) -> None:
    id_ = new_id()
    command = Start(id_, DAY, lease_token_hash=b"hash", request_hash=b"request")

    outcomes = succeeded(ops.batch([command, command]))

    assert [outcome.changed for outcome in outcomes] == [True, False]
    assert outcomes[0].record == outcomes[1].record == ops.get(id_)


def test_an_id_is_free_again_after_a_delete_in_the_same_batch(ops: Ops) -> None:
    id_ = ops.start().id
    ops.apply(Complete(id_, b"response"))

    succeeded(ops.batch([Delete(id_), Start(id_, DAY)]))

    assert not ops.get(id_).done


def test_an_empty_batch_has_no_outcomes(ops: Ops) -> None:
    assert ops.batch([]) == []


def test_nothing_of_a_transaction_that_fails_remains(ops: Ops) -> None:
    running, new = ops.start().id, new_id()
    commands = [Start(new, DAY), Complete(running, b"response")]

    def apply_then_fail() -> None:
        def work(connection: object) -> None:
            ops.repository.apply(connection, commands)  # type: ignore[arg-type]
            raise RuntimeError

        ops.database.write(work)

    with pytest.raises(RuntimeError):
        apply_then_fail()

    assert ops.find(new) is None
    assert not ops.get(running).done
