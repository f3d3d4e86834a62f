"""What every call goes through, without gRPC: with a call and with handlers of the tests' own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, MutableMapping
from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo, QuotaFailure, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from opservice._proto.opservice.v1 import operation_record_service_pb2 as records_pb
from opservice._proto.opservice.v1 import producer_service_pb2 as producer_pb
from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice._proto.yandex.cloud.endpoint import api_endpoint_service_pb2 as endpoint_pb
from opservice._proto.yandex.cloud.operation import operation_service_pb2 as operation_pb
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice.auth.authenticator import Authenticator
from opservice.auth.policy import Policy, StaticToken, hash_token
from opservice.common.turns import Beginnings
from opservice.domain.errors import OperationNotFound, StoreUnavailable
from opservice.domain.identity import ANYBODY, NOBODY, parse_grant
from opservice.domain.operation import Delete
from opservice.methods.admission import Admission, AdmissionLimits
from opservice.methods.call import ClientGone
from opservice.methods.pipeline import MAX_HEADERS, MethodPipeline, Pipeline
from opservice.methods.registry import Handler, Method
from support.calls import ReceivedCall
from support.logs import capture_logs

SERVICES = {
    "Get": operation_pb.DESCRIPTOR.services_by_name["OperationService"],
    "Cancel": operation_pb.DESCRIPTOR.services_by_name["OperationService"],
    "Wait": records_pb.DESCRIPTOR.services_by_name["OperationRecordService"],
    "Watch": records_pb.DESCRIPTOR.services_by_name["OperationRecordService"],
    "Start": producer_pb.DESCRIPTOR.services_by_name["ProducerService"],
    "List": endpoint_pb.DESCRIPTOR.services_by_name["ApiEndpointService"],
}
REQUEST = operation_pb.GetOperationRequest(operation_id="ops1")
WATCHED = records_pb.WatchOperationRecordRequest(operation_id="ops1")
ANSWER = Operation(id="ops1")
NOW = 1_800_000_000.0
REQUEST_ID = ("x-request-id", "the-request-1")

Line = MutableMapping[str, Any]


async def answer(_request: Any, _call: Any) -> Operation:
    return ANSWER


def failing(error: Exception) -> Handler:
    async def fail(_request: Any, _call: Any) -> Operation:
        raise error

    return fail


def pipeline_of(
    name: str, handler: Handler = answer, shared: Pipeline | None = None
) -> MethodPipeline:
    """The pipeline of the method of this name, handled so."""
    method = SERVICES[name].methods_by_name[name]
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    served = Method(SERVICES[name].full_name, name, request, response, handler, method)
    return (shared or open_to_all()).of(served)


def open_to_all(max_calls: int = 100, **limits: int) -> Pipeline:
    """Without authentication."""
    return Pipeline(Admission(AdmissionLimits(**limits), None), max_calls)


def authenticating(**limits: int) -> Pipeline:
    """Where tokens are known: of a viewer, and of an editor whose token has expired."""
    tokens = {
        "viewer": StaticToken("ann", (parse_grant("viewer:folders/a"),), None),
        "expired": StaticToken("eve", (parse_grant("editor:*"),), NOW - 1),
    }
    known = {hash_token(token): each for token, each in tokens.items()}
    authenticator = Authenticator(Policy(), known, clock=lambda: NOW)
    return Pipeline(Admission(AdmissionLimits(**limits), authenticator), 100)


def bearing(token: str) -> ReceivedCall:
    return ReceivedCall(REQUEST, headers=[("authorization", f"Bearer {token}")])


def detail(status: Status | None, kind: Any) -> Any:
    """The one detail of this kind."""
    assert status is not None
    (packed,) = (each for each in status.details if each.Is(kind.DESCRIPTOR))
    found = kind()
    packed.Unpack(found)
    return found


def reason(status: Status | None) -> str:
    found: str = detail(status, ErrorInfo).reason
    return found


@pytest.fixture
def lines() -> Iterator[list[Line]]:
    """What is logged."""
    with capture_logs() as captured:
        yield captured


# A call that succeeds


async def test_a_call_is_answered(lines: list[Line]) -> None:
    call = ReceivedCall(REQUEST)

    assert await pipeline_of("Get").run(call) is None

    assert call.sent == [ANSWER]
    assert call.request == REQUEST
    assert (call.trailers, lines) == ((), []), "a read that succeeds costs no id and no line"


async def test_a_request_id_that_was_given_comes_back() -> None:
    call = ReceivedCall(REQUEST, headers=[REQUEST_ID])

    await pipeline_of("Get").run(call)

    assert call.trailers == (REQUEST_ID,)


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "\x7f"])
async def test_a_request_id_that_cannot_be_logged_is_replaced(given: str) -> None:
    call = ReceivedCall(REQUEST, headers=[("x-request-id", given)])

    status = await pipeline_of("Get", failing(OperationNotFound("ops1"))).run(call)

    told = detail(status, RequestInfo).request_id
    assert told == call.request_id != given


async def test_a_write_has_its_line_in_the_audit_log(lines: list[Line]) -> None:
    call = ReceivedCall(operation_pb.CancelOperationRequest(operation_id="ops1"))

    await pipeline_of("Cancel").run(call)

    (line,) = lines
    assert line["method"] == "/yandex.cloud.operation.OperationService/Cancel"
    assert line["code"] == "OK"
    assert line["operation_id"] == "ops1"
    assert line["peer"] == "ipv4:10.0.0.7:50123"
    assert line["authenticated_by"] == "anonymous"
    assert call.trailers == (("x-request-id", line["request_id"]),)


# Who calls


async def test_without_authentication_the_caller_is_anybody() -> None:
    call = ReceivedCall(REQUEST)

    await pipeline_of("Get").run(call)

    assert call.caller.identity is ANYBODY


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], "CREDENTIALS_MISSING"),
        ([("authorization", "Bearer unknown")], "CREDENTIALS_INVALID"),
        ([("authorization", "Basic ann")], "CREDENTIALS_INVALID"),
        ([("authorization", "Bearer expired")], "CREDENTIALS_EXPIRED"),
    ],
)
async def test_who_is_not_authenticated_is_refused_before_the_request_is_read(
    headers: list[tuple[str, str]], expected: str, lines: list[Line]
) -> None:
    call = ReceivedCall(REQUEST, headers=headers)

    status = await pipeline_of("Get", shared=authenticating()).run(call)

    assert reason(status) == expected
    assert status is not None
    assert status.code == Code.UNAUTHENTICATED
    assert (call.received, call.sent) == (0, [])
    assert [line["code"] for line in lines] == ["UNAUTHENTICATED"]


async def test_who_has_the_right_for_no_operation_is_refused_before_the_request_is_read(
    lines: list[Line],
) -> None:
    call = bearing("viewer")

    status = await pipeline_of("Start", shared=authenticating()).run(call)

    assert reason(status) == "PERMISSION_DENIED"
    assert call.received == 0
    assert [line["subject"] for line in lines] == ["ann"], "it is known who it was"


async def test_who_is_authenticated_is_the_caller() -> None:
    call = bearing("viewer")

    assert await pipeline_of("Get", shared=authenticating()).run(call) is None

    assert call.caller.identity.subject == "ann"


async def test_of_an_open_method_nobody_is_asked_who_they_are_and_they_are_nobody() -> None:
    call = ReceivedCall(REQUEST)

    assert await pipeline_of("List", shared=authenticating()).run(call) is None

    assert call.caller.identity is NOBODY


async def test_a_handler_that_is_run_without_the_pipeline_finds_no_caller() -> None:
    async def handle(_request: Any, call: Any) -> Operation:
        return Operation(created_by=call.caller.identity.subject)

    async def forgetful(request: Any, _call: Any) -> Operation:
        return await handle(request, ReceivedCall(request))

    status = await pipeline_of("Get", forgetful).run(ReceivedCall(REQUEST))

    assert reason(status) == "CREDENTIALS_INVALID"


# How much


async def test_beyond_the_rate_limit_a_call_is_refused_and_told_when_to_come_again() -> None:
    get = pipeline_of("Get", shared=open_to_all(rate_limit=1))
    assert await get.run(ReceivedCall(REQUEST)) is None

    call = ReceivedCall(REQUEST)
    status = await get.run(call)

    assert reason(status) == "RATE_LIMITED"
    assert 0 < detail(status, RetryInfo).retry_delay.ToNanoseconds() <= 1e9
    assert detail(status, QuotaFailure).violations[0].subject == "peer:ipv4:10.0.0.7"
    assert call.received == 0


class Held:
    """A handler whose calls end when they are told to."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.end = asyncio.Event()

    async def __call__(self, _request: Any, _call: Any) -> Operation:
        self.begun.set()
        await self.end.wait()
        return ANSWER


