"""Start under an idempotency key: the same key, caller and request lead to the same operation."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode

from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from support.client import OTHER_TOKEN, TOKEN, Client, packed, refused


@pytest.fixture
def key() -> str:
    return f"key-{uuid4()}"


def test_a_repeated_start_gets_the_same_operation_and_owns_it(client: Client, key: str) -> None:
    first = client.start(idempotency_key=key, lease_token=TOKEN)

    second = client.start(idempotency_key=key, lease_token=TOKEN)

    assert first.owned
    assert second == first


def test_a_repeat_with_another_token_gets_the_operation_but_does_not_own_it(
    client: Client, key: str
) -> None:
    first = client.start(idempotency_key=key, lease_token=TOKEN)

    second = client.start(idempotency_key=key, lease_token=OTHER_TOKEN)

    assert second.operation == first.operation
    assert not second.owned


def test_a_repeat_does_not_change_who_holds_the_token(client: Client, key: str) -> None:
    id_ = client.started(idempotency_key=key, lease_token=TOKEN)
    client.start(idempotency_key=key, lease_token=OTHER_TOKEN)

    with refused() as refusal:
        client.complete(id_, lease_token=OTHER_TOKEN)

    assert refusal.code == StatusCode.PERMISSION_DENIED
    assert client.complete(id_, lease_token=TOKEN).done


def test_a_repeat_after_the_end_shows_how_it_ended(client: Client, key: str) -> None:
    id_ = client.started(idempotency_key=key, lease_token=TOKEN)
    completed = client.complete(id_, lease_token=TOKEN)

    assert client.start(idempotency_key=key, lease_token=TOKEN).operation == completed


@pytest.mark.parametrize("other", [{"created_by": "another"}, {"parent": "folders/another"}])
def test_another_callers_or_parents_same_key_is_another_operation(
    client: Client, key: str, other: dict[str, Any]
) -> None:
    first = client.start(idempotency_key=key, lease_token=TOKEN)

    second = client.start(idempotency_key=key, lease_token=TOKEN, **other)

    assert second.operation.id != first.operation.id
    assert second.owned


@pytest.mark.parametrize(
    "changed",
    [
        {"description": "another"},
        {"method": "another"},
        {"cancel_policy": CancelPolicy.UNSUPPORTED},
        {"lease": Duration(seconds=20)},
        {"lease": None},
        {"timeout": Duration(seconds=100)},
        {"retention": Duration(seconds=100)},
        {"metadata": packed(ErrorInfo(reason="another"))},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_the_same_key_for_another_request_is_refused(
    client: Client, key: str, changed: dict[str, Any]
) -> None:
    request: dict[str, Any] = {
        "idempotency_key": key,
        "lease_token": TOKEN,
        "lease": Duration(seconds=10),
        "metadata": packed(ErrorInfo(reason="first")),
    }
    id_ = client.started(**request)
    before = client.get(id_)

    with refused() as refusal:
        client.start(**{**request, **changed})

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.reason == "IDEMPOTENCY_KEY_REUSED"
    assert refusal.fields == ["idempotency_key"]
    assert client.get(id_) == before


def test_many_at_once_make_one_operation_with_one_owner(client: Client, key: str) -> None:
    def start(number: int) -> tuple[str, bool]:
        started = client.start(idempotency_key=key, lease_token=f"token-of-thread-{number:04}")
        return started.operation.id, started.owned

    with ThreadPoolExecutor(40) as threads:
        answers = list(threads.map(start, range(40)))

    assert len({id_ for id_, _ in answers}) == 1
    assert sum(owned for _, owned in answers) == 1
