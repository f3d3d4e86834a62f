"""One command that waits for a lock, or that the database cannot take, does not stop the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

import pytest
from sqlalchemy import Connection, event, text

from opservice.domain.errors import (
    OperationDone,
    OperationNotFound,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from opservice.domain.operation import (
    DAY,
    Cancel,
    Command,
    Complete,
    Delete,
    Failure,
    Outcome,
    Record,
    Renew,
    Start,
    new_id,
)
from opservice.store.engine import Database, open_database
from opservice.store.repository import Repository
from opservice.store.writing import Writer, reconcile
from support.replicas import apply, find

CANCELLED = Failure(1, b"cancelled")
postgresql_only = pytest.mark.parametrize("backend", ["postgresql"])


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writing(database_url: str, database: Database) -> Iterator[Database]:
    """The database of the writer under test; `database` is somebody else's."""
    # A first wait of 300 ms, so that the tests do not take long.
    limit = "" if database.url.is_sqlite else "?options=-c%20lock_timeout=300ms"
    opened = open_database(database_url + limit)
    yield opened
    opened.close()


@pytest.fixture
def writer(writing: Database, clock: Clock) -> Writer:
    return Writer(writing, Repository(), clock)


@contextmanager
def locked(database: Database, ids: Sequence[str]) -> Iterator[None]:
    with database.writer.connect() as connection, connection.begin():
        statement = text("SELECT id FROM operations WHERE id = ANY(:ids) FOR UPDATE")
        assert len(connection.execute(statement, {"ids": list(ids)}).all()) == len(ids)
        yield


