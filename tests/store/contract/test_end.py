"""Renew, Complete and Fail: what the holder of the lease token may do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from opservice.domain.errors import LeaseTokenMismatch, OperationDone, OperationNotFound
from opservice.domain.operation import (
    SECOND,
    Cancel,
    CancelPolicy,
    Command,
    Complete,
    Fail,
    Failure,
    Progress,
    Record,
    Renew,
    hash_lease_token,
)
from store.conftest import CANCELLED, INTERNAL, Clock, Ops

TOKEN = "token-of-the-producer"

Held = Callable[[str, bytes | None], Command]

HELD: dict[str, Held] = {
    "Renew": lambda id_, token: Renew(id_, token),
    "Complete": lambda id_, token: Complete(id_, b"response", token),
    "Fail": lambda id_, token: Fail(id_, INTERNAL, token),
}


@pytest.fixture(params=HELD)
def held(request: pytest.FixtureRequest) -> Held:
    """Each command that only the holder of the lease token may give."""
    return HELD[request.param]


def result(record: Record) -> tuple[bool, bytes | None, bytes | None, int | None]:
    return (record.done, record.response, record.error, record.error_code)


def test_renew_prolongs_the_lease_by_its_length_from_now(ops: Ops, clock: Clock) -> None:
    id_ = ops.start(lease=30 * SECOND).id
    clock.advance(20 * SECOND)

    ops.apply(Renew(id_))

    assert ops.get(id_).lease_expires_at == clock.now + 30 * SECOND


def test_renew_prolongs_a_lease_that_lapsed_before_a_sweep_came(ops: Ops, clock: Clock) -> None:
    id_ = ops.start(lease=30 * SECOND).id
    clock.advance(31 * SECOND)

    ops.apply(Renew(id_))

    assert ops.get(id_).lease_expires_at == clock.now + 30 * SECOND


def test_renew_of_an_operation_without_a_lease_gives_it_none(ops: Ops) -> None:
    id_ = ops.start().id

    ops.apply(Renew(id_))

    assert ops.get(id_).lease_expires_at is None


def test_renew_does_not_move_the_timeout(ops: Ops, clock: Clock) -> None:
    started = ops.start(timeout=60 * SECOND)
    clock.advance(SECOND)

    ops.apply(Renew(started.id))

    assert ops.get(started.id).timeout_at == started.timeout_at


def test_renew_reports_progress_and_metadata(ops: Ops) -> None:
    id_ = ops.start(metadata=b"at first").id
    progress = Progress(3, 10, "layers", "pushing")

    ops.apply(Renew(id_, metadata=b"now", progress=progress))

    record = ops.get(id_)
    assert (record.progress, record.metadata) == (progress, b"now")


def test_renew_with_nothing_to_report_keeps_what_was_reported(ops: Ops) -> None:
    id_ = ops.start().id
    progress = Progress(3, 10, "layers", "pushing")
    ops.apply(Renew(id_, metadata=b"now", progress=progress))

    ops.apply(Renew(id_))

    record = ops.get(id_)
    assert (record.progress, record.metadata) == (progress, b"now")


def test_progress_of_nothing_at_all_replaces_the_progress_before(ops: Ops) -> None:
    id_ = ops.start().id
    ops.apply(Renew(id_, progress=Progress(3, 10, "layers", "pushing")))

    ops.apply(Renew(id_, progress=Progress()))

    assert ops.get(id_).progress == Progress(0, 0, "", "")


def test_without_a_report_there_is_no_progress(ops: Ops) -> None:
    assert ops.start().progress is None


def test_renew_shows_that_cancellation_was_asked_for(ops: Ops) -> None:
    id_ = ops.start(policy=CancelPolicy.COOPERATIVE).id
    ops.apply(Cancel(id_, CANCELLED))

    record = ops.apply(Renew(id_)).record

    assert record.cancel_requested_at is not None
    assert result(record) == (False, None, CANCELLED.status, CANCELLED.code)


def test_complete_ends_the_operation_with_its_response(ops: Ops) -> None:
    id_ = ops.start().id

    ops.apply(Complete(id_, b"response"))

    assert result(ops.get(id_)) == (True, b"response", None, None)


def test_fail_ends_the_operation_with_its_error(ops: Ops) -> None:
    id_ = ops.start().id

    ops.apply(Fail(id_, INTERNAL))

    assert result(ops.get(id_)) == (True, None, INTERNAL.status, INTERNAL.code)


@pytest.mark.parametrize("end", ["Complete", "Fail"])
def test_an_ended_operation_has_no_lease_and_expires_after_its_retention(
    ops: Ops, clock: Clock, end: str
) -> None:
    id_ = ops.start(lease=30 * SECOND, retention=100 * SECOND).id
    clock.advance(SECOND)

    ops.apply(HELD[end](id_, None))

    record = ops.get(id_)
    assert (record.lease_expires_at, record.expires_at) == (None, clock.now + 100 * SECOND)


@pytest.mark.parametrize(
    "end",
    [
        lambda id_, metadata: Complete(id_, b"response", metadata=metadata),
        lambda id_, metadata: Fail(id_, INTERNAL, metadata=metadata),
    ],
    ids=["Complete", "Fail"],
)
@pytest.mark.parametrize(
    ("given", "kept"), [(b"at last", b"at last"), (None, b"at first")], ids=["some", "none"]
)
def test_the_last_metadata_that_was_given_stays(
    ops: Ops, end: Callable[[str, bytes | None], Command], given: bytes | None, kept: bytes
) -> None:
    id_ = ops.start(metadata=b"at first").id

    ops.apply(end(id_, given))

    assert ops.get(id_).metadata == kept


def test_success_may_still_win_over_a_cooperative_cancel(ops: Ops) -> None:
    id_ = ops.start(policy=CancelPolicy.COOPERATIVE).id
    ops.apply(Cancel(id_, CANCELLED))

    ops.apply(Complete(id_, b"response"))

    assert result(ops.get(id_)) == (True, b"response", None, None)


def test_fail_after_a_cooperative_cancel_keeps_the_producers_error(ops: Ops) -> None:
    id_ = ops.start(policy=CancelPolicy.COOPERATIVE).id
    ops.apply(Cancel(id_, CANCELLED))

    ops.apply(Fail(id_, INTERNAL))

    assert result(ops.get(id_)) == (True, None, INTERNAL.status, INTERNAL.code)


@pytest.mark.parametrize("end", ["Complete", "Fail"])
@pytest.mark.parametrize("token", [TOKEN, ""], ids=["token", "no token"])
def test_the_same_end_by_the_same_token_again_changes_nothing(
    ops: Ops, clock: Clock, end: str, token: str
) -> None:
    id_ = ops.start(token=token).id
    command = HELD[end](id_, hash_lease_token(id_, token))
    first = ops.apply(command)
    clock.advance(SECOND)

    repeat = ops.apply(command)

    assert (first.changed, repeat.changed) == (True, False)
    assert repeat.record == first.record == ops.get(id_)


def test_a_repeat_is_known_by_its_result_whatever_its_metadata(ops: Ops) -> None:
    id_ = ops.start().id
    ops.apply(Complete(id_, b"response", metadata=b"first"))

    assert not ops.apply(Complete(id_, b"response", metadata=b"second")).changed
    assert ops.get(id_).metadata == b"first"


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(
            lambda id_: Complete(id_, b"response"),
            lambda id_: Complete(id_, b"another"),
            id="Complete otherwise",
        ),
        pytest.param(
            lambda id_: Complete(id_, b"response"),
            lambda id_: Fail(id_, INTERNAL),
            id="Fail when completed",
        ),
        pytest.param(
            lambda id_: Fail(id_, INTERNAL),
            lambda id_: Fail(id_, Failure(INTERNAL.code, b"another")),
            id="Fail otherwise",
        ),
        pytest.param(
            lambda id_: Fail(id_, INTERNAL),
            lambda id_: Complete(id_, b"response"),
            id="Complete when failed",
        ),
        pytest.param(
            lambda id_: Complete(id_, b"response"),
            lambda id_: Renew(id_),
            id="Renew when completed",
        ),
        pytest.param(
            lambda id_: Fail(id_, INTERNAL), lambda id_: Renew(id_), id="Renew when failed"
        ),
        pytest.param(
            lambda id_: Cancel(id_, CANCELLED),
            lambda id_: Complete(id_, b"response"),
            id="Complete when cancelled",
        ),
        pytest.param(
            lambda id_: Cancel(id_, CANCELLED),
            lambda id_: Fail(id_, INTERNAL),
            id="Fail when cancelled",
        ),
        pytest.param(
            lambda id_: Cancel(id_, CANCELLED), lambda id_: Renew(id_), id="Renew when cancelled"
        ),
    ],
)
def test_done_otherwise_is_a_refusal_that_shows_the_result_and_changes_nothing(
    ops: Ops, first: Callable[[str], Command], then: Callable[[str], Command]
) -> None:
    id_ = ops.start().id
    done = ops.apply(first(id_)).record

    refusal = ops.refusal(then(id_), OperationDone)

    assert refusal.record == done == ops.get(id_)


TOKENS = pytest.mark.parametrize(
    ("token", "given"),
    [(TOKEN, "token-of-a-stranger"), (TOKEN, ""), ("", "token-of-a-stranger")],
    ids=["wrong", "missing", "superfluous"],
)


@TOKENS
def test_without_the_right_token_a_running_operation_is_not_changed(
    ops: Ops, held: Held, token: str, given: str
) -> None:
    started = ops.start(token=token, lease=30 * SECOND)

    ops.refusal(held(started.id, hash_lease_token(started.id, given)), LeaseTokenMismatch)

    assert ops.get(started.id) == started


@TOKENS
def test_without_the_right_token_nothing_is_told_of_a_done_operation(
    ops: Ops, held: Held, token: str, given: str
) -> None:
    id_ = ops.start(token=token).id
    ops.apply(Complete(id_, b"response", hash_lease_token(id_, token)))

    # Not even that the result would have been the same.
    ops.refusal(held(id_, hash_lease_token(id_, given)), LeaseTokenMismatch)


def test_the_token_of_one_operation_is_nothing_to_another(ops: Ops, held: Held) -> None:
    mine, other = ops.start(token=TOKEN).id, ops.start(token="token-of-another").id

    ops.refusal(held(other, hash_lease_token(mine, TOKEN)), LeaseTokenMismatch)


def test_what_never_was_is_not_found(ops: Ops, held: Held) -> None:
    ops.start()

    refusal = ops.refusal(held("opsneverwas", None), OperationNotFound)

    assert refusal.operation_id == "opsneverwas"
