"""Streams: what is left of one that has ended."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

from google.protobuf import descriptor_pool

from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice.fronts.backpressure import UnreadResponses
from opservice.fronts.http.conversions import Conversions
from opservice.fronts.http.exchange import Exchange
from opservice.fronts.http.streams import MessageStream
from opservice.methods.protojson import ProtoJson


async def test_a_stream_that_has_ended_is_freed_without_garbage_collection() -> None:
    """A full collection stops all calls, until it has looked at all that streams hold."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    scope: dict[str, Any] = {
        "method": "GET",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [],
        "state": {},
        "client": None,
    }
    stream = MessageStream(
        Exchange(scope, receive, send),
        Conversions(ProtoJson(descriptor_pool.Default())),
        as_events=True,
    )
    await stream.send(OperationRecord(revision=1), (), UnreadResponses(1 << 20), "", is_last=False)
    await asyncio.sleep(0)  # the heartbeat begins
    gc.disable()
    try:
        stream.close()
        left = weakref.ref(stream)
        del stream
        for _ in range(3):  # the heartbeat ends
            await asyncio.sleep(0)
        assert left() is None
    finally:
        gc.enable()
    assert len(sent) == 2
