"""SQLite: what is in force on its connections, and a database that is locked or full."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, Engine, event, text

from opservice.domain.errors import StoreFull, StoreUnavailable
from opservice.domain.operation import DAY, Complete, Outcome, Start, new_id
from opservice.store.engine import Database, open_database
from support.metrics import counted
from support.replicas import Replicas, apply, apply_one, find

INCREMENTS = 50


@pytest.fixture
def backend() -> str:
    return "sqlite"


@pytest.mark.parametrize("role", ["writer", "reader"])
@pytest.mark.parametrize(("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2)])
def test_the_connections_of_both_engines_keep_what_is_promised(
    database: Database, role: str, pragma: str, value: object
) -> None:
    engine: Engine = getattr(database, role)
    with engine.connect() as connection:
        assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar_one() == value


def increment(database: Database) -> None:
    """Reads, then writes what it read plus one: what a deferred transaction loses."""

    def work(connection: Connection) -> None:
        total = connection.execute(text("SELECT total FROM counter")).scalar_one()
        connection.execute(text("UPDATE counter SET total = :total"), {"total": total + 1})

    for _ in range(INCREMENTS):
        database.write(work)


@pytest.mark.parametrize("databases", [1, 4])
def test_transactions_that_read_before_they_write_lose_no_update(
    database: Database, database_url: str, databases: int
) -> None:
    database.write(lambda c: c.execute(text("CREATE TABLE counter AS SELECT 0 AS total")))
    replicas = Replicas(database_url)
    contenders: list[Callable[[Database], None]] = [increment] * 4
    if databases == 1:
        contenders = [lambda _: increment(database)] * 4
    replicas.race(*contenders)
    replicas.close()
    total = database.read(lambda c: c.execute(text("SELECT total FROM counter")).scalar_one())
    assert total == 4 * INCREMENTS


def test_a_locked_database_is_unavailable_for_writes_until_it_is_unlocked(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opservice.store.drivers.sqlite.driver._LOCK_WAIT_SECONDS", 0.01)
    impatient = open_database(database_url)
    start = Start(new_id(), DAY)

    with database.writer.connect() as connection, connection.begin():
        before = counted("opservice_database_begin_seconds_count")
        with pytest.raises(StoreUnavailable) as refused:
            apply_one(impatient, start)
        assert "database is locked" in str(refused.value.__cause__)
        assert counted("opservice_database_begin_seconds_count") > before
    assert apply_one(impatient, start).changed
    impatient.close()


def test_a_locked_database_is_read_all_the_same(database: Database, database_url: str) -> None:
    id_ = apply_one(database, Start(new_id(), DAY)).record.id
    other = open_database(database_url)
    with database.writer.connect() as connection, connection.begin():
        assert find(other, id_) is not None
    other.close()


def test_a_lock_that_is_soon_released_is_waited_for(database: Database, database_url: str) -> None:
    replicas = Replicas(database_url)

    def write_at_length(database: Database) -> Outcome:
        def work(connection: Connection) -> None:
            connection.execute(text("CREATE TABLE IF NOT EXISTS held (x)"))
            # Long enough for the others to meet the lock.
            connection.exec_driver_sql(
                "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 100000)"
                " SELECT max(x) FROM n"
            ).scalar()

        database.write(work)
        return apply_one(database, Start(new_id(), DAY))

    assert all(outcome.changed for outcome in replicas.race(*[write_at_length] * 4))
    replicas.close()


class FullDatabase:
    """A database whose writer may not let the file grow."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._most_pages = 1
        # SQLite raises a limit below the present size to that size.
        event.listen(database.writer, "engine_connect", self._limit)

    def make_room(self) -> None:
        self._most_pages = 1_000_000

    def _limit(self, connection: Connection) -> None:
        cursor = connection.connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {self._most_pages}")
        cursor.close()


@pytest.fixture
def full(database: Database) -> FullDatabase:
    return FullDatabase(database)


BIG = b"x" * 100_000


def test_a_full_database_refuses_a_batch_and_keeps_nothing_of_it(full: FullDatabase) -> None:
    small, big = Start("aaa", DAY), Start("bbb", DAY, metadata=BIG)
    with pytest.raises(StoreFull):
        apply(full.database, small, big)
    assert find(full.database, small.id) is None
    assert find(full.database, big.id) is None


def test_a_full_database_leaves_an_operation_as_it_was(full: FullDatabase) -> None:
    before = apply_one(full.database, Start(new_id(), DAY)).record
    with pytest.raises(StoreFull):
        apply_one(full.database, Complete(before.id, BIG))
    assert find(full.database, before.id) == before


def test_a_database_that_was_full_takes_writes_once_it_has_space(full: FullDatabase) -> None:
    start = Start(new_id(), DAY, metadata=BIG)
    with pytest.raises(StoreFull):
        apply_one(full.database, start)
    full.make_room()
    assert apply_one(full.database, start).changed


def test_a_full_database_still_takes_what_fits(full: FullDatabase) -> None:
    with pytest.raises(StoreFull):
        apply_one(full.database, Start(new_id(), DAY, metadata=BIG))
    assert apply_one(full.database, Start(new_id(), DAY)).changed
