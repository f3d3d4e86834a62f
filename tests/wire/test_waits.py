"""OperationRecordService.Wait and Delete."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from grpc import StatusCode

from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy, OperationRecord
from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    DeleteOperationRecordRequest,
    WaitOperationRecordRequest,
    WatchOperationRecordRequest,
)
from opservice._proto.opservice.v1.operation_record_service_pb2_grpc import (
    OperationRecordServiceStub,
)
from support.client import Client, refusal_from, refused
from support.server import PATIENCE, ServerProcess, eventually, serving

HOUR = Duration(seconds=3600)


def wait(client: Client, operation_id: str, **fields: Any) -> OperationRecord:
    return client.records.Wait(WaitOperationRecordRequest(operation_id=operation_id, **fields))


def waiting(client: Client, operation_id: str, **fields: Any) -> Any:
    """The future of a Wait that the server has begun."""
    request = WaitOperationRecordRequest(operation_id=operation_id, **fields)
    call = client.records.Wait.future(request)
    # On one connection the server begins calls in their order.
    assert not client.get(operation_id).done
    assert not call.done()
    return call


def delete(client: Client, operation_id: str) -> None:
    client.records.Delete(DeleteOperationRecordRequest(operation_id=operation_id))


@pytest.fixture(params=[True, False], ids=["notify", "no notify"])
def two_servers(
    request: pytest.FixtureRequest, database_url: str, tmp_path: Path
) -> Iterator[tuple[Client, Client]]:
    """On one database."""
    settings: dict[str, Any] = {"no_notify": not request.param, "poll_interval": "100ms"}
    settings["housekeeping_interval"] = "100ms"  # which ends what has timed out
    with (
        serving(tmp_path, database_url, **settings) as one,
        serving(tmp_path, database_url, **settings) as other,
    ):
        yield one.client, other.client


def test_a_wait_returns_the_record_once_it_is_done(client: Client) -> None:
    id_ = client.started(parent="folders/b1g")
    call = waiting(client, id_, timeout=HOUR)

    operation = client.complete(id_)

    assert call.result(PATIENCE).operation == operation
    assert call.result().parent == "folders/b1g"


@pytest.mark.parametrize("timeout", [{}, {"timeout": Duration()}], ids=["unset", "zero"])
def test_a_wait_for_what_is_done_returns_at_once(client: Client, timeout: Any) -> None:
    id_ = client.cancel(client.started()).id

    assert wait(client, id_, **timeout).operation == client.get(id_)


def test_a_cancelling_operation_is_waited_for(client: Client) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)
    call = waiting(client, id_)

    client.cancel(id_)
    client.renew(id_)
    assert not call.done()
    client.complete(id_)

    assert call.result(PATIENCE).operation.HasField("response")


@pytest.mark.parametrize("nanos", [0, 1, 100_000_000], ids=["zero", "1 ns", "100 ms"])
def test_a_wait_that_runs_out_returns_the_record_as_it_is(client: Client, nanos: int) -> None:
    id_ = client.started()

    record = wait(client, id_, timeout=Duration(nanos=nanos))

    assert record.operation == client.get(id_)


def test_a_wait_returns_before_the_deadline_of_its_call(client: Client) -> None:
    request = WaitOperationRecordRequest(operation_id=client.started(), timeout=HOUR)

    assert not client.records.Wait(request, timeout=2).operation.done


@pytest.mark.parametrize("timeout", [{}, {"timeout": HOUR}], ids=["unset", "longer"])
def test_no_wait_takes_longer_than_the_cap(sqlite_url: str, tmp_path: Path, timeout: Any) -> None:
    with serving(tmp_path, sqlite_url, max_wait="100ms") as server:
        id_ = server.client.started()

        assert not wait(server.client, id_, **timeout).operation.done


@pytest.mark.parametrize(
    "timeout",
    [Duration(seconds=-1), Duration(nanos=-1), Duration(seconds=1, nanos=-1), Duration(seconds=2**62)],
    ids=["negative", "barely negative", "mixed signs", "absurd"],
)  # fmt: skip
def test_a_bad_timeout_is_an_invalid_argument(client: Client, timeout: Duration) -> None:
    with refused() as refusal:
        wait(client, client.started(), timeout=timeout)

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.fields == ["timeout"]


@pytest.mark.parametrize("call", [wait, delete])
def test_an_unknown_id_is_not_found(client: Client, call: Callable[[Client, str], object]) -> None:
    with refused() as refusal:
        call(client, "nowhere")

    assert refusal.code == StatusCode.NOT_FOUND
    assert refusal.message == "Operation nowhere not found"


@pytest.mark.parametrize("call", [wait, delete])
def test_a_bad_id_is_an_invalid_argument(
    client: Client, call: Callable[[Client, str], object]
) -> None:
    with refused() as refusal:
        call(client, "a\nb")

    assert refusal.code == StatusCode.INVALID_ARGUMENT
    assert refusal.fields == ["operation_id"]


def test_what_another_server_ends_wakes_who_waits(two_servers: tuple[Client, Client]) -> None:
    one, other = two_servers
    # The first round may owe its wake-up to the beginning of the hints.
    for _ in range(3):
        completed, cancelled, timed_out = (
            one.started(),
            one.started(),
            one.started(timeout=Duration(nanos=200_000_000)),
        )
        calls = [waiting(one, id_) for id_ in (completed, cancelled, timed_out)]

        other.complete(completed)
        other.cancel(cancelled)

        ended = [call.result(PATIENCE).operation for call in calls]
        assert ended == [other.get(id_) for id_ in (completed, cancelled, timed_out)]
        codes = [operation.error.code for operation in ended]
        assert codes == [Code.OK, Code.CANCELLED, Code.DEADLINE_EXCEEDED]


def test_a_server_that_drains_ends_waits_with_the_record_as_it_is_and_watches_with_unavailable(
    sqlite_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, sqlite_url) as server:
        id_ = server.client.started()
        watch = server.client.records.Watch(WatchOperationRecordRequest(operation_id=id_))
        next(watch)
        calls = [waiting(server.client, id_) for _ in range(10)]

        server.send_signal(signal.SIGTERM)

        assert [call.result(PATIENCE).operation.done for call in calls] == [False] * 10
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert refusal_from(caught.value).code == StatusCode.UNAVAILABLE
        assert refusal_from(caught.value).reason == "SERVER_STOPPING"
        assert server.wait() == 0


def test_the_wait_of_a_client_that_is_gone_ends(sqlite_url: str, tmp_path: Path) -> None:
    with serving(tmp_path, sqlite_url, log_level="debug") as server:
        id_ = server.client.started()
        leaving = server.channel()
        stub = OperationRecordServiceStub(leaving)
        call = stub.Wait.future(WaitOperationRecordRequest(operation_id=id_))
        method = "/opservice.v1.OperationRecordService/Wait"

        # It has arrived when a call after it on the same connection was answered.
        Client(leaving).get(id_)
        leaving.close()

        assert eventually(lambda: server.log(method=method, code="CANCELLED"))
        assert call.cancelled() or call.done()


@pytest.fixture
def roomy(sqlite_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that lets a connection, and a caller, wait for as much as they like."""
    limits = {"max_concurrent_streams": 10_000, "max_waits_per_caller": 20_000}
    with serving(tmp_path, sqlite_url, **limits) as server:
        yield server