async def test_beyond_its_waits_a_caller_is_refused_and_a_wait_that_ends_makes_room() -> None:
    held = Held()
    wait = pipeline_of("Wait", held, open_to_all(max_waits_per_caller=1))
    first = asyncio.create_task(wait.run(ReceivedCall(REQUEST)))
    await held.begun.wait()

    assert reason(await wait.run(ReceivedCall(REQUEST))) == "TOO_MANY_WAITS"
    held.end.set()
    assert await first is None
    assert await wait.run(ReceivedCall(REQUEST)) is None


async def test_beyond_its_calls_a_server_refuses_further_ones_early(lines: list[Line]) -> None:
    held, shared = Held(), open_to_all(max_calls=1)
    get = pipeline_of("Get", held, shared)
    assert get.early_refusal(headers=0) is None
    first = asyncio.create_task(get.run(ReceivedCall(REQUEST)))
    await held.begun.wait()

    refusal = get.early_refusal(headers=0)
    assert refusal is not None
    assert reason(refusal.status) == "SERVER_BUSY"
    get.refuse(refusal, "ipv4:10.0.0.7:1")
    assert lines[0]["error"] == "ServerBusy"
    assert pipeline_of("Wait", held, shared).early_refusal(headers=0) is None, "it only waits"

    held.end.set()
    await first
    assert get.early_refusal(headers=0) is None