@contextmanager
def lock_waits(database: Database) -> Iterator[list[str]]:
    """What ends each wait that was given up: the limit that was then in force."""
    limits, given_up = ["default"], []

    def note_limit(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SET LOCAL lock_timeout"):
            limits[0] = statement.rpartition("= ")[2]

    def note_end(_connection: object) -> None:
        limits[0] = "default"

    def note_wait(context: object) -> None:
        if getattr(getattr(context, "original_exception", None), "sqlstate", None) == "55P03":
            given_up.append(limits[0])

    listeners = (
        ("before_cursor_execute", note_limit),
        ("rollback", note_end),
        ("commit", note_end),
        ("handle_error", note_wait),
    )
    for name, listener in listeners:
        event.listen(database.writer, name, listener)
    yield given_up
    for name, listener in listeners:
        event.remove(database.writer, name, listener)


def kinds(outcomes: Sequence[object]) -> list[type]:
    return [type(outcome) for outcome in outcomes]


@postgresql_only
def test_one_locked_row_costs_one_wait_and_those_that_wait_for_it_alone_are_refused(
    writer: Writer, writing: Database, database: Database
) -> None:
    held, free, new = new_id(), new_id(), new_id()
    apply(database, Start(held, DAY), Start(free, DAY))
    cancels: list[Command] = [Cancel(held, CANCELLED)] * 12

    with locked(database, [held]), lock_waits(writing) as waits:
        outcomes = writer.write([*cancels, Complete(free, b"answer"), Start(new, DAY)])

    assert kinds(outcomes) == [StoreBusy] * 12 + [Outcome] * 2
    assert waits == ["default", "10"]
    assert find(database, free) == getattr(outcomes[12], "record", None)
    assert find(database, new) is not None
    # Nobody holds it any more: it is taken, and no longer by itself.
    assert kinds(writer.write([Cancel(held, CANCELLED)])) == [Outcome]


@postgresql_only
def test_batches_after_a_wait_hardly_wait_for_what_is_still_locked(
    writer: Writer, writing: Database, database: Database, clock: Clock
) -> None:
    held, other = new_id(), new_id()
    apply(database, Start(held, DAY), Start(other, DAY))

    with locked(database, [held, other]), lock_waits(writing) as waits:
        assert kinds(writer.write([Cancel(held, CANCELLED)])) == [StoreBusy]
        waits.clear()
        assert kinds(writer.write([Cancel(held, CANCELLED), Start(new_id(), DAY)])) == [
            StoreBusy,
            Outcome,
        ]
        assert waits == ["10"]
        waits.clear()
        # Another that is locked meanwhile has not the whole time to wait either.
        assert kinds(writer.write([Cancel(other, CANCELLED), Start(new_id(), DAY)])) == [
            StoreBusy,
            Outcome,
        ]
        assert waits == ["100", "10"]
        waits.clear()
        clock.now += 2
        assert kinds(writer.write([Cancel(held, CANCELLED)])) == [StoreBusy]
        assert waits == ["default", "10"]


@postgresql_only
def test_many_locked_rows_in_a_batch_cost_one_wait_and_then_hardly_any(
    writer: Writer, writing: Database, database: Database
) -> None:
    ids = sorted(new_id() for _ in range(60))
    apply(database, *(Start(id_, DAY) for id_ in ids))

    with locked(database, ids), lock_waits(writing) as waits:
        outcomes = writer.write([*(Cancel(id_, CANCELLED) for id_ in ids), Start(new_id(), DAY)])

    assert kinds(outcomes) == [StoreBusy] * 60 + [Outcome]
    assert waits == ["default"] + ["10"] * 50 + ["1"] * 10


@postgresql_only
def test_a_start_that_waits_for_the_insert_of_another_fails_alone(
    writer: Writer, writing: Database, database: Database
) -> None:
    contested, new = new_id(), new_id()
    start = Start(contested, DAY, request_hash=b"request")

    def insert_and_linger(connection: Connection) -> list[type]:
        Repository().apply(connection, [start])
        return kinds(writer.write([start, Start(new, DAY)]))

    assert database.write(insert_and_linger) == [StoreBusy, Outcome]
    assert kinds(writer.write([start])) == [Outcome]


def test_a_batch_in_which_nothing_is_wrong_has_no_statement_for_it(
    writer: Writer, writing: Database
) -> None:
    statements: list[str] = []
    event.listen(
        writing.writer, "before_cursor_execute", lambda _c, _cursor, s, *_: statements.append(s)
    )

    writer.write([Start(new_id(), DAY) for _ in range(3)])

    assert [s.split()[0] for s in statements] == ["BEGIN"] * writing.url.is_sqlite + ["INSERT"] * 3


@pytest.mark.parametrize(
    "poison",
    [
        pytest.param({"description": "\udc80"}, id="text that is no UTF-8"),
        pytest.param({"retention": 1 << 70}, id="a number that is too large"),
        pytest.param({"metadata": object()}, id="no bytes"),
    ],
)
def test_a_command_that_raises_whatever_it_be_fails_alone(
    writer: Writer, database: Database, poison: dict[str, object]
) -> None:
    bad = Start(new_id(), **{"retention": DAY, **poison})  # type: ignore[arg-type]
    innocent = [new_id(), new_id()]

    outcomes = writer.write([Start(innocent[0], DAY), bad, Start(innocent[1], DAY)])

    assert kinds(outcomes) == [Outcome, StoreError, Outcome]
    assert all(find(database, id_) for id_ in innocent)
    assert find(database, bad.id) is None


RECORD = Record(**dict.fromkeys((field.name for field in fields(Record)), None) | {"id": "an-id"})  # type: ignore[arg-type]
DONE = Outcome(RECORD, changed=True)
REPEATED = Outcome(RECORD, changed=False)
START, RENEW, COMPLETE, CANCEL, DELETE = (
    Start("an-id", DAY), Renew("an-id"), Complete("an-id", b""), Cancel("an-id", CANCELLED), Delete("an-id"),
)  # fmt: skip
NOT_FOUND, ENDED, BUSY = OperationNotFound("an-id"), OperationDone(RECORD), StoreBusy()


@pytest.mark.parametrize("command", [START, RENEW, COMPLETE, CANCEL, DELETE])
@pytest.mark.parametrize("first", [DONE, NOT_FOUND, BUSY])
def test_what_is_done_the_second_time_counts(command: Command, first: Outcome | Exception) -> None:
    for second in (DONE, REPEATED):
        assert reconcile(command, first, second) is second


@pytest.mark.parametrize("command", [START, RENEW, COMPLETE, CANCEL, DELETE])
@pytest.mark.parametrize("second", [NOT_FOUND, ENDED, BUSY])
def test_what_was_refused_the_first_time_has_changed_nothing(
    command: Command, second: Exception
) -> None:
    assert reconcile(command, BUSY, second) is second


def test_a_delete_that_finds_nothing_the_second_time_has_deleted_it_the_first_time() -> None:
    assert reconcile(DELETE, DONE, NOT_FOUND) is DONE


def test_a_delete_that_is_refused_for_another_reason_is_refused() -> None:
    assert reconcile(DELETE, DONE, ENDED) is ENDED


@pytest.mark.parametrize("second", [NOT_FOUND, ENDED])
def test_whether_a_renewal_happened_before_the_operation_was_ended_is_unknown(
    second: Exception,
) -> None:
    assert type(reconcile(RENEW, DONE, second)) is StoreUnavailable


@pytest.mark.parametrize("command", [START, COMPLETE, CANCEL])
def test_any_other_command_that_is_refused_the_second_time_is_refused(command: Command) -> None:
    assert reconcile(command, DONE, ENDED) is ENDED
