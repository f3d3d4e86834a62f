"""Start and its idempotent repeats."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from opservice.domain.errors import IdempotencyKeyReused
from opservice.domain.labels import labels_to_text
from opservice.domain.operation import (
    DAY,
    SECOND,
    Cancel,
    CancelPolicy,
    Complete,
    Record,
    Start,
    derive_id,
    hash_lease_token,
    new_id,
)
from opservice.store.repository import Repository
from store.conftest import CANCELLED, EPOCH, Clock, Ops

KEYED = derive_id("ops", "caller", "folders/f", "key")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TOKEN = hash_lease_token(KEYED, "token-of-the-first")
OTHER_TOKEN = hash_lease_token(KEYED, "token-of-another")


def keyed(token: bytes | None = TOKEN, request: bytes = b"request") -> Start:
    """A Start with an idempotency key."""
    return Start(id=KEYED, retention=DAY, lease_token_hash=token, request_hash=request)


def test_start_keeps_everything_that_it_was_given(ops: Ops) -> None:
    command = Start(
        id=KEYED,
        retention=7 * DAY,
        parent="folders/f",
        method="yandex.cloud.compute.v1.InstanceService.Create",
        description="Create instance",
        created_by="ajeuser",
        metadata=b"metadata",
        cancel_policy=CancelPolicy.COOPERATIVE,
        lease=30 * SECOND,
        lease_token_hash=TOKEN,
        timeout=60 * SECOND,
        request_hash=b"request",
        producer="registry",
        labels=labels_to_text({"team": "core", "urgent": ""}),
        traceparent=TRACEPARENT,
    )

    ops.apply(command)

    assert ops.get(KEYED) == Record(
        id=KEYED,
        parent="folders/f",
        method="yandex.cloud.compute.v1.InstanceService.Create",
        description="Create instance",
        created_by="ajeuser",
        created_at=EPOCH,
        modified_at=EPOCH,
        revision=1,
        done=False,
        metadata=b"metadata",
        response=None,
        error=None,
        error_code=None,
        cancel_policy=CancelPolicy.COOPERATIVE,
        cancel_requested_at=None,
        progress_done=None,
        progress_total=None,
        progress_unit=None,
        progress_message=None,
        lease_token_hash=TOKEN,
        lease=30 * SECOND,
        lease_expires_at=EPOCH + 30 * SECOND,
        timeout_at=EPOCH + 60 * SECOND,
        retention=7 * DAY,
        expires_at=None,
        request_hash=b"request",
        cancelled_by="",
        producer="registry",
        labels="\nteam=core\nurgent=\n",
        traceparent=TRACEPARENT,
    )


def test_start_answers_with_the_record_that_find_finds(ops: Ops) -> None:
    outcome = ops.apply(keyed())

    assert outcome.record == ops.get(KEYED)


def test_start_is_a_change_that_its_caller_owns(ops: Ops) -> None:
    outcome = ops.apply(keyed())

    assert (outcome.changed, outcome.owned) == (True, True)


def test_without_lease_and_timeout_there_is_no_deadline(ops: Ops) -> None:
    record = ops.start()

    assert (record.lease_expires_at, record.timeout_at, record.expires_at) == (None, None, None)


@pytest.mark.parametrize("policy", CancelPolicy)
def test_each_cancel_policy_comes_back_as_itself(ops: Ops, policy: CancelPolicy) -> None:
    assert ops.start(policy=policy).cancel_policy is policy


def test_text_of_every_alphabet_comes_back_unchanged(ops: Ops) -> None:
    text = "Создать диск · 作成 · é e\u0301 · 🚀 · 'quoted\" \\ % :name"
    id_ = new_id()

    ops.apply(Start(id=id_, retention=DAY, description=text, parent=text, method=text))

    record = ops.get(id_)
    assert (record.description, record.parent, record.method) == (text, text, text)


def test_payloads_of_a_mebibyte_come_back_unchanged(ops: Ops) -> None:
    metadata, response = bytes(range(256)) * 4096, bytes(reversed(range(256))) * 4096
    id_ = ops.start(metadata=metadata).id

    ops.apply(Complete(id_, response))

    record = ops.get(id_)
    assert record.metadata == metadata
    assert record.response == response


def test_an_empty_payload_is_not_an_absent_one(ops: Ops) -> None:
    assert ops.start(metadata=b"").metadata == b""


def test_a_repeat_with_the_same_token_owns_the_same_operation(ops: Ops, clock: Clock) -> None:
    first = ops.apply(keyed())
    clock.advance(SECOND)

    repeat = ops.apply(keyed())

    assert repeat == replace(first, changed=False, owned=True)


def test_a_repeat_with_another_token_gets_the_operation_unowned(ops: Ops) -> None:
    first = ops.apply(keyed())

    repeat = ops.apply(keyed(token=OTHER_TOKEN))

    assert repeat == replace(first, changed=False, owned=False)


def test_a_repeat_of_a_start_without_a_token_is_owned(ops: Ops) -> None:
    ops.apply(keyed(token=None))

    assert ops.apply(keyed(token=None)).owned


@pytest.mark.parametrize(("first", "second"), [(TOKEN, None), (None, TOKEN)])
def test_a_repeat_with_a_token_where_there_was_none_or_without_the_one_there_was_is_not_owned(
    ops: Ops, first: bytes | None, second: bytes | None
) -> None:
    ops.apply(keyed(token=first))

    assert not ops.apply(keyed(token=second)).owned


def test_a_repeat_changes_nothing(ops: Ops, clock: Clock) -> None:
    first = ops.apply(replace(keyed(), lease=10 * SECOND, timeout=20 * SECOND))
    clock.advance(SECOND)

    ops.apply(replace(keyed(), lease=10 * SECOND, timeout=20 * SECOND))

    assert ops.get(KEYED) == first.record


def test_a_repeat_of_what_is_done_answers_with_its_result(ops: Ops) -> None:
    ops.apply(keyed())
    done = ops.apply(Complete(KEYED, b"response", TOKEN)).record

    repeat = ops.apply(keyed())

    assert (repeat.record, repeat.owned) == (done, True)


def test_the_key_with_another_request_is_refused(ops: Ops) -> None:
    ops.apply(keyed())

    refusal = ops.refusal(keyed(request=b"another"), IdempotencyKeyReused)

    assert [violation.field for violation in refusal.violations] == ["idempotency_key"]


def test_the_key_with_another_request_leaves_the_operation_as_it_was(ops: Ops) -> None:
    first = ops.apply(keyed())

    ops.refusal(keyed(request=b"another"), IdempotencyKeyReused)

    assert ops.get(KEYED) == first.record


def test_an_expired_predecessor_makes_room_for_a_new_operation(ops: Ops, clock: Clock) -> None:
    ops.apply(keyed())
    clock.advance(SECOND)
    ops.apply(Complete(KEYED, b"response", TOKEN))
    clock.advance(DAY)

    outcome = ops.apply(keyed(token=OTHER_TOKEN, request=b"another"))

    assert (outcome.changed, outcome.owned) == (True, True)
    record = ops.get(KEYED)
    assert record == outcome.record
    assert (record.done, record.response) == (False, None)
    assert record.created_at == EPOCH + SECOND + DAY
    assert record.lease_token_hash == OTHER_TOKEN


def test_a_predecessor_within_its_retention_keeps_its_id(ops: Ops, clock: Clock) -> None:
    ops.apply(keyed())
    clock.advance(SECOND)
    ops.apply(Complete(KEYED, b"response", TOKEN))
    clock.advance(DAY - 1)

    assert not ops.apply(keyed()).changed


def test_a_running_predecessor_never_expires(ops: Ops, clock: Clock) -> None:
    ops.apply(keyed())
    clock.advance(1000 * DAY)

    assert not ops.apply(keyed()).changed


def test_the_same_start_without_a_key_repeated_is_owned(ops: Ops) -> None:
    # So it is when a commit's answer was lost and the transaction runs once more.
    command = Start(id=new_id(), retention=DAY)
    first = ops.apply(command)

    assert ops.apply(command) == replace(first, changed=False)


def test_a_start_that_finds_its_random_id_taken_by_a_keyed_one_is_refused(ops: Ops) -> None:
    ops.apply(keyed())

    ops.refusal(Start(id=KEYED, retention=DAY), IdempotencyKeyReused)


def test_the_databases_own_clock_counts_microseconds_since_the_epoch(ops: Ops) -> None:
    ops = Ops(ops.database, Repository())
    before = time.time() * SECOND

    record = ops.start(lease=10 * SECOND)

    # Its clock is this machine's; SQLite's has milliseconds.
    assert before - 2000 <= record.created_at <= time.time() * SECOND + 2000
    assert record.lease_expires_at == record.created_at + 10 * SECOND


def test_on_the_databases_own_clock_a_done_operation_is_visible(ops: Ops) -> None:
    ops = Ops(ops.database, Repository())
    id_ = ops.start(retention=60 * SECOND).id

    ops.apply(Cancel(id_, CANCELLED))

    assert ops.get(id_).done
