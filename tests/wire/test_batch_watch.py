"""OperationRecordService.BatchWatch."""

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode

from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice.domain.operation import new_id
from support.batch_watch import Stream, delete, get, ids_of, renew
from support.client import Client, refusal_from, refused


@pytest.fixture
def parent() -> str:
    """One that no other test uses."""
    return f"folders/{new_id()}"


# By ids.


def test_what_there_is_comes_first_and_then_each_change_until_all_are_done(client: Client) -> None:
    one, two = client.started(), client.started()
    stream = Stream(client, operation_ids=[one, two, one])

    assert stream.first() == [get(client, one), get(client, two)]

    renew(client, two)
    assert stream.record().revision == 2
    client.complete(two)
    assert stream.record() == get(client, two)
    client.cancel(one)
    assert stream.record() == get(client, one)
    assert stream.next() is None


def test_of_done_operations_each_is_told_once(client: Client) -> None:
    ids = [client.complete(client.started()).id for _ in range(3)]
    stream = Stream(client, operation_ids=ids)

    assert ids_of(stream.first()) == ids
    assert stream.next() is None


def test_what_is_not_there_is_told_as_removed(client: Client) -> None:
    id_ = client.started()
    stream = Stream(client, operation_ids=["nowhere", id_])

    assert ids_of(stream.first()) == ["nowhere", id_]
    client.complete(id_)
    assert stream.record().operation.done
    assert stream.next() is None


def test_an_operation_that_the_server_ends_is_told(client: Client) -> None:
    stream = Stream(client, operation_ids=[client.started(timeout=Duration(nanos=300_000_000))])

    assert len(stream.first()) == 1
    assert stream.record().operation.done
    assert stream.next() is None


def test_a_thousand_operations_are_followed_in_one_stream(client: Client) -> None:
    ids = [client.started() for _ in range(30)] + [f"none-{number:0123}" for number in range(970)]
    stream = Stream(client, operation_ids=ids)

    assert ids_of(stream.first()) == ids
    for id_ in ids[:30]:
        client.complete(id_)
    assert sorted(stream.record().operation.id for _ in range(30)) == sorted(ids[:30])
    assert stream.next() is None


# Of a parent.


def test_of_a_parent_what_there_is_comes_first_and_then_what_comes_later(
    client: Client, parent: str
) -> None:
    older = client.started(parent=parent)
    client.started(parent=f"{parent}/below")
    stream = Stream(client, parent=parent)

    assert stream.first() == [get(client, older)]

    newer = client.started(parent=parent)
    assert stream.record() == get(client, newer)
    client.started(parent=f"{parent}/below")
    client.complete(older)
    assert stream.record() == get(client, older)


def test_an_empty_parent_is_caught_up_at_once(client: Client, parent: str) -> None:
    stream = Stream(client, parent=parent)

    assert stream.first() == []
    id_ = client.started(parent=parent)
    assert stream.record().operation.id == id_


def test_a_dash_follows_the_operations_of_all_parents(client: Client, parent: str) -> None:
    filter_ = f'description = "{parent}"'
    ids = [client.started(parent=each, description=parent) for each in ("", parent)]
    stream = Stream(client, parent="-", filter=filter_)

    assert sorted(ids_of(stream.first())) == sorted(ids)
    ids.append(client.started(parent=f"{parent}/below", description=parent))
    assert stream.record().operation.id == ids[2]


def test_what_does_not_match_the_filter_any_more_is_removed_and_comes_back(
    client: Client, parent: str
) -> None:
    stream = Stream(client, parent=parent, filter="done = false")
    assert stream.first() == []

    one, two = client.started(parent=parent), client.started(parent=parent)
    assert [stream.record().operation.id for _ in range(2)] == [one, two]
    client.complete(one)
    assert stream.next() == one
    client.complete(two)
    assert stream.next() == two


def test_of_what_never_matched_nothing_is_told(client: Client, parent: str) -> None:
    stream = Stream(client, parent=parent, filter="method = wanted")
    assert stream.first() == []

    client.complete(client.started(parent=parent, method="other"))
    wanted = client.started(parent=parent, method="wanted")

    assert stream.record().operation.id == wanted


def test_what_is_deleted_is_removed(client: Client, parent: str) -> None:
    id_ = client.complete(client.started(parent=parent)).id
    stream = Stream(client, parent=parent)
    assert ids_of(stream.first()) == [id_]

    delete(client, id_)

    assert stream.next() == id_


def test_what_expires_is_removed(client: Client, parent: str) -> None:
    id_ = client.started(parent=parent, retention=Duration(nanos=500_000_000))
    stream = Stream(client, parent=parent)
    assert ids_of(stream.first()) == [id_]

    client.complete(id_)

    told = stream.next()
    if isinstance(told, OperationRecord):  # it may be too late for its end
        assert told.operation.done
        told = stream.next()
    assert told == id_


