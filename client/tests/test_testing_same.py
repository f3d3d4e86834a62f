"""The two servers of opservice_client.testing, told the same things in any order, give the same answers."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import uuid4

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import RequestInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opservice._proto.opservice.v1.operation_record_pb2 import Progress
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    DeleteOperationRecordRequest,
    GetOperationRecordRequest,
)
from opservice_client.testing import OperationServer
from support.client import Client, open_channel, packed

MINUTE = timedelta(minutes=1)
# No two of the times that follow from these fall together, whatever is done when.
ADVANCES = [5, 60, 200]
LEASES = [7, 70]
TIMEOUTS = [31, 331]
GRACE = 43
RETENTION = 93

TOKENS = ["a-token-of-many-characters"] * 4 + ["another-token-of-as-many"]

Step = Callable[["Side"], typing.Any]


@dataclass
class Side:
    """One of the servers, in the course of one script."""

    server: OperationServer
    client: Client
    key: str
    ids: dict[int, str] = field(default_factory=dict)

    def id(self, number: int) -> str:
        """Of the operation that was started under this number; of no operation before that."""
        return self.ids.get(number, "nowhere")


def start(number: int, token: str, **fields: typing.Any) -> Step:
    def step(side: Side) -> Message:
        started = side.client.start(
            idempotency_key=f"{side.key}-{number}",
            lease_token=token,
            retention=RETENTION * MINUTE,
            **fields,
        )
        side.ids[number] = started.operation.id
        return started

    return step


def advance(minutes: int) -> Step:
    return lambda side: side.server.advance(minutes * MINUTE)


def delete(number: int) -> Step:
    return lambda side: side.client.records.Delete(
        DeleteOperationRecordRequest(operation_id=side.id(number))
    )


def get(number: int) -> Step:
    return lambda side: side.client.records.Get(
        GetOperationRecordRequest(operation_id=side.id(number))
    )


numbers = st.integers(0, 1)
tokens = st.sampled_from(TOKENS)
values = st.sampled_from(["x", "y"]).map(lambda text: packed(Value(string_value=text)))
maybe = st.none() | values
errors = st.builds(Status, code=st.sampled_from([0, 1, 5]), message=st.sampled_from(["", "broken"]))
durations = {
    "lease": st.none() | st.sampled_from(LEASES).map(lambda minutes: minutes * MINUTE),
    "timeout": st.none() | st.sampled_from(TIMEOUTS).map(lambda minutes: minutes * MINUTE),
}
progress = st.none() | st.builds(Progress, done=st.integers(-1, 3), total=st.integers(0, 2))

steps = st.one_of(
    st.builds(start, numbers, tokens, metadata=maybe, cancel_policy=st.integers(0, 4), **durations),
    st.builds(
        lambda number, token, data, progress: (
            lambda side: side.client.renew(
                side.id(number), lease_token=token, metadata=data, progress=progress
            )
        ),
        *(numbers, tokens, maybe, progress),
    ),
    st.builds(
        lambda number, token, data, response: (
            lambda side: side.client.complete(
                side.id(number), lease_token=token, metadata=data, response=response
            )
        ),
        *(numbers, tokens, maybe, maybe),
    ),
    st.builds(
        lambda number, token, data, error: (
            lambda side: side.client.fail(side.id(number), error, lease_token=token, metadata=data)
        ),
        *(numbers, tokens, maybe, errors),
    ),
    st.builds(lambda number: lambda side: side.client.cancel(side.id(number)), numbers),
    st.builds(get, numbers),
    st.builds(delete, numbers),
    st.builds(advance, st.sampled_from(ADVANCES)),
)


def without_times(message: Message) -> Message:
    """Which times there are is compared, not what they are: the servers are asked one after the other."""
    for _, value in message.ListFields():
        if isinstance(value, Timestamp):
            value.Clear()
        elif isinstance(value, Message) and not isinstance(value, Any):
            without_times(value)
    return message


def answer(step: Step, side: Side) -> object:
    try:
        said = step(side)
    except grpc.RpcError as error:
        return told(error)
    return None if said is None else without_times(said)


def told(error: grpc.RpcError) -> object:
    """All that the caller was told but the request's id."""
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    assert status is not None
    details = [each for each in status.details if not each.Is(RequestInfo.DESCRIPTOR)]
    return Code.Name(status.code), status.message, details


@pytest.fixture(scope="module")
def servers() -> Iterator[list[tuple[OperationServer, Client]]]:
    grace = GRACE * MINUTE
    with (
        OperationServer(backend="server", cancel_grace=grace) as real,
        OperationServer(backend="memory", cancel_grace=grace) as memory,
        open_channel(real.target) as to_real,
        open_channel(memory.target) as to_memory,
    ):
        yield [(real, Client(to_real)), (memory, Client(to_memory))]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=st.lists(steps, min_size=5, max_size=25))
def test_both_servers_give_the_same_answers(
    servers: list[tuple[OperationServer, Client]], script: list[Step]
) -> None:
    key = str(uuid4())
    real, memory = (Side(server, client, key) for server, client in servers)
    for step in [*script, get(0), get(1)]:
        assert answer(step, memory) == answer(step, real)
