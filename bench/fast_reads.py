"""What a read by id from PostgreSQL costs on the event loop: our reader, by libpq, against asyncpg.

    PYTHONPATH=tests .venv/bin/python bench/fast_reads.py

Needs PostgreSQL, which it starts itself, and asyncpg (`pip install asyncpg`), which the server does not use.
Both send the same statement, prepared once, one batch after another, and make the same records of its rows.
They take turns. Prints for each size of a batch the CPU time that this process used for a read (the median of
the rounds), and the reads in a second.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing

import asyncpg
import uvloop
from sqlalchemy.dialects.postgresql.base import PGDialect

from opservice.domain.operation import DAY, Record, Start, new_id
from opservice.store.drivers.fast_reads import CompiledQuery
from opservice.store.drivers.postgresql.fast_reads import PostgresqlReads
from opservice.store.engine import open_database
from opservice.store.migrations import migrate
from opservice.store.repository import Repository
from opservice.store.statements import ORIGINS
from support.postgres import PostgresServer

Find = Callable[[Sequence[str]], Awaitable[Sequence[object] | None]]

OPERATIONS = 1_000
METADATA = b"x" * 200
REPOSITORY = Repository()


class AsyncpgReads:
    """What PostgresqlReads would be with asyncpg."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        dialect = PGDialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call] # SQLAlchemy's
        records = REPOSITORY.records
        self._query: CompiledQuery[Record] = CompiledQuery(
            records.many, "operation_ids", records, dialect
        )
        self._turn = asyncio.Lock()

    async def prepare(self) -> None:
        self._statement = await self._connection.prepare(self._query.sql)

    async def find(self, ids: Sequence[str]) -> list[Record | None]:
        async with self._turn:
            rows = await self._statement.fetch(*self._query.values([*set(ids)]))
        found = {row["id"]: self._query.made(row) for row in rows}
        return [found.get(id_) for id_ in ids]


async def round_of(
    find: Find, ids: Sequence[str], batch: int, seconds: float
) -> tuple[float, float]:
    """CPU microseconds a read, and reads in a second."""
    began, used, reads = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        wanted = random.sample(ids, batch)
        found = await find(wanted)
        assert found is not None
        assert len(found) == batch
        reads += batch
    took = time.perf_counter() - began
    return (time.process_time() - used) * 1e6 / reads, reads / took


async def compare(postgres: PostgresServer, rounds: int, seconds: float) -> None:
    url = postgres.create_database()
    with closing(open_database(url)) as database:
        migrate(database)
        ids = [new_id() for _ in range(OPERATIONS)]
        starts = [Start(id_, DAY, "folders/f", "m", "d", "me", METADATA) for id_ in ids]
        database.write(lambda connection: REPOSITORY.apply(connection, starts))

        ours = database.driver.fast_reads(REPOSITORY.records, ORIGINS)
        assert isinstance(ours, PostgresqlReads)
        while await ours.find(ids[:1]) is None:  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.01)
        connection = await asyncpg.connect(
            host="127.0.0.1", port=postgres.port, user="tests", database=database.url.database
        )
        theirs = AsyncpgReads(connection)
        await theirs.prepare()
        assert await ours.find(ids[:10]) == await theirs.find(ids[:10])

        for batch in (1, 6, 50):
            results: dict[str, list[tuple[float, float]]] = {"libpq": [], "asyncpg": []}
            for _ in range(rounds):
                for name, find in (("libpq", ours.find), ("asyncpg", theirs.find)):
                    results[name].append(await round_of(find, ids, batch, seconds))
            for name, measured in results.items():
                cpu, rate = (statistics.median(column) for column in zip(*measured, strict=True))
                print(
                    f"batches of {batch:2}, {name:8}: {cpu:6.1f} us CPU a read, {rate:8.0f} reads/s"
                )
        await connection.close()
        ours.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="of each reader, for each size")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a round takes")
    arguments = parser.parse_args()
    postgres = PostgresServer()
    try:
        uvloop.run(compare(postgres, arguments.rounds, arguments.seconds))
    finally:
        postgres.remove()


if __name__ == "__main__":
    main()
