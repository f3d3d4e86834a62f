"""What the store asks of a driver, whatever its database."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import bindparam, literal, select
from sqlalchemy.exc import DBAPIError

from opservice.domain.errors import OperationNotFound, StoreError
from opservice.domain.operation import DAY, Origin, Record, Start, new_id
from opservice.store.drivers.protocol import Driver, FastReads
from opservice.store.engine import Database
from opservice.store.schema import operations
from opservice.store.sql import database_clock, in_bytes, is_among, position_in, wall_clock
from opservice.store.statements import ORIGINS
from store.conftest import Ops
from support.replicas import REPOSITORY, apply_one

PATIENCE = 30


@pytest.fixture
def driver(database: Database) -> Driver:
    return database.driver


def started(database: Database) -> Record:
    return apply_one(database, Start(new_id(), DAY, "parent", "m", "ö", "me", b"\0\xff")).record


@pytest.mark.parametrize(
    ("text", "part", "place"), [("äbcb", "b", 2), ("abc", "abc", 1), ("abc", "B", 0), ("a", "%", 0)]
)
def test_a_place_in_a_text_is_counted_in_characters_from_one(
    ops: Ops, text: str, part: str, place: int
) -> None:
    found = select(position_in(literal(text), literal(part)))
    assert ops.database.read(lambda c: c.scalar(found)) == place


def test_texts_compare_by_their_bytes(ops: Ops) -> None:
    ascending = select(in_bytes(literal("B")) < literal("a"), in_bytes(literal("z")) < literal("ä"))
    assert all(ops.database.read(lambda c: tuple(c.execute(ascending).one())))


@pytest.mark.parametrize("others", [0, 1, 40_000])
def test_an_id_is_found_among_any_number_of_ids(ops: Ops, others: int) -> None:
    id_ = ops.start().id
    ids = [id_, *(f"{number}" for number in range(others))]
    query = select(operations.c.id).where(is_among(operations.c.id, "ids"))
    assert ops.database.read(lambda c: c.scalars(query, {"ids": ids}).all()) == [id_]


def test_a_statement_has_one_time(ops: Ops) -> None:
    times = select(database_clock(), database_clock(), wall_clock())
    first, second, evaluated = ops.database.read(lambda c: c.execute(times).one())
    assert first == second
    assert first <= evaluated


def test_a_database_of_ours_is_fit_and_led_to_directly(driver: Driver, database: Database) -> None:
    assert database.read(driver.unfit) is None
    assert database.read(driver.through_pooler) is False


def test_a_statement_that_is_wrong_is_not_tried_again_and_nothing_that_anybody_expects(
    driver: Driver, database: Database
) -> None:
    with database.reader.connect() as connection, pytest.raises(DBAPIError) as raised:
        connection.exec_driver_sql("SELECT nothing FROM nowhere")
    assert driver.retry(raised.value) is None
    assert type(driver.store_error(raised.value)) is StoreError


def test_a_proof_of_writing_changes_no_operation(database: Database) -> None:
    before = started(database)
    database.prove_write()
    assert database.read(lambda c: REPOSITORY.find(c, [before.id])) == {before.id: before}


def test_time_limits_are_set_within_a_transaction(driver: Driver, database: Database) -> None:
    with database.writer.begin() as connection:
        driver.limit_lock_waits(connection, 10)
        driver.lift_time_limits(connection)
        assert connection.scalar(select(bindparam("one", 1))) == 1


async def read(fast: FastReads, id_: str) -> tuple[object, object]:
    """The operation and its origin, or what is raised for them; once there is a connection."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                found: object = fast.get(id_)
                origin: object = fast.origin(id_)
            except OperationNotFound as error:
                found = origin = error
            if found is None:
                records, origins = await fast.find([id_]), await fast.origins([id_])
                found = records and records[0]
                origin = origins and origins[0]
            if found is not None and origin is not None:
                return found, origin
            await asyncio.sleep(0.01)


async def test_fast_reads_find_what_was_written_and_nothing_else(
    driver: Driver, database: Database
) -> None:
    written = started(database)
    fast = driver.fast_reads(REPOSITORY.records, ORIGINS)
    try:
        assert await read(fast, written.id) == (written, Origin(written.id, "parent", "me"))
        for missing in await read(fast, "nothing"):
            assert isinstance(missing, OperationNotFound)
        fast.give_up()
        assert (await read(fast, written.id))[0] == written
    finally:
        fast.close()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await read(fast, written.id)  # closed for good


async def test_what_one_process_sends_another_is_notified_of(
    driver: Driver, database: Database
) -> None:
    async def run(function):  # type: ignore[no-untyped-def] # as Run has it
        return await asyncio.to_thread(function)

    sender, receiver = (driver.notifications(database.read, run) for _ in range(2))
    received = receiver.receive()
    async with asyncio.timeout(PATIENCE):
        assert await anext(received) is None  # anything may have changed before
        record = await asyncio.to_thread(started, database)
        await sender.send([record.id])
        ids = await anext(received)
        assert ids is None or ids == [record.id]
    await received.aclose()
