"""Protobuf JSON with an `Any` of any kind: known, unknown, broken, deep; there and back."""

import json

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Struct
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.demo.v1.container_registry_pb2 import Registry
from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from opservice._proto.opservice.v1.producer_service_pb2 import StartRequest
from opservice.methods.protojson import NotJson, ProtoJson
from support.client import packed

JSON = ProtoJson(descriptor_pool.Default())
UNKNOWN = Any(type_url="example.com/a.B", value=b"\x00\x01\xff")
SHOWN = {"@type": "example.com/a.B", "value": "AAH/"}


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
        ({"description": 3}, "description", "string"),
        ({"lease": "soon"}, "lease", "Duration"),
        ({"cancelPolicy": "LATER"}, "cancelPolicy", "Invalid enum value"),
        ({"metadata": {"@type": "example.com/a.B", "x": 1}}, "metadata", '"value": BASE64'),
        ({"metadata": {"@type": "example.com/a.B", "value": 1}}, "metadata", "BASE64"),
        ({"metadata": {"a": 1}}, "metadata", "@type"),
        ({"metadata": {"@type": {}, "value": "AA=="}}, "", "@type must be a string"),
        ({"metadata": {"@type": None}}, "", "@type must be a string"),
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
