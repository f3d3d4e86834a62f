"""Connections to PostgreSQL that something on the way has forgotten, while new ones would work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from functools import partial

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from opservice.domain.errors import StoreUnavailable
from opservice.domain.filters import ListQuery
from opservice.domain.operation import DAY, DeleteExpired, Start, new_id
from opservice.store import batching
from opservice.store.drivers.postgresql import notifications
from opservice.store.engine import Database, open_database
from opservice.store.migrations import migrate
from opservice.store.service import OperationStore
from store.conftest import connections_of
from support.postgres import PostgresServer
from support.relay import Relay
from support.replicas import REPOSITORY, apply_one

PATIENCE = 30
HOUR = 3_600_000_000

Use = Callable[[OperationStore, str], Awaitable[object]]


@pytest.fixture
def backend() -> str:
    return "postgresql"


@pytest.fixture
async def relay(postgres: PostgresServer) -> AsyncIterator[Relay]:
    async with Relay(f"127.0.0.1:{postgres.port}") as relay:
        yield relay


@asynccontextmanager
async def opened(url: str, relay: Relay, postgres: PostgresServer) -> AsyncIterator[OperationStore]:
    """A store behind the relay that learns of others' changes by notifications alone."""
    port = relay.address.rpartition(":")[2]
    database = open_database(url.replace(f":{postgres.port}/", f":{port}/"))
    store = OperationStore(database, REPOSITORY, HOUR)
    try:
        yield store
    finally:
        await store.close()


async def until_done(attempt: Callable[[], Awaitable[object]]) -> int:
    """How often it was refused before it was done."""
    refused = 0
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await attempt()
            except StoreUnavailable:
                refused += 1
                await asyncio.sleep(0.01)
            else:
                return refused


@pytest.mark.parametrize(
    "use",
    [
        lambda store, id_: store.get(id_),
        lambda store, _: store.apply(Start(new_id(), DAY)),
        lambda store, _: store.sweep(DeleteExpired(1)),
        lambda store, _: store.page(ListQuery(parent=None, limit=1)),
        lambda store, _: store.read_clock(),
    ],
    ids=["get", "write", "sweep", "list", "clock"],
)
async def test_what_hangs_on_a_frozen_connection_goes_on_over_a_new_one(
    database: Database,
    database_url: str,
    relay: Relay,
    postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    use: Use,
) -> None:
    monkeypatch.setattr(batching, "HANG_SECONDS", 0.5)
    id_ = apply_one(database, Start(new_id(), DAY)).record.id
    async with opened(database_url, relay, postgres) as store:
        for each in (store.get(id_), store.apply(Start(new_id(), DAY))):
            await each  # connects the reader and the writer, and so what reads on the event loop
        await use(store, id_)
        relay.freeze()
        assert await until_done(lambda: use(store, id_)) > 0


async def test_a_listener_whose_connection_freezes_listens_on_a_new_one(
    database: Database,
    database_url: str,
    relay: Relay,
    postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notifications, "LIFE_SIGN_SECONDS", 0.2)
    monkeypatch.setattr(notifications, "PROBE_SECONDS", 0.2)
    async with opened(database_url, relay, postgres) as store:
        assert store._notifications is not None
        received = store._notifications.receive()
        assert await anext(received) is None  # it listens
        relay.freeze()
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(PATIENCE):
                await anext(received)
        again = store._notifications.receive()
        assert await anext(again) is None
        await again.aclose()


@pytest.mark.slow
async def test_a_commit_that_waits_for_a_standby_is_left_alone(
    own_postgres: PostgresServer,
) -> None:
    def set_standby(name: str) -> None:
        own_postgres.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        own_postgres.execute("SELECT pg_reload_conf()")

    def waits() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        return own_postgres.execute(query)[0][0] == 1

    with closing(open_database(own_postgres.create_database())) as database:
        migrate(database)
        set_standby("absent")
        try:
            async with asyncio.timeout(PATIENCE):
                while True:  # PostgreSQL may take the new setting later than it says
                    start = partial(apply_one, database, Start(new_id(), DAY))
                    starting = asyncio.create_task(asyncio.to_thread(start))
                    while not starting.done() and not waits():  # noqa: ASYNC110 - nothing signals it
                        await asyncio.sleep(0.05)
                    if not starting.done():
                        break
            assert await database.driver.shut_down_frozen(0) == 0
        finally:
            set_standby("")
        assert (await starting).changed


