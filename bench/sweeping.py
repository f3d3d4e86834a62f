"""What a sweep costs that deletes nothing, while very many rows wait for the end of `--resume-window`.

    .venv/bin/python bench/sweeping.py sqlite:////tmp/sweeping.db
    .venv/bin/python bench/sweeping.py postgresql://...        # an empty database

Fills the database with operations that are done, deletes each as a call does, and prints what sweeps take.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

from sqlalchemy import select, text

from expiry import EXPIRED, fill
from opservice.domain.operation import SECOND, Delete, DeleteExpired
from opservice.store.engine import Database, open_database
from opservice.store.migrations import migrate
from opservice.store.repository import Repository
from opservice.store.schema import operations

AT_ONCE = 2_000
SWEEP = DeleteExpired(200, 600 * SECOND)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--deleted", type=int, default=3 * EXPIRED, help=f"in steps of {EXPIRED}")
    parser.add_argument("--sweeps", type=int, default=20)
    options = parser.parse_args()
    database = open_database(options.url)
    migrate(database)
    repository = Repository()
    for _ in range(options.deleted // EXPIRED):
        fill(database)
        delete_all(database, repository)
    if not database.url.is_sqlite:  # as it does by itself in time
        with database.reader.connect() as connection:
            connection.execute(text("SET statement_timeout = 0; SET lock_timeout = 0"))
            connection.execute(text("VACUUM ANALYZE operations"))
    took = [sweep(database, repository) for _ in range(options.sweeps)]
    print(f"{options.deleted} deleted: {median(took):.2f} ms a sweep, at most {max(took):.2f} ms")
    database.close()


def delete_all(database: Database, repository: Repository) -> None:
    """All that are done."""
    done = select(operations.c.id).where(operations.c.done, repository.visible)
    ids = database.read(lambda connection: [*connection.execute(done).scalars()])
    for start in range(0, len(ids), AT_ONCE):
        commands = [Delete(id_) for id_ in ids[start : start + AT_ONCE]]
        database.write(lambda connection, batch=commands: repository.apply(connection, batch))  # type: ignore[misc] # mypy does not see the default's type


def sweep(database: Database, repository: Repository) -> float:
    """The milliseconds of one."""
    clock, _ = database.read(repository.read_clock)
    began = time.perf_counter()
    swept = database.write(lambda connection: repository.sweep(connection, SWEEP, clock))
    assert not swept.ids, "the first of them were deleted longer ago than the window"
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
