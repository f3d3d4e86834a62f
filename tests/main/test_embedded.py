"""A server within a program's own process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import structlog
from google.rpc.code_pb2 import Code

from opservice._proto.opservice.v1.operation_record_service_pb2 import (
    BatchWatchOperationRecordsRequest,
    OperationRecordEvent,
)
from opservice._proto.opservice.v1.producer_service_pb2 import StartRequest, StartResponse
from opservice._proto.yandex.cloud.operation.operation_pb2 import Operation
from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice.domain.errors import StartupError
from opservice.main.embedded import EmbeddedServer
from support.server import PATIENCE

TOKEN = "a-token-of-many-characters"


@asynccontextmanager
async def embedded(directory: Path) -> AsyncIterator[tuple[EmbeddedServer, grpc.aio.Channel]]:
    server = EmbeddedServer(directory, cancel_grace=timedelta(hours=1))
    stop, ready = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(server.run(stop, ready.set))
    await asyncio.wait_for(ready.wait(), PATIENCE)
    async with grpc.aio.insecure_channel(server.target) as channel:
        yield server, channel
    stop.set()
    await running


async def start(
    channel: grpc.aio.Channel, *, lease: int, lasts: int, kept: timedelta | None = None
) -> str:
    call: grpc.aio.UnaryUnaryMultiCallable[StartRequest, StartResponse] = channel.unary_unary(
        "/opservice.v1.ProducerService/Start",
        StartRequest.SerializeToString,
        StartResponse.FromString,
    )
    request = StartRequest(lease_token=TOKEN)
    request.lease.seconds, request.timeout.seconds = lease, lasts
    if kept is not None:
        request.retention.FromTimedelta(kept)
    return (await call(request)).operation.id


async def get(channel: grpc.aio.Channel, id_: str) -> Operation:
    call: grpc.aio.UnaryUnaryMultiCallable[GetOperationRequest, Operation] = channel.unary_unary(
        "/yandex.cloud.operation.OperationService/Get",
        GetOperationRequest.SerializeToString,
        Operation.FromString,
    )
    return await call(GetOperationRequest(operation_id=id_))


async def test_what_becomes_due_in_the_time_that_is_skipped_is_done_in_its_order(
    tmp_path: Path,
) -> None:
    async with embedded(tmp_path) as (server, channel):
        lapses = await start(channel, lease=30, lasts=60)
        times_out = await start(channel, lease=60, lasts=30)
        goes_on = await start(channel, lease=3600, lasts=3600)

        await asyncio.to_thread(server.advance, timedelta(seconds=90))

        lapsed = await get(channel, lapses)
        assert lapsed.error.code == Code.ABORTED
        lasted = lapsed.modified_at.ToMicroseconds() - lapsed.created_at.ToMicroseconds()
        assert 30_000_000 <= lasted < 60_000_000
        assert (await get(channel, times_out)).error.code == Code.DEADLINE_EXCEEDED
        assert not (await get(channel, goes_on)).done


async def test_more_operations_than_a_page_and_a_sweep_take_lapse_together(tmp_path: Path) -> None:
    async with embedded(tmp_path) as (server, channel):
        starts = (start(channel, lease=60, lasts=3600) for _ in range(510))
        ids = await asyncio.gather(*starts)

        await asyncio.to_thread(server.advance, timedelta(minutes=1))

        found = await asyncio.gather(*(get(channel, id_) for id_ in ids))
        assert all(operation.done for operation in found)


async def test_whoever_follows_operations_is_told_which_expired_in_the_time_that_is_skipped(
    tmp_path: Path,
) -> None:
    async with embedded(tmp_path) as (server, channel):
        expires = await start(channel, lease=60, lasts=60, kept=timedelta(days=1))
        stays = await start(channel, lease=60, lasts=60, kept=timedelta(days=2))
        await asyncio.to_thread(server.advance, timedelta(minutes=1))
        follow: grpc.aio.UnaryStreamMultiCallable[
            BatchWatchOperationRecordsRequest, OperationRecordEvent
        ] = channel.unary_stream(
            "/opservice.v1.OperationRecordService/BatchWatch",
            BatchWatchOperationRecordsRequest.SerializeToString,
            OperationRecordEvent.FromString,
        )
        events = follow(BatchWatchOperationRecordsRequest())

        told = []
        async with asyncio.timeout(PATIENCE):
            async for event in events:
                told.append(event.removed_id or event.record.operation.id)
                if event.HasField("caught_up"):
                    await asyncio.to_thread(server.advance, timedelta(days=1, hours=1))
                if event.removed_id:
                    break
        events.cancel()

        assert told == [stays, expires, "", expires]


async def test_the_times_by_which_several_threads_move_the_clock_add_up(tmp_path: Path) -> None:
    async with embedded(tmp_path) as (server, channel):
        before = (await get(channel, await start(channel, lease=86_400, lasts=86_400))).created_at
        hour = timedelta(hours=1)

        await asyncio.gather(*(asyncio.to_thread(server.advance, hour) for _ in range(8)))

        after = (await get(channel, await start(channel, lease=86_400, lasts=86_400))).created_at
        assert after.ToDatetime() - before.ToDatetime() >= 8 * hour


async def test_it_leaves_the_processs_umask_logging_and_garbage_collector_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[int] = []
    monkeypatch.setattr(os, "umask", masks.append)
    before = logging.root.handlers[:], logging.root.level, gc.get_freeze_count()

    async with embedded(tmp_path):
        during = logging.root.handlers[:], logging.root.level, gc.get_freeze_count()

    assert during == before
    assert not masks  # not even for a moment: other threads make files
    assert not structlog.is_configured()


def test_a_directory_that_no_socket_can_be_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="characters"):
        EmbeddedServer(tmp_path / ("x" * 100), cancel_grace=timedelta(seconds=1))
