"""What a sweep costs that deletes nothing, while very many rows wait for the end of `--resume-window`.

    .venv/bin/python bench/sweeping.py sqlite:////tmp/sweeping.db
    .venv/bin/python bench/sweeping.py postgresql://...        # an empty database

Fills the database with operations that are done, deletes each as a call does, and prints what sweeps take.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from statistics import median

from sqlalchemy import select

from opservice.domain.operation import SECOND, Delete, DeleteExpired
from opservice.store.engine import Database, open_database
from opservice.store.migrations import migrate
from opservice.store.repository import Repository
from opservice.store.schema import operations
from served import DONE, fill, vacuum

AT_ONCE = 2_000
SWEEP = DeleteExpired(200, 600 * SECOND)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--deleted", type=int, default=3 * DONE, help=f"in steps of {DONE}")
    parser.add_argument("--sweeps", type=int, default=20)
    options = parser.parse_args()
    database = open_database(options.url)
    migrate(database)
    repository = Repository()
    for _ in range(options.deleted // DONE):
        fill(database)
        delete_all(database, repository)
    vacuum(database)
    took = [sweep(database, repository) for _ in range(options.sweeps)]
    print(f"{options.deleted} deleted: {median(took):.2f} ms a sweep, at most {max(took):.2f} ms")
    database.close()


def delete_all(database: Database, repository: Repository) -> None:
    """All that are done."""
    done = select(operations.c.id).where(operations.c.done, repository.visible)
    ids = database.read(lambda connection: [*connection.execute(done).scalars()])
    for start in range(0, len(ids), AT_ONCE):
        commands = [Delete(id_) for id_ in ids[start : start + AT_ONCE]]
        database.write(partial(repository.apply, commands=commands))


def sweep(database: Database, repository: Repository) -> float:
    """The milliseconds of one."""
    clock, _ = database.read(repository.read_clock)
    began = time.perf_counter()
    swept = database.write(lambda connection: repository.sweep(connection, SWEEP, clock))
    assert not swept.ids, "the first of them were deleted longer ago than the window"
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
