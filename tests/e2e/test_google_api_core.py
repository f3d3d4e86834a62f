"""The unmodified google-api-core: its clients, and its futures, which are all that most callers see."""

import concurrent.futures
import json
import re
import shlex
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.api_core import exceptions, operation, operation_async, operations_v1
from google.api_core.future.async_future import RETRY_PREDICATE
from google.api_core.future.polling import POLLING_PREDICATE
from google.api_core.retry import AsyncRetry, Retry
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.demo.v1.container_registry_pb2 import (
    CreateRegistryMetadata,
    Registry,
)
from opservice._proto.opservice.v1.operation_record_pb2 import CancelPolicy
from opservice.methods.listing import DEFAULT_PAGE_SIZE
from support.client import TOKEN, Client, packed
from support.programs import run_program
from support.server import PATIENCE, ServerProcess
from support.tools import require_tool

PAGE = (Path(__file__).parents[2] / "docs" / "google-longrunning.md").read_text()
pytestmark = pytest.mark.parametrize("server", ["sqlite"], indirect=True, scope="package")

METADATA = CreateRegistryMetadata(registry_id="crp1")
REGISTRY = Registry(id="crp1", name="images", labels={"team": "a"})
PARENT = "folders/b1g"

# Much of it is untyped.
new_client: Callable[[grpc.Channel], Any] = operations_v1.OperationsClient
new_async_client: Callable[[grpc.aio.Channel], Any] = operations_v1.OperationsAsyncClient
from_gapic: Callable[..., Any] = operation.from_gapic
async_from_gapic: Callable[..., Any] = operation_async.from_gapic


@pytest.fixture
def google(server: ServerProcess) -> Any:
    return new_client(server.client.channel)


def started(client: Client, **fields: Any) -> str:
    """The name of a new operation."""
    given = {"parent": PARENT, "metadata": packed(METADATA), "lease_token": TOKEN, **fields}
    return f"{given['parent']}/operations/{client.started(**given)}"


def id_in(name: str) -> str:
    return name.rpartition("/")[2]


def complete(client: Client, name: str) -> None:
    client.complete(id_in(name), lease_token=TOKEN, response=packed(REGISTRY))


def future(google: Any, name: str, while_waiting: Callable[[Exception], None] | None = None) -> Any:
    """As a generated client makes it; `while_waiting` is called after each poll in vain."""
    polling = Retry(
        predicate=POLLING_PREDICATE,
        initial=0.02,
        maximum=0.1,
        timeout=PATIENCE,
        on_error=while_waiting,
    )
    return from_gapic(
        google.get_operation(name),
        google,
        Registry,
        metadata_type=CreateRegistryMetadata,
        polling=polling,
    )


def test_result_waits_for_the_response(client: Client, google: Any) -> None:
    name = started(client)
    polls: list[Exception] = []

    def complete_it(error: Exception) -> None:
        polls.append(error)
        if len(polls) == 3:
            complete(client, name)

    following = future(google, name, complete_it)

    assert not following.done()
    assert following.result() == REGISTRY
    assert len(polls) == 3
    assert following.done()
    assert following.exception() is None
    assert not following.cancelled()


def test_result_is_there_at_once_when_the_operation_is_done(client: Client, google: Any) -> None:
    name = started(client)
    complete(client, name)

    def fail(_: Exception) -> None:
        raise AssertionError("it was asked again")

    assert future(google, name, fail).result() == REGISTRY


def test_the_future_has_the_metadata_as_it_is_now(client: Client, google: Any) -> None:
    name = started(client)
    following = future(google, name)
    assert following.metadata == METADATA

    changed = CreateRegistryMetadata(registry_id="crp2")
    client.renew(id_in(name), lease_token=TOKEN, metadata=packed(changed))

    assert not following.done()
    assert following.metadata == changed


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.NOT_FOUND, exceptions.NotFound),
        (Code.ALREADY_EXISTS, exceptions.AlreadyExists),
        (Code.PERMISSION_DENIED, exceptions.PermissionDenied),
        (Code.RESOURCE_EXHAUSTED, exceptions.ResourceExhausted),
        (Code.UNAVAILABLE, exceptions.ServiceUnavailable),
        (Code.INTERNAL, exceptions.InternalServerError),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_failed_operation_raises_the_exception_of_its_code(
    client: Client, google: Any, code: Code, expected: type[exceptions.GoogleAPICallError]
) -> None:
    info = ErrorInfo(reason="BROKEN", domain="registry")
    error = Status(code=code, message="it broke", details=[packed(info)])
    name = started(client)
    client.fail(id_in(name), error, lease_token=TOKEN)

    with pytest.raises(exceptions.GoogleAPICallError, match="it broke") as caught:
        future(google, name).result()

    assert type(caught.value) is expected
    assert caught.value.errors == [error]


