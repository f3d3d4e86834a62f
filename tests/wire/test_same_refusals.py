"""gRPC and REST refuse the same requests, in the same words: each field at its limits and beyond."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyPb
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from opservice.methods.services import FILES
from support.rest_channel import NotByRest, RestChannel
from support.server import ServerProcess

pytestmark = [
    pytest.mark.slow,  # some thousand calls
    pytest.mark.parametrize("server", ["sqlite"], indirect=True),
]

METHODS = {
    method.full_name: method
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
    if not (method.client_streaming or method.server_streaming)
}
TEXTS = (
    *("", " ", "\t", "\n", "\0", "\x85", "\u2028"),
    *("a", "Abc", "1bc", "/", "/a", "a/", "a//b", "-", "a/-", "*", ".."),
    *("%2F", "%zz", "?", "#", "+", "a:cancel", "operations/x", "done=false", "nope=1"),
    *("x" * length for length in (15, 16, 63, 64, 65, 128, 129, 256, 257, 5_000)),
    *("😀" * length for length in (64, 65, 128, 129, 256, 257)),
)
NUMBERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), -1, 1, 99, 1_001, 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), -1, 1, 2**63 - 1),
    FieldDescriptor.TYPE_ENUM: (-1, 1, 2, 3, 4),
    FieldDescriptor.TYPE_BOOL: (True,),
}
LABELS = (
    *({key: "v"} for key in ("", "a", "A", "é", "a.b", "a" * 63, "a" * 64)),
    *({"a": value} for value in ("", "\n", "x" * 63, "x" * 64)),
    *({f"k{at}": "v" for at in range(count)} for count in (16, 17)),
)
MEGABYTE = 1 << 20
PAYLOADS = (
    *(AnyPb(type_url=url) for url in ("a.B", "example.com/a.B", "example.com/", "\0/x", "a/b\n")),
    *(AnyPb(type_url="a/B", value=bytes(size)) for size in (MEGABYTE - 10, MEGABYTE + 1)),
)
DURATIONS = tuple(
    Duration(seconds=seconds, nanos=nanos)
    for seconds, nanos in (
        *((0, 0), (0, 999), (0, 1_000), (1, 0), (-1, 0), (0, -1), (60, 0)),
        *((86_400, 0), (86_401, 0), (366 * 86_400, 0), (366 * 86_400, 1), (10**11, 0)),
    )
)


def values(field: FieldDescriptor) -> Iterator[Any]:
    """Of a field, or of one element of it."""
    kind = field.message_type
    if field.type == FieldDescriptor.TYPE_STRING:
        yield from TEXTS
    elif kind is None:
        yield from NUMBERS[field.type]
    elif kind.GetOptions().map_entry:
        yield from LABELS
    elif kind.full_name == "google.protobuf.Any":
        yield from PAYLOADS
    elif kind.full_name == "google.protobuf.Duration":
        yield from DURATIONS
    else:
        yield from messages(kind)


def messages(kind: Descriptor) -> Iterator[Message]:
    """Each with one field."""
    for field in kind.fields:
        for value in values(field):
            message = GetMessageClass(kind)()
            if isinstance(value, dict):
                getattr(message, field.name).update(value)
            elif field.is_repeated:
                getattr(message, field.name).append(value)
            elif isinstance(value, Message):
                getattr(message, field.name).CopyFrom(value)
            else:
                setattr(message, field.name, value)
            yield message


def told(channel: grpc.Channel, method: MethodDescriptor, request: Message) -> tuple[Any, ...]:
    """The code, the message and the details of the refusal, but for the request's id."""
    call = cast("Any", channel).unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        type(request).SerializeToString,
        GetMessageClass(method.output_type).FromString,
    )
    try:
        call(request, timeout=60)
    except grpc.RpcError as error:
        status = rpc_status.from_call(cast("Any", error))
        assert status is not None
        details = [each for each in status.details if not each.type_url.endswith("RequestInfo")]
        return cast("Any", error).code(), status.message, details
    return (grpc.StatusCode.OK,)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_rest_refuses_what_grpc_refuses(server: ServerProcess, method: MethodDescriptor) -> None:
    compared = 0
    with server.channel() as by_grpc, RestChannel(server.http_url) as by_rest:
        for request in messages(method.input_type):
            try:
                rest = told(by_rest, method, request)
            except NotByRest:
                continue
            assert rest == told(by_grpc, method, request), request
            compared += 1
    assert compared or not method.input_type.fields
