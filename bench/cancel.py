"""How soon a worker notices a cooperative Cancel, with leases of a minute: renewals do not tell it.

    .venv/bin/python bench/cancel.py postgresql://...        # an empty database

Two servers share the database. The producer talks to the first; Cancel goes to the first, then to the
second, of which the first one is told by a hint. Prints milliseconds from Cancel to the event.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from datetime import timedelta

import grpc

from opservice._proto.yandex.cloud.operation.operation_service_pb2 import CancelOperationRequest
from opservice._proto.yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub
from opservice_client import CancelPolicy
from opservice_client.aio import Producer, Work
from served import serve

CANCELS = 200


async def main(first: str, second: str) -> None:
    print(f"{'Cancel goes to':20} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(Producer(first))
        for name, address in (("the same server", first), ("the other server", second)):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            cancel = OperationServiceStub(channel).Cancel
            took = []
            for _ in range(CANCELS):
                noticed: asyncio.Future[float] = asyncio.get_running_loop().create_future()

                async def work(work: Work, noticed: asyncio.Future[float] = noticed) -> None:
                    await work.cancelled.wait()
                    noticed.set_result(time.perf_counter())
                    work.raise_if_cancelled()

                started = await producer.start(
                    cancel_policy=CancelPolicy.COOPERATIVE,
                    interrupt=False,
                    lease=timedelta(minutes=1),
                )
                started.run(work)
                await asyncio.sleep(0.05)
                before = time.perf_counter()
                await cancel(CancelOperationRequest(operation_id=started.id))
                took.append((await noticed - before) * 1000)
            took.sort()
            p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
            print(f"{name:20} {p50:8.1f} {p99:8.1f} {took[-1]:8.1f}")


if __name__ == "__main__":
    with serve(sys.argv[1]) as (one, _), serve(sys.argv[1]) as (other, _):
        asyncio.run(main(one, other))
