"""What many benchmarks need: a database with operations, and a server on it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import insert, text

from opservice.domain.operation import DAY, SECOND, CancelPolicy, new_id
from opservice.store.engine import Database
from opservice.store.schema import operations

SERVE = ("-m", "opservice", "serve", "--listen", "127.0.0.1:0", "--http-listen", "off")
"""Python's arguments for a server, by gRPC only, on a free port."""
DONE = 100_000
RUNNING = 1_000
NULLS = {column.name: None for column in operations.columns if column.nullable}
"""The part of a row that may be empty. For others that are left out the database has defaults."""


def fill(database: Database, done: int = DONE, running: int = RUNNING) -> list[str]:
    """Inserts so many operations of each kind. Returns the ids of the running ones."""
    now = time.time_ns() // 1000
    common = {
        **NULLS,
        "parent": "folders/bench",
        "method": "bench",
        "description": "An operation",
        "created_by": "bench",
        "created_at": now - 3600 * SECOND,
        "modified_at": now - 3600 * SECOND,
        "revision": 2,
        "cancel_policy": CancelPolicy.IMMEDIATE,
        "retention": SECOND,
    }
    ended = {**common, "done": True, "response": b"x" * 200, "expires_at": now + DAY}
    ids = [new_id() for _ in range(running)]
    with database.writer.begin() as connection:
        connection.execute(
            insert(operations), [{**common, "id": id_, "done": False} for id_ in ids]
        )
        for start in range(0, done, 1000):
            batch = [{**ended, "id": new_id()} for _ in range(start, min(start + 1000, done))]
            connection.execute(insert(operations), batch)
    return ids


def vacuum(database: Database) -> None:
    """Has PostgreSQL do at once what it does by itself in time."""
    if database.url.is_sqlite:
        return
    with database.reader.connect() as connection:
        connection.execute(text("SET statement_timeout = 0; SET lock_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE operations"))


@contextmanager
def serve(url: str, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server's address, and its process."""
    command = (sys.executable, *SERVE, "--database", url, "--log-level", "error", *more)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split(" serving on ")[1].split()[0], process
        finally:
            process.terminate()


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and those that it started."""
    tree, ticks = [pid], 0
    for each in tree:
        tree += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
        stat = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(stat[11]) + int(stat[12])
    return ticks / os.sysconf("SC_CLK_TCK")
