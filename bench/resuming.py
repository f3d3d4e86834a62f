"""How long it takes to continue a BatchWatch of a parent with 101,000 operations, of which 100 have changed.

    .venv/bin/python bench/resuming.py sqlite:////tmp/resuming.db 2> /dev/null
    .venv/bin/python bench/resuming.py postgresql://...        # an empty database

Printed is the time from the call to `caught_up`, and the server's CPU time (user and system) in it.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from statistics import median
from typing import Any

import grpc

from opservice._proto.opservice.v1 import operation_record_service_pb2 as pb
from opservice._proto.opservice.v1.operation_record_service_pb2_grpc import (
    OperationRecordServiceStub,
)
from opservice._proto.opservice.v1.producer_service_pb2 import RenewRequest
from opservice._proto.opservice.v1.producer_service_pb2_grpc import ProducerServiceStub
from opservice.store.engine import open_database
from opservice.store.migrations import migrate
from served import cpu_seconds, fill, serve

CHANGED = 100


async def main(address: str, pid: int, ids: list[str], rounds: int) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = OperationRecordServiceStub(channel)
        producer: Any = ProducerServiceStub(channel)
        # Of the first reading, which tells of nothing, only the token is wanted.
        request = pb.BatchWatchOperationRecordsRequest(
            parent="folders/bench", filter='description = "another"'
        )
        request.resume_token = await caught_up(stub, request)
        for id_ in ids[:CHANGED]:
            await producer.Renew(RenewRequest(operation_id=id_))
        took: list[tuple[float, float]] = []
        for _ in range(rounds):
            before, began = cpu_seconds(pid), time.perf_counter()
            await caught_up(stub, request)
            took.append((time.perf_counter() - began, cpu_seconds(pid) - before))
        seconds, cpu = (median(each) * 1e3 for each in zip(*took, strict=True))
        print(f"continued in {seconds:.0f} ms, with {cpu:.0f} ms of CPU (medians of {rounds})")


async def caught_up(stub: Any, request: pb.BatchWatchOperationRecordsRequest) -> str:
    """The token with which a stream says for the first time that it has told all there is."""
    call = stub.BatchWatch(request)
    async for event in call:
        if event.HasField("caught_up"):
            call.cancel()
            return str(event.resume_token)
    raise AssertionError("the stream ended")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    database = open_database(arguments.database)
    migrate(database)
    live = fill(database)
    database.close()
    with serve(arguments.database) as (address, process):
        asyncio.run(main(address, process.pid, live, arguments.rounds))
