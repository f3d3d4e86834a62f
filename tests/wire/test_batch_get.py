"""OperationRecordService.BatchGet."""

from google.protobuf.wrappers_pb2 import BytesValue
from grpc import StatusCode

from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    BatchGetOperationRecordsRequest,
    BatchGetOperationRecordsResponse,
    GetOperationRecordRequest,
)
from support.client import Client, packed, refused


def batch_get(client: Client, *operation_ids: str) -> BatchGetOperationRecordsResponse:
    return client.records.BatchGet(BatchGetOperationRecordsRequest(operation_ids=operation_ids))


def test_the_records_come_as_get_shows_them_in_the_order_of_the_request(client: Client) -> None:
    ids = [client.started(parent=f"folders/{number}") for number in range(45)]
    client.complete(ids[7])

    answer = batch_get(client, *reversed(ids))

    requests = [GetOperationRecordRequest(operation_id=id_) for id_ in reversed(ids)]
    assert list(answer.operation_records) == [client.records.Get(each) for each in requests]
    assert not answer.not_found_ids


def test_an_id_that_comes_twice_is_answered_once_in_its_first_place(client: Client) -> None:
    one, two = client.started(), client.started()

    answer = batch_get(client, two, one, two, "nowhere", "nowhere")

    assert [record.operation.id for record in answer.operation_records] == [two, one]
    assert answer.not_found_ids == ["nowhere"]


def test_ids_that_are_not_found_are_told_beside_the_records(client: Client) -> None:
    id_ = client.started()

    answer = batch_get(client, "nowhere", id_, "nor here")

    assert [record.operation.id for record in answer.operation_records] == [id_]
    assert answer.not_found_ids == ["nowhere", "nor here"]


def test_a_thousand_ids_of_the_longest_are_taken(client: Client) -> None:
    ids = [f"{number:03}".ljust(128, "\U0001f600") for number in range(1000)]

    assert batch_get(client, *ids).not_found_ids == ids


def test_more_ids_than_a_thousand_are_an_invalid_argument(client: Client) -> None:
    with refused() as refusal:
        batch_get(client, *["x"] * 1001)

    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ["operation_ids"])


def test_no_ids_are_an_invalid_argument(client: Client) -> None:
    with refused() as refusal:
        batch_get(client)

    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ["operation_ids"])


def test_each_wrong_id_is_named(client: Client) -> None:
    with refused() as refusal:
        batch_get(client, "good", "", "a\nb", "x" * 129)

    assert refusal.fields == [f"operation_ids[{index}]" for index in (1, 2, 3)]


def test_records_too_large_for_one_answer_are_an_invalid_argument(client: Client) -> None:
    large = packed(BytesValue(value=b"x" * 1_000_000))
    ids = [client.complete(client.started(), response=large).id for _ in range(4)]

    with refused() as refusal:
        batch_get(client, *ids)

    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ["operation_ids"])
    assert len(batch_get(client, *ids[:3]).operation_records) == 3
