"""What calls that wait or stream go through, and what becomes of them when their callers leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from methods.pipelines import (
    REQUEST,
    REQUEST_ID,
    WATCHED,
    Held,
    Line,
    open_to_all,
    pipeline_of,
    reason,
)
from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice.common.turns import Beginnings
from opservice.domain.errors import OperationNotFound
from opservice.methods.call import ClientGone
from opservice.methods.registry import Handler
from support.calls import ReceivedCall

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
