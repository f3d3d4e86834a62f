"""Reads on the event loop from PostgreSQL: whatever goes wrong there, the caller gets the operation."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress

import psycopg
import pytest

from opservice.domain.errors import OperationNotFound, StoreUnavailable
from opservice.domain.operation import DAY, Record, Start, new_id
from opservice.store import batching
from opservice.store.batching import MAX_BATCH
from opservice.store.drivers import fast_reads
from opservice.store.drivers.postgresql.fast_reads import PostgresqlReads
from opservice.store.drivers.postgresql.libpq import LoopConnection
from opservice.store.engine import Database, open_database
from opservice.store.reading import Reads
from opservice.store.statements import ORIGINS
from store.conftest import connections_of
from support.postgres import PostgresServer
from support.replicas import REPOSITORY, apply_one

PATIENCE = 30


@pytest.fixture
def backend() -> str:
    return "postgresql"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_reads, "RECONNECT_SECONDS", 0)


def started(database: Database, id_: str = "", metadata: bytes | None = None) -> str:
    return apply_one(database, Start(id_ or new_id(), DAY, metadata=metadata)).record.id


async def connection_of(on_loop: PostgresqlReads) -> LoopConnection:
    """The connection, once it is there."""
    async with asyncio.timeout(PATIENCE):
        while on_loop._connected() is None:  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.01)
    assert on_loop._connection is not None
    return on_loop._connection


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[tuple[Reads, PostgresqlReads]]:
    """Connected."""
    reads = Reads(database, REPOSITORY)
    assert isinstance(reads._fast, PostgresqlReads)
    await connection_of(reads._fast)
    yield reads, reads._fast
    await reads.close()


@pytest.fixture
async def connected(database: Database) -> AsyncIterator[tuple[Reads, PostgresqlReads]]:
    async with opened(database) as both:
        yield both


@pytest.fixture
async def on_loop(connected: tuple[Reads, PostgresqlReads]) -> PostgresqlReads:
    return connected[1]


async def soon(awaited: Awaitable[Record]) -> Record:
    return await asyncio.wait_for(awaited, PATIENCE)


async def found(on_loop: PostgresqlReads, *ids: str) -> list[Record | Exception]:
    records = await asyncio.wait_for(on_loop.find(ids), PATIENCE)
    assert records is not None, "not read on the loop"
    return records


async def test_what_is_read_on_the_loop_is_what_was_written(
    on_loop: PostgresqlReads, database: Database
) -> None:
    written = apply_one(database, Start(new_id(), DAY, "parent", "m", "ö", "me", b"\0\xff")).record
    assert await found(on_loop, written.id) == [written]


@pytest.mark.parametrize("id_", ['a"b', "a,b", "{a}", "a\\b", "NULL", "ö", "'", "$1", " a "])
async def test_an_id_may_be_anything(
    on_loop: PostgresqlReads, database: Database, id_: str
) -> None:
    started(database, id_)
    (record,) = await found(on_loop, id_)
    assert isinstance(record, Record)
    assert record.id == id_


async def test_each_id_gets_its_operation_or_that_there_is_none(
    on_loop: PostgresqlReads, database: Database
) -> None:
    first, second = started(database), started(database)
    records = await found(on_loop, second, "none", first, second)
    assert [type(each) for each in records] == [Record, OperationNotFound, Record, Record]
    assert [each.id for each in records if isinstance(each, Record)] == [second, first, second]


async def test_an_answer_of_many_packets_is_put_together(
    on_loop: PostgresqlReads, database: Database
) -> None:
    ids = [started(database, metadata=b"x" * (1 << 20)) for _ in range(8)]
    records = await found(on_loop, *ids)
    assert [len(each.metadata or b"") for each in records if isinstance(each, Record)] == [
        1 << 20
    ] * 8


async def test_a_request_that_the_socket_does_not_take_at_once_is_sent_when_it_does(
    on_loop: PostgresqlReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await connection_of(on_loop)
    with socket.socket(fileno=socket.dup(connection._socket)) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    later = 0
    flush = connection._flush

    def counted() -> None:
        nonlocal later
        later += 1
        flush()

    monkeypatch.setattr(connection, "_flush", counted)
    for _ in range(100):  # PostgreSQL may be quick enough to take all of it at once
        records = await found(on_loop, *(f"{index:0128}" for index in range(MAX_BATCH)))
        assert {type(each) for each in records} == {OperationNotFound}
        if later:
            break
    assert later > 0


async def test_a_lost_connection_is_noticed_by_nobody_and_replaced(
    connected: tuple[Reads, PostgresqlReads], database: Database, postgres: PostgresServer
) -> None:
    reads, on_loop = connected
    id_, lost = started(database), await connection_of(on_loop)

    for _ in range(2):  # the first may be sent on it, the second may not
        postgres.kill_connections(database.url.database)
        assert (await soon(reads.get(id_))).id == id_

    connection = await connection_of(on_loop)
    assert connection is not lost
    assert len(await found(on_loop, id_)) == 1


@asynccontextmanager
async def locked(postgres: PostgresServer, database: Database) -> AsyncIterator[psycopg.Connection]:
    """Whoever reads operations waits until this is left, or its transaction ends."""
    with psycopg.connect(
        host="127.0.0.1", port=postgres.port, user="tests", dbname=database.url.database
    ) as session:
        session.execute("LOCK TABLE operations")
        yield session


_WAITS = "wait_event_type = 'Lock'"


async def until_waited_for(postgres: PostgresServer, database: Database) -> None:
    waiting = (
        f"SELECT 1 FROM pg_stat_activity WHERE {_WAITS} AND datname = '{database.url.database}'"
    )
    async with asyncio.timeout(PATIENCE):
        while not postgres.execute(waiting):  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.01)


async def test_what_waits_on_a_connection_that_is_lost_is_read_by_a_thread(
    connected: tuple[Reads, PostgresqlReads], database: Database, postgres: PostgresServer
) -> None:
    reads, _ = connected
    id_ = started(database)
    async with locked(postgres, database):
        reading = asyncio.create_task(reads.get(id_))
        await until_waited_for(postgres, database)
        postgres.kill_connections(database.url.database, _WAITS)
    assert (await soon(reading)).id == id_


async def test_who_waits_for_a_database_that_hangs_is_told_so_and_served_once_it_answers(
    database_url: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "HANG_SECONDS", 0.1)
    patient = open_database(f"{database_url}?options=-c%20lock_timeout=0")
    with closing(patient):
        id_ = started(patient)
        async with opened(patient) as (reads, on_loop):
            async with locked(postgres, patient):
                for _ in range(2):
                    with pytest.raises(StoreUnavailable):
                        await soon(reads.get(id_))
            async with asyncio.timeout(PATIENCE):
                while True:
                    with suppress(StoreUnavailable):
                        assert (await reads.get(id_)).id == id_
                        break
                    await asyncio.sleep(0.01)
            await connection_of(on_loop)  # on a new connection


async def test_a_connection_to_what_has_become_a_standby_is_not_read_from_again(
    database_url: str, promote: Callable[[], None]
) -> None:
    with closing(open_database(f"{database_url}?target_session_attrs=any")) as database:
        async with opened(database) as (_, on_loop):
            demoted = await connection_of(on_loop)
            with pytest.raises(StoreUnavailable):
                apply_one(database, Start(new_id(), DAY))
            promote()
            id_ = started(database)

            assert await connection_of(on_loop) is not demoted
            assert len(await found(on_loop, id_)) == 1


async def test_a_database_that_is_away_is_not_asked_more_than_once_a_while(
    database: Database, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_reads, "RECONNECT_SECONDS", PATIENCE)
    attempts = 0

    async def refuse(**_: object) -> None:
        nonlocal attempts
        attempts += 1
        raise psycopg.OperationalError

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", refuse)
    on_loop = PostgresqlReads(connections_of(database), REPOSITORY.records, ORIGINS)
    for _ in range(10):
        assert await on_loop.find([]) is None
        await asyncio.sleep(0)
    assert attempts == 1


async def test_an_outage_is_logged_once(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_loop = PostgresqlReads(connections_of(database), REPOSITORY.records, ORIGINS)

    async def outage() -> None:
        for _ in range(3):
            await on_loop.find([])
            assert on_loop._connecting is not None
            await asyncio.wait_for(on_loop._connecting, PATIENCE)

    async def refuse(**_: object) -> None:
        raise psycopg.OperationalError

    for number in (1, 2):
        with monkeypatch.context() as patched:
            patched.setattr(psycopg.AsyncConnection, "connect", refuse)
            await outage()
        assert caplog.text.count("reads take a thread") == number
        await connection_of(on_loop)
        on_loop.give_up()
    on_loop.close()


async def test_a_connection_on_which_nothing_can_be_prepared_is_not_kept(
    database: Database, postgres: PostgresServer
) -> None:
    name = database.url.database
    postgres.execute("ALTER TABLE operations RENAME TO elsewhere", name or "")
    on_loop = PostgresqlReads(connections_of(database), REPOSITORY.records, ORIGINS)
    assert await on_loop.find([]) is None
    assert on_loop._connecting is not None
    await asyncio.wait_for(on_loop._connecting, PATIENCE)
    assert on_loop._connection is None

    async with asyncio.timeout(PATIENCE):
        count = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{name}'"
        while postgres.execute(count):  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.01)
    postgres.execute("ALTER TABLE elsewhere RENAME TO operations", name or "")


async def test_behind_a_pooler_that_forgets_what_is_prepared_nothing_is_any_more(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = started(database)
    async with opened(database) as (reads, on_loop):
        connection = await connection_of(on_loop)
        connection._pgconn.exec_(b"DEALLOCATE ALL")
        assert (await soon(reads.get(id_))).id == id_
        assert not connections_of(database).may_prepare()

        monkeypatch.setattr(fast_reads, "RECONNECT_SECONDS", 0)
        on_loop._not_before = 0
        assert await connection_of(on_loop) is not connection
        monkeypatch.setattr(LoopConnection, "prepare", None)
        assert len(await found(on_loop, id_)) == 1
