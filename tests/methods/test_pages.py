"""Pages are made and encoded in slices, and come to what they would come to at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from google.protobuf.message import Message

from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice._proto.opservice.v1.operation_record_service_pb2 import ListOperationRecordsResponse
from opservice.methods.pages import encode, fill


@asynccontextmanager
async def others(events: list[str]) -> AsyncIterator[None]:
    """They note each turn that they get."""

    async def serve() -> None:
        while True:
            events.append(" ")
            await asyncio.sleep(0)

    serving = asyncio.create_task(serve())
    yield
    serving.cancel()


def page(size: int) -> ListOperationRecordsResponse:
    records = [OperationRecord(parent=str(number), revision=number) for number in range(size)]
    return ListOperationRecordsResponse(operation_records=records, next_page_token="token")


async def test_others_are_served_between_the_slices_of_a_large_page() -> None:
    events: list[str] = []
    filled = ListOperationRecordsResponse(next_page_token="token")

    def convert(number: int) -> Message:
        events.append("x")
        return OperationRecord(parent=str(number), revision=number)

    async with others(events):
        await fill(filled.operation_records, range(1_000), convert)

    assert filled == page(1_000)
    slices = "".join(events).split()
    assert sum(map(len, slices)) == 1_000
    assert max(map(len, slices)) == 20


async def test_others_are_served_while_a_large_page_is_encoded() -> None:
    turns: list[str] = []

    async with others(turns):
        await encode(page(1_000))

    assert len(turns) >= 1_000 // 20


@pytest.mark.parametrize("size", [0, 1, 20, 21, 1_000])
async def test_a_page_is_encoded_as_it_would_be_at_once(size: int) -> None:
    assert await encode(page(size)) == page(size).SerializeToString()


async def test_an_empty_page_is_encoded_as_nothing() -> None:
    assert await encode(ListOperationRecordsResponse()) == b""
