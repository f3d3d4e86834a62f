"""What a record tells beside the operation: labels, who, until when, and in which trace."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy, OperationRecord
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    GetOperationRecordRequest,
    ListOperationRecordsRequest,
)
from opservice._proto.opservice.v1.producer_service_pb2 import StartRequest
from support.client import Client, refused

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def record(client: Client, id_: str) -> OperationRecord:
    return client.records.Get(GetOperationRecordRequest(operation_id=id_))


def test_a_start_answers_with_what_is_kept_beside_the_operation(client: Client) -> None:
    labels = {"team": "core", "empty": "", "any": "a=b \u2603"}
    answer = client.start(labels=labels, timeout=Duration(seconds=60), parent="folders/labelled")
    assert dict(answer.record.labels) == labels
    assert not answer.record.HasField("operation")
    kept = record(client, answer.operation.id)
    kept.ClearField("operation")
    assert kept == answer.record
    created = answer.operation.created_at.ToMicroseconds()
    assert kept.timeout_at.ToMicroseconds() == created + 60_000_000


@pytest.mark.parametrize(
    ("labels", "fields"),
    [
        ({f"k{n}": "" for n in range(17)}, ["labels"]),
        ({"Team": "x"}, ["labels.Team"]),
        ({"": "x"}, ["labels."]),
        ({"1a": "x", "a" * 64: "x"}, ["labels.1a", "labels." + "a" * 30]),
        ({"a": "x" * 64}, ["labels.a"]),
        ({"a": "x\ny"}, ["labels.a"]),
        ({"a\n": "x"}, ["labels.a?"]),
    ],
    ids=str,
)
def test_labels_have_limits(client: Client, labels: dict[str, str], fields: list[str]) -> None:
    with refused() as refusal:
        client.start(labels=labels)
    assert refusal.fields == fields


def test_as_many_and_as_long_labels_as_may_be(client: Client) -> None:
    labels = {f"k{n:_<61}": "\u2603" * 63 for n in range(10, 26)}
    assert dict(record(client, client.started(labels=labels)).labels) == labels


def test_other_labels_under_the_same_key_are_another_request(client: Client) -> None:
    request: dict[str, Any] = {"idempotency_key": "labelled", "labels": {"a": "1", "b": "2"}}
    first = client.started(**request)
    assert client.started(**request) == first
    with refused() as refusal:
        client.started(**{**request, "labels": {"a": "1"}})
    assert refusal.reason == "IDEMPOTENCY_KEY_REUSED"


def test_a_cancel_by_nobody_known_names_nobody(client: Client) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)
    client.cancel(id_)
    assert (record(client, id_).cancelled_by, record(client, id_).producer) == ("", "")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (TRACEPARENT, TRACEPARENT),
        ("01" + TRACEPARENT[2:] + "-more", TRACEPARENT),
        (TRACEPARENT + "-more", ""),
        ("ff" + TRACEPARENT[2:], ""),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", ""),
        (TRACEPARENT.upper(), ""),
        ("nonsense", ""),
    ],
)
def test_the_trace_of_a_start_is_kept(client: Client, given: str, kept: str) -> None:
    metadata = (("traceparent", given),)
    answer = client.producer.Start(StartRequest(), metadata=metadata)
    assert answer.record.traceparent == kept
    assert record(client, answer.operation.id).traceparent == kept


PARENT = "folders/labels-in-filters"


@pytest.fixture(scope="module")
def labelled(server: Any) -> dict[str, str]:
    """The ids of operations, by the value of their label `team`."""
    client = server.client
    return {
        "core": client.started(parent=PARENT, labels={"team": "core", "urgent": ""}),
        "corex": client.started(parent=PARENT, labels={"team": "corex"}),
        "": client.started(parent=PARENT),
    }


@pytest.mark.parametrize(
    ("filter_", "found"),
    [
        ('labels.team = "core"', ["core"]),
        ("labels.team != core", ["", "corex"]),
        ("labels.team = core*", ["corex", "core"]),
        ("labels.team:ex", ["corex"]),
        ("labels:urgent", ["core"]),
        ("labels.urgent:*", ["core"]),
        ("NOT labels:team", [""]),
        ("labels.team > core", ["corex"]),
        ("producer = x OR cancelled_by = y", []),
    ],
)
def test_labels_in_filters(
    client: Client, labelled: dict[str, str], filter_: str, found: list[str]
) -> None:
    request = ListOperationRecordsRequest(parent=PARENT, filter=filter_)
    listed = client.records.List(request).operation_records
    assert [each.operation.id for each in listed] == [labelled[name] for name in found]


def test_a_key_that_cannot_be_a_label_is_refused_in_a_filter(client: Client) -> None:
    with refused() as refusal:
        client.records.List(ListOperationRecordsRequest(filter="labels.Team = core"))
    assert '"Team" cannot be the key of a label' in refusal.message
