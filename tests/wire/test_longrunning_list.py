"""ListOperations: its names of collections. Filters and pages are those of OperationRecordService.List."""

from typing import Any
from uuid import uuid4

import pytest
from google.longrunning.operations_proto_pb2 import ListOperationsResponse, Operation
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from opservice._proto.opservice.demo.v1.container_registry_pb2 import Registry
from support.client import Client, packed, refused
from support.longrunning import Operations

RESPONSE = packed(Registry(id="crp1", name="images"))
ERROR = Status(code=Code.ALREADY_EXISTS, message="the name is taken")


@pytest.fixture
def operations(client: Client) -> Operations:
    return Operations(client)


def fresh_parent() -> str:
    """A parent that no other test uses."""
    return f"folders/{uuid4().hex}"


@pytest.mark.parametrize("suffix", ["", "/operations"])
def test_list_shows_the_operations_of_a_parent_newest_first(
    client: Client, operations: Operations, suffix: str
) -> None:
    parent = fresh_parent()
    first, second = client.started(parent=parent), client.started(parent=parent)
    client.complete(first, response=RESPONSE)
    client.started(parent=fresh_parent())

    assert operations.list(parent + suffix) == ListOperationsResponse(
        operations=[
            Operation(name=f"{parent}/operations/{second}"),
            Operation(name=f"{parent}/operations/{first}", done=True, response=RESPONSE),
        ]
    )


@pytest.mark.parametrize("name", ["", "operations"])
def test_list_without_a_parent_shows_the_operations_that_have_none(
    client: Client, operations: Operations, name: str
) -> None:
    creator = uuid4().hex
    id_ = client.started(created_by=creator)
    client.started(created_by=creator, parent="folders/b1g")

    listed = operations.list(name, filter=f'created_by = "{creator}"')

    assert [each.name for each in listed.operations] == [f"operations/{id_}"]


@pytest.mark.parametrize("name", ["-", "-/operations"])
def test_list_of_a_dash_shows_the_operations_of_all_parents(
    client: Client, operations: Operations, name: str
) -> None:
    creator = uuid4().hex
    ids = [client.started(created_by=creator, parent=parent) for parent in ("", "a", "a/b")]

    listed = operations.list(name, filter=f'created_by = "{creator}"')

    assert [each.name for each in listed.operations] == [
        f"a/b/operations/{ids[2]}",
        f"a/operations/{ids[1]}",
        f"operations/{ids[0]}",
    ]


def test_list_of_a_parent_that_ends_with_operations_needs_the_collection(
    client: Client, operations: Operations
) -> None:
    parent = fresh_parent()
    client.started(parent=parent)
    id_ = client.started(parent=f"{parent}/operations")

    listed = operations.list(f"{parent}/operations/operations")

    assert [each.name for each in listed.operations] == [f"{parent}/operations/operations/{id_}"]


def test_list_goes_page_by_page_through_all_operations(
    client: Client, operations: Operations
) -> None:
    parent = fresh_parent()
    ids = [client.started(parent=parent) for _ in range(5)]

    pages, token = [], ""
    while True:
        page = operations.list(parent, page_size=2, page_token=token)
        pages.append([each.name.rpartition("/")[2] for each in page.operations])
        token = page.next_page_token
        if not token:
            break

    newest_first = ids[::-1]
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]


def test_a_page_token_is_bound_to_its_parent(client: Client, operations: Operations) -> None:
    parent = fresh_parent()
    for _ in range(2):
        client.started(parent=parent)
    token = operations.list(parent, page_size=1).next_page_token

    with refused() as refusal:
        operations.list(fresh_parent(), page_size=1, page_token=token)

    assert refusal.fields == ["page_token"]


def test_list_takes_a_filter(client: Client, operations: Operations) -> None:
    parent = fresh_parent()
    client.started(parent=parent)
    failed = client.started(parent=parent)
    client.fail(failed, ERROR)

    listed = operations.list(parent, filter=f"done = true AND error.code = {Code.ALREADY_EXISTS}")

    assert [each.name for each in listed.operations] == [f"{parent}/operations/{failed}"]


def test_list_has_nothing_unreachable_to_report(client: Client, operations: Operations) -> None:
    parent = fresh_parent()
    client.started(parent=parent)

    partial = operations.list(parent, return_partial_success=True)

    assert partial == operations.list(parent)
    assert list(partial.unreachable) == []


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"name": "fol ders"}, "name"),
        ({"name": "folders/"}, "name"),
        ({"name": "/operations"}, "name"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "!"}, "page_token"),
        ({"filter": "done ="}, "filter"),
    ],
    ids=str,
)
def test_list_names_the_field_that_is_wrong(
    operations: Operations, fields: dict[str, Any], wrong: str
) -> None:
    with refused() as refusal:
        operations.list(**fields)

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.fields == [wrong]
