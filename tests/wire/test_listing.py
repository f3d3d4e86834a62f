"""List: parents, pages, tokens, and a filter, on the wire."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import BytesValue
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from opservice._proto.opservice.v1 import operation_record_service_pb2 as pb
from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy, OperationRecord
from opservice.methods.filtering import MAX_FILTER
from opservice.methods.listing import position_from_token, position_to_token
from support.client import Client, packed, refused
from support.fixtures import execute
from support.server import ServerProcess, eventually

FOUR_MIB = 4 << 20
"""What gRPC clients accept as one message unless told otherwise."""


@pytest.fixture
def parent() -> str:
    """A parent that no other test has: they share the server."""
    return f"folders/{uuid4().hex}"


def page(client: Client, **fields: Any) -> pb.ListOperationRecordsResponse:
    return client.records.List(pb.ListOperationRecordsRequest(**fields))


def pages(client: Client, **fields: Any) -> Iterator[pb.ListOperationRecordsResponse]:
    token = ""
    while True:
        response = page(client, page_token=token, **fields)
        yield response
        token = response.next_page_token
        if not token:
            return


def records(client: Client, **fields: Any) -> list[OperationRecord]:
    return [record for each in pages(client, **fields) for record in each.operation_records]


def ids(client: Client, **fields: Any) -> list[str]:
    return [record.operation.id for record in records(client, **fields)]


def newest_first(client: Client, started: list[str]) -> list[str]:
    """SQLite's clock ticks in milliseconds: operations may well have the same time."""

    def place(id_: str) -> tuple[int, str]:
        return client.get(id_).created_at.ToNanoseconds(), id_

    return sorted(started, key=place, reverse=True)


def test_a_list_has_the_operations_of_exactly_this_parent_newest_first(
    client: Client, parent: str
) -> None:
    started = [client.started(parent=parent) for _ in range(5)]
    for other in (f"{parent}/below", parent[:-1], parent.upper(), ""):
        client.started(parent=other)

    assert ids(client, parent=parent, page_size=2) == newest_first(client, started)


def test_a_list_shows_the_whole_record(client: Client, parent: str) -> None:
    id_ = client.started(parent=parent, method="a.B.C", cancel_policy=CancelPolicy.COOPERATIVE)
    client.cancel(id_)

    (record,) = records(client, parent=parent)

    assert record == client.records.Get(pb.GetOperationRecordRequest(operation_id=id_))


def test_no_parent_lists_the_operations_that_have_none(client: Client) -> None:
    caller = uuid4().hex
    id_ = client.started(created_by=caller)
    client.started(created_by=caller, parent="folders/other")

    assert ids(client, filter=f"created_by = {caller}") == [id_]


def test_a_dash_lists_the_operations_of_all_parents(client: Client) -> None:
    caller = uuid4().hex
    started = [client.started(created_by=caller, parent=each) for each in ("", "a", "b/c")]

    found = ids(client, parent="-", filter=f"created_by = {caller}")

    assert found == newest_first(client, started)


@pytest.mark.parametrize("wrong", ["-", "folders/-", "-/b1g"])
def test_no_operation_may_have_a_parent_that_means_all(client: Client, wrong: str) -> None:
    with refused() as refusal:
        client.start(parent=wrong)

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.fields == ["parent"]


def test_an_expired_operation_is_not_listed(client: Client, parent: str) -> None:
    gone = client.started(parent=parent, retention=Duration(nanos=1_000))
    kept = client.started(parent=parent)
    client.complete(gone)

    eventually(lambda: ids(client, parent=parent) == [kept])


@pytest.mark.parametrize(("page_size", "expected"), [(0, 100), (7, 7), (5000, 1000)])
def test_the_page_size_has_a_default_and_a_maximum(
    server: ServerProcess, parent: str, page_size: int, expected: int
) -> None:
    fill(server, parent, 1001)

    response = page(server.client, parent=parent, page_size=page_size)

    assert len(response.operation_records) == expected
    assert response.next_page_token


def fill(server: ServerProcess, parent: str, count: int) -> None:
    statement = f"""
        INSERT INTO operations (id, parent, method, description, created_by, created_at, modified_at,
            revision, done, cancel_policy, retention)
        WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})
        SELECT '{parent}' || n, '{parent}', '', '', '', n, n, 1, false, 1, 1 FROM numbers
    """
    execute(server.database, statement)


def test_pages_neither_skip_nor_repeat_while_operations_are_added(
    client: Client, parent: str
) -> None:
    before = [client.started(parent=parent) for _ in range(7)]
    seen: list[str] = []
    for response in pages(client, parent=parent, page_size=2):
        seen += [record.operation.id for record in response.operation_records]
        if len(seen) < 7:
            client.started(parent=parent)

    assert len(seen) == len(set(seen))
    assert set(before) <= set(seen)


def test_a_page_of_the_largest_operations_fits_into_a_message(client: Client, parent: str) -> None:
    large = packed(BytesValue(value=bytes((1 << 20) - 100)))
    started = [client.started(parent=parent, metadata=large) for _ in range(4)]
    for id_ in started:
        client.complete(id_, response=large)

    listed = list(pages(client, parent=parent))

    found = [record.operation.id for each in listed for record in each.operation_records]
    assert sorted(found) == sorted(started)
    assert max(each.ByteSize() for each in listed) < FOUR_MIB


