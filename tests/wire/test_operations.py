"""yandex.cloud.operation.OperationService: every row of its semantics, through a real channel."""

from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from opservice._proto.opservice.demo.v1.container_registry_pb2 import (
    CreateRegistryMetadata,
    Registry,
)
from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    GetOperationRecordRequest,
    ListOperationRecordsRequest,
    WaitOperationRecordRequest,
    WatchOperationRecordRequest,
)
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from support.client import TOKEN, Client, packed, refused, unpacked
from support.server import serving

METADATA = packed(CreateRegistryMetadata(registry_id="crp1"))
RESPONSE = packed(Registry(id="crp1", name="images", labels={"team": "a", "tier": "b"}))
ERROR = Status(
    code=Code.ALREADY_EXISTS,
    message="the name is taken — оно занято",
    details=[packed(ErrorInfo(reason="NAME_TAKEN", domain="registry"))],
)

BAD_IDS = {
    "empty": "",
    "129 characters": "x" * 129,
    "1,000 characters": "x" * 1_000,
    "a line break": "ops\n1",
    "NUL": "ops\x001",
    "DEL": "ops\x7f",
    "a C1 control character": "ops\x85",
}
UNKNOWN_IDS = {
    "of our form": "ops00000000000000000",
    "of another form": "projects/p/operations/1",
    "128 characters": "x" * 128,
    "not ASCII": "операция-1 ☂",
    "quotes": "'; DROP TABLE operations; --",
}

each_method = pytest.mark.parametrize("method", ["get", "cancel"])


def microseconds(timestamp: Timestamp) -> int:
    return timestamp.ToMicroseconds()


def test_get_shows_a_running_operation(client: Client) -> None:
    id_ = client.started(description="Create registry", created_by="ajeuser", metadata=METADATA)

    operation = client.get(id_)

    assert operation == Operation(
        id=id_,
        description="Create registry",
        created_by="ajeuser",
        created_at=operation.created_at,
        modified_at=operation.created_at,
        done=False,
        metadata=METADATA,
    )


def test_get_shows_the_response_of_a_completed_operation(client: Client) -> None:
    id_ = client.started(metadata=METADATA)
    client.complete(id_, response=RESPONSE)

    operation = client.get(id_)

    assert operation.done
    assert operation.WhichOneof("result") == "response"
    assert operation.response == RESPONSE
    assert operation.metadata == METADATA


def test_get_shows_the_error_of_a_failed_operation(client: Client) -> None:
    id_ = client.started()
    client.fail(id_, ERROR)

    operation = client.get(id_)

    assert operation.done
    assert operation.WhichOneof("result") == "error"
    assert operation.error == ERROR


def test_get_answers_as_the_last_write_did(client: Client) -> None:
    id_ = client.started()

    completed = client.complete(id_, response=RESPONSE)

    assert client.get(id_) == completed


def test_modified_at_grows_with_a_change_and_created_at_stays(client: Client) -> None:
    id_ = client.started()
    started = client.get(id_)

    renewed = client.renew(id_).operation
    completed = client.complete(id_)

    assert started.created_at == renewed.created_at == completed.created_at
    times = [microseconds(each.modified_at) for each in (started, renewed, completed)]
    assert times == sorted(set(times))


@each_method
@pytest.mark.parametrize("id_", UNKNOWN_IDS.values(), ids=UNKNOWN_IDS)
def test_an_unknown_id_is_not_found(client: Client, method: str, id_: str) -> None:
    with refused() as refusal:
        getattr(client, method)(id_)

    assert refusal.code == StatusCode.NOT_FOUND
    assert refusal.message == f"Operation {id_} not found"
    assert refusal.reason == "OPERATION_NOT_FOUND"
    assert refusal.one(ErrorInfo).metadata == {"operation_id": id_}


@each_method
@pytest.mark.parametrize("id_", BAD_IDS.values(), ids=BAD_IDS)
def test_a_bad_id_is_an_invalid_argument(client: Client, method: str, id_: str) -> None:
    with refused() as refusal:
        getattr(client, method)(id_)

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.reason == "INVALID_REQUEST"
    assert refusal.fields == ["operation_id"]


def test_a_long_id_is_not_echoed(client: Client) -> None:
    with refused() as refusal:
        client.get("secret" * 200)

    assert "1200 characters, at most 128" in refusal.message
    assert "secret" not in refusal.message


