"""Requests that no client of ours would send: to be parsed, understood and refused."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator
from functools import cache

import grpc
from google.longrunning.operations_proto_pb2 import ListOperationsRequest
from google.protobuf.any_pb2 import Any
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1.operation_record_service_pb2 import ListOperationRecordsRequest
from opservice._proto.opservice.v1.producer_service_pb2 import (
    CompleteRequest,
    FailRequest,
    StartRequest,
)
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceStub
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from support.http2 import DATA, END_STREAM, LARGEST_FRAME, frame, grpc_message

LARGE = 1_000_000
"""Bytes of a payload that is nearly as large as the server takes."""
DEEP = 1_000

_METHODS = [
    "/yandex.cloud.operation.OperationService/Get",
    "/yandex.cloud.operation.OperationService/Cancel",
    "/google.longrunning.Operations/GetOperation",
    "/google.longrunning.Operations/ListOperations",
    "/google.longrunning.Operations/WaitOperation",
    "/opservice.v1.ProducerService/Start",
    "/opservice.v1.ProducerService/Renew",
    "/opservice.v1.ProducerService/Complete",
    "/opservice.v1.ProducerService/Fail",
    "/opservice.v1.OperationRecordService/List",
    "/opservice.v1.OperationRecordService/Wait",
    "/opservice.v1.OperationRecordService/Watch",
    "/yandex.cloud.endpoint.ApiEndpointService/List",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
]
_START, _COMPLETE, _FAIL, _LIST, _LIST_OPERATIONS = (_METHODS[number] for number in (5, 7, 8, 9, 3))


def malformed() -> tuple[str, bytes]:
    """A method and a request for it, one of many kinds."""
    return random.choice(KINDS)()


def _noise() -> tuple[str, bytes]:
    return random.choice(_METHODS), random.randbytes(random.randrange(1, 200))


def _cut() -> tuple[str, bytes]:
    whole = StartRequest(description="x" * 200, parent="folders/f").SerializeToString()
    return _START, whole[: random.randrange(1, len(whole))]


def _deep_groups() -> tuple[str, bytes]:
    """Unknown fields within unknown fields."""
    return random.choice(_METHODS), b"\x7b" * random.choice([50, 150, 100_000])


def _deep_any() -> tuple[str, bytes]:
    return _START, StartRequest(metadata=_nested_any(DEEP)).SerializeToString()


def _deep_details() -> tuple[str, bytes]:
    error = Status(code=5, message="m" * 100_000, details=[_nested_any(DEEP)] * 10)
    return _FAIL, FailRequest(operation_id="x", error=error).SerializeToString()


@cache
def _nested_any(depth: int) -> Any:
    nested = Any(type_url="type.googleapis.com/google.protobuf.Any")
    for _ in range(depth):
        outer = Any()
        outer.Pack(nested)
        nested = outer
    return nested


def _large_type_url() -> tuple[str, bytes]:
    payload = Any(type_url="type.googleapis.com/" + "x" * LARGE)
    return _COMPLETE, CompleteRequest(operation_id="x", response=payload).SerializeToString()


def _large_text() -> tuple[str, bytes]:
    text = "folders/" * (LARGE // 16)
    request = StartRequest(
        description=text, parent=text, method=text, created_by=text, idempotency_key=text
    )
    return _START, request.SerializeToString()


def _many_details() -> tuple[str, bytes]:
    error = Status(code=0, details=[Any(type_url="wrong")] * 50_000)
    return _FAIL, FailRequest(operation_id="x", error=error).SerializeToString()


def _filter() -> tuple[str, bytes]:
    made = random.choice(
        [
            "(id:'')" * 100 + "id:''" * 269,
            "(" * 100 + "id=a " * 100 + ")" * 100,
            "(" * 2000,
            "(" * 900 + "done=true" + ")" * 900,
            "NOT " * 500 + "done=true",
            "-(" * 600 + "done=true" + ")" * 600,
            " OR ".join(["done=true"] * 150),
            "description=" + '"' + "\\" * 1500,
            "(done=true OR " * 140,
            "x" * LARGE,
            "".join(random.choices("()-\"'\\*=<>:!. ANDORT", k=2000)),
        ]
    )
    if random.random() < 0.5:
        return _LIST, ListOperationRecordsRequest(parent="-", filter=made).SerializeToString()
    return _LIST_OPERATIONS, ListOperationsRequest(name="-", filter=made).SerializeToString()


def _page_token() -> tuple[str, bytes]:
    token = "".join(random.choices("AQIDBA-_=\0é", k=random.choice([10, 1000, LARGE])))
    return _LIST, ListOperationRecordsRequest(page_token=token).SerializeToString()


KINDS: list[Callable[[], tuple[str, bytes]]] = [
    _noise,
    _cut,
    _deep_groups,
    _deep_any,
    _deep_details,
    _large_type_url,
    _large_text,
    _many_details,
    _filter,
    _page_token,
]


def compressed_bomb() -> Iterator[bytes]:
    """The rest of stream 1: 50 MiB of zeros, compressed to less than a window."""
    body = grpc_message(gzip.compress(bytes(50 << 20)), flag=1)
    for start in range(0, len(body), LARGEST_FRAME):
        last = start + LARGEST_FRAME >= len(body)
        yield frame(DATA, END_STREAM if last else 0, 1, body[start : start + LARGEST_FRAME])


@cache
def inflated() -> list[tuple[str, bytes]]:
    """Methods, and 4 KiB for each that are 4 MiB of tiny fields once they are decompressed."""
    unknown = gzip.compress(b"\xf8\x3f\x01" * 1_300_000)
    detail = b"\x1a\x00"
    details = detail * 1_900_000
    size, rest = b"", len(details)
    while rest > 0x7F:
        size, rest = size + bytes([rest & 0x7F | 0x80]), rest >> 7
    failure = gzip.compress(b"\x0a\x01x\x1a" + size + bytes([rest]) + details)
    health, endpoints = "/grpc.health.v1.Health/Check", _METHODS[12]
    return [(health, unknown), (endpoints, unknown), (_FAIL, failure)]


async def large_operation(channel: grpc.aio.Channel) -> bytes:
    """A request for an operation whose answer is large; the operation is started for it."""
    payload = Any(type_url="type.googleapis.com/google.protobuf.Empty", value=bytes(LARGE))
    started = await ProducerServiceStub(channel).Start(StartRequest(metadata=payload))
    return GetOperationRequest(operation_id=started.operation.id).SerializeToString()
