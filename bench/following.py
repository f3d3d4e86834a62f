"""What it costs the server to have 100 operations followed: by one BatchWatch, by 100 Watches, by polls.

    .venv/bin/python bench/following.py sqlite:////tmp/following.db 2> /dev/null

One client follows 100 operations, of which a producer renews so many a second. Printed is the server's CPU
time (user and system) beyond that of the same producer with nobody who follows: for each change, and as a
multiple of BatchWatch. The ways take turns in rounds, in one run on one server.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Coroutine
from statistics import median
from typing import Any

import grpc

from opservice._proto.opservice.v1 import operation_record_service_pb2 as pb
from opservice._proto.opservice.v1.operation_record_service_pb2_grpc import (
    OperationRecordServiceStub,
)
from opservice._proto.opservice.v1.producer_service_pb2 import RenewRequest, StartRequest
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceStub
from opservice.store.engine import open_database
from opservice.store.migrations import migrate
from served import cpu_seconds, serve

OPERATIONS = 100
Follow = Callable[[Any, list[str], list[int]], Coroutine[Any, Any, None]]
"""Given a stub, the ids, and where to count what was told. The generated stubs' types are not grpc.aio's."""


async def batch_watch(stub: Any, ids: list[str], told: list[int]) -> None:
    request = pb.BatchWatchOperationRecordsRequest(operation_ids=ids)
    async for event in stub.BatchWatch(request):
        told[0] += event.HasField("record")


async def watches(stub: Any, ids: list[str], told: list[int]) -> None:
    async def watch(id_: str) -> None:
        async for _ in stub.Watch(pb.WatchOperationRecordRequest(operation_id=id_)):
            told[0] += 1

    await asyncio.gather(*map(watch, ids))


async def polls(stub: Any, ids: list[str], told: list[int]) -> None:
    async def poll(number: int, id_: str) -> None:
        await asyncio.sleep(number / len(ids))
        known = 0
        due = time.monotonic()
        while True:
            record = await stub.Get(pb.GetOperationRecordRequest(operation_id=id_))
            told[0] += record.revision > known
            known = record.revision
            due += 1
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    await asyncio.gather(*(poll(number, id_) for number, id_ in enumerate(ids)))


async def nobody(_stub: Any, _ids: list[str], _told: list[int]) -> None:
    await asyncio.Event().wait()


WAYS: dict[str, Follow] = {
    "nobody": nobody,
    "one BatchWatch": batch_watch,
    "100 Watches": watches,
    "Get each second": polls,
}


async def measure(
    address: str, pid: int, follow: Follow, rate: float, seconds: float
) -> tuple[float, int]:
    """CPU seconds of the server in that time, and how many changes were told."""
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        grpc.aio.insecure_channel(address, own) as channel,
        grpc.aio.insecure_channel(address, own) as producing,
    ):
        producer: Any = ProducerServiceStub(producing)
        ids = [(await producer.Start(StartRequest())).operation.id for _ in range(OPERATIONS)]
        told = [0]
        following = asyncio.create_task(follow(OperationRecordServiceStub(channel), ids, told))
        await asyncio.sleep(1.5)
        before, at_first = cpu_seconds(pid), told[0]
        started = time.monotonic()
        for number in range(int(rate * seconds)):
            await producer.Renew(RenewRequest(operation_id=ids[number % OPERATIONS]))
            await asyncio.sleep(max(0.0, started + (number + 1) / rate - time.monotonic()))
        await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))
        took = cpu_seconds(pid) - before
        assert not following.done(), following
        following.cancel()
        return took, told[0] - at_first


async def main(address: str, pid: int, rates: list[float], rounds: int, seconds: float) -> None:
    print(
        f"{'changes/s':>9} {'followed by':16} {'CPU, ms/s':>9} {'told/s':>7} {'µs/change':>10} ratio"
    )
    for rate in rates:
        took: dict[str, list[float]] = {name: [] for name in WAYS}
        told: dict[str, list[int]] = {name: [] for name in WAYS}
        for _ in range(rounds):
            for name, follow in WAYS.items():
                cpu, count = await measure(address, pid, follow, rate, seconds)
                took[name].append(cpu / seconds)
                told[name].append(count)
        alone = median(took["nobody"])
        batch = median(took["one BatchWatch"]) - alone
        for name in WAYS:
            beyond = median(took[name]) - alone
            print(
                f"{rate:9g} {name:16} {median(took[name]) * 1e3:9.1f} "
                f"{median(told[name]) / seconds:7.1f} {beyond / rate * 1e6:10.0f} {beyond / batch:.1f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database")
    parser.add_argument("--rates", default="10,100", help="changes a second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    opened = open_database(arguments.database)
    migrate(opened)
    opened.close()
    rates = [float(each) for each in arguments.rates.split(",")]
    # Its audit log goes to stderr: give 2> /dev/null.
    with serve(arguments.database) as (address, process):
        asyncio.run(main(address, process.pid, rates, arguments.rounds, arguments.seconds))