def test_the_page_size_may_change_from_page_to_page(client: Client, parent: str) -> None:
    started = newest_first(client, [client.started(parent=parent) for _ in range(4)])
    first = page(client, parent=parent, page_size=1)

    rest = page(client, parent=parent, page_size=9, page_token=first.next_page_token)

    assert [record.operation.id for record in rest.operation_records] == started[1:]
    assert not rest.next_page_token


@pytest.fixture
def token(client: Client, parent: str) -> str:
    for _ in range(2):
        client.started(parent=parent)
    return page(client, parent=parent, page_size=1).next_page_token


def reencoded(token: str, change: Callable[[bytes], bytes]) -> str:
    data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    return base64.urlsafe_b64encode(change(data)).decode().rstrip("=")


WRONG_TOKENS: dict[str, Callable[[str], str]] = {
    "truncated": lambda token: token[:-1],
    "cut to its digest": lambda token: token[:17],
    "one character": lambda token: "A",
    "extended": lambda token: token + "A",
    "padded": lambda token: token + "=",
    "with a space": lambda token: token[:4] + " " + token[4:],
    "not base64": lambda token: "%%%",
    "not ASCII": lambda token: "é" * 8,
    "long": lambda token: token * 100,
    "another version": lambda token: reencoded(token, lambda data: b"\x02" + data[1:]),
    "another position": lambda token: reencoded(token, lambda data: data[:-1] + b"~"),
    "not UTF-8": lambda token: reencoded(token, lambda data: data[:-1] + b"\xff"),
}


@pytest.mark.parametrize("wrong", WRONG_TOKENS.values(), ids=WRONG_TOKENS)
def test_a_token_that_the_server_did_not_give_is_an_invalid_argument(
    client: Client, parent: str, token: str, wrong: Callable[[str], str]
) -> None:
    with refused() as refusal:
        page(client, parent=parent, page_token=wrong(token))

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.fields == ["page_token"]


@pytest.mark.parametrize("other", [{"parent": ""}, {"parent": "-"}, {"filter": "done = false"}])
def test_a_token_of_another_list_is_an_invalid_argument(
    client: Client, parent: str, token: str, other: dict[str, str]
) -> None:
    with refused() as refusal:
        page(client, **{"parent": parent, "page_token": token, **other})

    assert refusal.fields == ["page_token"]


@pytest.mark.parametrize("id_", ["", "a\0b"])
def test_a_token_made_to_look_right_cannot_ask_for_the_impossible(id_: str) -> None:
    assert position_from_token(position_to_token((1, id_), "", ""), "", "") is None


@pytest.mark.parametrize("position", [(0, "a"), (-(2**63), "é"), (2**63 - 1, "x" * 128)])
def test_a_token_holds_its_position(position: tuple[int, str]) -> None:
    token = position_to_token(position, "a", "b")

    assert position_from_token(token, "a", "b") == position
    assert position_from_token(token, "ab", "") is None


def test_a_filter_narrows_the_list(client: Client, parent: str) -> None:
    running = client.started(parent=parent, description="Create a disk")
    failed = client.started(parent=parent, description="Delete a disk")
    client.fail(failed, Status(code=Code.NOT_FOUND))
    cancelling = client.started(parent=parent, cancel_policy=CancelPolicy.COOPERATIVE)
    client.cancel(cancelling)

    def found(filter_: str) -> set[str]:
        return set(ids(client, parent=parent, filter=filter_))

    assert found("done = true") == {failed}
    assert found("error.code = NOT_FOUND OR error.code = CANCELLED") == {failed, cancelling}
    assert found("done = false error.code = 1") == {cancelling}
    assert found("NOT error.code = 5") == found("error.code != 5") == {running, cancelling}
    assert found('description:disk AND -description = "Delete*"') == {running}
    assert found(f"id = {running}") == {running}
    assert found("created_at > 2026-01-01T00:00:00Z modified_at < 2000-01-01T00:00:00Z") == set()


def test_a_filter_holds_for_every_page(client: Client, parent: str) -> None:
    started = [client.started(parent=parent, method=f"m{n % 2}") for n in range(6)]

    found = ids(client, parent=parent, filter="method = m1", page_size=1)

    assert found == newest_first(client, started[1::2])


def test_a_wrong_filter_is_an_invalid_argument_that_points_at_the_place(client: Client) -> None:
    with refused() as refusal:
        page(client, filter="done=true foo=5")

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    (violation,) = refusal.one(BadRequest).field_violations
    assert violation.field == "filter"
    assert violation.description.startswith('at character 11: unknown field "foo"; the fields are')
    assert violation.description.endswith("\n  done=true foo=5\n            ^")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("x" * (MAX_FILTER + 1), f"at most {MAX_FILTER} are allowed"),
        ('id = "\0"', "must not contain NUL"),
        ("id=a OR " * 100 + "id=a", "more than 100 comparisons"),
    ],
    ids=["long", "NUL", "many comparisons"],
)
def test_a_filter_has_limits(client: Client, wrong: str, said: str) -> None:
    with refused() as refusal:
        page(client, filter=wrong)

    assert refusal.fields == ["filter"]
    assert said in refusal.message


def test_every_wrong_field_is_named_at_once(client: Client) -> None:
    with refused() as refusal:
        page(client, parent="folders/-", page_size=-1, page_token="x", filter="(")

    assert refusal.fields == ["parent", "page_size", "filter", "page_token"]


def test_a_refusal_fits_into_the_headers_that_clients_accept(client: Client) -> None:
    with refused() as refusal:
        page(client, filter="\U0001f600" * 2000, page_token="é" * 2000, page_size=-1)

    assert refusal.fields == ["page_size", "filter", "page_token"]
    assert refusal.header_bytes < 8 << 10
