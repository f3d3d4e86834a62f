"""Whether a server can serve, on databases that work and that do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from sqlalchemy import event

from opservice.auth.keys import KeySource
from opservice.domain.operation import SECOND
from opservice.methods import readiness
from opservice.methods.readiness import Readiness
from opservice.methods.serving import FILE_LOST, STOPPING, ServingState
from opservice.store.engine import Database
from opservice.store.repository import Repository
from opservice.store.service import OperationStore
from support.fixtures import execute, held_up_writes
from support.logs import capture_logs


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "FRESH_SECONDS", 0.2)


@pytest.fixture
async def store(database: Database) -> AsyncIterator[OperationStore]:
    opened = OperationStore(database, Repository())
    yield opened
    await opened.close()


@pytest.fixture
def state() -> ServingState:
    return ServingState()


@pytest.fixture
def ready(state: ServingState, store: OperationStore) -> Readiness:
    return Readiness(state, store, None)


async def reasons(ready: Readiness) -> tuple[str, ...]:
    """With an answer of now."""
    await asyncio.sleep(readiness.FRESH_SECONDS)
    return (await ready.check()).reasons


async def test_however_many_ask_the_database_is_asked_once(
    ready: Readiness, database: Database
) -> None:
    asked = []
    for engine in (database.reader, database.writer):
        event.listen(engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    assert (await ready.check()).ready
    alone = len(asked)
    asked.clear()

    await asyncio.sleep(readiness.FRESH_SECONDS)
    told = await asyncio.gather(*(ready.check() for _ in range(100)))
    told += [await ready.check() for _ in range(100)]

    assert all(each.ready for each in told)
    assert 0 < len(asked) <= alone


async def test_a_database_that_takes_no_writes_is_told_in_time_and_comes_back(
    ready: Readiness, database_url: str
) -> None:
    with held_up_writes(database_url):
        first = (await ready.check()).reasons
        assert first in {(readiness.NO_WRITE,), (readiness.BUSY,)}
    while (told := await reasons(ready)) != ():
        # PostgreSQL gives up a lock sooner than SQLite, so there is not always a write that is late.
        assert told[0] in {readiness.NO_WRITE, readiness.BUSY, readiness.TAKES_NO_WRITES}


async def test_the_schema_has_to_be_there_and_not_to_be_older(
    ready: Readiness, database_url: str
) -> None:
    execute(database_url, "UPDATE alembic_version SET version_num = '0001'")
    (told,) = await reasons(ready)
    assert "opservice migrate" in told

    execute(database_url, "UPDATE alembic_version SET version_num = '9999'")  # a newer version's
    assert await reasons(ready) == ()

    execute(database_url, "DELETE FROM alembic_version")
    (told,) = await reasons(ready)
    assert "no opservice schema" in told


async def test_what_nobody_expected_is_told_to_the_log_alone(
    ready: Readiness, database_url: str
) -> None:
    execute(database_url, "ALTER TABLE alembic_version RENAME COLUMN version_num TO taken_away")
    with capture_logs() as logged:
        assert (await ready.check()).reasons == (readiness.FAULTY,)
    assert [line["event"] for line in logged] == ["the database could not be checked", "not ready"]


async def test_keys_that_were_never_read_are_a_reason(
    state: ServingState, store: OperationStore, tmp_path: Path
) -> None:
    keys = KeySource(str(tmp_path / "none.json"), SECOND, on_change=lambda: None)
    ready = Readiness(state, store, keys)
    await keys.start(strict=False)

    assert (await ready.check()).reasons == (readiness.NO_KEYS,)


@pytest.mark.parametrize("reason", [STOPPING, FILE_LOST])
async def test_when_it_does_not_serve_any_more_nothing_else_matters(
    ready: Readiness, state: ServingState, database_url: str, reason: str
) -> None:
    execute(database_url, "DELETE FROM alembic_version")
    state.stop(reason)
    state.stop("a later reason")

    assert (await ready.check()).reasons == (reason,)


async def test_who_watches_is_told_of_changes_and_of_the_end(
    ready: Readiness, state: ServingState, database_url: str
) -> None:
    async with aclosing(ready.watch()) as one, aclosing(ready.watch()) as other:
        assert (await anext(one)).ready
        assert (await anext(other)).ready
        execute(database_url, "UPDATE alembic_version SET version_num = '0001'")
        assert not (await anext(one)).ready
        assert not (await anext(other)).ready
        execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
        assert (await anext(one)).ready
        state.stop(STOPPING)
        assert [each.reasons async for each in one] == [(STOPPING,)]
        assert [each.reasons async for each in other] == [(STOPPING,)]


async def test_the_database_is_left_alone_when_nobody_watches_any_more(
    ready: Readiness, database: Database, database_url: str
) -> None:
    async with aclosing(ready.watch()) as one:
        async with aclosing(ready.watch()) as other:
            assert (await anext(one)).ready
            assert (await anext(other)).ready
        execute(database_url, "UPDATE alembic_version SET version_num = '0001'")
        assert not (await anext(one)).ready

    asked = []
    event.listen(database.reader, "before_cursor_execute", lambda *_: asked.append(1))
    await asyncio.sleep(2 * readiness.FRESH_SECONDS)
    assert not asked
