"""Protobuf JSON with an `Any` of any kind: known, unknown, broken, deep; there and back."""

import json

import pytest
from google.protobuf import descriptor_pool, field_mask_pb2
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Struct
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.demo.v1.container_registry_pb2 import Registry
from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from opservice._proto.opservice.v1.producer_service_pb2 import StartRequest
from opservice.methods.json_messages import NotJson
from opservice.methods.protojson import ProtoJson
from support.client import packed

JSON = ProtoJson(descriptor_pool.Default())
UNKNOWN = Any(type_url="example.com/a.B", value=b"\x00\x01\xff")
SHOWN = {"@type": "example.com/a.B", "value": "AAH/"}

WELL_KNOWN = "type.googleapis.com/google.protobuf."
STATUS = {"@type": "type.googleapis.com/google.rpc.Status"}


def known(name: str, value: object) -> dict[str, object]:
    """An `Any` with a type of protobuf's own."""
    return {"@type": WELL_KNOWN + name, "value": value}


assert field_mask_pb2.DESCRIPTOR  # which makes the pool know it


def there_and_back(request: StartRequest) -> StartRequest:
    again = StartRequest()
    JSON.fill(again, json.loads(JSON.to_json(request)))
    return again


def test_an_any_of_an_unknown_type_is_its_url_and_base64() -> None:
    request = StartRequest(metadata=UNKNOWN)
    assert JSON.to_dict(request) == {"metadata": SHOWN}
    assert there_and_back(request) == request


def test_an_unknown_any_within_a_known_one_does_not_hide_the_rest() -> None:
    status = Status(
        code=5, details=[UNKNOWN, packed(Duration(seconds=3)), packed(Registry(id="r"))]
    )
    request = StartRequest(metadata=packed(status))
    assert JSON.to_dict(request)["metadata"] == {
        "@type": "type.googleapis.com/google.rpc.Status",
        "code": 5,
        "details": [
            SHOWN,
            {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "3s"},
            {"@type": "type.googleapis.com/opservice.demo.v1.Registry", "id": "r"},
        ],
    }
    assert there_and_back(request) == request


def test_an_any_in_an_any_in_an_any_comes_back() -> None:
    request = StartRequest(metadata=packed(packed(UNKNOWN)))
    assert there_and_back(request) == request


@pytest.mark.parametrize("value", [{}, {"value": {}}], ids=["Python's", "Go's"])
def test_an_empty_is_read_in_both_forms_that_clients_write(value: dict[str, object]) -> None:
    request = StartRequest()
    url = "type.googleapis.com/google.protobuf.Empty"
    JSON.fill(request, {"metadata": {"@type": url, **value}})
    assert request == StartRequest(metadata=packed(Empty()))


def test_bytes_that_are_no_message_of_their_type_are_base64() -> None:
    url = "type.googleapis.com/opservice.demo.v1.Registry"
    request = StartRequest(metadata=Any(type_url=url, value=b"\xff"))
    assert JSON.to_dict(request)["metadata"] == {"@type": url, "value": "/w=="}


def test_a_value_that_has_no_json_is_base64() -> None:
    url = "type.googleapis.com/google.protobuf.Duration"
    held = Duration(seconds=10**15).SerializeToString()
    request = StartRequest(metadata=Any(type_url=url, value=held))
    assert JSON.to_dict(request)["metadata"]["@type"] == url


def test_what_is_nested_ever_so_deep_is_shown() -> None:
    payload = UNKNOWN
    for _ in range(2_000):
        payload = packed(payload)
    assert JSON.to_dict(StartRequest(metadata=payload))["metadata"]["@type"].endswith(".Any")


def test_a_struct_that_looks_like_an_any_is_left_alone() -> None:
    struct = Struct()
    struct.update({"@type": "example.com/x.Y", "value": "AAEC"})
    request = StartRequest(metadata=packed(Status(details=[packed(struct), UNKNOWN])))
    assert JSON.to_dict(there_and_back(request)) == JSON.to_dict(request)


