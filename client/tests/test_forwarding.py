"""OperationService at a service's own address: Get and Cancel as if opservice were asked itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import uuid4

import grpc
import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode

from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import (
    CancelOperationRequest,
    GetOperationRequest,
)
from opservice._proto.yandex.cloud.operation.operation_service_pb2_grpc import (
    OperationServiceServicer,
    add_OperationServiceServicer_to_server,
)
from opservice_client import forward_operations, forward_operations_aio
from support.client import Client, open_channel, refused
from support.server import ServerProcess, eventually


class Recording(OperationServiceServicer):
    """An opservice that notes how it was asked."""

    def __init__(self) -> None:
        self.metadata: list[tuple[str, str | bytes]] = []
        self.seconds_left: float | None = None
        self.asked = threading.Event()
        self.abandoned = threading.Event()

    def Get(self, request: GetOperationRequest, context: grpc.ServicerContext) -> Operation:  # noqa: N802 - as in the .proto
        self.metadata = [(str(key), value) for key, value in context.invocation_metadata()]
        self.seconds_left = context.time_remaining()
        return Operation(id=request.operation_id)

    def Cancel(self, request: CancelOperationRequest, context: grpc.ServicerContext) -> Operation:  # noqa: N802 - as in the .proto
        context.add_callback(self.abandoned.set)
        self.asked.set()
        assert self.abandoned.wait(60)
        return Operation(id=request.operation_id)


@contextmanager
def forwarding_with_threads(target: str) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    with grpc.insecure_channel(target) as channel:
        forward_operations(server, channel)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait()


@contextmanager
def forwarding_with_asyncio(target: str) -> Iterator[str]:
    async def serve() -> None:
        server = grpc.aio.server()
        async with grpc.aio.insecure_channel(target) as channel:
            forward_operations_aio(server, channel)
            address.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            stop.append((asyncio.get_running_loop(), asyncio.Event()))
            await stop[0][1].wait()
            await server.stop(0)

    address: list[str] = []
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    eventually(lambda: stop)
    try:
        yield address[0]
    finally:
        stop[0][0].call_soon_threadsafe(stop[0][1].set)
        thread.join()


FORWARDERS = {"threads": forwarding_with_threads, "asyncio": forwarding_with_asyncio}


@pytest.fixture(params=sorted(FORWARDERS))
def forwarded(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Client]:
    """A client of the forwarder before the real server."""
    with (
        FORWARDERS[request.param](server.address) as address,
        open_channel(address) as channel,
    ):
        yield Client(channel)


@pytest.fixture
def backend() -> Iterator[tuple[Recording, str]]:
    recording = Recording()
    server = grpc.server(ThreadPoolExecutor(4))
    add_OperationServiceServicer_to_server(recording, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield recording, f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture(params=sorted(FORWARDERS))
def recorded(
    request: pytest.FixtureRequest, backend: tuple[Recording, str]
) -> Iterator[tuple[Recording, Client]]:
    """A client of the forwarder before the recording server."""
    with FORWARDERS[request.param](backend[1]) as address, open_channel(address) as channel:
        yield backend[0], Client(channel)


def test_get_through_the_forwarder_answers_as_the_server_does(
    forwarded: Client, server: ServerProcess
) -> None:
    id_ = server.client.started(description="Scan")

    assert forwarded.get(id_) == server.client.get(id_)


def test_cancel_through_the_forwarder_cancels(forwarded: Client, server: ServerProcess) -> None:
    id_ = server.client.started()

    assert forwarded.cancel(id_).error.code == Code.CANCELLED
    assert server.client.get(id_).done


def test_the_headers_of_the_answer_come_back(forwarded: Client, server: ServerProcess) -> None:
    request = GetOperationRequest(operation_id=server.client.started())
    _, call = forwarded.operations.Get.with_call(request)

    assert dict(call.initial_metadata())["x-operation-poll-interval"] == "1"


def test_the_request_id_comes_back_in_the_trailers(
    forwarded: Client, server: ServerProcess
) -> None:
    mine = str(uuid4())
    request = GetOperationRequest(operation_id=server.client.started())
    _, call = forwarded.operations.Get.with_call(request, metadata=(("x-request-id", mine),))

    assert dict(call.trailing_metadata())["x-request-id"] == mine


def test_an_error_comes_back_with_its_details_and_trailers(forwarded: Client) -> None:
    with refused() as refusal:
        forwarded.get("nowhere")

    assert refusal.code == StatusCode.NOT_FOUND
    assert refusal.message == "Operation nowhere not found"
    assert refusal.one(ErrorInfo).reason == "OPERATION_NOT_FOUND"
    assert refusal.trailers["x-request-id"] == refusal.request_id


def test_the_callers_own_metadata_arrives(recorded: tuple[Recording, Client]) -> None:
    recording, client = recorded
    metadata = (("authorization", "Bearer mine"), ("x-trace-bin", b"\x00\xff"), ("x-tag", "a"))
    client.operations.Get(GetOperationRequest(operation_id="x"), metadata=metadata)

    assert [pair for pair in recording.metadata if pair in metadata] == list(metadata)


def test_only_one_user_agent_arrives(recorded: tuple[Recording, Client]) -> None:
    recording, client = recorded
    client.operations.Get(GetOperationRequest(operation_id="x"))

    assert [key for key, _ in recording.metadata].count("user-agent") == 1


def test_the_callers_deadline_arrives(recorded: tuple[Recording, Client]) -> None:
    recording, client = recorded
    client.operations.Get(GetOperationRequest(operation_id="x"), timeout=20)

    assert recording.seconds_left is not None
    assert recording.seconds_left < 25  # gRPC rounds up; without one of the caller's it would be 30


def test_what_the_caller_gives_up_is_given_up(recorded: tuple[Recording, Client]) -> None:
    recording, client = recorded
    call = client.operations.Cancel.future(CancelOperationRequest(operation_id="x"))
    assert recording.asked.wait(60)
    call.cancel()

    assert recording.abandoned.wait(60)


def test_a_server_that_is_away_is_said_to_be_unavailable(unused_port: int) -> None:
    for forwarding in FORWARDERS.values():
        with (
            forwarding(f"127.0.0.1:{unused_port}") as address,
            open_channel(address) as channel,
            refused() as refusal,
        ):
            Client(channel).get("x")
        assert refusal.code == StatusCode.UNAVAILABLE
