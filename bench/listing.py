"""How long pages of a long list take: 1,000,000 operations, all of one parent but every tenth.

    .venv/bin/python bench/listing.py sqlite:////tmp/listing.db
    .venv/bin/python bench/listing.py postgresql://...        # an empty database

Fills the database and reads each page again and again through the store's own queries, in this process.
Prints milliseconds a page.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from sqlalchemy import insert

from opservice.domain.filters import ListQuery
from opservice.domain.operation import DAY, SECOND, CancelPolicy, new_id
from opservice.methods.filtering import parse_filter
from opservice.store.engine import Database, open_database
from opservice.store.listing import Listed, read_page
from opservice.store.migrations import migrate
from opservice.store.repository import Repository
from opservice.store.schema import operations
from served import NULLS, vacuum

OPERATIONS = 1_000_000
BATCH = 5_000
PARENT = "folders/bench"
REPEATS = 50
NOW = time.time_ns() // 1000
DEEP = (NOW - 900_000 * SECOND, "")
"""Before it, 900,000 of the operations."""


def main(url: str) -> None:
    database = open_database(url)
    migrate(database)
    started = time.monotonic()
    ids = fill(database)
    print(f"filled in {time.monotonic() - started:.0f} s")
    visible = Repository().visible

    def page(query: ListQuery) -> Callable[[], Listed]:
        return lambda: database.read(lambda connection: read_page(connection, query, visible))

    def filtered(filter_: str) -> ListQuery:
        return ListQuery(PARENT, 100, parse_filter(filter_))

    print(f"{'page of 100':44} {'records':>8} {'p50 ms':>8} {'p99 ms':>8}")
    measure("first, of a parent", page(ListQuery(PARENT, 100)))
    measure("deep, of a parent", page(ListQuery(PARENT, 100, after=DEEP)))
    measure("first, of all", page(ListQuery(None, 100)))
    measure("deep, of all", page(ListQuery(None, 100, after=DEEP)))
    measure("id = ...", page(filtered(f"id = {ids[1]}")))
    measure("done = true (every second)", page(filtered("done = true")))
    measure("error.code = NOT_FOUND (every 100th)", page(filtered("error.code = NOT_FOUND")))
    measure("created_by = nobody (none in 100,000)", page(filtered("created_by = nobody")), 5)
    measure("first 1000, of a parent", page(ListQuery(PARENT, 1000)))
    database.close()


def fill(database: Database, count: int = OPERATIONS) -> list[str]:
    """One operation a second, the last one now. Returns a few ids of old ones."""
    common = {
        **NULLS,
        "method": "bench",
        "description": "An operation",
        "created_by": "bench",
        "revision": 1,
        "cancel_policy": CancelPolicy.IMMEDIATE,
        "retention": 30 * DAY,
    }

    def row(number: int) -> dict[str, object]:
        created_at = NOW - (count - number) * SECOND
        done = number % 2 == 0
        return {
            **common,
            "id": new_id(),
            "parent": PARENT if number % 10 else "folders/other",
            "created_at": created_at,
            "modified_at": created_at,
            "done": done,
            "error_code": 5 if number % 100 == 2 else None,
            "expires_at": NOW + DAY if done else None,
        }

    ids: list[str] = []
    for first in range(0, count, BATCH):
        rows = [row(number) for number in range(first, min(first + BATCH, count))]
        ids = ids or [str(each["id"]) for each in rows[:2]]
        with database.writer.begin() as connection:
            connection.execute(insert(operations), rows)
    vacuum(database)
    return ids


def measure(name: str, read: Callable[[], Listed], repeats: int = REPEATS) -> None:
    took: list[float] = []
    for _ in range(repeats):
        before = time.perf_counter()
        listed = read()
        took.append((time.perf_counter() - before) * 1000)
    took.sort()
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    print(f"{name:44} {len(listed.records):8} {p50:8.2f} {p99:8.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
