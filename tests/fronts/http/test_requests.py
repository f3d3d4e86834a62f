"""Request messages from bodies, queries and paths."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from opservice._proto.opservice.v1 import operation_record_service_pb2 as records_pb
from opservice._proto.opservice.v1.producer_service_pb2 import RenewRequest
from opservice.domain.errors import InvalidArgument, MalformedRequest, RequestTooLarge
from opservice.fronts.http.requests import MAX_VALUES, merge_path, parse_body, query_to_json

LIST = records_pb.ListOperationRecordsRequest.DESCRIPTOR
WAIT = records_pb.WaitOperationRecordRequest.DESCRIPTOR
RENEW = RenewRequest.DESCRIPTOR


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[]", "must be a JSON object"),
        (b"{", "is not JSON"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -1e400}', "-1e400 is more than a number can hold"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"a": "\xff"}', "is not UTF-8"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "is not JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(MalformedRequest, match=says):
        parse_body(body)


def test_a_body_of_too_many_values_is_refused_unread() -> None:
    with pytest.raises(RequestTooLarge, match=f"more than {MAX_VALUES} values"):
        parse_body(b'{"a":[' + b"[]," * MAX_VALUES + b"[]]}")


def test_no_body_is_an_empty_object() -> None:
    assert parse_body(b" ") == {}


def test_a_byte_order_mark_is_passed_over() -> None:
    assert parse_body(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("query", "kind", "value"),
    [
        (b"parent=a%2Fb&page_size=3", LIST, {"parent": "a/b", "page_size": "3"}),
        (b"pageSize=3&filter=", LIST, {"page_size": "3", "filter": ""}),
        (b"timeout=1.5s", WAIT, {"timeout": "1.5s"}),
        (b"progress.done=1&progress.unit=x", RENEW, {"progress": {"done": "1", "unit": "x"}}),
        (b"$alt=json%3Benum-encoding%3Dint&alt=json&prettyPrint=true&$.xgafv=2", LIST, {}),
        (b"", LIST, {}),
    ],
)
def test_a_query_sets_fields(query: bytes, kind: Descriptor, value: dict[str, Any]) -> None:
    assert query_to_json(query, kind) == value


@pytest.mark.parametrize(
    ("query", "field", "says"),
    [
        (b"nothing=1", "nothing", "is not a field of the request"),
        (b"parent.x=1", "parent.x", "is not a field of the request"),
        (b"parent=1&parent=2", "parent", "is there more than once"),
        (b"alt=proto", "alt", "must be json"),
    ],
)
def test_a_wrong_parameter_is_named(query: bytes, field: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says) as refused:
        query_to_json(query, LIST)
    assert [violation.field for violation in refused.value.violations] == [field]


def test_a_message_in_a_query_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="cannot be given in a query"):
        query_to_json(b"progress=1", RENEW)


@pytest.mark.parametrize(
    "query",
    [b"parent=%FF", b"parent=50%", b"parent=%zz", b"parent=" + b"&a" * 3_000, b"parent=\xff"],
)
def test_a_malformed_query_is_refused(query: bytes) -> None:
    with pytest.raises(MalformedRequest, match="The query"):
        query_to_json(query, LIST)


def test_the_path_wins_over_nothing_but_itself() -> None:
    value: dict[str, Any] = {"operationId": "a"}
    merge_path(value, {"operation_id": "a"}, WAIT)
    assert value == {"operation_id": "a"}
    merge_path(value := {"operationId": None}, {"operation_id": "a"}, WAIT)
    assert value == {"operation_id": "a"}
    with pytest.raises(InvalidArgument, match="is not what the path says"):
        merge_path({"operation_id": "b"}, {"operation_id": "a"}, WAIT)