async def test_a_connection_that_was_just_used_is_left_alone_however_long_it_was_taken_ago(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.reader.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        later = time.monotonic() + 100
        monkeypatch.setattr(
            "opservice.store.drivers.postgresql.connections.time.monotonic", lambda: later
        )
        assert await database.driver.shut_down_frozen(50) == 0
        connection.exec_driver_sql("SELECT 1")


async def test_what_postgresql_does_not_tell_of_is_left_alone(
    database: Database, database_url: str
) -> None:
    silent = open_database(f"{database_url}?options=-c%20track_activities=off")
    with closing(silent), silent.reader.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        assert await silent.driver.shut_down_frozen(0) == 0
        connection.exec_driver_sql("SELECT 1")


async def test_a_statement_of_a_role_that_may_not_be_watched_is_left_alone(
    database: Database, database_url: str, postgres: PostgresServer
) -> None:
    lock = text("SELECT pg_advisory_lock(1)")
    waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    url = f"{database_url}?options=-c%20role=pg_signal_backend%20-c%20lock_timeout=10s"
    with closing(open_database(url)) as hidden, database.writer.connect() as holder:
        holder.execute(lock)
        waiting = asyncio.create_task(
            asyncio.to_thread(hidden.read, lambda c: c.execute(lock).one())
        )
        async with asyncio.timeout(PATIENCE):
            while not postgres.execute(waits):  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.01)
        assert await hidden.driver.shut_down_frozen(0) == 0
        holder.invalidate()  # lets go of the lock
        await waiting


async def test_a_connection_that_is_used_for_something_else_meanwhile_is_left_alone(
    database: Database,
) -> None:
    with database.writer.connect() as connection:
        looking = asyncio.create_task(database.driver.shut_down_frozen(0))
        await asyncio.sleep(0)
        used = connection.connection.dbapi_connection
    with database.writer.connect() as connection:
        assert connection.connection.dbapi_connection is used
        assert await looking == 0


async def test_a_listener_prepares_nothing(postgres: PostgresServer) -> None:
    """A pooler, of which it is not told, would keep that and give it to others."""
    async with await psycopg.AsyncConnection.connect(
        postgres.url("postgres"), autocommit=True
    ) as connection:
        for _ in range(10):
            await notifications._ask(connection, "SELECT 1")
        cursor = await connection.execute("SELECT count(*) FROM pg_prepared_statements")
        assert await cursor.fetchone() == (0,)


async def test_what_is_idle_in_use_for_long_is_shut_down(database: Database) -> None:
    with database.reader.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        assert await database.driver.shut_down_frozen(0) == 1
        with pytest.raises(DBAPIError):
            connection.exec_driver_sql("SELECT 1")
        connection.invalidate()
    assert database.read(lambda c: c.exec_driver_sql("SELECT 1").scalar_one()) == 1


def test_a_new_connection_is_used_though_all_are_replaced_while_it_is_made(
    database: Database,
) -> None:
    event.listen(database.reader, "connect", lambda *_: connections_of(database).replace())
    assert database.read(lambda c: c.exec_driver_sql("SELECT 1").scalar_one()) == 1


def test_a_statement_that_is_not_prepared_is_sent_again_on_another_connection_too(
    database: Database,
) -> None:
    """Of two threads that meet it, only the first has to stop preparing."""
    connections_of(database).stop_preparing()
    statements = iter(["EXECUTE nothing", "SELECT 1"])

    assert database.read(lambda c: c.exec_driver_sql(next(statements)).scalar_one()) == 1
