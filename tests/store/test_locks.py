"""PostgreSQL: what passes over a row that another transaction holds, and what holds nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import Connection, text

from opservice.domain.operation import (
    DAY,
    SECOND,
    Cancel,
    CancelPolicy,
    Command,
    Complete,
    DeleteExpired,
    EndCancelGrace,
    Failure,
    LapseLeases,
    ReachTimeouts,
    Start,
    Sweep,
    new_id,
)
from opservice.store.engine import Database, open_database
from opservice.store.repository import Repository
from opservice.store.sql import database_clock
from support.replicas import apply, find, sweep

COOPERATIVE = CancelPolicy.COOPERATIVE
ENDED = Failure(10, b"ended")
AN_HOUR_AGO = Repository(database_clock() - 3600 * SECOND)


@pytest.fixture
def backend() -> str:
    return "postgresql"


@pytest.fixture
def impatient(database_url: str) -> Iterator[Database]:
    """The database, reached by one who is told at once when they would have to wait for a lock."""
    opened = open_database(f"{database_url}?options=-c%20lock_timeout=50ms")
    yield opened
    opened.close()


@dataclass(frozen=True)
class Case:
    """A sweep, and commands that an hour ago made an operation which is due for it now."""

    sweep: Sweep
    commands: Callable[[str], list[Command]]


CASES = (
    Case(LapseLeases(ENDED, 10), lambda id_: [Start(id_, DAY, lease=SECOND)]),
    Case(ReachTimeouts(ENDED, 10), lambda id_: [Start(id_, DAY, timeout=SECOND)]),
    Case(
        EndCancelGrace(SECOND, 10),
        lambda id_: [Start(id_, DAY, cancel_policy=COOPERATIVE), Cancel(id_, ENDED)],
    ),
    Case(DeleteExpired(10), lambda id_: [Start(id_, SECOND), Complete(id_, b"answer")]),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case.sweep).__name__)
def test_a_sweep_passes_over_what_another_transaction_holds_and_takes_it_later(
    database: Database, impatient: Database, case: Case
) -> None:
    held, free = new_id(), new_id()
    apply(database, *case.commands(held), *case.commands(free), repository=AN_HOUR_AGO)

    with database.writer.connect() as connection, connection.begin():
        statement = text("SELECT * FROM operations WHERE id = :id FOR UPDATE")
        connection.execute(statement, {"id": held})
        assert sweep(impatient, case.sweep) == (free,)

    assert sweep(impatient, case.sweep) == (held,)


def test_a_read_holds_nothing_that_a_migration_would_have_to_wait_for(
    database: Database, impatient: Database
) -> None:
    def lock_the_table(connection: Connection) -> bool:
        connection.execute(text("LOCK TABLE operations IN ACCESS EXCLUSIVE MODE"))
        return True

    def read_and_linger(connection: Connection) -> bool:
        connection.execute(text("SELECT * FROM operations")).all()
        return impatient.write(lock_the_table)

    assert database.read(read_and_linger)
    assert find(database, "ops") is None
