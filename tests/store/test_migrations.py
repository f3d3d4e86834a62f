"""Migrations lead to exactly the metadata, and the metadata to plans that use its indexes."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, text

from opservice.domain.errors import StartupError
from opservice.domain.operation import DAY, CancelPolicy
from opservice.store import migrations
from opservice.store.engine import Database, open_database
from opservice.store.migrations import check_schema, migrate
from opservice.store.repository import Repository
from opservice.store.schema import metadata, operations
from store.conftest import EPOCH, Ops
from support.postgres import PostgresServer

HEAD = "0005"
"""The newest migration."""

NewUrl = Callable[[], str]


@pytest.fixture
def new_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> NewUrl:
    """Makes the URL of an empty database, another one each time."""
    if backend == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        return postgres.create_database
    numbers = iter(range(100))
    return lambda: f"sqlite:///{tmp_path}/empty-{next(numbers)}.db"


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = open_database(url)
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def empty(new_url: NewUrl) -> Iterator[Database]:
    with opened(new_url()) as database:
        yield database


_SQLITE_SCHEMA = (
    "SELECT name, type, \"notnull\", dflt_value, pk FROM pragma_table_info('operations') ORDER BY cid",
    "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'operations' ORDER BY 1",
)
_POSTGRESQL_SCHEMA = (
    """SELECT column_name, data_type, is_nullable, column_default, collation_name
    FROM information_schema.columns WHERE table_name = 'operations' ORDER BY ordinal_position""",
    "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'operations' ORDER BY 1",
)


def schema(database: Database) -> list[list[tuple[object, ...]]]:
    """Columns and indexes, with the predicates of partial indexes, in the database's own words."""
    queries = _SQLITE_SCHEMA if database.url.is_sqlite else _POSTGRESQL_SCHEMA

    def read(connection: Connection) -> list[list[tuple[object, ...]]]:
        return [[tuple(row) for row in connection.execute(text(query))] for query in queries]

    return database.read(read)


def test_alembic_sees_no_difference_between_the_migrations_and_the_metadata(
    database: Database,
) -> None:
    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    assert database.write(differences) == []


def test_the_migrated_schema_is_the_one_that_the_metadata_creates(
    database: Database, empty: Database
) -> None:
    empty.write(metadata.create_all)

    assert schema(database) == schema(empty)


def test_migrating_again_changes_nothing(database: Database) -> None:
    before = schema(database)

    revisions = migrate(database)

    assert revisions == (HEAD, HEAD)
    assert schema(database) == before


def test_migrating_keeps_the_operations(database: Database) -> None:
    id_ = Ops(database, Repository()).start().id

    migrate(database)

    assert Ops(database, Repository()).find(id_) is not None


