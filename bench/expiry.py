"""What deleting 100,000 expired operations in the background costs the Gets that go on meanwhile.

    .venv/bin/python bench/expiry.py sqlite:////tmp/expiry.db
    .venv/bin/python bench/expiry.py postgresql://...        # an empty database

Fills the database, serves it before they expire and after, and asks one Get after another. Prints the
Gets' latencies in both phases.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

import grpc
from sqlalchemy import func, select, update

from opservice._proto.yandex.cloud.operation.operation_service_pb2 import GetOperationRequest
from opservice._proto.yandex.cloud.operation.operation_service_pb2_grpc import OperationServiceStub
from opservice.store.engine import Database, open_database
from opservice.store.migrations import migrate
from opservice.store.schema import operations
from served import DONE, fill, serve

QUIET_SECONDS = 10


def main(url: str) -> None:
    database = open_database(url)
    migrate(database)
    live = fill(database)
    print(f"{'phase':12} {'Gets':>8} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
    with serve(url) as (address, _):
        asyncio.run(ask("quiet", address, live, lambda elapsed: elapsed > QUIET_SECONDS))
    expire(database)
    with serve(url) as (address, _):
        started = time.monotonic()
        asyncio.run(ask("deleting", address, live, lambda _: left(database) == 0))
        took = time.monotonic() - started
    database.close()
    print(f"{DONE} expired operations were gone after {took:.1f} s")


def expire(database: Database) -> None:
    with database.writer.begin() as connection:
        expired = update(operations).where(operations.c.done)
        connection.execute(expired.values(expires_at=time.time_ns() // 1000))


def left(database: Database) -> int:
    """How many are left to be deleted."""
    done = select(func.count()).where(operations.c.done)
    return database.read(lambda c: c.execute(done).scalar_one())


async def ask(phase: str, address: str, ids: list[str], enough: Callable[[float], bool]) -> None:
    """One Get after another; every so often looks whether it is enough."""
    took: list[float] = []
    started = time.monotonic()
    async with grpc.aio.insecure_channel(address) as channel:
        get = OperationServiceStub(channel).Get
        while True:
            request = GetOperationRequest(operation_id=ids[len(took) % len(ids)])
            before = time.perf_counter()
            await get(request)
            took.append((time.perf_counter() - before) * 1000)
            if len(took) % 500 == 0 and await asyncio.to_thread(enough, time.monotonic() - started):
                break
    took.sort()
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    print(f"{phase:12} {len(took):8} {p50:8.2f} {p99:8.2f} {took[-1]:8.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
