"""The store as the server uses it: many callers at once, each with an answer of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
from sqlalchemy import Connection, Engine, event, text

from opservice.domain.errors import (
    LeaseTokenMismatch,
    OperationDone,
    OperationNotFound,
    StoreError,
    StoreUnavailable,
)
from opservice.domain.operation import (
    DAY,
    SECOND,
    Command,
    Complete,
    DeleteExpired,
    Fail,
    LapseLeases,
    Outcome,
    Renew,
    Start,
    new_id,
)
from opservice.store.engine import Database, open_database
from opservice.store.repository import Repository
from opservice.store.service import OperationStore
from store.conftest import ABORTED, INTERNAL, Clock, Ops, repository_on

Result = TypeVar("Result")

PATIENCE = 30.0
REFUSED = "opsrefused"
"""An id that a constraint of the test's refuses, on both databases."""


@pytest.fixture
async def store(database: Database, clock: Clock) -> AsyncIterator[OperationStore]:
    store = OperationStore(database, repository_on(clock))
    yield store
    await store.close()


async def soon(awaited: Awaitable[Result]) -> Result:
    return await asyncio.wait_for(awaited, PATIENCE)


async def together(store: OperationStore, *commands: Command) -> list[Outcome | BaseException]:
    """The outcomes of commands that arrive at once, so in one batch."""
    calls = [store.apply(command) for command in commands]
    return [*await soon(asyncio.gather(*calls, return_exceptions=True))]


@contextmanager
def counted(engine: Engine) -> Iterator[list[str]]:
    """The statements that run on the engine meanwhile."""
    statements: list[str] = []

    def collect(connection: Connection, cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", collect)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", collect)


