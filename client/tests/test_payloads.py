"""Results and metadata of all kinds, and options that are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.wrappers_pb2 import StringValue

from opservice_client import encode
from opservice_client.payloads import pack
from opservice_client.requests import start_request
from support.client import unpacked
from support.producers import Kind, Steps, WorkLike
from support.server import ServerProcess

from .conftest import Connect, ended


@dataclass
class Point:
    x: int
    y: int


class Model:
    """As pydantic has it."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        assert mode == "json"
        return {"when": "2026-01-01"}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({}, Struct),
        ({"a": [1, 2.5, {"b": None}], "c": True}, Struct),
        ([1, "x"], Value),
        ("text", Value),
        (7, Value),
        (False, Value),
    ],
)
def test_what_json_has_becomes_a_struct_or_a_value(value: Any, kind: type[Message]) -> None:
    assert MessageToDict(unpacked(pack(value), kind)) == value


def test_none_becomes_empty_and_a_message_stays_what_it_is() -> None:
    assert pack(None).Is(Empty.DESCRIPTOR)
    assert unpacked(pack(StringValue(value="x")), StringValue).value == "x"
    assert pack(pack("x")) == pack("x")


def test_dataclasses_and_pydantic_models_become_structs() -> None:
    assert MessageToDict(unpacked(pack(Point(1, 2)), Struct)) == {"x": 1, "y": 2}
    assert MessageToDict(unpacked(pack(Model()), Struct)) == {"when": "2026-01-01"}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (object(), "object cannot be stored: give a protobuf message"),
        (b"x", "bytes cannot be stored"),
        ({"a": [datetime(2026, 1, 1, tzinfo=timezone.utc)]}, "it holds datetime"),
        ({1: 2}, "a key of type int"),
        (Point, "type cannot be stored"),
    ],
)
def test_what_cannot_be_stored_is_a_type_error_that_says_what(value: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        pack(value)


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"id": 2**53}, -(2**2000)])
def test_a_number_that_json_cannot_hold_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match="give a string"):
        pack(value)


def test_a_block_that_gives_what_cannot_be_stored_sees_it_at_the_call(producer: Kind) -> None:
    def body(work: WorkLike) -> Steps:
        yield
        with pytest.raises(TypeError, match="cannot be stored"):
            work.complete(object())
        with pytest.raises(TypeError, match="cannot be stored"):
            work.report(metadata=object())
        work.complete()

    producer.block(producer.start(), body)


def test_a_result_and_metadata_of_plain_types_arrive(producer: Kind, server: ServerProcess) -> None:
    def body(work: WorkLike) -> Steps:
        yield
        work.report(metadata={"step": 2})
        work.complete(Point(3, 4))

    work = producer.start(metadata={"step": 1})
    metadata = server.client.get(work.id).metadata
    assert MessageToDict(unpacked(metadata, Struct)) == {"step": 1}
    producer.block(work, body)

    operation = ended(server, work.id)
    assert MessageToDict(unpacked(operation.response, Struct)) == {"x": 3, "y": 4}
    assert MessageToDict(unpacked(operation.metadata, Struct)) == {"step": 2}


def test_a_producer_can_be_taught_a_type(connect: Connect, server: ServerProcess) -> None:
    def taught(value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime) else encode(value)

    def body(work: WorkLike) -> Steps:
        yield
        work.complete(datetime(2026, 1, 1, tzinfo=timezone.utc))

    producer = connect(server.address, encode=taught)
    work = producer.start(metadata={"a": 1})
    producer.block(work, body)

    response = unpacked(ended(server, work.id).response, Value)
    assert response.string_value.startswith("2026-01-01")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"descripton": "x"}, "no option 'descripton'; did you mean 'description'"),
        ({"zzz": "x"}, "no option 'zzz'$"),
        ({"lease": 60}, "lease must be a timedelta, not int"),
        ({"metadata": object()}, "object cannot be stored"),
    ],
)
def test_a_wrong_option_is_a_type_error_that_says_what_is_meant(options: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        start_request(options)


def test_a_misspelt_option_of_start_is_a_type_error(producer: Kind) -> None:
    with pytest.raises(TypeError, match="did you mean 'description'"):
        producer.start(descripton="x")