def test_a_lapsed_lease_raises_aborted(client: Client, google: Any) -> None:
    name = started(client, lease=Duration(seconds=1))

    failure = future(google, name).exception()

    assert type(failure) is exceptions.Aborted
    assert failure.errors[0].details[0] == packed(
        ErrorInfo(reason="LEASE_EXPIRED", domain="opservice")
    )


def test_a_timeout_of_the_operation_raises_deadline_exceeded(client: Client, google: Any) -> None:
    name = started(client, timeout=Duration(nanos=1_000))

    assert type(future(google, name).exception()) is exceptions.DeadlineExceeded


def test_cancel_cancels(client: Client, google: Any) -> None:
    following = future(google, started(client))

    assert following.cancel()

    assert following.cancelled()
    with pytest.raises(exceptions.Cancelled, match="The operation was cancelled"):
        following.result()
    assert not following.cancel()


def test_an_operation_is_not_cancelled_before_its_producer_has_ended_it(
    client: Client, google: Any
) -> None:
    name = started(client, cancel_policy=CancelPolicy.COOPERATIVE)
    following = future(google, name)

    assert following.cancel()

    assert not following.cancelled()
    assert not following.done()
    client.fail(id_in(name), Status(code=Code.CANCELLED), lease_token=TOKEN)
    assert following.cancelled()


def test_an_operation_may_succeed_although_it_was_to_be_cancelled(
    client: Client, google: Any
) -> None:
    name = started(client, cancel_policy=CancelPolicy.COOPERATIVE)
    following = future(google, name, lambda _: complete(client, name))

    assert following.cancel()

    assert following.result() == REGISTRY
    assert not following.cancelled()


def test_cancel_of_what_cannot_be_cancelled_raises_failed_precondition(
    client: Client, google: Any
) -> None:
    following = future(google, started(client, cancel_policy=CancelPolicy.UNSUPPORTED))

    with pytest.raises(exceptions.FailedPrecondition) as caught:
        following.cancel()

    assert caught.value.reason == "OPERATION_NOT_CANCELLABLE"
    assert caught.value.domain == "opservice"


def test_a_result_that_does_not_come_in_time_raises_timeout(client: Client, google: Any) -> None:
    with pytest.raises(concurrent.futures.TimeoutError):
        future(google, started(client)).result(timeout=0.1)


def test_a_callback_is_called_when_the_operation_is_done(client: Client, google: Any) -> None:
    name = started(client)
    called: concurrent.futures.Future[Any] = concurrent.futures.Future()
    following = future(google, name)

    following.add_done_callback(called.set_result)
    complete(client, name)

    assert called.result(PATIENCE).result() == REGISTRY


def test_the_client_raises_the_exception_of_a_refusal(client: Client, google: Any) -> None:
    with pytest.raises(exceptions.NotFound, match="folders/b1g/operations/nowhere not found"):
        google.get_operation("folders/b1g/operations/nowhere")
    with pytest.raises(exceptions.InvalidArgument, match="name: must be operations/ID"):
        google.get_operation("nowhere")
    with pytest.raises(exceptions.FailedPrecondition, match="still running"):
        google.delete_operation(started(client))


def test_the_client_deletes_a_done_operation(client: Client, google: Any) -> None:
    name = started(client)
    complete(client, name)

    google.delete_operation(name)

    with pytest.raises(exceptions.NotFound):
        google.get_operation(name)


