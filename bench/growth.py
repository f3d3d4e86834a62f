"""What grows with the number of operations: bytes on disk a record, and what a Get costs.

    .venv/bin/python bench/growth.py sqlite:////tmp/growth.db --most 10000000
    .venv/bin/python bench/growth.py postgresql://...        # an empty database

Fills the database, tenfold from 10,000 on, one in a hundred running, these spread over all. At each size it
weighs the files and serves them, asking a bare server (see speed.py) by turns. A multiple is the server's
CPU time a Get, in units of the bare server's then, divided by the same at 10,000. PostgreSQL's own CPU time
a Get stands beside it, where the server is on this machine.

Done operations are asked for once each, so none is answered from memory. Rows are inserted as they end: what
updates leave behind for PostgreSQL's autovacuum is not in the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any
from sqlalchemy import text

import speed
from opservice.domain.operation import DAY, SECOND
from opservice.store.engine import Database, open_database
from opservice.store.migrations import migrate
from served import SERVE, cpu_seconds, vacuum

SMALLEST = 10_000
BATCH = 100_000
"""Rows in a statement, which on PostgreSQL may take 10 s."""
APART = SECOND // 4
"""Between the creation of an operation and of the next."""
STREAMS = 32
RUNNING_ROUNDS, RUNNING_CALLS = 5, 4_000
DONE_ROUNDS, DONE_CALLS = 4, 1_500
"""Together fewer than the smallest size has."""

TEXTS = {
    "parent": "folders/b1g0123456789abcdefg",
    "method": "yandex.cloud.containerregistry.v1.RegistryService.Create",
    "description": "Create registry",
    "created_by": "aje0123456789abcdefg",
}
_TYPE = "type.googleapis.com/yandex.cloud.containerregistry.v1.CreateRegistryMetadata"
METADATA = Any(type_url=_TYPE, value=b"x" * 22).SerializeToString()
RESPONSE = Any(type_url=_TYPE, value=b"x" * 180).SerializeToString()

# Ids of hexadecimal digits, as random as the server's: that is what fills an index's pages badly.
_FILL = """
    INSERT INTO operations (
        id, parent, method, description, created_by, created_at, modified_at, revision, done, metadata,
        response, cancel_policy, lease_token_hash, lease, lease_expires_at, retention, expires_at
    )
    SELECT {id}, :parent, :method, :description, :created_by, :oldest + n * :apart, :oldest + n * :apart,
        CASE WHEN n % 100 = 0 THEN 1 ELSE 2 END, n % 100 <> 0, :metadata,
        CASE WHEN n % 100 <> 0 THEN :response END, 1, {hash}, 60000000,
        CASE WHEN n % 100 = 0 THEN :later END, :retention, CASE WHEN n % 100 <> 0 THEN :later + n END
    FROM {numbers}
"""
_FILL_SQLITE = _FILL.format(
    id="'ops' || substr(lower(hex(randomblob(9))), 2)",
    hash="randomblob(16)",
    numbers="(WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers"
    " WHERE n < :last) SELECT n FROM numbers)",
)
_FILL_POSTGRESQL = _FILL.format(
    id="'ops' || substr(md5(CAST(random() AS text)), 16)",
    hash="substr(sha256(CAST(CAST(n AS text) AS bytea)), 1, 16)",
    numbers="generate_series(CAST(:first AS bigint), :last) AS numbers(n)",
)


def fill(database: Database, existing: int, rows: int, oldest: int) -> None:
    """Adds operations until there are so many."""
    statement = text(_FILL_SQLITE if database.url.is_sqlite else _FILL_POSTGRESQL)
    given = {**TEXTS, "metadata": METADATA, "response": RESPONSE, "retention": 30 * DAY}
    times = {"oldest": oldest, "apart": APART, "later": time.time_ns() // 1000 + DAY}
    for first in range(existing, rows, BATCH):
        last = min(first + BATCH, rows) - 1
        with database.writer.begin() as connection:
            connection.execute(statement, {**given, **times, "first": first, "last": last})
    vacuum(database)


def sizes(database: Database) -> dict[str, int]:
    """Bytes on disk of the table and of each of its indexes, by name."""
    if not database.url.is_sqlite:
        relations = text(
            "SELECT 'operations' AS name, pg_table_size('operations') AS size UNION ALL"
            " SELECT CAST(CAST(indexrelid AS regclass) AS text), pg_relation_size(indexrelid) FROM pg_index"
            " WHERE indrelid = CAST('operations' AS regclass)"
        )
        with database.reader.connect() as connection:
            return {row.name: row.size for row in connection.execute(relations)}
    # Only the standard library's SQLite has dbstat. Nothing else has the file open.
    with closing(sqlite3.connect(f"file:{database.url.database}?mode=ro", uri=True)) as connection:
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        # Of an aggregate, pageno is the number of pages; its pgsize overflows at 2 GiB.
        pages = "SELECT name, pageno FROM dbstat WHERE aggregate = 1 AND name LIKE '%operations%'"
        return {name: count * page_size for name, count in connection.execute(pages)}


def sample(database: Database) -> dict[bool, list[str]]:
    """Ids of operations by whether they are done: all running ones, and as many done as are asked for."""
    running_query = "SELECT id FROM operations WHERE NOT done AND lease_expires_at IS NOT NULL"
    done_query = "SELECT id FROM operations WHERE done AND id > :after ORDER BY id LIMIT 1"
    with database.reader.connect() as connection:
        running = connection.execute(text(running_query)).scalars().all()
        found: set[str] = set()
        while len(found) < DONE_ROUNDS * DONE_CALLS:
            after = f"ops{random.getrandbits(68):017x}"
            found |= set(connection.execute(text(done_query), {"after": after}).scalars())
    return {False: [*running], True: random.sample([*found], DONE_ROUNDS * DONE_CALLS)}


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a Get."""

    server: float
    bare: float
    postgresql: float | None