@pytest.mark.parametrize(
    ("value", "field", "says"),
    [
        ({"descriptio": "x"}, "descriptio", "is not a field of opservice.v1.StartRequest"),
        ({"description": 3}, "description", "must be a string"),
        ({"createdBy": "a", "created_by": "b"}, "created_by", "under both of its names"),
        ({"lease": "soon"}, "lease", "must be a string such as"),
        ({"lease": 60}, "lease", "must be a string such as"),
        ({"lease": "1_0s"}, "lease", "must be a string such as"),
        ({"lease": "\u0666s"}, "lease", "must be a string such as"),
        ({"lease": "400000000000s"}, "lease", "must be a duration from"),
        ({"cancelPolicy": "LATER"}, "cancelPolicy", "must be one of .*IMMEDIATE, COOPERATIVE"),
        ({"cancelPolicy": 2.5}, "cancelPolicy", "must be one of"),
        ({"cancelPolicy": True}, "cancelPolicy", "must be one of"),
        ({"labels": ["a"]}, "labels", "must be an object"),
        ({"labels": {"a": None}}, "labels.a", "must be a string"),
        ({"metadata": "x"}, "metadata", "must be an object"),
        ({"metadata": {"@type": "example.com/a.B", "x": 1}}, "metadata", '"value": BASE64'),
        ({"metadata": {"@type": "example.com/a.B", "value": 1}}, "metadata", "BASE64"),
        ({"metadata": {"@type": "example.com/a.B", "value": "!!!"}}, "metadata", "BASE64"),
        ({"metadata": {"@type": "example.com/a.B", "value": "A"}}, "metadata", "BASE64"),
        ({"metadata": {"a": 1}}, "metadata", "must have an @type"),
        ({"metadata": {"@type": {}, "value": "AA=="}}, "metadata", "must have an @type"),
        ({"metadata": {"@type": None}}, "metadata", "must have an @type"),
        ({"metadata": known("Duration", "x")}, "metadata.value", "must be a string such as"),
        ({"metadata": known("Timestamp", "2026-13-01T00:00:00Z")}, "metadata.value", "a time"),
        ({"metadata": known("Int64Value", "9223372036854775808")}, "metadata.value", "whole"),
        ({"metadata": known("Int32Value", "1_0")}, "metadata.value", "whole number from"),
        ({"metadata": known("Int32Value", "1e999999999")}, "metadata.value", "whole number from"),
        ({"metadata": known("BoolValue", 1)}, "metadata.value", "must be true or false"),
        ({"metadata": known("DoubleValue", "1e309")}, "metadata.value", "must be a number"),
        ({"metadata": known("FloatValue", "1e39")}, "metadata.value", "must be a number from -3.4"),
        ({"metadata": known("FloatValue", -1e39)}, "metadata.value", "must be a number from -3.4"),
        ({"metadata": known("DoubleValue", True)}, "metadata.value", "must be a number"),
        ({"metadata": {"@type": f"{WELL_KNOWN}Duration"}}, "metadata", "an @type and a value"),
        ({"metadata": {**STATUS, "details": {}}}, "metadata.details", "must be an array"),
        (
            {"metadata": {**STATUS, "details": [{**STATUS, "x": 1}]}},
            "metadata.details[0].x",
            "not a",
        ),
        ({"description": "\ud800"}, "description", "surrogate"),
    ],
    ids=str,
)
def test_wrong_json_is_named(value: dict[str, object], field: str, says: str) -> None:
    with pytest.raises(NotJson, match=says) as refused:
        JSON.fill(StartRequest(), value)
    assert refused.value.field == field
    assert "\n" not in str(refused.value)


def test_both_names_of_a_field_are_taken() -> None:
    request = StartRequest()
    JSON.fill(request, {"created_by": "a", "leaseToken": "b", "cancelPolicy": 2})
    assert request == StartRequest(
        created_by="a", lease_token="b", cancel_policy=CancelPolicy.COOPERATIVE
    )


@pytest.mark.parametrize(
    "payload",
    [
        known("Int64Value", "-9223372036854775808"),
        known("Int64Value", 3.0),
        known("UInt32Value", "1e3"),
        known("DoubleValue", "NaN"),
        known("BytesValue", "_-8"),
        known("Duration", "-1.5s"),
        known("Timestamp", "2026-01-31T12:00:00.5+01:00"),
        known("FieldMask", "a,bC"),
        known("Value", None),
        known("Struct", {"a": [None, {"b": 1}]}),
        {**STATUS, "code": None, "details": [known("StringValue", "x")]},
        {"@type": "example.com/a.B", "value": "_-8"},
    ],
    ids=str,
)
def test_each_form_of_a_value_is_taken(payload: dict[str, object]) -> None:
    request = StartRequest()
    JSON.fill(request, {"metadata": payload})
    assert there_and_back(request) == request
