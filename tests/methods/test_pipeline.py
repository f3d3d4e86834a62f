"""What every call goes through, without gRPC: with a call and with handlers of the tests' own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import QuotaFailure, RequestInfo, RetryInfo

from methods.pipelines import (
    ANSWER,
    REQUEST,
    REQUEST_ID,
    Held,
    Line,
    authenticating,
    bearing,
    detail,
    failing,
    open_to_all,
    pipeline_of,
    reason,
)
from opservice._proto.yandex.cloud.operation import operation_service_pb2 as operation_pb
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice.domain.errors import OperationNotFound, StoreUnavailable
from opservice.domain.identity import ANYBODY, NOBODY
from opservice.domain.operation import Delete
from opservice.methods.pipeline import MAX_HEADERS
from support.calls import ReceivedCall

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