def backends_cpu(database: Database) -> float | None:
    """CPU seconds so far of the PostgreSQL processes that serve us, when they are of this machine."""
    if database.url.is_sqlite or database.url.parameters.get("host") not in (
        "127.0.0.1",
        "localhost",
    ):
        return None
    query = text("SELECT pid FROM pg_stat_activity WHERE application_name = 'opservice'")
    with database.reader.connect() as connection:
        pids = connection.execute(query).scalars().all()
    return sum(cpu_seconds(pid) for pid in pids)


async def compare(
    database: Database, server: speed.Server, ids: Mapping[bool, Sequence[str]]
) -> tuple[Cost, Cost]:
    """What Gets of running operations cost, and of done ones."""
    async with AsyncExitStack() as stack:
        send = await stack.enter_async_context(speed.connect(server))
        answer = await send(speed.get(ids[False][0]))
        answers = {each.path: "" for each in speed.METHODS.values()}
        answers[speed.METHODS["Get"].path] = answer.hex()
        command = (speed.__file__, "--bare", json.dumps(answers))
        bare = stack.enter_context(speed.run(*command))
        send_bare = await stack.enter_async_context(speed.connect(bare))

        async def cost(pick: Callable[[], str], rounds: int, calls: int) -> Cost:
            warm_up = [speed.get(random.choice(ids[False])) for _ in range(DONE_CALLS)]
            for each, send_to in ((bare, send_bare), (server, send)):
                await speed.load(each, send_to, warm_up, STREAMS)
                each.forget()
            before = backends_cpu(database)
            for _ in range(rounds):
                requests = [speed.get(pick()) for _ in range(calls)]
                await speed.load(bare, send_bare, requests, STREAMS)
                await speed.load(server, send, requests, STREAMS)
            after, count = backends_cpu(database), rounds * calls
            spent = None if before is None or after is None else (after - before) / count
            return Cost(server.cpu / count, bare.cpu / count, spent)

        running = await cost(lambda: random.choice(ids[False]), RUNNING_ROUNDS, RUNNING_CALLS)
        left = iter(ids[True])
        return running, await cost(lambda: next(left), DONE_ROUNDS, DONE_CALLS)


def line(
    rows: int, on_disk: Mapping[str, int], costs: Sequence[Cost], first: Sequence[Cost]
) -> str:
    table = on_disk["operations"] / rows
    indexes = sum(on_disk.values()) / rows - table
    given = sum(map(len, TEXTS.values())), len(METADATA) + len(RESPONSE) * 0.99
    cells = [f"{rows:,}", *(f"{each:.0f}" for each in (table, indexes, *given))]
    cells += [f"{table + indexes - given[1]:.0f}", f"**{table + indexes - sum(given):.0f}**"]
    for cost, at_first in zip(costs, first, strict=True):
        multiple = (cost.server / cost.bare) / (at_first.server / at_first.bare)
        postgresql = "" if cost.postgresql is None else f" + {cost.postgresql * 1e6:.0f}"
        cells += [f"{cost.server * 1e6:.0f}{postgresql} µs", f"**{multiple:.2f}**"]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| operations | table, bytes each | indexes | texts | payloads | all but payloads | and but texts"
    " | Get, running: CPU | of 10,000 | Get, done: CPU | of 10,000 |\n" + "|---" * 11 + "|"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("database", help="URL of a new database")
    parser.add_argument("--most", type=int, default=1_000_000, help="operations in the end")
    arguments = parser.parse_args()
    url, most = arguments.database, arguments.most
    database = open_database(url)
    migrate(database)
    oldest = time.time_ns() // 1000 - most * APART
    serve = (*SERVE, "--log-level", "warning")
    first: tuple[Cost, Cost] | None = None
    print(HEAD, flush=True)
    existing, rows = 0, SMALLEST
    while rows <= most:
        started = time.monotonic()
        fill(database, existing, rows, oldest)
        filled = time.monotonic()
        ids = sample(database)
        database.close()
        on_disk = sizes(database)
        with speed.run(*serve, "--database", url) as server:
            costs = asyncio.run(compare(database, server, ids))
        database.close()
        first = first or costs
        print(line(rows, on_disk, costs, first), flush=True)
        print(f"filled in {filled - started:.0f} s: {on_disk}", file=sys.stderr, flush=True)
        existing, rows = rows, rows * 10


if __name__ == "__main__":
    main()
