"""The statements that run all the time find their rows by an index, however large the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace

import pytest
from sqlalchemy import Connection, event, insert, text

from opservice.domain.operation import (
    DAY,
    SECOND,
    Cancel,
    CancelPolicy,
    Complete,
    Delete,
    DeleteExpired,
    EndCancelGrace,
    LapseLeases,
    ReachTimeouts,
    Record,
    Renew,
    Sweep,
)
from opservice.store.engine import Database
from opservice.store.repository import Repository
from opservice.store.schema import operations
from store.conftest import (
    ABORTED,
    CANCELLED,
    Clock,
    Ops,
    migrated_database,
    repository_on,
)

Plan = list[str]
Work = Callable[[Connection], object]

ROWS = 3000
HOUR = 3600 * SECOND


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def full(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A database with many operations of every kind, few of them due, and the statistics of a server.

    The tests of a module share it, so they change nothing: `plans` takes back what it does.
    """
    with migrated_database(request, tmp_path_factory.mktemp("plans")) as database:
        _fill(database)
        yield database


def _fill(database: Database) -> None:
    template = Ops(database, repository_on(Clock())).start()
    now = time.time_ns() // 1000
    columns = operations.columns.keys()

    def row(number: int) -> dict[str, object]:
        done = number % 5 != 0
        at = now + (number - ROWS // 50) * HOUR
        record: Record = replace(
            template,
            id=f"ops{number:017}",
            # The oldest operations lie together: PostgreSQL reads a table so small as this one as a whole
            # rather than find a few that are spread over it.
            parent=f"projects/{number % 2}" if number >= ROWS - 50 else f"folders/{number % 7}",
            created_by=f"user{number % 11}",
            created_at=now - number,
            done=done,
            cancel_policy=CancelPolicy.COOPERATIVE,
            cancel_requested_at=at if number % 3 == 0 else None,
            lease=DAY,
            lease_expires_at=None if done else at,
            timeout_at=at if number % 2 == 0 else None,
            expires_at=at if done else None,
        )
        return dict(zip(columns, astuple(record), strict=True))

    def fill(connection: Connection) -> None:
        connection.execute(insert(operations), [row(number) for number in range(ROWS)])
        if not database.url.is_sqlite:  # where nobody makes statistics unless they are asked to
            connection.execute(text("ANALYZE operations"))

    database.write(fill)


def plans(database: Database, work: Work) -> list[Plan]:
    """How the database would run each statement of `work`; nothing that it does stays."""
    statements: list[tuple[str, object]] = []

    def collect(
        connection: Connection, cursor: object, statement: str, parameters: object, *_: object
    ) -> None:
        statements.append((statement, parameters))

    with database.writer.connect() as connection, connection.begin() as transaction:
        event.listen(connection, "before_cursor_execute", collect)
        work(connection)
        event.remove(connection, "before_cursor_execute", collect)
        transaction.rollback()
    explain = "EXPLAIN QUERY PLAN" if database.url.is_sqlite else "EXPLAIN"
    with database.reader.connect() as connection:
        return [
            [
                str(row[-1])
                for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)  # type: ignore[arg-type]
            ]
            for statement, parameters in statements
        ]


def scans(plan: Plan) -> Plan:
    """The lines of a plan that read the whole table."""
    whole_table = ("SCAN operations", "Seq Scan on operations")
    return [line for line in plan if any(scan in line for scan in whole_table)]


def uses(plan: Plan, index: str) -> bool:
    return any(index in line for line in plan)


PRIMARY_KEY = {True: "sqlite_autoindex_operations_1", False: "operations_pkey"}
RUNNING, DONE = f"ops{2000:017}", f"ops{2001:017}"
COMMANDS = {
    "Renew": Renew(RUNNING),
    "Complete": Complete(RUNNING, b"response"),
    "Cancel": Cancel(RUNNING, CANCELLED),
    "Delete": Delete(DONE),
}
READS: dict[str, Callable[[Repository, Connection, list[str]], object]] = {
    "find": Repository.find,
    "revisions": Repository.revisions,
    "origins": Repository.origins,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("ids", [[DONE], [f"ops{n:017}" for n in range(0, 500, 10)]], ids=len)
def test_reads_find_their_rows_by_the_primary_key(
    full: Database,
    read: Callable[[Repository, Connection, list[str]], object],
    ids: list[str],
) -> None:
    (plan,) = plans(full, lambda connection: read(Repository(), connection, ids))

    assert uses(plan, PRIMARY_KEY[full.url.is_sqlite]), plan
    assert not scans(plan), plan


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_finds_its_row_by_the_primary_key(
    full: Database, command: Renew | Complete | Cancel | Delete
) -> None:
    (plan,) = plans(full, lambda connection: Repository().apply(connection, [command]))

    assert uses(plan, PRIMARY_KEY[full.url.is_sqlite]), plan
    assert not scans(plan), plan


@pytest.mark.parametrize(
    ("sweep", "index"),
    [
        (LapseLeases(ABORTED, 10), "operations_by_lease"),
        (ReachTimeouts(ABORTED, 10), "operations_by_timeout"),
        (EndCancelGrace(0, 10), "operations_by_cancel"),
        (DeleteExpired(10), "operations_by_expiry"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_sweep_finds_what_is_due_by_its_partial_index(
    full: Database, sweep: Sweep, index: str
) -> None:
    (plan,) = plans(full, lambda connection: Repository().sweep(connection, sweep, 0))

    assert uses(plan, index), plan
    assert not scans(plan), plan


def test_a_sweep_passes_over_nothing_that_was_deleted_lately(full: Database) -> None:
    """What is due is one range of the index: these are before it, and what has not expired is after it."""
    sweep = DeleteExpired(10, kept=HOUR)

    (plan,) = plans(full, lambda connection: Repository().sweep(connection, sweep, 0))

    if full.url.is_sqlite:
        assert uses(plan, "operations_by_expiry (expires_at>? AND expires_at<?)"), plan
    else:
        (ends,) = (line for line in plan if "Index Cond:" in line and "expires_at" in line)
        assert "expires_at >=" in ends, plan
        assert "expires_at <=" in ends, plan
