"""Reading by id: from memory, on the event loop, on a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import text, update

from opservice.domain.errors import OperationNotFound
from opservice.domain.operation import DAY, SECOND, Complete, Delete, Record, Start, new_id
from opservice.store.cache import MEMORY_SECONDS, DoneRecords
from opservice.store.drivers.sqlite.fast_reads import SqliteReads
from opservice.store.engine import Database, open_database
from opservice.store.reading import Reads
from opservice.store.repository import Repository
from opservice.store.schema import operations
from opservice.store.service import OperationStore
from store.conftest import Ops

PATIENCE = 30
FAR = 2**60


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[OperationStore]:
    store = OperationStore(open_database(database_url), Repository())
    await store.read_clock()
    yield store
    await store.close()


async def ended(store: OperationStore, **fields: bytes) -> str:
    """The id of a done operation that was read once, so that it is in memory."""
    id_ = (await store.apply(Start(new_id(), DAY, **fields))).record.id  # type: ignore[arg-type] # fields of Start
    await store.apply(Complete(id_, b"response"))
    await store.get(id_)
    return id_


def forge(database: Database, operation_id: str) -> None:
    """Changes the operation behind the back of the store."""
    forged = update(operations).where(operations.c.id == operation_id).values(response=b"forged")
    database.write(lambda connection: connection.execute(forged))


async def test_a_done_operation_is_answered_from_memory(
    store: OperationStore, database: Database
) -> None:
    id_ = await ended(store)
    forge(database, id_)

    assert (await store.get(id_)).response == b"response"


async def test_an_operation_whose_id_may_come_again_is_not(
    store: OperationStore, database: Database
) -> None:
    id_ = await ended(store, request_hash=b"request")
    forge(database, id_)

    assert (await store.get(id_)).response == b"forged"


async def test_a_deleted_operation_is_forgotten(store: OperationStore) -> None:
    id_ = await ended(store)

    await store.apply(Delete(id_))

    with pytest.raises(OperationNotFound):
        await store.get(id_)


async def test_a_deleted_operation_is_forgotten_though_whoever_deleted_it_has_left(
    store: OperationStore,
) -> None:
    id_ = await ended(store)
    deleting = asyncio.create_task(store.apply(Delete(id_)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # it is being written
    deleting.cancel()

    with pytest.raises(OperationNotFound):
        await store.apply(Delete(id_))

    with pytest.raises(OperationNotFound):
        await store.get(id_)


async def test_what_was_read_before_it_was_deleted_does_not_stay_in_memory(
    store: OperationStore,
) -> None:
    id_ = (await store.apply(Start(new_id(), DAY))).record.id
    await store.apply(Complete(id_, b"response"))

    for _ in range(20):
        await asyncio.gather(
            store.get(id_), store.apply(Delete(id_)), store.get(id_), return_exceptions=True
        )
        with pytest.raises(OperationNotFound):
            await store.get(id_)


async def test_a_row_that_cannot_be_read_fails_alone(
    store: OperationStore, database: Database
) -> None:
    bad, good = [(await store.apply(Start(new_id(), DAY))).record.id for _ in range(2)]
    newer = text("UPDATE operations SET cancel_policy = 99 WHERE id = :id")
    database.write(lambda connection: connection.execute(newer, {"id": bad}))
    await store.get(good)  # connects

    for _ in range(2):
        refused, found = await asyncio.wait_for(
            asyncio.gather(store.get(bad), store.get(good), return_exceptions=True), PATIENCE
        )
        assert isinstance(refused, ValueError)
        assert isinstance(found, Record)


@pytest.mark.parametrize("backend", ["sqlite"])
async def test_a_read_that_fails_on_the_loop_goes_through_the_thread(database: Database) -> None:
    repository = Repository()
    id_ = new_id()
    database.write(lambda connection: repository.apply(connection, [Start(id_, DAY)]))
    reads = Reads(database, repository)
    on_loop = reads._fast
    assert isinstance(on_loop, SqliteReads)

    async def connected() -> None:
        async with asyncio.timeout(PATIENCE):
            while on_loop.get(id_) is None:  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.01)

    await connected()
    assert on_loop._connection is not None
    on_loop._connection.close()

    assert (await reads.get(id_)).id == id_
    await connected()
    await reads.close()


def test_memory_makes_room_for_what_is_new(ops: Ops) -> None:
    record = replace(ops.start(), done=True, expires_at=FAR, response=b"x" * 1000)
    memory = DoneRecords(10_000)
    memory.database_clock_read(0, time.monotonic())
    ids = [f"ops{index}" for index in range(10)]
    for id_ in ids:
        memory.put(replace(record, id=id_))
        assert memory.get(ids[0]) is not None or id_ != ids[0]
        memory.get(ids[0])  # used last

    kept = [id_ for id_ in ids if memory.get(id_) is not None]
    assert kept[0] == ids[0]
    assert ids[1] not in kept
    assert kept[-1] == ids[-1]
    assert len(kept) < 10


@pytest.mark.parametrize(("database_clock", "kept"), [(50, True), (150, False)])
def test_memory_does_not_outlast_the_retention_by_the_database_s_clock(
    ops: Ops, database_clock: int, kept: bool
) -> None:
    record = replace(ops.start(), done=True, expires_at=100 * SECOND)
    memory = DoneRecords(10_000)
    memory.database_clock_read(database_clock * SECOND, time.monotonic())
    memory.put(record)

    assert (memory.get(record.id) is record) == kept


def test_memory_keeps_nothing_before_the_database_s_clock_is_known(ops: Ops) -> None:
    record = replace(ops.start(), done=True, expires_at=FAR)
    memory = DoneRecords(10_000)
    memory.put(record)

    assert memory.get(record.id) is None


def test_memory_ends_by_a_clock_that_nobody_sets(ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(ops.start(), done=True, expires_at=FAR)
    now = 1000.0
    memory = DoneRecords(10_000, lambda: now)
    memory.database_clock_read(0, now)
    memory.put(record)
    monkeypatch.setattr("time.time", lambda: 0.0)  # the machine's clock is set back

    assert memory.get(record.id) is record
    now += MEMORY_SECONDS + 1
    assert memory.get(record.id) is None
