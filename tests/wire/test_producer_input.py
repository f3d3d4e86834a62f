"""What ProducerService refuses as wrong, each with the name of its field."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyPb
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from opservice._proto.opservice.v1.operation_record_pb2 import Progress
from support.client import TOKEN, Client, Refusal, refused

MIB = 1 << 20
URL = "type.googleapis.com/some.Type"
DAY = 86_400

START: dict[str, tuple[dict[str, Any], str]] = {
    "description of 257": ({"description": "x" * 257}, "description"),
    "description of 257, not ASCII": ({"description": "я" * 257}, "description"),
    "NUL in the description": ({"description": "a\0b"}, "description"),
    "parent of 257": ({"parent": "p" * 257}, "parent"),
    "parent with an empty segment": ({"parent": "folders//b1g"}, "parent"),
    "parent that begins with a slash": ({"parent": "/folders"}, "parent"),
    "parent that ends with a slash": ({"parent": "folders/"}, "parent"),
    "parent with a space": ({"parent": "folders/a b"}, "parent"),
    "method of 257": ({"method": "m" * 257}, "method"),
    "control character in the method": ({"method": "a\tb"}, "method"),
    "created_by of 65": ({"created_by": "c" * 65}, "created_by"),
    "NUL in created_by": ({"created_by": "\0"}, "created_by"),
    "key of 129": ({"idempotency_key": "k" * 129}, "idempotency_key"),
    "control character in the key": ({"idempotency_key": "k\n"}, "idempotency_key"),
    "unknown policy": ({"cancel_policy": 99}, "cancel_policy"),
    "negative policy": ({"cancel_policy": -1}, "cancel_policy"),
    "prefix of 2": ({"id_prefix": "ab"}, "id_prefix"),
    "prefix of 4": ({"id_prefix": "abcd"}, "id_prefix"),
    "prefix with a capital": ({"id_prefix": "Abc"}, "id_prefix"),
    "prefix that begins with a digit": ({"id_prefix": "1ab"}, "id_prefix"),
    "prefix with a line break": ({"id_prefix": "abc\n"}, "id_prefix"),
    "lease without a token": ({"lease": Duration(seconds=9)}, "lease_token"),
    "token of 15": ({"lease_token": "t" * 15}, "lease_token"),
    "token of 129": ({"lease_token": "t" * 129}, "lease_token"),
    "lease of zero": ({"lease": Duration(), "lease_token": TOKEN}, "lease"),
    "lease under a second": (
        {"lease": Duration(nanos=999_999_999), "lease_token": TOKEN},
        "lease",
    ),
    "lease over a day": (
        {"lease": Duration(seconds=DAY, nanos=1_000), "lease_token": TOKEN},
        "lease",
    ),
    "lease that is negative": ({"lease": Duration(seconds=-5), "lease_token": TOKEN}, "lease"),
    "timeout of zero": ({"timeout": Duration()}, "timeout"),
    "timeout that is negative": ({"timeout": Duration(nanos=-1)}, "timeout"),
    "timeout of a thousand years": ({"timeout": Duration(seconds=1000 * 365 * DAY)}, "timeout"),
    "timeout beyond any Duration": ({"timeout": Duration(seconds=2**62)}, "timeout"),
    "timeout whose parts disagree": ({"timeout": Duration(seconds=5, nanos=-1)}, "timeout"),
    "timeout of a billion nanos": ({"timeout": Duration(nanos=1_000_000_000)}, "timeout"),
    "retention of zero": ({"retention": Duration()}, "retention"),
    "retention that is negative": ({"retention": Duration(seconds=-1)}, "retention"),
    "retention over the maximum": ({"retention": Duration(seconds=366 * DAY)}, "retention"),
    "metadata without a type": ({"metadata": AnyPb(value=b"x")}, "metadata.type_url"),
    "metadata with nothing but a name": (
        {"metadata": AnyPb(type_url="some.Type")},
        "metadata.type_url",
    ),
    "metadata over the limit": (
        {"metadata": AnyPb(type_url=URL, value=b"x" * MIB)},
        "metadata",
    ),
}

OK = Status(code=Code.INTERNAL, message="an error that is fine")
NOT_OK = Status(code=Code.INTERNAL, details=[AnyPb(type_url=URL), AnyPb(value=b"x")])


def call_renew(client: Client, id_: str, **fields: Any) -> object:
    return client.renew(id_, **fields)


def call_complete(client: Client, id_: str, **fields: Any) -> object:
    return client.complete(id_, **fields)


def call_fail(client: Client, id_: str, error: Status = OK, **fields: Any) -> object:
    return client.fail(id_, error, **fields)


Call = Callable[..., object]
WRITES: dict[str, tuple[Call, dict[str, Any], str]] = {
    "progress past its total": (
        call_renew,
        {"progress": Progress(done=8, total=7)},
        "progress.done",
    ),
    "negative progress": (call_renew, {"progress": Progress(done=-1)}, "progress.done"),
    "negative total": (call_renew, {"progress": Progress(total=-1)}, "progress.total"),
    "unit of 65": (call_renew, {"progress": Progress(unit="u" * 65)}, "progress.unit"),
    "message of 257": (call_renew, {"progress": Progress(message="m" * 257)}, "progress.message"),
    "NUL in a message": (call_renew, {"progress": Progress(message="\0")}, "progress.message"),
    "response without a type": (
        call_complete,
        {"response": AnyPb(value=b"x")},
        "response.type_url",
    ),
    "response over the limit": (
        call_complete,
        {"response": AnyPb(type_url=URL, value=b"x" * MIB)},
        "response",
    ),
    "error OK": (call_fail, {"error": Status(code=0, message="fine")}, "error.code"),
    "error unset": (call_fail, {"error": None}, "error.code"),
    "error 99": (call_fail, {"error": Status(code=99)}, "error.code"),
    "error -1": (call_fail, {"error": Status(code=-1)}, "error.code"),
    "error detail without a type": (call_fail, {"error": NOT_OK}, "error.details[1].type_url"),
    "101 error details": (
        call_fail,
        {"error": Status(code=Code.INTERNAL, details=[AnyPb(type_url=URL)] * 101)},
        "error.details",
    ),
    "error over the limit": (
        call_fail,
        {"error": Status(code=Code.INTERNAL, message="x" * MIB)},
        "error",
    ),
    **{
        f"metadata without a type in {call.__name__}": (
            call,
            {"metadata": AnyPb(value=b"x")},
            "metadata.type_url",
        )
        for call in (call_renew, call_complete, call_fail)
    },
    **{
        f"metadata over the limit in {call.__name__}": (
            call,
            {"metadata": AnyPb(type_url=URL, value=b"x" * MIB)},
            "metadata",
        )
        for call in (call_renew, call_complete, call_fail)
    },
}


def assert_invalid(refusal: Refusal, *fields: str) -> None:
    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.reason == "INVALID_REQUEST"
    assert refusal.fields == list(fields)
    assert all(field in refusal.message for field in fields)


@pytest.mark.parametrize(("fields", "wrong"), START.values(), ids=START)
def test_start_refuses(client: Client, fields: dict[str, Any], wrong: str) -> None:
    with refused() as refusal:
        client.start(**fields)

    assert_invalid(refusal, wrong)


@pytest.mark.parametrize(("call", "fields", "wrong"), WRITES.values(), ids=WRITES)
def test_a_write_refuses(client: Client, call: Call, fields: dict[str, Any], wrong: str) -> None:
    id_ = client.started()

    with refused() as refusal:
        call(client, id_, **fields)

    assert_invalid(refusal, wrong)
    assert not client.get(id_).done


@pytest.mark.parametrize("call", [call_renew, call_complete, call_fail])
@pytest.mark.parametrize("id_", ["", "x" * 10_000, "a\nb"], ids=["empty", "10,000", "control"])
def test_a_write_refuses_a_bad_id(client: Client, call: Call, id_: str) -> None:
    with refused() as refusal:
        call(client, id_)

    assert_invalid(refusal, "operation_id")
    assert "xxx" not in refusal.message


def test_every_violation_of_a_start_is_named_at_once(client: Client) -> None:
    with refused() as refusal:
        client.start(
            description="x" * 257,
            parent="a//b",
            created_by="c" * 65,
            cancel_policy=77,
            lease=Duration(seconds=-1),
            timeout=Duration(seconds=-1),
            retention=Duration(seconds=-1),
            metadata=AnyPb(value=b"x"),
            id_prefix="?",
        )

    named = set(refusal.fields)
    assert named >= {"description", "parent", "created_by", "cancel_policy", "lease", "lease_token"}
    assert named >= {"timeout", "retention", "metadata.type_url", "id_prefix"}


def test_a_violation_says_what_is_allowed(client: Client) -> None:
    with refused() as refusal:
        client.start(lease=Duration(nanos=500_000_000), lease_token=TOKEN)

    (violation,) = refusal.one(BadRequest).field_violations
    assert violation.description == "is 0.5s, allowed is 1s to 1d"


def test_more_violations_than_fit_into_an_answer_are_still_an_answer(client: Client) -> None:
    details = [AnyPb(value=b"x")] * 100

    with refused() as refusal:
        client.fail(client.started(), Status(code=Code.INTERNAL, details=details))

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert "error.details[0].type_url" in refusal.fields
    assert refusal.header_bytes < 8_000


def test_a_request_over_the_message_limit_is_refused(client: Client) -> None:
    with refused() as refusal:
        client.start(metadata=AnyPb(type_url=URL, value=b"x" * 5 * MIB))

    assert refusal.code == StatusCode.RESOURCE_EXHAUSTED


def test_two_payloads_at_their_limit_fit(client: Client) -> None:
    # 6 bytes are the tags and lengths of an Any that holds so much.
    payload = AnyPb(type_url=URL, value=b"x" * (MIB - len(URL) - 6))
    assert payload.ByteSize() == MIB

    operation = client.complete(client.started(), response=payload, metadata=payload)

    assert client.get(operation.id).response == payload


def test_a_payload_of_an_unknown_type_comes_back_byte_for_byte(client: Client) -> None:
    payload = AnyPb(type_url="example.com/never.heard.Of", value=b"\x00\xff not protobuf")

    id_ = client.started(metadata=payload)

    assert client.get(id_).metadata == payload
