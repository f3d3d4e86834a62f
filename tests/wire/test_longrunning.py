"""google.longrunning.Operations, over the operations of the other services; for List see its own file."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from google.longrunning.operations_proto_pb2 import Operation
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from opservice._proto.opservice.demo.v1.container_registry_pb2 import (
    CreateRegistryMetadata,
    Registry,
)
from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy, OperationRecord
from opservice._proto.opservice.v1.operation_record_service_pb2 import GetOperationRecordRequest
from support.client import Client, packed, refused
from support.longrunning import Operations

METADATA = packed(CreateRegistryMetadata(registry_id="crp1"))
RESPONSE = packed(Registry(id="crp1", name="images"))
ERROR = Status(
    code=Code.ALREADY_EXISTS,
    message="the name is taken — оно занято",
    details=[packed(ErrorInfo(reason="NAME_TAKEN", domain="registry"))],
)

PARENTS = [
    "folders/b1g",
    "projects/p/locations/l",
    "operations",
    "a/operations",
    "operations/a",
    "ё",
]
MALFORMED = {
    "empty": "",
    "the id alone": "ops00000000000000000",
    "the collection alone": "operations",
    "no id": "operations/",
    "no parent before the slash": "/operations/a",
    "a parent that ends with a slash": "folders//operations/a",
    "a parent with a space": "fol ders/operations/a",
    "another collection": "folders/b1g/instances/a",
    "more after the id": "operations/a/b",
    "a line break in the id": "operations/a\nb",
    "NUL in the parent": "fol\0ders/operations/a",
    "an id of 129 characters": "operations/" + "x" * 129,
    "a parent of 257 characters": "x" * 257 + "/operations/a",
    "thousands of slashes": "/" * 4_000,
}


@pytest.fixture
def operations(client: Client) -> Operations:
    return Operations(client)


each_method = pytest.mark.parametrize("method", ["get", "cancel", "delete", "wait"])


def record(client: Client, id_: str) -> OperationRecord:
    return client.records.Get(GetOperationRecordRequest(operation_id=id_))


def test_the_service_is_serving(client: Client) -> None:
    health: Any = HealthStub(client.channel)
    request = HealthCheckRequest(service="google.longrunning.Operations")

    assert health.Check(request).status == HealthCheckResponse.SERVING


def test_a_running_operation_has_its_metadata_and_no_result(
    client: Client, operations: Operations
) -> None:
    id_ = client.started(metadata=METADATA)

    assert operations.get(f"operations/{id_}") == Operation(
        name=f"operations/{id_}", metadata=METADATA
    )


@pytest.mark.parametrize("parent", PARENTS)
def test_an_operation_is_found_by_its_full_name_and_by_its_id_alone(
    client: Client, operations: Operations, parent: str
) -> None:
    id_ = client.started(parent=parent)
    name = f"{parent}/operations/{id_}"

    assert operations.get(name).name == name
    assert operations.get(f"operations/{id_}").name == name


def test_a_completed_operation_shows_its_response(client: Client, operations: Operations) -> None:
    id_ = client.started(metadata=METADATA)
    client.complete(id_, response=RESPONSE)

    assert operations.get(f"operations/{id_}") == Operation(
        name=f"operations/{id_}", metadata=METADATA, done=True, response=RESPONSE
    )


def test_a_failed_operation_shows_its_error(client: Client, operations: Operations) -> None:
    id_ = client.started()
    client.fail(id_, ERROR)

    assert operations.get(f"operations/{id_}") == Operation(
        name=f"operations/{id_}", done=True, error=ERROR
    )


def test_no_result_is_shown_while_an_operation_is_being_cancelled(
    client: Client, operations: Operations
) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE, metadata=METADATA)

    assert operations.cancel(f"operations/{id_}") == Empty()

    assert client.get(id_).error.code == Code.CANCELLED
    assert operations.get(f"operations/{id_}") == Operation(
        name=f"operations/{id_}", metadata=METADATA
    )


@each_method
@pytest.mark.parametrize("name", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_name_is_an_invalid_argument(
    operations: Operations, method: str, name: str
) -> None:
    with refused() as refusal:
        getattr(operations, method)(name)

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.fields == ["name"]
    (violation,) = refusal.one(BadRequest).field_violations
    assert "must be operations/ID or PARENT/operations/ID" in violation.description


@each_method
@pytest.mark.parametrize("parent", ["", "folders/b1g/"])
def test_an_unknown_operation_is_not_found(
    operations: Operations, method: str, parent: str
) -> None:
    with refused() as refusal:
        getattr(operations, method)(f"{parent}operations/nowhere")

    assert refusal.code == StatusCode.NOT_FOUND
    assert refusal.message == f"Operation {parent}operations/nowhere not found"
    assert refusal.reason == "OPERATION_NOT_FOUND"
    assert refusal.one(ErrorInfo).metadata == {"operation_id": "nowhere"}


@each_method
@pytest.mark.parametrize("actual", ["", "folders/b1g"])
def test_an_operation_of_another_parent_is_not_found(
    client: Client, operations: Operations, method: str, actual: str
) -> None:
    id_ = client.started(parent=actual)

    with refused() as refusal:
        getattr(operations, method)(f"folders/other/operations/{id_}")

    assert refusal.code == StatusCode.NOT_FOUND
    assert refusal.message == f"Operation folders/other/operations/{id_} not found"
    assert refusal.reason == "OPERATION_NOT_FOUND"
    assert refusal.one(ErrorInfo).metadata == {"operation_id": id_}


def test_a_cancel_under_another_parent_changes_nothing(
    client: Client, operations: Operations
) -> None:
    id_ = client.started(parent="folders/b1g")
    before = record(client, id_)

    with refused():
        operations.cancel(f"folders/other/operations/{id_}")

    assert record(client, id_) == before


def test_a_delete_under_another_parent_changes_nothing(
    client: Client, operations: Operations
) -> None:
    id_ = client.started(parent="folders/b1g")
    client.complete(id_)
    before = record(client, id_)

    with refused():
        operations.delete(f"folders/other/operations/{id_}")

    assert record(client, id_) == before


@pytest.mark.parametrize("prefix", ["folders/b1g/operations/", "operations/"])
def test_cancel_ends_a_running_operation(
    client: Client, operations: Operations, prefix: str
) -> None:
    id_ = client.started(parent="folders/b1g")

    assert operations.cancel(prefix + id_) == Empty()

    cancelled = operations.get(prefix + id_)
    assert cancelled.done
    assert cancelled.error.code == Code.CANCELLED


@pytest.mark.parametrize(
    "end",
    [
        lambda client, id_: client.complete(id_, response=RESPONSE),
        lambda client, id_: client.fail(id_, ERROR),
        lambda client, id_: client.cancel(id_),
    ],
    ids=["completed", "failed", "cancelled"],
)
def test_cancel_of_a_done_operation_is_accepted_and_changes_nothing(
    client: Client, operations: Operations, end: Callable[[Client, str], Any]
) -> None:
    id_ = client.started()
    end(client, id_)
    before = record(client, id_)

    assert operations.cancel(f"operations/{id_}") == Empty()

    assert record(client, id_) == before


def test_a_second_cancel_is_accepted_and_changes_nothing(
    client: Client, operations: Operations
) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)
    operations.cancel(f"operations/{id_}")
    before = record(client, id_)

    assert operations.cancel(f"operations/{id_}") == Empty()

    assert record(client, id_) == before


def test_an_operation_may_succeed_although_its_cancel_was_asked_for(
    client: Client, operations: Operations
) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)
    operations.cancel(f"operations/{id_}")
    client.complete(id_, response=RESPONSE)

    assert operations.get(f"operations/{id_}").response == RESPONSE


def test_cancel_of_what_cannot_be_cancelled_is_a_failed_precondition(
    client: Client, operations: Operations
) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.UNSUPPORTED)

    with refused() as refusal:
        operations.cancel(f"operations/{id_}")

    assert refusal.code == StatusCode.FAILED_PRECONDITION
    assert refusal.reason == "OPERATION_NOT_CANCELLABLE"
    assert not operations.get(f"operations/{id_}").done


@pytest.mark.parametrize("prefix", ["folders/b1g/operations/", "operations/"])
def test_delete_removes_a_done_operation(
    client: Client, operations: Operations, prefix: str
) -> None:
    id_ = client.complete(client.started(parent="folders/b1g")).id

    assert operations.delete(prefix + id_) == Empty()

    with refused() as refusal:
        client.get(id_)
    assert refusal.code == StatusCode.NOT_FOUND


@pytest.mark.parametrize("policy", [CancelPolicy.IMMEDIATE, CancelPolicy.COOPERATIVE])
def test_delete_of_a_running_operation_is_refused_and_cancels_nothing(
    client: Client, operations: Operations, policy: CancelPolicy
) -> None:
    id_ = client.started(cancel_policy=policy)
    before = record(client, id_)

    with refused() as refusal:
        operations.delete(f"operations/{id_}")

    assert refusal.code == StatusCode.FAILED_PRECONDITION
    assert refusal.reason == "OPERATION_RUNNING"
    assert record(client, id_) == before


@pytest.mark.parametrize("prefix", ["folders/b1g/operations/", "operations/"])
def test_wait_answers_once_the_operation_is_done(
    client: Client, operations: Operations, prefix: str
) -> None:
    id_ = client.started(parent="folders/b1g")
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(operations.wait, prefix + id_)
        assert not operations.wait(prefix + id_, Duration(nanos=300_000_000)).done
        assert not waiting.done()

        client.complete(id_, response=RESPONSE)

        assert waiting.result() == operations.get(prefix + id_)


@pytest.mark.parametrize("timeout", [Duration(), Duration(nanos=50_000_000)], ids=["0", "50 ms"])
def test_wait_answers_with_the_operation_as_it_is_after_its_timeout(
    client: Client, operations: Operations, timeout: Duration
) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE, metadata=METADATA)
    client.cancel(id_)

    assert operations.wait(f"operations/{id_}", timeout) == Operation(
        name=f"operations/{id_}", metadata=METADATA
    )


def test_wait_refuses_a_negative_timeout(client: Client, operations: Operations) -> None:
    id_ = client.started()

    with refused() as refusal:
        operations.wait(f"operations/{id_}", Duration(seconds=-1))

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.fields == ["timeout"]
