"""What a Wait costs and how soon it wakes.

    .venv/bin/python bench/waits.py sqlite:////tmp/waits.db
    .venv/bin/python bench/waits.py postgresql://...          # an empty database

Two servers share the database. First single Waits on one of them, whose operation is completed through
the same server, then through the other: milliseconds from sending Complete to the Wait's answer, with the
write in it. Then 10,000 Waits in one burst on one operation: the server's memory for each, and the time
from Complete's answer to the last Wait's.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import grpc

from opservice._proto.opservice.v1.operation_record_pb2 import OperationRecord
from opservice._proto.opservice.v1.operation_record_service_pb2 import WaitOperationRecordRequest
from opservice._proto.opservice.v1.operation_record_service_pb2_grpc import (
    OperationRecordServiceStub,
)
from opservice._proto.opservice.v1.producer_service_pb2 import CompleteRequest, StartRequest
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceStub
from opservice.store.engine import open_database
from opservice.store.migrations import migrate
from served import serve

ROUNDS = 500
WAITS = 10_000
CONNECTIONS = 4


async def main(first: str, second: str, pid: int) -> None:
    async with AsyncExitStack() as stack:

        async def channel(address: str) -> grpc.aio.Channel:
            options = [("grpc.use_local_subchannel_pool", 1)]
            return await stack.enter_async_context(grpc.aio.insecure_channel(address, options))

        here, there = await channel(first), await channel(second)
        print(f"{'completed through':20} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
        await wake("the same server", here, here)
        await wake("the other server", here, there)
        await burst([await channel(first) for _ in range(CONNECTIONS)], pid)


async def wake(name: str, waits_at: grpc.aio.Channel, completes_at: grpc.aio.Channel) -> None:
    took: list[float] = []
    for _ in range(ROUNDS):
        id_ = await start(waits_at)
        waiting = asyncio.create_task(wait(waits_at, id_))
        await asyncio.sleep(0.005)
        before = time.perf_counter()
        await complete(completes_at, id_)
        await waiting
        took.append((time.perf_counter() - before) * 1000)
    took.sort()
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    print(f"{name:20} {p50:8.1f} {p99:8.1f} {took[-1]:8.1f}")


async def burst(channels: list[grpc.aio.Channel], pid: int) -> None:
    await asyncio.gather(*[start(channel) for channel in channels])  # connects
    id_ = await start(channels[0])
    before = resident_bytes(pid)
    started = time.monotonic()
    waits = [
        asyncio.create_task(wait(channels[index % len(channels)], id_)) for index in range(WAITS)
    ]
    # The answer to this comes after all of them were taken up.
    await asyncio.sleep(5)
    await start(channels[0])
    opened = time.monotonic() - started
    early = sum(each.done() for each in waits)
    each_kib = (resident_bytes(pid) - before) / WAITS / 1024
    await complete(channels[0], id_)
    done_at = time.monotonic()
    records = await asyncio.gather(*waits, return_exceptions=True)
    took = time.monotonic() - done_at
    done = sum(isinstance(each, OperationRecord) and each.operation.done for each in records)
    print(f"{WAITS} Waits, opened within {opened:.1f} s: {early} answered early, {done} woken")
    print(f"{each_kib:.1f} KiB of server memory each, the last answer {took:.2f} s after Complete")


async def start(channel: grpc.aio.Channel) -> str:
    started = await ProducerServiceStub(channel).Start(StartRequest())
    return started.operation.id


async def wait(channel: grpc.aio.Channel, id_: str) -> OperationRecord:
    stub = OperationRecordServiceStub(channel)
    record: OperationRecord = await stub.Wait(WaitOperationRecordRequest(operation_id=id_))
    return record


async def complete(channel: grpc.aio.Channel, id_: str) -> None:
    await ProducerServiceStub(channel).Complete(CompleteRequest(operation_id=id_))


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


if __name__ == "__main__":
    database = open_database(sys.argv[1])
    migrate(database)
    database.close()
    many = ("--max-concurrent-streams", str(WAITS), "--max-waits-per-caller", str(2 * WAITS))
    with serve(sys.argv[1], *many) as (one, process), serve(sys.argv[1]) as (other, _):
        asyncio.run(main(one, other, process.pid))