@pytest.mark.parametrize("end", ["an error", "cancelled", "refused"])
async def test_a_call_is_in_progress_no_longer_however_it_ends(end: str) -> None:
    held = Held()
    shared = authenticating() if end == "refused" else open_to_all()
    get = pipeline_of("Get", failing(OSError()) if end == "an error" else held, shared)
    running = asyncio.create_task(get.run(ReceivedCall(REQUEST)))
    if end == "cancelled":
        await held.begun.wait()
        assert shared.in_progress == 1
        running.cancel()

    await asyncio.wait([running])

    assert shared.in_progress == 0


def test_a_call_with_too_many_headers_is_refused_early() -> None:
    get = pipeline_of("Get")

    refusal = get.early_refusal(headers=MAX_HEADERS + 1)

    assert refusal is not None
    assert reason(refusal.status) == "TOO_MANY_HEADERS"
    assert get.early_refusal(headers=MAX_HEADERS) is None


@pytest.mark.parametrize(("name", "waits"), [("Get", True), ("Start", False), ("List", False)])
async def test_reads_begin_later_on_a_connection_with_unread_responses(
    name: str, waits: bool
) -> None:
    """And no write, nor what anybody may ask."""
    call = ReceivedCall(REQUEST)

    await pipeline_of(name).run(call)

    assert call.waited is waits


# Errors


async def test_an_error_that_is_known_becomes_its_status(lines: list[Line]) -> None:
    call = ReceivedCall(REQUEST)

    status = await pipeline_of("Get", failing(OperationNotFound("ops1"))).run(call)

    assert status is not None
    assert status.code == Code.NOT_FOUND
    assert status.message == "Operation ops1 not found"
    assert detail(status, RequestInfo).request_id == call.request_id
    assert (call.sent, call.trailers) == ([], ())
    assert [(line["code"], line["error"]) for line in lines] == [("NOT_FOUND", "OperationNotFound")]


async def test_of_an_unexpected_error_the_caller_is_told_nothing_and_the_log_everything(
    lines: list[Line],
) -> None:
    call, error = ReceivedCall(REQUEST), RuntimeError("password=planted")

    status = await pipeline_of("Get", failing(error)).run(call)

    assert status is not None
    assert status.code == Code.INTERNAL
    assert status.message == f"Internal error, request id {call.request_id}"
    assert b"planted" not in status.SerializeToString()
    (line,) = lines
    assert (line["log_level"], line["exc_info"]) == ("error", error)


async def test_of_a_database_that_fails_the_log_has_the_cause(lines: list[Line]) -> None:
    error = StoreUnavailable()
    error.__cause__ = OSError("connection refused")

    status = await pipeline_of("Get", failing(error)).run(ReceivedCall(REQUEST))

    assert reason(status) == "STORE_UNAVAILABLE"
    assert [(line["log_level"], line["cause"]) for line in lines] == [
        ("warning", "connection refused")
    ]


async def test_an_error_keeps_nothing_that_may_be_large() -> None:
    """It is there until the client has read it, which they may never do."""

    async def fail(_request: Any, call: Any) -> Operation:
        call.caller.command = Delete("ops1")
        raise OperationNotFound("ops1")

    call = ReceivedCall(REQUEST)

    await pipeline_of("Cancel", fail).run(call)

    assert call.request is None
    assert (call.caller.command, call.caller.outcome) == (None, None)


