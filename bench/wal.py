"""What a call costs PostgreSQL: transactions, and bytes of its write-ahead log.

    .venv/bin/python bench/wal.py postgresql://...            # an empty database, on a server of its own

Serves the database and makes 4,000 calls of each kind, one at a time and 32 at a time.
"""

from __future__ import annotations

import asyncio
import sys
import time

from sqlalchemy import text

from opservice.store.engine import Database, open_database
from opservice.store.migrations import migrate
from served import SERVE
from speed import CALLS, KINDS, WITH_HEADER, Ids, Send, connect, fill, load, run

ROWS = 50_000
STATISTICS_SECONDS = 1.5
"""PostgreSQL's sessions report what they have done at most once a second, when idle."""


def main(url: str) -> None:
    database = open_database(url)
    migrate(database)
    filled = fill(database, 2 * ROWS)
    serve = (*SERVE, "--log-level", "error")
    with run(*serve, "--housekeeping-interval", "1h", "--database", url) as server:

        async def measure() -> None:
            async with connect(server) as send:
                await measure_all(database, send)

        async def measure_all(database: Database, send: Send) -> None:
            ids = Ids(filled[:ROWS], filled[ROWS:])
            ids.done = ids.next()
            await send(KINDS["Cancel"](Ids((), [ids.done])))
            print("| call | at a time | transactions a call | bytes of WAL a call |")
            print("|---|--:|--:|--:|")
            for name, kind in KINDS.items():
                for streams in (1, 32) if name != WITH_HEADER else ():
                    calls = [kind(ids) for _ in range(CALLS)]
                    transactions, position = read(database)
                    await load(server, send, calls, streams)
                    now = read(database)
                    made, written = (now[0] - transactions) / CALLS, (now[1] - position) / CALLS
                    print(f"| {name} | {streams} | {made:.2f} | {written:,.0f} |", flush=True)

        asyncio.run(measure())
    database.close()


def read(database: Database) -> tuple[int, int]:
    """Transactions committed so far, and the position in the log."""
    time.sleep(STATISTICS_SECONDS)
    query = text(
        "SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()),"
        " pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"
    )
    transactions, position = database.read(lambda c: c.execute(query).one())
    return int(transactions), int(position)


if __name__ == "__main__":
    main(sys.argv[1])