def test_the_client_lists_through_all_pages(client: Client, google: Any) -> None:
    parent = f"folders/{uuid4().hex}"
    names = [started(client, parent=parent) for _ in range(DEFAULT_PAGE_SIZE + 3)]

    pages = [[each.name for each in page] for page in google.list_operations(parent, "").pages]

    newest_first = names[::-1]
    assert pages == [newest_first[:DEFAULT_PAGE_SIZE], newest_first[DEFAULT_PAGE_SIZE:]]


def test_the_client_lists_what_a_filter_lets_pass(client: Client, google: Any) -> None:
    parent = f"folders/{uuid4().hex}"
    names = [started(client, parent=parent) for _ in range(3)]
    complete(client, names[1])

    assert [each.name for each in google.list_operations(parent, "done = true")] == [names[1]]


@pytest.fixture
async def google_async(server: ServerProcess) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield new_async_client(channel)


async def test_the_asyncio_future_waits_for_the_response(client: Client, google_async: Any) -> None:
    name = started(client)
    following = await async_future(google_async, name, lambda _: complete(client, name))

    assert following.metadata == METADATA
    assert not await following.done()
    assert await following.result(timeout=PATIENCE) == REGISTRY


async def test_the_asyncio_future_cancels(client: Client, google_async: Any) -> None:
    following = await async_future(google_async, started(client))

    assert await following.cancel()

    assert await following.cancelled()
    with pytest.raises(exceptions.GoogleAPICallError, match="The operation was cancelled"):
        await following.result(timeout=PATIENCE)


async def test_the_asyncio_client_lists_and_deletes(client: Client, google_async: Any) -> None:
    parent = f"folders/{uuid4().hex}"
    names = [started(client, parent=parent) for _ in range(2)]
    complete(client, names[0])

    await google_async.delete_operation(names[0])

    listed = [each.name async for each in await google_async.list_operations(parent, "")]
    assert listed == [names[1]]


async def async_future(
    google: Any, name: str, while_waiting: Callable[[Exception], None] | None = None
) -> Any:
    retry = AsyncRetry(
        predicate=RETRY_PREDICATE,
        initial=0.02,
        maximum=0.1,
        timeout=PATIENCE,
        on_error=while_waiting,
    )
    return async_from_gapic(
        await google.get_operation(name),
        google,
        Registry,
        metadata_type=CreateRegistryMetadata,
        retry=retry,
    )


DRIVER = """
from google.longrunning.operations_proto_pb2 import Operation
from google.protobuf.any_pb2 import Any
from opservice._proto.opservice.v1.producer_service_pb2 import CompleteRequest, StartRequest
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceStub

with grpc.insecure_channel("127.0.0.1:50051") as channel:
    producer = ProducerServiceStub(channel)
    first, second = [
        producer.Start(StartRequest(parent="PARENT")).operation.id for _ in range(2)
    ]
    response = Any()
    response.Pack(StringValue(value="42 rows"))
    producer.Complete(CompleteRequest(operation_id=first, response=response))

assert follow(f"PARENT/operations/{first}").value == "42 rows"
cancel_all("PARENT")
assert follow(f"operations/{second}") is None
"""


def test_the_program_of_the_page_runs_as_it_stands(server: ServerProcess) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

    run_program(program + DRIVER.replace("PARENT", f"folders/{uuid4().hex}"), server)


def test_the_commands_of_the_page_work(server: ServerProcess) -> None:
    grpcurl = require_tool(
        "grpcurl", "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest"
    )
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    parent = f"folders/{uuid4().hex}"
    listed = started(server.client, parent=parent)
    ended = started(server.client, parent=parent)
    complete(server.client, ended)
    said = {}
    for line in block.splitlines():
        command = shlex.split(line.replace("folders/b1g", parent).replace("ID", id_in(ended)))
        command[0], command[-2] = grpcurl, server.address
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        said[command[-1].rpartition("/")[2]] = json.loads(done.stdout)

    assert said["GetOperation"]["name"] == said["WaitOperation"]["name"] == ended
    assert [each["name"] for each in said["ListOperations"]["operations"]] == [listed]
    assert said["CancelOperation"] == said["DeleteOperation"] == {}
