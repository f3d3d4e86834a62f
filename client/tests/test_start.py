"""Starting: who owns the operation, under which key, and when it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import cast
from uuid import uuid4

import grpc
import pytest
from grpc import StatusCode

from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)
from opservice._proto.yandex.cloud.operation.operation_service_pb2_grpc import (
    OperationServiceServicer,
    OperationServiceStub,
    add_OperationServiceServicer_to_server,
)
from opservice_client import StartFailed
from support.client import open_channel
from support.producers import Kind, returning
from support.server import ServerProcess

from .conftest import Connect


class StartsOnGet(OperationServiceServicer):
    """A service: its method takes the key of whoever calls it."""

    def __init__(self, producer: Kind) -> None:
        self.producer = producer
        self.owned: list[bool] = []

    def Get(self, request: GetOperationRequest, context: grpc.ServicerContext) -> Operation:  # noqa: N802 - as in the .proto
        work = self.producer.start(description=request.operation_id, context=context)
        self.owned.append(work.owned)
        return cast("Operation", work.operation)  # one class, of which each distribution has stubs

    def Cancel(self, request: CancelOperationRequest, context: grpc.ServicerContext) -> Operation:  # noqa: N802 - as in the .proto
        raise NotImplementedError


@contextmanager
def calling(servicer: StartsOnGet) -> Iterator[OperationServiceStub]:
    server = grpc.server(ThreadPoolExecutor(4))
    add_OperationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with open_channel(f"127.0.0.1:{port}") as channel:
            yield OperationServiceStub(channel)
    finally:
        server.stop(0).wait()


def test_a_call_repeated_with_its_idempotency_key_leads_to_the_same_operation(
    producer: Kind,
) -> None:
    servicer = StartsOnGet(producer)
    request, key = GetOperationRequest(operation_id="x"), (("idempotency-key", str(uuid4())),)
    with calling(servicer) as stub:
        first = stub.Get(request, metadata=key)
        second = stub.Get(request, metadata=key)

    assert first == second
    assert servicer.owned == [True, False]


def test_calls_without_an_idempotency_key_lead_to_an_operation_each(producer: Kind) -> None:
    request = GetOperationRequest(operation_id="x")
    with calling(StartsOnGet(producer)) as stub:
        assert stub.Get(request).id != stub.Get(request).id


def test_a_key_given_to_start_wins_over_that_of_the_context(producer: Kind) -> None:
    class Context:
        def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
            return (("idempotency-key", f"theirs-{key}"),)

    key = str(uuid4())
    ours = producer.start(idempotency_key=key)

    assert producer.start(idempotency_key=key, context=Context()).id == ours.id


def test_run_does_nothing_with_an_operation_that_another_owns(
    producer: Kind, server: ServerProcess
) -> None:
    key = str(uuid4())
    owner, other = producer.start(idempotency_key=key), producer.start(idempotency_key=key)
    producer.run(other, returning(None))
    producer.close(timedelta(seconds=60))

    assert not other.owned
    assert not server.client.get(owner.id).done


def test_an_operation_that_another_owns_cannot_be_entered(producer: Kind) -> None:
    key = str(uuid4())
    producer.start(idempotency_key=key)
    other = producer.start(idempotency_key=key)

    with pytest.raises(RuntimeError, match="owned by another"):
        producer.block(other, returning(None))


def test_a_refused_start_says_the_code_and_the_details_at_once(
    connect: Connect, server: ServerProcess
) -> None:
    # Retried, it would outlast the test's patience.
    producer = connect(server.address, start_timeout=timedelta(hours=1))

    with pytest.raises(StartFailed) as caught:
        producer.start(description="x" * 257)

    assert caught.value.code == StatusCode.INVALID_ARGUMENT
    assert "description" in caught.value.details


def test_a_start_that_reaches_nobody_fails_after_its_timeout(
    connect: Connect, unused_port: int
) -> None:
    producer = connect(f"127.0.0.1:{unused_port}", start_timeout=timedelta(milliseconds=300))

    with pytest.raises(StartFailed) as caught:
        producer.start()

    assert caught.value.code == StatusCode.UNAVAILABLE