def test_only_a_running_operation_comes_with_a_poll_interval(client: Client) -> None:
    id_ = client.started()

    def headers() -> dict[str, str | bytes]:
        request = GetOperationRequest(operation_id=id_)
        _, call = client.operations.Get.with_call(request)
        return dict(call.initial_metadata() or ())

    running = headers()
    client.complete(id_)
    done = headers()

    assert running["x-operation-poll-interval"] == "1"
    assert "x-operation-poll-interval" not in done


def test_cancel_ends_an_operation_at_once_unless_its_policy_says_otherwise(client: Client) -> None:
    id_ = client.started(metadata=METADATA)

    cancelled = client.cancel(id_)

    assert cancelled.done
    assert cancelled.error.code == Code.CANCELLED
    assert unpacked(cancelled.error.details[0], ErrorInfo).reason == "OPERATION_CANCELLED"
    assert cancelled.metadata == METADATA
    assert client.get(id_) == cancelled


def test_cancel_of_a_cooperative_operation_only_asks(client: Client) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)

    cancelling = client.cancel(id_)

    assert not cancelling.done
    assert cancelling.error.code == Code.CANCELLED
    assert client.get(id_) == cancelling


def test_cancel_of_a_cooperative_operation_reaches_its_producer(client: Client) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)
    assert not client.renew(id_).cancel_requested

    client.cancel(id_)

    assert client.renew(id_).cancel_requested


def test_a_second_cancel_of_a_cooperative_operation_changes_nothing(client: Client) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)

    assert client.cancel(id_) == client.cancel(id_)


def test_success_may_still_win_over_a_cooperative_cancel(client: Client) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)
    client.cancel(id_)

    client.complete(id_, response=RESPONSE)

    operation = client.get(id_)
    assert operation.done
    assert operation.WhichOneof("result") == "response"


def test_the_error_of_a_cooperative_cancel_may_be_hidden_until_it_is_done(
    database_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, database_url, hide_error_until_done=True) as server:
        client = server.client
        id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE, lease_token=TOKEN, parent="p")
        cancelled = client.cancel(id_)
        record = client.records.Get(GetOperationRecordRequest(operation_id=id_))

        assert not cancelled.done
        assert not cancelled.HasField("error")
        assert record.HasField("cancel_requested_at")
        assert record.operation == cancelled == client.get(id_)
        wait = WaitOperationRecordRequest(operation_id=id_, timeout=Duration())
        watch = WatchOperationRecordRequest(operation_id=id_)
        listed = client.records.List(ListOperationRecordsRequest(parent="p"))
        assert client.records.Wait(wait) == record
        assert next(client.records.Watch(watch)) == record
        assert list(listed.operation_records) == [record]

        producers = client.renew(id_, lease_token=TOKEN)  # its answers keep it
        assert producers.cancel_requested
        assert producers.operation.error.code == Code.CANCELLED
        client.fail(id_, producers.operation.error, lease_token=TOKEN)

        assert client.get(id_).error == producers.operation.error


def test_a_hidden_error_is_not_in_the_answer_to_a_repeated_start_either(
    database_url: str, tmp_path: Path
) -> None:
    """For a service hands that on to its caller."""
    start = {
        "idempotency_key": "k",
        "cancel_policy": CancelPolicy.COOPERATIVE,
        "lease_token": TOKEN,
    }
    with serving(tmp_path, database_url, hide_error_until_done=True) as server:
        client = server.client
        cancelled = client.cancel(client.started(**start))

        assert client.start(**start).operation == cancelled
        assert client.start(**start | {"lease_token": f"other-{TOKEN}"}).operation == cancelled


def test_the_producer_ends_a_cooperative_cancel_with_its_own_error(client: Client) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)
    client.cancel(id_)
    error = Status(code=Code.CANCELLED, message="cleaned up")

    client.fail(id_, error)

    operation = client.get(id_)
    assert operation.done
    assert operation.error == error


def test_cancel_of_an_operation_that_does_not_support_it_is_refused(client: Client) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.UNSUPPORTED)
    before = client.get(id_)

    with refused() as refusal:
        client.cancel(id_)

    assert refusal.code == StatusCode.FAILED_PRECONDITION
    assert refusal.reason == "OPERATION_NOT_CANCELLABLE"
    assert refusal.one(ErrorInfo).metadata == {"operation_id": id_}
    assert client.get(id_) == before


@pytest.mark.parametrize("policy", [CancelPolicy.IMMEDIATE, CancelPolicy.UNSUPPORTED])
def test_cancel_of_a_done_operation_changes_nothing(client: Client, policy: CancelPolicy) -> None:
    id_ = client.started(cancel_policy=policy)
    completed = client.complete(id_, response=packed(Empty()))

    assert client.cancel(id_) == completed