@pytest.mark.slow
async def test_ten_thousand_waits_in_one_burst_are_all_woken_and_none_early(
    roomy: ServerProcess,
) -> None:
    ids = [roomy.client.started() for _ in range(100)]
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        grpc.aio.insecure_channel(roomy.address, own) as first,
        grpc.aio.insecure_channel(roomy.address, own) as second,
    ):
        stubs: list[Any] = [OperationRecordServiceStub(channel) for channel in (first, second)]
        calls = [
            stub.Wait(WaitOperationRecordRequest(operation_id=ids[index % len(ids)]))
            for index in range(5_000)
            for stub in stubs
        ]
        # On one connection the server begins calls in their order, and answers reads in theirs.
        for stub in stubs:
            await stub.Wait(WaitOperationRecordRequest(operation_id=ids[0], timeout=Duration()))
        assert not any(call.done() for call in calls)

        ending = Thread(target=lambda: [roomy.client.complete(id_) for id_ in ids])
        ending.start()
        records = [await call for call in calls]
        ending.join()

    assert all(record.operation.done for record in records)


def test_a_deleted_operation_is_not_found(client: Client) -> None:
    id_ = client.complete(client.started()).id

    delete(client, id_)

    for call in (client.get, lambda id_: delete(client, id_)):
        with refused() as refusal:
            call(id_)
        assert refusal.code == StatusCode.NOT_FOUND


@pytest.mark.parametrize("cancelling", [False, True], ids=["running", "cancelling"])
def test_delete_never_ends_an_operation(client: Client, cancelling: bool) -> None:
    id_ = client.started(cancel_policy=CancelPolicy.COOPERATIVE)
    operation = client.cancel(id_) if cancelling else client.get(id_)

    with refused() as refusal:
        delete(client, id_)

    assert refusal.code == StatusCode.FAILED_PRECONDITION
    assert refusal.reason == "OPERATION_RUNNING"
    assert client.get(id_) == operation