async def test_a_response_that_cannot_be_sent_is_an_error_of_the_call() -> None:
    class Full(ReceivedCall):
        async def send(self, response: object) -> None:
            raise OSError

    status = await pipeline_of("Get").run(Full(REQUEST))

    assert reason(status) == "INTERNAL"


# Calls that wait, of which thousands may be asked for at once


async def test_a_call_that_waits_begins_before_most_of_those_that_another_has_asked_for() -> None:
    begun: list[str] = []

    async def wait(_request: Any, call: Any) -> OperationRecord:
        begun.append(call.peer)
        return OperationRecord()

    pipeline = pipeline_of("Wait", wait, open_to_all(max_waits=1_000, max_waits_per_caller=1_000))
    peers = ["ipv4:10.0.0.1:50123"] * 500 + ["ipv4:10.0.0.2:50123"]
    async with asyncio.TaskGroup() as calls:
        for peer in peers:
            calls.create_task(pipeline.run(ReceivedCall(REQUEST, peer=peer)))

    assert sorted(begun) == peers
    assert begun.index(peers[-1]) < 5


async def test_few_calls_that_wait_begin_in_one_turn_of_the_event_loop() -> None:
    begun: list[object] = []

    async def wait(request: Any, _call: Any) -> OperationRecord:
        begun.append(request)
        return OperationRecord()

    pipeline = pipeline_of("Wait", wait, open_to_all(max_waits=1_000, max_waits_per_caller=1_000))
    pipeline._shared.beginning = Beginnings(lambda: 0.0)
    calls = [asyncio.create_task(pipeline.run(ReceivedCall(REQUEST))) for _ in range(500)]
    most_in_a_turn = before = 0
    while not all(call.done() for call in calls):
        await asyncio.sleep(0)
        most_in_a_turn, before = max(most_in_a_turn, len(begun) - before), len(begun)

    assert (len(begun), most_in_a_turn) == (500, 1)


# Callers who leave


async def test_a_call_that_is_cancelled_is_logged_as_such(lines: list[Line]) -> None:
    held = Held()
    running = asyncio.create_task(pipeline_of("Cancel", held).run(ReceivedCall(REQUEST)))
    await held.begun.wait()
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert [line["code"] for line in lines] == ["CANCELLED"]


class Stream:
    """A handler that yields records until it is closed."""

    def __init__(self) -> None:
        self.closed = False

    async def __call__(self, _request: Any, _call: Any) -> AsyncIterator[OperationRecord]:
        try:
            while True:
                yield OperationRecord(revision=1)
                await asyncio.sleep(0)
        finally:
            self.closed = True


def streaming(stream: Stream) -> Handler:
    return stream.__call__


async def test_a_stream_sends_each_response_until_its_client_leaves() -> None:
    stream = Stream()
    call = ReceivedCall(WATCHED, reads=3)

    with pytest.raises(ClientGone):
        await pipeline_of("Watch", streaming(stream)).run(call)

    assert call.sent == [OperationRecord(revision=1)] * 3
    assert stream.closed


async def test_a_stream_that_is_left_makes_room_for_another() -> None:
    watch = pipeline_of("Watch", streaming(Stream()), open_to_all(max_waits_per_caller=1))
    for _ in range(3):
        running = asyncio.create_task(watch.run(call := ReceivedCall(WATCHED)))
        await call.sending.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_a_stream_that_fails_ends_with_its_status_after_what_was_sent() -> None:
    async def two(_request: Any, _call: Any) -> AsyncIterator[OperationRecord]:
        yield OperationRecord(revision=1)
        raise OperationNotFound("ops1")

    call = ReceivedCall(WATCHED)
    status = await pipeline_of("Watch", two).run(call)

    assert reason(status) == "OPERATION_NOT_FOUND"
    assert call.sent == [OperationRecord(revision=1)]


async def test_a_stream_that_ends_has_succeeded() -> None:
    async def two(_request: Any, _call: Any) -> AsyncIterator[OperationRecord]:
        for revision in (1, 2):
            yield OperationRecord(revision=revision)

    call = ReceivedCall(WATCHED, headers=[REQUEST_ID])

    assert await pipeline_of("Watch", two).run(call) is None
    assert call.sent == [OperationRecord(revision=1), OperationRecord(revision=2)]
    assert call.trailers == (REQUEST_ID,)