def migrate_to(database: Database, revision: str) -> None:
    """As an earlier version of opservice did."""

    def work(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    database.write(work)


@pytest.mark.parametrize("revision", ["0001", "0002", "0003", "0004"])
def test_a_database_of_an_earlier_version_comes_to_the_schema_of_a_new_one(
    database: Database, empty: Database, revision: str
) -> None:
    migrate_to(empty, revision)

    assert migrate(empty) == (revision, HEAD)
    assert schema(empty) == schema(database)


def test_a_database_of_an_earlier_version_keeps_its_operations_as_they_are(
    empty: Database,
) -> None:
    migrate_to(empty, "0002")
    kept: dict[str, Any] = {
        "parent": "folders/f",
        "method": "a.B.C",
        "description": "before",
        "created_by": "alice",
        "created_at": EPOCH,
        "modified_at": EPOCH + 1,
        "cancel_policy": CancelPolicy.COOPERATIVE,
        "retention": DAY,
        "timeout_at": EPOCH + DAY,
    }
    running = {**kept, "id": "ops-running", "revision": 1, "done": False}
    ended = {"revision": 2, "done": True, "response": b"response", "expires_at": 2 * EPOCH}
    done = {**kept, **ended, "id": "ops-done"}
    with empty.writer.begin() as connection:
        for row in (running, done):
            connection.execute(insert(operations).values(row))

    migrate(empty)

    ops = Ops(empty, Repository())
    for row in (running, done):
        record = asdict(ops.get(row["id"]))
        assert row.items() <= record.items()
        assert (record["cancelled_by"], record["producer"], record["labels"]) == ("", "", "")


def test_a_server_of_the_version_before_goes_on_beside_the_new_schema(database: Database) -> None:
    added = {"cancelled_by", "producer", "labels", "traceparent"}
    started = asdict(Ops(database, Repository()).start())
    row = {name: value for name, value in started.items() if name not in added}
    row |= {"id": "ops-by-the-old", "cancel_policy": CancelPolicy(row["cancel_policy"])}
    with database.writer.begin() as connection:
        connection.execute(insert(operations).values(row))
    by_the_old = asdict(Ops(database, Repository()).get("ops-by-the-old"))
    assert {name: by_the_old[name] for name in added} == dict.fromkeys(added, "")


def test_a_database_of_an_earlier_version_is_refused_with_what_to_run(empty: Database) -> None:
    migrate_to(empty, "0002")

    with pytest.raises(StartupError, match=r"at schema 0002.*needs 0005.*run 'opservice migrate'"):
        check_schema(empty)


def test_migrating_says_from_where_and_to_where(empty: Database) -> None:
    assert migrate(empty) == (None, HEAD)


def test_a_migrated_database_passes_the_check(database: Database) -> None:
    check_schema(database)


def test_an_empty_database_is_refused_with_what_to_run(empty: Database) -> None:
    with pytest.raises(StartupError, match=r"no opservice schema.*run 'opservice migrate'"):
        check_schema(empty)


def test_checking_an_empty_database_leaves_it_empty(empty: Database) -> None:
    with pytest.raises(StartupError):
        check_schema(empty)

    assert schema(empty) == [[], []]


@pytest.fixture
def newer(database: Database) -> Database:
    """A database that a later version of opservice has migrated."""
    later = text("UPDATE alembic_version SET version_num = '9999'")
    database.write(lambda connection: connection.execute(later))
    return database


@pytest.mark.parametrize("step", [migrate, check_schema])
def test_a_database_of_a_newer_version_is_refused(
    newer: Database, step: Callable[[Database], object]
) -> None:
    with pytest.raises(StartupError, match=r"9999, which a newer opservice made"):
        step(newer)


_barrier: threading.Barrier


def migrate_when_all_are_ready(url: str) -> str:
    with opened(url) as database:
        _barrier.wait(60)
        _, after = migrate(database)
        check_schema(database)
        return after


def keep_barrier(barrier: threading.Barrier) -> None:
    """A pool can hand a barrier to its processes only when they start."""
    global _barrier
    _barrier = barrier


@pytest.mark.slow
def test_replicas_that_migrate_at_the_same_time_all_succeed(
    new_url: NewUrl, database: Database
) -> None:
    replicas = 4
    # Processes, as replicas are: Alembic keeps what it works on in globals.
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(replicas, keep_barrier, (spawn.Barrier(replicas),)) as processes:
        for _ in range(5):
            url = new_url()

            revisions = processes.map(migrate_when_all_are_ready, [url] * replicas, chunksize=1)

            assert revisions == [HEAD] * replicas
            with opened(url) as migrated:
                assert schema(migrated) == schema(database)


def test_a_new_sqlite_file_that_another_has_locked_is_waited_for(tmp_path: Path) -> None:
    # Not by SQLite itself: of this lock it says at once that the database is busy.
    file = tmp_path / "new.db"
    with opened(f"sqlite:///{file}") as database:
        # The same library: a process does not see its own locks through another.
        sqlite: Any = database.writer.dialect.loaded_dbapi
        other = sqlite.connect(file, isolation_level=None, check_same_thread=False)
        other.execute("CREATE TABLE something (x)")
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.5, other.rollback)
        release.start()

        revisions = migrate(database)

        release.join()
        other.close()
    assert revisions == (None, HEAD)