def refuse_an_id(database: Database) -> None:
    """Makes the database fail on a command for its content, as no command of ours should."""
    if database.url.is_sqlite:
        script = (
            "CREATE TRIGGER refuse BEFORE INSERT ON operations"
            f" WHEN NEW.id = '{REFUSED}' BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    else:
        script = f"ALTER TABLE operations ADD CONSTRAINT refuse CHECK (id <> '{REFUSED}')"
    database.write(lambda connection: connection.execute(text(script)))


async def test_what_was_applied_is_what_is_got(store: OperationStore) -> None:
    outcome = await soon(store.apply(Start(new_id(), DAY)))

    assert await soon(store.get(outcome.record.id)) == outcome.record


async def test_get_of_what_never_was_is_not_found(store: OperationStore) -> None:
    with pytest.raises(OperationNotFound, match="Operation opsneverwas not found"):
        await soon(store.get("opsneverwas"))


@pytest.mark.parametrize("backend", ["postgresql"])
async def test_gets_that_arrive_together_share_one_query(
    store: OperationStore, database: Database
) -> None:
    ids = [new_id() for _ in range(20)]
    await together(store, *[Start(id_, DAY) for id_ in ids])

    with counted(database.reader) as statements:
        records = await soon(asyncio.gather(*[store.get(id_) for id_ in ids]))

    assert [record.id for record in records] == ids
    assert len(statements) == 1


async def test_gets_of_the_same_operation_at_once_are_all_answered(store: OperationStore) -> None:
    id_ = (await soon(store.apply(Start(new_id(), DAY)))).record.id

    records = await soon(asyncio.gather(*[store.get(id_) for _ in range(5)]))

    assert {record.id for record in records} == {id_}


async def test_an_unknown_id_does_not_spoil_the_gets_of_others(store: OperationStore) -> None:
    id_ = (await soon(store.apply(Start(new_id(), DAY)))).record.id

    unknown, known = await soon(
        asyncio.gather(store.get("opsneverwas"), store.get(id_), return_exceptions=True)
    )

    assert isinstance(unknown, OperationNotFound)
    assert not isinstance(known, BaseException)


async def test_commands_that_arrive_together_share_one_transaction(
    store: OperationStore, database: Database
) -> None:
    commits: list[Connection] = []
    event.listen(database.writer, "commit", commits.append)

    await together(store, *[Start(new_id(), DAY) for _ in range(20)])

    assert len(commits) == 1


async def test_a_refusal_is_raised_in_its_caller_alone(store: OperationStore) -> None:
    held, done, new = new_id(), new_id(), new_id()
    await together(store, Start(held, DAY, lease_token_hash=b"hash"), Start(done, DAY))
    await soon(store.apply(Complete(done, b"response")))

    outcomes = await together(store, Renew(held), Fail(done, INTERNAL), Start(new, DAY))

    assert [type(outcome) for outcome in outcomes] == [LeaseTokenMismatch, OperationDone, Outcome]


async def test_a_command_that_the_database_refuses_fails_alone(
    store: OperationStore, database: Database
) -> None:
    refuse_an_id(database)
    first, last = new_id(), new_id()

    outcomes = await together(store, Start(first, DAY), Start(REFUSED, DAY), Start(last, DAY))

    assert [type(outcome) for outcome in outcomes] == [Outcome, StoreError, Outcome]
    for id_ in (first, last):
        assert (await soon(store.get(id_))).revision == 1


async def test_text_that_only_postgresql_refuses_fails_alone(
    store: OperationStore, database: Database
) -> None:
    fine = new_id()

    refused, outcome = await together(
        store, Start(new_id(), DAY, description="a\0b"), Start(fine, DAY)
    )

    # It knows no NUL in text; SQLite does.
    assert type(refused) is (Outcome if database.url.is_sqlite else StoreError)
    assert isinstance(outcome, Outcome)


async def test_an_error_of_the_store_does_not_show_what_the_database_said(
    store: OperationStore, database: Database
) -> None:
    refuse_an_id(database)

    with pytest.raises(StoreError) as caught:
        await soon(store.apply(Start(REFUSED, DAY)))

    assert caught.value.message == "The database failed."
    assert caught.value.__cause__ is not None


async def test_a_database_that_is_not_there_is_unavailable_to_every_caller() -> None:
    gone = open_database("postgresql://tests@127.0.0.1:1/gone")
    store = OperationStore(gone, Repository())

    outcomes = await together(store, Start(new_id(), DAY), Start(new_id(), DAY))
    await store.close()

    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 2


async def test_commands_that_are_durable_are_told_so_when_the_proof_after_them_fails(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(_connection: Connection) -> None:
        raise StoreUnavailable

    opened = open_database(database_url)
    monkeypatch.setattr(opened.driver, "prove_write", cannot)
    store = OperationStore(opened, Repository())
    failures: list[str] = []
    store.when_write_fails = lambda: failures.append("failed")
    id_ = new_id()

    started, proof = await soon(
        asyncio.gather(store.apply(Start(id_, DAY)), store.prove_writes(), return_exceptions=True)
    )
    await store.close()

    assert isinstance(started, Outcome)
    assert started.record.id == id_
    assert isinstance(proof, StoreUnavailable)
    assert failures == ["failed"]


async def test_a_caller_that_gives_up_does_not_stop_the_commands_of_others(
    store: OperationStore,
) -> None:
    patient = new_id()
    given_up = asyncio.create_task(store.apply(Start(new_id(), DAY)))
    kept = asyncio.create_task(store.apply(Start(patient, DAY)))
    await asyncio.sleep(0)

    given_up.cancel()

    assert (await soon(kept)).record.id == patient


async def test_close_waits_for_the_commands_that_were_given(
    database_url: str, database: Database
) -> None:
    store = OperationStore(open_database(database_url), Repository())
    ids = [new_id() for _ in range(20)]
    given = [asyncio.create_task(store.apply(Start(id_, DAY))) for id_ in ids]
    await asyncio.sleep(0)

    await soon(store.close())

    assert all(task.done() and task.result().changed for task in given)
    assert all(Ops(database, Repository()).find(id_) for id_ in ids)


async def test_a_sweep_tells_what_it_changed(store: OperationStore, clock: Clock) -> None:
    id_ = (await soon(store.apply(Start(new_id(), DAY, lease=SECOND)))).record.id
    clock.advance(SECOND)

    swept = await soon(store.sweep(LapseLeases(ABORTED, 10)))

    assert swept.ids == (id_,)
    assert (await soon(store.get(id_))).error == ABORTED.status


async def test_sweeps_that_arrive_together_are_transactions_of_their_own(
    store: OperationStore, database: Database
) -> None:
    commits: list[Connection] = []
    event.listen(database.writer, "commit", commits.append)

    await soon(
        asyncio.gather(store.sweep(LapseLeases(ABORTED, 10)), store.sweep(DeleteExpired(10)))
    )

    assert len(commits) == 2