def test_many_operations_of_a_parent_are_told_in_pages(client: Client, parent: str) -> None:
    starts = [
        client.producer.Start.future(request) for request in [_start(parent) for _ in range(1100)]
    ]
    ids = {call.result().operation.id for call in starts}
    stream = Stream(client, parent=parent)

    assert set(ids_of(stream.first())) == ids


def _start(parent: str) -> Any:
    from opservice._proto.opservice.v1.producer_service_pb2 import StartRequest

    return StartRequest(parent=parent)


# Continued.


def test_a_stream_goes_on_after_a_break_and_tells_only_what_has_changed(
    client: Client, parent: str
) -> None:
    ids = [client.started(parent=parent) for _ in range(5)]
    stream = Stream(client, parent=parent)
    stream.first()
    renew(client, ids[0])
    assert stream.record().revision == 2
    token = stream.cut()

    renew(client, ids[1])
    client.complete(ids[2])
    delete(client, client.complete(ids[3]).id)
    new = client.started(parent=parent)
    again = Stream(client, parent=parent, resume_token=token)

    assert sorted(ids_of(again.first())) == sorted([ids[1], ids[2], ids[3], new])
    assert again.known == {ids[1]: 2, ids[2]: 2, new: 1}
    client.complete(ids[4])
    assert again.record() == get(client, ids[4])


def test_a_stream_by_ids_goes_on_and_ends_when_the_rest_is_done(client: Client) -> None:
    ids = [client.started() for _ in range(3)]
    stream = Stream(client, operation_ids=ids)
    stream.first()
    client.complete(ids[0])
    assert stream.record().operation.done
    token = stream.cut()

    client.complete(ids[1])
    again = Stream(client, operation_ids=ids, resume_token=token)

    assert ids_of(again.first()) == [ids[1]]
    client.complete(ids[2])
    assert again.record().operation.done
    assert again.next() is None


def test_a_stream_that_is_broken_off_again_and_again_misses_nothing(
    client: Client, parent: str
) -> None:
    stream = Stream(client, parent=parent)
    stream.first()
    known: dict[str, int] = {}
    ids: list[str] = []
    for number in range(12):
        ids.append(client.started(parent=parent))
        renew(client, ids[number // 2], number + 1)
        for _ in range(number % 3):
            stream.next()
        known |= stream.known
        stream = Stream(client, parent=parent, resume_token=stream.cut())
    stream.first()
    known |= stream.known

    assert known == {id_: get(client, id_).revision for id_ in ids}


def test_what_stopped_to_match_during_a_break_is_removed(client: Client, parent: str) -> None:
    ids = [client.started(parent=parent) for _ in range(2)]
    stream = Stream(client, parent=parent, filter="done = false")
    stream.first()
    token = stream.cut()

    client.complete(ids[0])
    again = Stream(client, parent=parent, filter="done = false", resume_token=token)

    assert again.first() == [ids[0]]


def test_a_token_of_another_request_is_an_invalid_argument(client: Client, parent: str) -> None:
    stream = Stream(client, parent=parent)
    stream.first()
    token = stream.cut()
    wrong: list[dict[str, Any]] = [
        {"parent": f"{parent}/below", "resume_token": token},
        {"operation_ids": ["x"], "resume_token": token},
        {"parent": parent, "resume_token": "x" + token[1:]},
        {"parent": parent, "resume_token": token + "AAAA"},
        {"parent": parent, "resume_token": "é"},
    ]
    for fields in wrong:
        with refused() as refusal:
            Stream(client, **fields).next()

        assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ["resume_token"])


def test_a_token_of_another_filter_is_an_invalid_argument(client: Client, parent: str) -> None:
    stream = Stream(client, parent=parent)
    stream.first()
    with refused() as refusal:
        Stream(client, parent=parent, filter="done = true", resume_token=stream.cut()).next()

    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ["resume_token"])


# What is wrong.


def test_ids_and_a_parent_are_an_invalid_argument(client: Client) -> None:
    with refused() as refusal:
        Stream(client, operation_ids=["x", ""], parent="folders/a", filter="(").next()

    assert refusal.fields == ["operation_ids[1]", "parent", "filter"]


def test_too_many_ids_are_an_invalid_argument(client: Client) -> None:
    with refused() as refusal:
        Stream(client, operation_ids=["x"] * 1001).next()

    assert refusal.fields == ["operation_ids"]


def test_a_wrong_parent_and_filter_are_an_invalid_argument(client: Client) -> None:
    with refused() as refusal:
        Stream(client, parent="folders/-", filter="(").next()

    assert refusal.fields == ["parent", "filter"]


def test_a_refusal_of_a_stream_tells_what_is_wrong(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        Stream(client, operation_ids=["a\nb"]).next()

    assert refusal_from(caught.value).fields == ["operation_ids[0]"]
