"""PostgreSQL: what is retried, what counts as unavailable, and what is survived."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from threading import Barrier

import pytest
from sqlalchemy import Connection, text

from opservice.domain.errors import StoreBusy, StoreError, StoreUnavailable
from opservice.domain.operation import DAY, Complete, Start, new_id
from opservice.store.engine import Database, open_database
from store.conftest import connections_of
from support.postgres import PostgresServer
from support.replicas import REPOSITORY, Replicas, apply_one, find

QUICK_DEADLOCKS = "-c deadlock_timeout=20ms"
SERIALIZABLE = "-c default_transaction_isolation=serializable"


@pytest.fixture
def backend() -> str:
    return "postgresql"


@pytest.fixture
def opened(database_url: str) -> Iterator[Callable[[str], Replicas]]:
    """Opens the database with these server settings."""
    made: list[Replicas] = []

    def open_with(settings: str) -> Replicas:
        made.append(Replicas(f"{database_url}?options={settings.replace(' ', '%20')}"))
        return made[-1]

    yield open_with
    for replicas in made:
        replicas.close()


def make_rows(database: Database) -> None:
    database.write(
        lambda c: c.execute(
            text("CREATE TABLE rows AS SELECT i, 0 AS total FROM (VALUES (1), (2)) v(i)")
        )
    )


def totals(database: Database) -> list[int]:
    query = text("SELECT total FROM rows ORDER BY i")
    return database.read(lambda connection: list(connection.execute(query).scalars()))


def update_both(database: Database, order: tuple[int, int], met: Barrier) -> int:
    """Updates the rows in this order, the first time in step with the other. Returns the attempts."""
    attempts = 0

    def work(connection: Connection) -> None:
        nonlocal attempts
        attempts += 1
        for row in order:
            statement = text("UPDATE rows SET total = total + 1 WHERE i = :row")
            connection.execute(statement, {"row": row})
            if attempts == 1 and row == order[0]:
                met.wait()

    database.write(work)
    return attempts


def test_a_transaction_that_a_deadlock_ended_is_run_again(
    opened: Callable[[str], Replicas],
) -> None:
    replicas, met = opened(QUICK_DEADLOCKS), Barrier(2)
    make_rows(replicas[0])
    attempts = replicas.race(
        *(partial(update_both, order=order, met=met) for order in ((1, 2), (2, 1)))
    )
    assert max(attempts) > 1  # both, when both sides find the deadlock at the same moment
    assert totals(replicas[0]) == [2, 2]


def increment(database: Database, met: Barrier) -> int:
    """Reads, then writes what it read plus one. Returns the attempts."""
    attempts = 0

    def work(connection: Connection) -> None:
        nonlocal attempts
        attempts += 1
        total = connection.execute(text("SELECT total FROM rows WHERE i = 1")).scalar_one()
        if attempts == 1:
            met.wait()
        connection.execute(text("UPDATE rows SET total = :t WHERE i = 1"), {"t": total + 1})

    database.write(work)
    return attempts


def test_a_transaction_that_cannot_be_serialized_is_run_again(
    opened: Callable[[str], Replicas],
) -> None:
    replicas, met = opened(SERIALIZABLE), Barrier(2)
    make_rows(replicas[0])
    attempts = replicas.race(*[partial(increment, met=met)] * 2)
    assert min(attempts) == 1
    assert max(attempts) > 1
    assert totals(replicas[0])[0] == 2


def test_a_transaction_that_can_never_be_serialized_is_given_up_as_unavailable(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opservice.store.engine._FIRST_BACKOFF_SECONDS", 0)
    attempts = 0

    def work(connection: Connection) -> None:
        nonlocal attempts
        attempts += 1
        connection.execute(text("DO $$ BEGIN RAISE 'no' USING ERRCODE = '40001'; END $$"))

    with pytest.raises(StoreUnavailable):
        database.write(work)
    assert attempts > 1


def test_what_fails_for_another_reason_is_not_run_again(database: Database) -> None:
    attempts = 0

    def work(connection: Connection) -> None:
        nonlocal attempts
        attempts += 1
        connection.execute(text("SELECT 1 / 0"))

    with pytest.raises(StoreError):
        database.write(work)
    assert attempts == 1


def test_a_statement_that_takes_too_long_is_unavailable(database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text("SET LOCAL statement_timeout = '20ms'"))
        connection.execute(text("SELECT pg_sleep(60)"))

    with pytest.raises(StoreUnavailable):
        database.write(work)
    assert apply_one(database, Start(new_id(), DAY)).changed


def test_a_row_that_stays_locked_is_busy(
    database: Database, opened: Callable[[str], Replicas]
) -> None:
    id_ = apply_one(database, Start(new_id(), DAY)).record.id
    impatient = opened("-c lock_timeout=20ms")[0]
    with database.writer.connect() as connection, connection.begin():
        connection.execute(text("SELECT * FROM operations FOR UPDATE"))
        with pytest.raises(StoreBusy):
            apply_one(impatient, Complete(id_, b"answer"))
    assert apply_one(impatient, Complete(id_, b"answer")).changed


def test_a_session_that_stalls_in_a_transaction_does_not_keep_its_locks(
    database: Database, opened: Callable[[str], Replicas]
) -> None:
    id_ = apply_one(database, Start(new_id(), DAY)).record.id
    stalled = opened("-c idle_in_transaction_session_timeout=200ms")[0]
    with stalled.writer.connect() as connection:
        connection.execute(text("SELECT * FROM operations FOR UPDATE"))
        assert apply_one(database, Complete(id_, b"answer")).changed
        connection.invalidate()


@pytest.mark.parametrize(
    "setting",
    ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"],
)
@pytest.mark.parametrize("role", ["writer", "reader"])
def test_nothing_waits_for_ever(database: Database, role: str, setting: str) -> None:
    with getattr(database, role).connect() as connection:
        assert connection.execute(text(f"SHOW {setting}")).scalar_one() not in ("0", "")


def test_a_statement_that_is_no_longer_prepared_costs_no_call(database: Database) -> None:
    for _ in range(10):
        apply_one(database, Start(new_id(), DAY))
    assert connections_of(database).may_prepare()
    database.write(lambda c: c.connection.dbapi_connection.pgconn.exec_(b"DEALLOCATE ALL"))  # type: ignore[union-attr]

    for _ in range(10):
        apply_one(database, Start(new_id(), DAY))
    assert not connections_of(database).may_prepare()
    with database.writer.connect() as connection:
        assert connection.connection.dbapi_connection.prepare_threshold is None  # type: ignore[union-attr]


def test_callers_beyond_the_pool_are_told_that_the_database_is_unavailable(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opservice.store.drivers.postgresql.settings.CONNECT_SECONDS", 0)
    with closing(open_database(database_url, readers=1)) as database:
        with database.reader.connect(), pytest.raises(StoreUnavailable):
            find(database, "ops")
        assert find(database, "ops") is None


def test_connections_killed_between_transactions_go_unnoticed(
    database: Database, postgres: PostgresServer
) -> None:
    id_ = apply_one(database, Start(new_id(), DAY)).record.id
    assert find(database, id_) is not None
    postgres.kill_connections(database.url.database)
    assert find(database, id_) is not None
    postgres.kill_connections(database.url.database)
    assert apply_one(database, Complete(id_, b"answer")).changed


def test_a_connection_that_was_killed_is_replaced_to_look_for_a_pooler(
    database: Database, postgres: PostgresServer
) -> None:
    assert find(database, "ops") is None
    postgres.kill_connections(database.url.database)
    assert database.through_pooler() is False


def test_a_connection_killed_within_a_transaction_has_the_transaction_run_again(
    database: Database, postgres: PostgresServer
) -> None:
    starts = [Start(new_id(), DAY) for _ in range(2)]
    attempts = 0

    def work(connection: Connection) -> bool:
        nonlocal attempts
        attempts += 1
        REPOSITORY.apply(connection, starts[:1])
        if attempts == 1:
            postgres.kill_connections(database.url.database)
        REPOSITORY.apply(connection, starts[1:])
        return True

    assert database.write(work)
    assert attempts == 2
    assert [find(database, start.id) is not None for start in starts] == [True, True]


def test_a_connection_killed_just_before_its_commit_has_the_transaction_run_again(
    database: Database, postgres: PostgresServer
) -> None:
    start = Start(new_id(), DAY)
    attempts = 0

    def work(connection: Connection) -> None:
        nonlocal attempts
        attempts += 1
        REPOSITORY.apply(connection, [start])
        if attempts == 1:
            postgres.kill_connections(database.url.database)

    database.write(work)
    assert attempts == 2
    assert find(database, start.id) is not None


def test_a_connection_that_is_killed_every_time_makes_the_database_unavailable(
    database: Database, postgres: PostgresServer
) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text("SELECT 1"))
        postgres.kill_connections(database.url.database)

    with pytest.raises(StoreUnavailable):
        database.write(work)
    assert apply_one(database, Start(new_id(), DAY)).changed


def test_a_standby_is_unavailable_even_for_reads_until_it_is_the_primary(
    database: Database, promote: Callable[[], None]
) -> None:
    start = Start(new_id(), DAY)
    with pytest.raises(StoreUnavailable):
        apply_one(database, start)
    with pytest.raises(StoreUnavailable):
        find(database, start.id)
    promote()
    assert apply_one(database, start).changed
    assert find(database, start.id) is not None


def test_a_connection_to_what_has_become_a_standby_is_not_used_again(
    database_url: str, promote: Callable[[], None]
) -> None:
    with closing(open_database(f"{database_url}?target_session_attrs=any")) as connected:
        assert find(connected, "ops") is None
        with pytest.raises(StoreUnavailable) as refused:
            apply_one(connected, Start(new_id(), DAY))
        assert "read-only transaction" in str(refused.value.__cause__)
        promote()
        assert apply_one(connected, Start(new_id(), DAY)).changed
        read_only = connected.read(
            lambda c: c.execute(text("SHOW transaction_read_only")).scalar_one()
        )
        assert read_only == "off"


def test_a_session_that_is_read_only_is_no_proof_of_writing(
    opened: Callable[[str], Replicas],
) -> None:
    replicas = opened("-c default_transaction_read_only=on&target_session_attrs=any")
    with pytest.raises(StoreUnavailable):
        replicas[0].prove_write()
